"""The synthetic benchmark: spatial relations in isolation, for a tiny network on a CPU (docs/synthetic_benchmark.md).

    python -m s2rm_jax.train --config configs/synthetic_benchmark.py --workdir runs/benchmark
    python -m s2rm_jax.evaluate --workdir runs/benchmark --split test --checkpoint latest
    python -m s2rm_jax.evaluate --workdir runs/benchmark --split compositional --checkpoint latest

Mean IoU on test is 67.3 ± 1.1 over five seeds (docs/results/ablations.md), after about 7 minutes on one core of an AMD
EPYC (Zen 5).

Fixed: the scenes of input.source, and a budget of 2,000 steps of 8 scenes, so that each of the 16,000 training scenes
is used once. Free to vary: the network, the loss and the optimizer. The scenes are harder than those of synthetic.py: 5
to 7 objects of at most three shapes and three colours per scene, half of them equal to another one in all attributes
but one, and expressions of five kinds in equal shares, including ordinals and chains of two relations.

    python -m s2rm_jax.train --config configs/synthetic_benchmark.py:long --workdir runs/long

`long` trains the small network bundled with the package: the same network and scenes, with five times the steps and
training scenes.

    python -m s2rm_jax.train --config configs/synthetic_benchmark.py:far --workdir runs/far

`far` is a second setting in which vision does not relate all objects by itself: 160 x 160 pixels, and attention in
windows of 3 x 3; the last stage has 10 x 10 positions. It has 8 to 12 objects on a grid of 5 x 5 cells, and expressions
with distant landmarks: "between", "nearest to", ordinals in a row or column, and chains of three relations.

    python -m s2rm_jax.train --config configs/synthetic_benchmark.py:far_long --workdir runs/far_long

`far_long` is `far` with four times the steps and training scenes: at the budget of `far`, relations are hardly learned.
"""

from ml_collections import ConfigDict

from s2rm_jax.config import default_config
from s2rm_jax.errors import UserError
from s2rm_jax.recipes import set_tiny_network

VARIANTS = ("", "far", "far_long", "long")


def get_config(variant: str = "") -> ConfigDict:
    if variant not in VARIANTS:
        known = ", ".join(map(repr, VARIANTS[1:]))
        raise UserError(f"configs/synthetic_benchmark.py has no variant {variant!r}; available: {known}")
    config = default_config()
    config.steps = 2000
    config.batch_size = 8
    config.log_every = 100
    config.checkpoint_every = 500

    config.input.source = ConfigDict(
        {
            "name": "synthetic",
            "seed": 20_240_509,
            "train_length": 16_000,
            "image_size": (96, 96),
            "min_objects": 5,
            "max_objects": 7,
            "object_scale": 1.2,
            "shapes": ("circle", "triangle", "star", "ring"),  # distinguishable at 20 pixels
            "colours": ("red", "yellow", "green", "cyan", "blue", "pink"),
            "textures": ("plain",),
            "sizes": ("small", "large"),
            "shapes_per_scene": 3,
            "colours_per_scene": 3,
            "distractors": 0.5,
            "max_occlusion": 0.2,
            "kinds": ("attribute", "superlative", "relation", "two_step", "ordinal"),
            "expressions_per_scene": 4,
        }
    )
    config.input.image_size = (96, 96)
    config.input.expressions_per_image = 4

    set_tiny_network(config)
    config.text.max_tokens = 26  # the longest expression has 24 words
    config.eval.update(split="val", every=500, batch_size=32, limit=128)
    if variant in ("far", "far_long"):
        _set_far(config)
    if variant == "far_long":
        _set_length(config, steps=8_000)
    if variant == "long":
        _set_length(config, steps=10_000)
    return config


def _set_length(config: ConfigDict, steps: int) -> None:
    config.steps = steps
    config.input.source.train_length = steps * config.batch_size  # each scene is used once here too
    config.eval.every = 1_000


def _set_far(config: ConfigDict) -> None:
    config.batch_size = 4
    config.input.source.update(
        train_length=8_000,
        image_size=(160, 160),
        min_objects=8,
        max_objects=12,
        object_scale=0.46,
        sizes=("large",),
        shapes_per_scene=4,
        colours_per_scene=4,
        grid=5,
        kinds=("attribute", "relation", "nearest", "three_step", "between", "in_line"),
        expressions_per_scene=6,  # one of each kind
    )
    config.input.image_size = (160, 160)
    config.input.expressions_per_image = 6
    config.vision.update(embed_dim=32, num_heads=(2, 4, 8), window_size=3)
    config.decoder.widths = (16, 32, 64)
    config.text.update(vocab_size=72, max_tokens=32)  # the longest expression has 30 words
