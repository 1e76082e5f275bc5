"""What travels through the input pipeline: an Example as a source reads it, a Batch as the network takes it.

A source whose annotations are held in memory and whose images lie on disk.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from s2rm_jax.errors import UserError

# A mask in any of the forms that datasets use; `masks.rasterize` turns each into a boolean array [H, W]:
# a boolean array [H, W] | a list of COCO polygons [[x0, y0, x1, y1, ...], ...] | an RLE dict or a list of RLE dicts.
Segmentation = np.ndarray | list | dict[str, Any]


@dataclass(frozen=True)
class Expression:
    """One expression and the mask of what it means; an expression that refers to nothing has the segmentation [].

    `kind` is the kind of expression where the source knows it ("attribute", "relation", ...), else "".
    `id` is unique within the source's split and stable from run to run.
    """

    text: str
    segmentation: Segmentation
    kind: str = ""
    id: str = ""

    @property
    def has_target(self) -> bool:
        """Whether the expression refers to something in the image."""
        return not (isinstance(self.segmentation, list) and not self.segmentation)


@dataclass(frozen=True)
class Example:
    """One image with all its expressions.

    `image` is uint8 [H, W, 3], or the path or the bytes of a file that holds it; `height` and `width` are its original
    size in pixels, in which the segmentations are given.
    """

    id: str
    image: np.ndarray | Path | bytes
    height: int
    width: int
    expressions: tuple[Expression, ...]


@runtime_checkable  # the type checks of the tests ask for it
class Source(Protocol):
    """Random access to the examples of one split; item i never changes."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...

    def expression_count(self, index: int) -> int:
        """Return how many expressions example `index` has, without making or reading it."""
        ...

    def referents(self, index: int) -> tuple[tuple[int, ...], ...]:
        """Return the positions of the expressions of example `index`, those of one referent together.

        Every position is there once; an expression of which nothing is known has a group of its own.
        """
        ...


class Batch(NamedTuple):
    """What is made for the network and the loss: B images with K expressions each, L tokens an expression.

    images      [B, H, W, 3] uint8, RGB; `compact.normalize` makes of it what the network takes
    tokens      [B, K, L] int32, 0 where there is no word
    token_mask  [B, K, L] bool, true for real tokens, [CLS] and [SEP] among them
    targets     [B, K, W, ceil(H / 8)] uint8, the masks resized to the network's input size, a bit a pixel; see
                `compact.unpack_masks`
    valid       [B, K] bool, false for the padding that fills an image up to K expressions, or a batch up to B
    has_target  [B, K] bool, false where the expression refers to nothing, and for padding
    """

    images: np.ndarray
    tokens: np.ndarray
    token_mask: np.ndarray
    targets: np.ndarray
    valid: np.ndarray
    has_target: np.ndarray


Groups = tuple[tuple[int, ...], ...]  # the positions of an example's expressions, those of one referent together


class StoredSource:
    """Random access to examples that were read beforehand; images are looked for when they are asked for."""

    def __init__(self, name: str, examples: Sequence[Example], referents: Sequence[Groups]):
        """Args: a name for messages; the examples; for each the positions of its expressions, grouped by referent."""
        self._name = name
        self._examples = tuple(examples)
        self._referents = tuple(referents)
        assert len(self._examples) == len(self._referents)

    @property
    def num_expressions(self) -> int:
        """The number of expressions of the split."""
        return sum(len(example.expressions) for example in self._examples)

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> Example:
        """Return an image's path, size and expressions; raises a UserError if its file is not there."""
        example = self._examples[index]
        if isinstance(example.image, Path) and not example.image.is_file():
            raise UserError(f"the image {example.image} of {self._name} is missing; put it there again")
        return example

    def __iter__(self) -> Iterator[Example]:
        return (self[index] for index in range(len(self)))

    def expression_count(self, index: int) -> int:
        """Return how many expressions the image has."""
        return len(self._examples[index].expressions)

    def referents(self, index: int) -> Groups:
        """Return the positions of the image's expressions, grouped by the referent that they share."""
        return self._referents[index]
