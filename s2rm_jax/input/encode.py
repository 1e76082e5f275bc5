"""From chosen expressions of an example to the arrays of a Batch.

Images and masks as they travel to the devices, in few bytes, and what the network and the loss make of them there.

An image is uint8 and a mask has one bit a pixel: that is a fifth of what normalised floats and booleans take, and
workers, host and device copy it several times. What undoes it is written with operators alone, which mean the same for
NumPy's arrays and JAX's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, UInt8

from s2rm_jax.errors import UserError
from s2rm_jax.input.example import Batch, Example, Segmentation
from s2rm_jax.input.images import load_image, resize_image
from s2rm_jax.input.masks import Grid, is_mask_file, rasterize
from s2rm_jax.input.tokens import Tokenizer

IMAGENET_MEAN = (0.485, 0.456, 0.406)  # RGB, of values in [0, 1]
IMAGENET_STD = (0.229, 0.224, 0.225)
MEAN_COLOUR = tuple(round(255 * mean) for mean in IMAGENET_MEAN)  # as near to 0 as a normalised image comes

_SCALE = (1.0 / (255.0 * np.asarray(IMAGENET_STD))).astype(np.float32)
_OFFSET = (-np.asarray(IMAGENET_MEAN) / np.asarray(IMAGENET_STD)).astype(np.float32)
_PLACES = np.arange(7, -1, -1, dtype=np.uint8)  # of the bits of a byte, the uppermost pixel's first


def normalize(images: UInt8[Any, "*batch height width 3"]) -> Float32[Any, "*batch height width 3"]:
    """Scale RGB values to [0, 1], subtracts the ImageNet mean and divides by the ImageNet standard deviation."""
    return images.astype(np.float32) * _SCALE + _OFFSET


def pack_mask(mask: Bool[np.ndarray, "height width"]) -> UInt8[np.ndarray, "width bytes"]:
    """Pack eight neighbours of a column into a byte; what is missing at the end of a column is 0.

    By columns, as masks lie in memory that were made of COCO's run lengths.
    """
    return np.packbits(np.ascontiguousarray(mask.T), axis=-1)


def packed_shape(height: int, width: int) -> tuple[int, int]:
    """Return the shape of what `pack_mask` makes."""
    return width, -(-height // 8)


def unpack_masks(packed: UInt8[Any, "*batch width bytes"], height: int) -> Bool[Any, "*batch {height} width"]:
    """Undo `pack_mask` for masks that are `height` pixels high."""
    bits = (packed[..., None] >> _PLACES) & 1
    columns = bits.reshape(*packed.shape[:-1], 8 * packed.shape[-1])
    return columns[..., :height].swapaxes(-1, -2) != 0


@dataclass(frozen=True)
class View:
    """An image (RGB) with n chosen expressions as they will be seen, still at the image's own size.

    `segmentations` has one for each referent of the expressions, in the pixels of the file; `shown` says which of these
    the image shows. `referents` says for each expression which of the referents is its, None where it refers to
    nothing; `names` what to call it in an error.
    """

    image: UInt8[np.ndarray, "height width 3"]
    texts: tuple[str, ...]
    segmentations: tuple[Segmentation, ...]
    referents: tuple[int | None, ...]
    names: tuple[str, ...]
    shown: Grid

    def masks(self, size: tuple[int, int] | None = None) -> list[Bool[np.ndarray, "height width"]]:
        """Return the mask of each referent, as large as the image or resized to (height, width).

        Raises:
            UserError: names an expression and what is wrong with its mask.
        """
        grid = self.shown.resized(size or self.image.shape[:2])
        masks = []
        for number, segmentation in enumerate(self.segmentations):
            try:
                masks.append(rasterize(segmentation, *grid.size, grid))
            except UserError as error:
                raise UserError(f"{self.names[self.referents.index(number)]}: {error}") from error
        return masks


def view_of(example: Example, chosen: list[int]) -> View:
    """Read the image of an example for its expressions `chosen`.

    Raises:
        UserError: names the example and what is wrong with its image or the file of a mask.
    """
    try:
        image = load_image(example.image)
    except UserError as error:
        raise (UserError(f"example {example.id}: {error}") if isinstance(example.image, bytes) else error) from error
    height, width = image.shape[:2]
    if (height, width) != (example.height, example.width):
        raise UserError(
            f"the image of example {example.id} is {width} x {height} pixels, but its "
            f"annotation says {example.width} x {example.height}: {_name(example)} is not the annotated file."
        )
    expressions = [example.expressions[index] for index in chosen]
    names = tuple(f"{_name(example)}, expression {expression.id}" for expression in expressions)
    segmentations: list[Segmentation] = []
    referents: list[int | None] = []
    numbers: dict[int, int | None] = {}  # expressions about one referent share its segmentation; its mask is made once
    for name, expression in zip(names, expressions, strict=True):
        key = id(expression.segmentation)
        if expression.has_target and key not in numbers:
            segmentation, nothing = expression.segmentation, False
            if is_mask_file(segmentation):  # the whole of it is needed to know whether it is black
                try:
                    segmentation = rasterize(segmentation, height, width)
                except UserError as error:
                    raise UserError(f"{name}: {error}") from error
                nothing = not segmentation.any()
            numbers[key] = None if nothing else len(segmentations)
            segmentations += [] if nothing else [segmentation]
        referents.append(numbers[key] if expression.has_target else None)
    texts = tuple(expression.text for expression in expressions)
    return View(image, texts, tuple(segmentations), tuple(referents), names, Grid.whole(height, width))


@dataclass(frozen=True)
class Encoder:
    """Turn a view, or chosen expressions of an example, into the arrays of a Batch without the batch axis."""

    tokenizer: Tokenizer
    image_size: tuple[int, int]
    expressions: int  # K
    resize: Callable[[np.ndarray, tuple[int, int]], np.ndarray] = resize_image

    def __call__(self, example: Example, chosen: list[int]) -> Batch:
        """Encode expressions `chosen` (at most K of them) and fills up to K with invalid ones."""
        return self.arrays(view_of(example, chosen))

    def arrays(self, view: View) -> Batch:
        """Encode a view of at most K expressions and fills up to K with invalid ones.

        Raises:
            UserError: names the expression whose expression has no words, or whose mask has something wrong with it.
        """
        shape = (self.expressions, self.tokenizer.max_tokens)
        tokens, token_mask = np.zeros(shape, np.int32), np.zeros(shape, bool)
        targets = np.zeros((self.expressions, *packed_shape(*self.image_size)), np.uint8)
        has_target = np.zeros(self.expressions, bool)
        masks = [pack_mask(mask) for mask in view.masks(self.image_size)]
        for row, (expression, referent) in enumerate(zip(view.texts, view.referents, strict=True)):
            try:
                tokens[row], token_mask[row] = self.tokenizer.encode(expression)
            except UserError as error:
                raise UserError(f"{view.names[row]}: {error}") from error
            if referent is not None:
                targets[row], has_target[row] = masks[referent], True
        pixels = self.resize(view.image, self.image_size)
        valid = np.arange(self.expressions) < len(view.texts)
        return Batch(pixels, tokens, token_mask, targets, valid, has_target)


def _name(example: Example) -> str:
    if isinstance(example.image, Path):
        return str(example.image)
    return "the array" if isinstance(example.image, np.ndarray) else f"the image of example {example.id}"
