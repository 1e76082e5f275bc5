"""The demo: a small network on generated scenes, from scratch on a CPU.

    python -m s2rm_jax.train --config configs/synthetic.py --workdir runs/demo
    python -m s2rm_jax.evaluate --workdir runs/demo --split test --gallery 16

Scenes of 3 to 5 objects with attributes, superlatives and relations in equal shares; README.md has the measured result
and time. The difficulty of the scenes (s2rm_jax/input/synthetic/scene.py) can be set, for example
--config.input.source.max_objects=7.
"""

from ml_collections import ConfigDict

from s2rm_jax.config import default_config
from s2rm_jax.recipes import set_tiny_network


def get_config() -> ConfigDict:
    config = default_config()
    config.steps = 1800
    config.batch_size = 8  # many small steps learn the meaning of words faster than few large ones
    config.log_every = 100
    config.checkpoint_every = 600

    config.input.source = ConfigDict(
        {
            "name": "synthetic",
            "seed": 0,
            "image_size": (96, 96),
            "min_objects": 3,
            "max_objects": 5,
            "object_scale": 1.5,
            "shapes": ("circle", "square", "triangle", "star", "heart"),
            "colours": ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink"),
            "textures": ("plain",),
            "sizes": ("small", "large"),
            "shapes_per_scene": 2,
            "colours_per_scene": 3,
            "distractors": 0.0,
            "max_occlusion": 0.25,
            "kinds": ("attribute", "superlative", "relation"),
            "expressions_per_scene": 4,
        }
    )
    config.input.image_size = (96, 96)
    config.input.expressions_per_image = 4

    set_tiny_network(config)
    config.eval.update(split="val", every=600, batch_size=32, limit=128)
    return config
