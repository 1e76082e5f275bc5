"""Draw training data: images, masks and expressions at the output of the input pipeline.

    python -m s2rm_jax.show_input --config configs/synthetic.py --out input.png
    python -m s2rm_jax.show_input --config configs/synthetic.py --out input.png --config.input.augment.flip=0.5

Each column is an image of the first batch; images of a small split repeat. The first row shows it without augmentation;
a further row for each enabled kind of augmentation shows it with that kind alone. An image that equals the first row
was not augmented, because its expressions do not allow it. Nothing is trained.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags
from ml_collections import ConfigDict
from ml_collections.config_flags import config_flags
from PIL import Image

from s2rm_jax import command_line
from s2rm_jax.errors import counted

if TYPE_CHECKING:
    from s2rm_jax.input.example import Batch, Source
    from s2rm_jax.input.tokens import Tokenizer

FLAGS = flags.FlagValues()
CONFIG = config_flags.DEFINE_config_file("config", None, command_line.CONFIG_HELP, flag_values=FLAGS)
OUT = flags.DEFINE_string("out", None, "PNG file to write", flag_values=FLAGS)
NUMBER = flags.DEFINE_integer("number", 5, "number of images to draw", lower_bound=1, flag_values=FLAGS)
SIDE = flags.DEFINE_integer("side", 224, "longer side of a drawn image in pixels", lower_bound=32, flag_values=FLAGS)

KINDS = {"mirrored": ("flip",), "cropped": ("crop",), "hidden": ("hide_patches", "hide_words")}


@command_line.returns_result(FLAGS)
def main() -> dict[str, Any]:
    """Draw the images that the flags select."""
    from s2rm_jax.config import check_config
    from s2rm_jax.evaluation.overlay import image_bytes
    from s2rm_jax.io import write_atomically, writing

    assert CONFIG.value is not None and OUT.value is not None  # required
    check_config(CONFIG.value)
    page = draw(CONFIG.value, NUMBER.value, SIDE.value)
    with writing(Path(OUT.value)):
        write_atomically(Path(OUT.value), image_bytes(page))
    split = CONFIG.value.input.train_split
    of_split = "" if split == "train" else f" from {split}"
    print(f"{OUT.value} shows {counted(NUMBER.value, 'training image')}{of_split} (some may repeat)")
    rows = [label for label, _ in kinds_of(CONFIG.value)]
    return {"file": OUT.value, "images": NUMBER.value, "split": split, "rows": rows}


def draw(config: ConfigDict, number: int, side: int) -> Image.Image:
    """Return the page: one row per kind of augmentation, with `number` images of `side` pixels each."""
    from s2rm_jax.evaluation.overlay import stack
    from s2rm_jax.input.pipeline import build_tokenizer
    from s2rm_jax.input.sources import build_source

    source = build_source(
        config.input.source, config.input.train_split, training=True, on_bad_example=config.input.on_bad_example
    )
    tokenizer = build_tokenizer(config, source)
    strips = [
        strip(label, first_batch(one, source, tokenizer, number), tokenizer, side) for label, one in kinds_of(config)
    ]
    return stack(strips)


def kinds_of(config: ConfigDict) -> Iterator[tuple[str, ConfigDict]]:
    """Yield the configuration without augmentation, then with each enabled kind alone, applied wherever possible."""
    for label, fields in {"as it is": (), **KINDS}.items():
        values = {field: config.input.augment[field] for field in fields}
        if fields and not any(values.values()):
            continue
        alone = copy.deepcopy(config)
        alone.input.augment.update({field: 0.0 for of_kind in KINDS.values() for field in of_kind})
        alone.input.augment.update({f: 1.0 if f in ("flip", "crop") else value for f, value in values.items()})
        yield label, alone


def first_batch(config: ConfigDict, source: Source, tokenizer: Tokenizer, number: int) -> Batch:
    """Return the first `number` rows of training, the same ones for all augmentations."""
    from s2rm_jax.input.pipeline import train_batches

    config = copy.deepcopy(config)
    config.update(batch_size=number)
    config.input.workers = 0
    return next(train_batches(source, tokenizer, config))


def strip(label: str, batch: Batch, tokenizer: Tokenizer, side: int) -> Image.Image:
    """Draw the images of a batch side by side with masks and expressions, under a label.

    Expressions have the colour of their object.
    """
    from s2rm_jax.evaluation import overlay
    from s2rm_jax.input.encode import unpack_masks

    height, width = batch.images.shape[1:3]
    size = overlay.fit_size(height, width, side)
    text, gap = max(11, side // 17), 8
    step = size[0] + gap
    legends = []
    for tokens, valid, has_target in zip(batch.tokens, batch.valid, batch.has_target, strict=True):
        words = [" ".join(tokenizer.words(row)[1:-1]).replace(" ##", "") for row in tokens[valid]]
        named = [word if there else f"{word} (nothing)" for word, there in zip(words, has_target[valid], strict=True)]
        legends.append([overlay.wrap(word, size[0], text, max_lines=3) for word in named])
    line = overlay.line_height(text)
    lines = max(sum(map(len, legend)) for legend in legends)
    canvas = Image.new("RGB", (len(legends) * step + gap, line + 2 * gap + size[1] + lines * line), "white")
    overlay.draw_lines(canvas, [label], (gap, gap // 2), text)
    for column, legend in enumerate(legends):
        masks = list(unpack_masks(batch.targets[column][batch.valid[column]], height))
        objects = list({mask.tobytes(): mask for mask in masks}.values())  # several expressions may share one
        colour_of = {mask.tobytes(): colour for mask, colour in zip(objects, cycle(overlay.DISTINCT_COLOURS))}
        colours = [colour_of[mask.tobytes()] for mask in masks]
        image = overlay.fit_image(batch.images[column], size)
        layer = overlay.mask_layer(objects, list(colour_of.values()), size, shade=0.0)
        at = (gap + column * step, gap + line)
        canvas.paste(overlay.lay_over(image, layer), at)
        y = at[1] + size[1]
        for colour, expression in zip(colours, legend, strict=True):
            y = overlay.draw_lines(canvas, expression, (at[0], y), text, colour)
    return canvas


if __name__ == "__main__":
    command_line.run_and_exit(main, FLAGS, __doc__, required=("config", "out"))
