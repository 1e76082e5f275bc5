"""From chosen expressions of an example to the arrays of a Batch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool
from PIL import Image

from s2rm_jax.errors import UserError
from s2rm_jax.input.example import Batch, Example
from s2rm_jax.input.images import load_picture, normalize, resize_image
from s2rm_jax.input.masks import means_nothing, rasterize, resize_mask
from s2rm_jax.input.tokens import Tokenizer


@dataclass(frozen=True)
class View:
    """A picture (RGB) with n chosen sentences as they will be seen, still at the picture's own size.

    `masks` has one mask for each referent of the sentences. `referents` says for each sentence which of them it is,
    None where it refers to nothing; `names` what to call it in an error.
    """

    picture: Image.Image
    sentences: tuple[str, ...]
    masks: tuple[Bool[np.ndarray, "height width"], ...]
    referents: tuple[int | None, ...]
    names: tuple[str, ...]


def view_of(example: Example, chosen: list[int]) -> View:
    """Reads the picture of an example and the masks of its expressions `chosen`.

    Raises:
        UserError: names the example and what is wrong with its picture or its masks.
    """
    try:
        picture = load_picture(example.image)
    except UserError as error:
        raise (UserError(f"example {example.id}: {error}") if isinstance(example.image, bytes) else error) from error
    if picture.size != (example.width, example.height):
        raise UserError(
            f"the picture of example {example.id} is {picture.width} x {picture.height} pixels, but its "
            f"annotation says {example.width} x {example.height}: {_name(example)} is not the annotated file."
        )
    expressions = [example.expressions[index] for index in chosen]
    names = tuple(f"{_name(example)}, expression {expression.id}" for expression in expressions)
    masks: list[np.ndarray] = []
    referents: list[int | None] = []
    numbers: dict[int, int | None] = {}  # sentences about one referent share its segmentation; its mask is made once
    for name, expression in zip(names, expressions, strict=True):
        key = id(expression.segmentation)
        if expression.has_target and key not in numbers:
            try:
                mask = rasterize(expression.segmentation, example.height, example.width)
            except UserError as error:
                raise UserError(f"{name}: {error}") from error
            numbers[key] = None if means_nothing(expression.segmentation, mask) else len(masks)
            masks += [] if numbers[key] is None else [mask]
        referents.append(numbers[key] if expression.has_target else None)
    sentences = tuple(expression.sentence for expression in expressions)
    return View(picture, sentences, tuple(masks), tuple(referents), names)


@dataclass(frozen=True)
class Encoder:
    """Turns a view, or chosen expressions of an example, into the arrays of a Batch without the batch axis."""

    tokenizer: Tokenizer
    image_size: tuple[int, int]
    expressions: int  # K

    def __call__(self, example: Example, chosen: list[int]) -> Batch:
        """Encodes expressions `chosen` (at most K of them) and fills up to K with invalid ones."""
        return self.arrays(view_of(example, chosen))

    def arrays(self, view: View) -> Batch:
        """Encodes a view of at most K expressions and fills up to K with invalid ones.

        Raises:
            UserError: names the expression whose sentence has no words.
        """
        shape = (self.expressions, self.tokenizer.max_tokens)
        tokens, token_mask = np.zeros(shape, np.int32), np.zeros(shape, bool)
        targets = np.zeros((self.expressions, *self.image_size), bool)
        has_target = np.zeros(self.expressions, bool)
        masks = [resize_mask(mask, self.image_size) for mask in view.masks]
        for row, (sentence, referent) in enumerate(zip(view.sentences, view.referents, strict=True)):
            try:
                tokens[row], token_mask[row] = self.tokenizer.encode(sentence)
            except UserError as error:
                raise UserError(f"{view.names[row]}: {error}") from error
            if referent is not None:
                targets[row], has_target[row] = masks[referent], True
        pixels = normalize(resize_image(view.picture, self.image_size))
        valid = np.arange(self.expressions) < len(view.sentences)
        return Batch(pixels, tokens, token_mask, targets, valid, has_target)


def _name(example: Example) -> str:
    if isinstance(example.image, Path):
        return str(example.image)
    return "the array" if isinstance(example.image, np.ndarray) else f"the picture of example {example.id}"
