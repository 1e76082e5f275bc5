"""From chosen expressions of an example to the arrays of a Batch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, UInt8

from s2rm_jax.errors import UserError
from s2rm_jax.input.example import Batch, Example
from s2rm_jax.input.images import load_image, normalize, resize_image
from s2rm_jax.input.masks import rasterize, resize_mask
from s2rm_jax.input.tokens import Tokenizer


@dataclass(frozen=True)
class View:
    """A picture with n chosen sentences as they will be seen, still at the picture's own size.

    `masks` is empty where `has_target` is false; `name` is what to call the example in an error.
    """

    image: UInt8[np.ndarray, "height width 3"]
    sentences: tuple[str, ...]
    masks: Bool[np.ndarray, "n height width"]
    has_target: tuple[bool, ...]
    names: tuple[str, ...]


def view_of(example: Example, chosen: list[int]) -> View:
    """Reads the picture of an example and the masks of its expressions `chosen`.

    Raises:
        UserError: names the example and what is wrong with its picture or its masks.
    """
    image = load_image(example.image, apply_exif=False)
    if image.shape[:2] != (example.height, example.width):
        raise UserError(
            f"the picture of example {example.id} is {image.shape[1]} x {image.shape[0]} pixels, but its "
            f"annotation says {example.width} x {example.height}: {_name(example)} is not the annotated file."
        )
    masks = np.zeros((len(chosen), example.height, example.width), bool)
    expressions = [example.expressions[index] for index in chosen]
    names = tuple(f"{_name(example)}, expression {expression.id}" for expression in expressions)
    for row, expression in enumerate(expressions):
        if expression.has_target:
            try:
                masks[row] = rasterize(expression.segmentation, example.height, example.width)
            except UserError as error:
                raise UserError(f"{names[row]}: {error}") from error
    sentences = tuple(expression.sentence for expression in expressions)
    return View(image, sentences, masks, tuple(expression.has_target for expression in expressions), names)


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
        for row, (sentence, mask) in enumerate(zip(view.sentences, view.masks, strict=True)):
            try:
                tokens[row], token_mask[row] = self.tokenizer.encode(sentence)
            except UserError as error:
                raise UserError(f"{view.names[row]}: {error}") from error
            targets[row] = resize_mask(mask, self.image_size)
            has_target[row] = view.has_target[row]
        pixels = normalize(resize_image(view.image, self.image_size))
        valid = np.arange(self.expressions) < len(view.sentences)
        return Batch(pixels, tokens, token_mask, targets, valid, has_target)


def _name(example: Example) -> str:
    return "the array" if isinstance(example.image, np.ndarray) else str(example.image)
