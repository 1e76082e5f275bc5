"""Augmentation of training images: mirroring, cropping, hiding parts. All are off by default, as in LAVT's recipe.

Mirroring and cropping never contradict the expressions; if this is not certain, the view stays as it is. Hidden words
can make an expression ambiguous, and hidden patches can cover a small referent, as in MaskRIS. All random choices come
from the generator of the row's position, so a view is a pure function of (seed, position).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Int32, UInt8
from ml_collections import ConfigDict

from s2rm_jax.errors import UserError
from s2rm_jax.input.encode import MEAN_COLOUR, View
from s2rm_jax.input.example import Batch, Example
from s2rm_jax.input.masks import rasterize
from s2rm_jax.input.mirror import mirror_expression
from s2rm_jax.input.tokens import Tokenizer

Box = tuple[int, int, int, int]  # top, bottom, left, right in pixels; bottom and right exclusive

# Words whose meaning a crop can change: places in the image, the image itself, its border, counting and ordering. Other
# superlatives ("the tallest man") stay true: the most of all is also the most of those that remain.
_DEPENDS_ON_FRAME = re.compile(
    r"left|right|b[io]t+om|botto|mid+l+e|cent(er|re)"  # also misspelt, and in words such as "topcenter"
    r"|\b(top|upper|lower|mid|central|corners?|edges?|ends?|sides?|between|among"
    r"|half|halves|part(ly|ial|ially)?|portions?|whole|entire|full|fully|complete(ly)?|cut|cropped|off|visible|see|seen"
    r"|picture|image|photo|photograph|pic|frame|screen|shot|view|border|first|second|third|fourth|fifth|sixth|seventh"
    r"|eighth|ninth|tenth|eleventh|twelfth|last|penultimate|start of|next|only|alone|single|one|two|three|four|five|six"
    r"|seven|eight|nine|ten|eleven|twelve|(thir|four|fif|six|seven|eigh|nine)teen|twenty|dozens?|pairs?|trio|all|both"
    r"|other|others|another|remaining|rest|several|few|couple|lone(ly)?|group|row|\d+\w*"
    r"|clock|oclock|north|south|east|west|above|below|under|far|farthest|furthest|most)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Augmentation:
    """The augmentation of a training view; the fields are those of the section config.input.augment."""

    flip: float = 0.0
    crop: float = 0.0
    crop_smallest: float = 0.6
    hide_patches: float = 0.0
    patch: int = 32
    hide_words: float = 0.0
    mask_id: int = 0
    continues: Bool[np.ndarray, " vocabulary"] | None = None  # entries of the vocabulary that continue a word

    def move(self, view: View, example: Example, rng: np.random.Generator) -> View:
        """Crop and mirror a view of `example`, each with its probability and if the expressions stay true."""
        if self.crop and rng.random() < self.crop and croppable(view):
            view = crop(view, crop_box(example, self.crop_smallest, rng))
        if self.flip and rng.random() < self.flip:
            view = flip(view) or view
        return view

    def hide(self, arrays: Batch, rng: np.random.Generator) -> Batch:
        """Hide patches of the image and words of the expressions of encoded arrays (no batch axis).

        Expressions without a target keep their words: "the purple dog" with its colour hidden may refer to the brown
        dog of the image, and its label would be false.
        """
        if self.hide_patches:
            share = rng.uniform(0, self.hide_patches)
            arrays = arrays._replace(images=hide_patches(arrays.images, share, self.patch, rng))
        if self.hide_words:
            assert self.continues is not None
            rows = [
                hide_words(row, self.hide_words, self.mask_id, self.continues, rng) if has_target else row
                for row, has_target in zip(arrays.tokens, arrays.has_target, strict=True)
            ]
            arrays = arrays._replace(tokens=np.stack(rows))
        return arrays


def build_augmentation(config: ConfigDict, tokenizer: Tokenizer) -> Augmentation:
    """Build the augmentation of the section config.input.augment.

    Raises:
        UserError: hide_words is set, but the vocabulary has no [MASK].
    """
    fields = dict(config)
    if not config.hide_words:
        return Augmentation(**fields)
    vocabulary = tokenizer.vocabulary
    if "[MASK]" not in vocabulary:
        raise UserError(
            f"config.input.augment.hide_words is {config.hide_words}, but the vocabulary has no [MASK] to replace "
            "words: give a BERT vocabulary as config.text.vocab, or set it to 0"
        )
    continues = np.array([word.startswith("##") for word in vocabulary])
    return Augmentation(**fields, mask_id=vocabulary.index("[MASK]"), continues=continues)


def flip(view: View) -> View | None:
    """Mirror the image, its masks and its expressions; return None if an expression cannot be mirrored safely."""
    expressions = [mirror_expression(expression) for expression in view.texts]
    mirrored = tuple(expression for expression in expressions if expression is not None)
    if len(mirrored) < len(expressions):
        return None
    shown = replace(view.shown, columns=view.shown.columns[::-1])
    return replace(view, image=view.image[:, ::-1], shown=shown, texts=mirrored)


def croppable(view: View) -> bool:
    """Return whether no expression of a view refers to places in the image, counts or order."""
    return not any(_DEPENDS_ON_FRAME.search(expression) for expression in view.texts)


def crop_box(example: Example, smallest: float, rng: np.random.Generator) -> Box:
    """Draw a box with the proportions of the image that contains the referents of all its expressions.

    This includes expressions that are not in the view, since their referents are often landmarks of others. Landmarks
    that no expression refers to may be lost. If the referents require it, one side is longer than the proportions
    allow.
    """
    share = rng.uniform(smallest, 1)
    spans = []
    # Expressions of one referent share the segmentation object and the mask.
    distinct = {id(e.segmentation): e.segmentation for e in example.expressions if e.has_target}
    masks = [rasterize(segmentation, example.height, example.width) for segmentation in distinct.values()]
    kept = _extent(masks, example.height, example.width)
    for size, (first, last) in zip((example.height, example.width), (kept[:2], kept[2:]), strict=True):
        length = max(round(share * size), last - first, 1)
        begin = int(rng.integers(max(0, last - length), min(first, size - length) + 1))
        spans += [begin, begin + length]
    top, bottom, left, right = spans
    return top, bottom, left, right


def crop(view: View, box: Box) -> View:
    """Crop the image and its masks to a box."""
    top, bottom, left, right = box
    shown = replace(view.shown, rows=view.shown.rows[top:bottom], columns=view.shown.columns[left:right])
    return replace(view, image=view.image[top:bottom, left:right], shown=shown)


def hide_patches(
    pixels: UInt8[np.ndarray, "height width 3"], share: float, patch: int, rng: np.random.Generator
) -> UInt8[np.ndarray, "height width 3"]:
    """Fill each square of `patch` pixels, with probability `share`, with the mean colour of images."""
    height, width = pixels.shape[:2]
    hidden = rng.random((-(-height // patch), -(-width // patch))) < share
    hidden = hidden.repeat(patch, 0).repeat(patch, 1)[:height, :width]
    return np.where(hidden[..., None], np.array(MEAN_COLOUR, np.uint8), pixels)


def hide_words(
    tokens: Int32[np.ndarray, " l"],
    share: float,
    mask_id: int,
    continues: Bool[np.ndarray, " vocabulary"],
    rng: np.random.Generator,
) -> Int32[np.ndarray, " l"]:
    """Replace all pieces of each word, with probability `share`, by [MASK]; at least one word stays."""
    length = int(np.count_nonzero(tokens))
    if not length:
        return tokens
    # The word index of each piece between [CLS] and [SEP]; the first piece begins a word.
    word = np.cumsum(~continues[tokens[1 : length - 1]]) - 1
    hidden = rng.random(word[-1] + 1) < share
    if hidden.all():
        hidden[rng.integers(len(hidden))] = False
    tokens = tokens.copy()
    tokens[1 : length - 1][hidden[word]] = mask_id
    return tokens


def _extent(masks: Sequence[Bool[np.ndarray, "height width"]], height: int, width: int) -> Box:
    """Return the smallest box around all masks, or around the middle pixel if they are empty."""
    union = np.logical_or.reduce([np.zeros((height, width), bool), *masks])
    if not union.any():
        return height // 2, height // 2 + 1, width // 2, width // 2 + 1
    rows, columns = np.flatnonzero(union.any(1)), np.flatnonzero(union.any(0))
    return int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
