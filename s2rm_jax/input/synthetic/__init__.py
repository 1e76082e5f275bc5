"""Synthetic data generated on the fly: scenes of shapes, expressions from a grammar, exact masks."""

from s2rm_jax.input.synthetic.scene import SceneConfig
from s2rm_jax.input.synthetic.source import SyntheticSource

__all__ = ["SceneConfig", "SyntheticSource"]
