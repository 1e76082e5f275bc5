"""Encoding of chosen expressions of an example as the arrays of a Batch, and packing of masks.

Images stay uint8 and masks take one bit per pixel: a fifth of the bytes of normalized floats and booleans, which
workers, host and device copy several times. The functions that undo this use operators only, so they accept NumPy and
JAX arrays.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt8

from s2rm_jax.errors import UserError
from s2rm_jax.input.example import Batch, Example, Segmentation
from s2rm_jax.input.images import resize_image
from s2rm_jax.input.masks import Grid, has_pixels, rasterize
from s2rm_jax.input.tokens import Tokenizer

MEAN_COLOUR = (124, 116, 104)  # RGB; the ImageNet mean, which the network normalizes to almost zero
_SHIFTS = np.arange(7, -1, -1, dtype=np.uint8)  # of the bits of a byte, the uppermost pixel first


def pack_mask(mask: Bool[np.ndarray, "height width"]) -> UInt8[np.ndarray, "width bytes"]:
    """Pack eight vertical neighbours into a byte; the end of a column is padded with 0.

    The packing is by columns, because masks from COCO's run lengths are stored in column order.
    """
    return np.packbits(np.ascontiguousarray(mask.T), axis=-1)


def packed_shape(height: int, width: int) -> tuple[int, int]:
    """Return the shape of a packed mask."""
    return width, -(-height // 8)


def unpack_masks(packed: UInt8[Any, "*batch width bytes"], height: int) -> Bool[Any, "*batch {height} width"]:
    """Invert `pack_mask` for masks of `height` rows."""
    bits = (packed[..., None] >> _SHIFTS) & 1
    columns = bits.reshape(*packed.shape[:-1], 8 * packed.shape[-1])
    return columns[..., :height].swapaxes(-1, -2) != 0


@dataclass(frozen=True)
class View:
    """An RGB image with n chosen expressions, augmented but not yet resized.

    `segmentations` has one entry for each referent, in the pixels of the file; `shown` is the part of them that the
    image shows. For each expression, `referents` is the index of its segmentation, None if it refers to nothing, and
    `names` is its name in error messages.
    """

    image: UInt8[np.ndarray, "height width 3"]
    texts: tuple[str, ...]
    segmentations: tuple[Segmentation, ...]
    referents: tuple[int | None, ...]
    names: tuple[str, ...]
    shown: Grid

    def masks(self, size: tuple[int, int] | None = None) -> list[Bool[np.ndarray, "height width"]]:
        """Return the mask of each referent at the size of the image, or resized to (height, width).

        Raises:
            UserError: a mask is damaged; names the expression.
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
    """Read the image of an example and the expressions at the positions `chosen`.

    Raises:
        UserError: the image or a mask file is damaged or of the wrong size; names the example.
    """
    try:
        image = example.load_image()
    except UserError as error:
        raise (UserError(f"example {example.id}: {error}") if isinstance(example.image, bytes) else error) from error
    height, width = image.shape[:2]
    if (height, width) != (example.height, example.width):
        raise UserError(
            f"the image of example {example.id} is {width} x {height} pixels, but its "
            f"annotation says {example.width} x {example.height}: replace {_name(example)}, or correct the annotation"
        )
    expressions = [example.expressions[index] for index in chosen]
    names = tuple(f"{_name(example)}, expression {expression.id}" for expression in expressions)
    segmentations: list[Segmentation] = []
    referents: list[int | None] = []
    numbers: dict[int, int | None] = {}  # expressions of one referent share the segmentation and the mask
    for name, expression in zip(names, expressions, strict=True):
        key = id(expression.segmentation)
        if expression.has_target and key not in numbers:
            segmentation = expression.segmentation
            try:
                if isinstance(segmentation, dict) and "png" in segmentation:  # read the file once
                    segmentation = rasterize(segmentation, height, width)
                targeted = has_pixels(segmentation, height, width)
            except UserError as error:
                raise UserError(f"{name}: {error}") from error
            numbers[key] = len(segmentations) if targeted else None
            segmentations += [segmentation] if targeted else []
        referents.append(numbers[key] if expression.has_target else None)
    texts = tuple(expression.text for expression in expressions)
    return View(image, texts, tuple(segmentations), tuple(referents), names, Grid.whole(height, width))


@dataclass(frozen=True)
class Encoder:
    """Encoder of views, or of chosen expressions of examples, as the arrays of a Batch without the batch axis."""

    tokenizer: Tokenizer
    image_size: tuple[int, int]
    expressions: int  # K
    resize: Callable[[np.ndarray, tuple[int, int]], np.ndarray] = resize_image

    def empty(self) -> Batch:
        """Return the arrays of padding: a black image without expressions."""
        shape = (self.expressions, self.tokenizer.max_tokens)
        return Batch(
            images=np.zeros((*self.image_size, 3), np.uint8),
            tokens=np.zeros(shape, np.int32),
            token_mask=np.zeros(shape, bool),
            targets=np.zeros((self.expressions, *packed_shape(*self.image_size)), np.uint8),
            valid=np.zeros(self.expressions, bool),
            has_target=np.zeros(self.expressions, bool),
        )

    def __call__(self, example: Example, chosen: list[int]) -> Batch:
        """Encode at most K chosen expressions, padded to K with invalid ones."""
        return self.arrays(view_of(example, chosen))

    def arrays(self, view: View) -> Batch:
        """Encode a view of at most K expressions, padded to K with invalid ones.

        Raises:
            UserError: an expression has no words or a damaged mask; names the expression.
        """
        _, tokens, token_mask, targets, valid, has_target = self.empty()
        masks = [pack_mask(mask) for mask in view.masks(self.image_size)]
        for row, (expression, referent) in enumerate(zip(view.texts, view.referents, strict=True)):
            try:
                tokens[row], token_mask[row] = self.tokenizer.encode(expression)
            except UserError as error:
                raise UserError(f"{view.names[row]}: {error}") from error
            if referent is not None:
                targets[row], has_target[row] = masks[referent], True
        valid[: len(view.texts)] = True
        return Batch(self.resize(view.image, self.image_size), tokens, token_mask, targets, valid, has_target)


def _name(example: Example) -> str:
    if isinstance(example.image, Path):
        return str(example.image)
    return "the array" if isinstance(example.image, np.ndarray) else f"the image of example {example.id}"
