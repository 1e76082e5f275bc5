"""s2rm_jax: referring image segmentation in JAX/Flax (S2RM, arXiv 2405.09006)."""

__version__ = "0.1.0"
