"""The data types of the input pipeline: an Example as a source returns it, a Batch as the network takes it."""

from __future__ import annotations

import functools
import unicodedata
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8

from s2rm_jax.errors import UserError
from s2rm_jax.input.images import load_image, map_files, read_header

# A mask in any of the forms that datasets use: a boolean array [H, W], a list of COCO polygons
# [[x0, y0, x1, y1, ...], ...], an RLE dict, or a list of RLE dicts. `masks.rasterize` converts each to an array.
Segmentation = np.ndarray | list[Any] | dict[str, Any]
Groups = tuple[tuple[int, ...], ...]  # positions of an example's expressions, grouped by referent


NO_WORDS = "has no words; describe what to find"


def expression_problem(text: str) -> str:
    """Return why a text cannot be an expression, because it has no words or is not valid Unicode, or ""."""
    if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
        return "is not valid Unicode; write it in UTF-8"
    return "" if any(map(_is_visible, text)) else NO_WORDS


def expressions_problem(value: Any) -> str:
    """Return what is wrong with the list of expressions of an entry of a file, or ""."""
    if not isinstance(value, list) or not value or not all(isinstance(text, str) for text in value):
        return f"'expressions' must be a list of strings, such as [\"the red cup\"], got {value!r:.40}"
    problems = (f"the expression {text!r:.40} {why}" for text in value if (why := expression_problem(text)))
    return next(problems, "")


def _is_visible(letter: str) -> bool:
    """Return whether the tokenizer keeps a letter; it removes spaces, control characters and lone accents."""
    if letter.isalnum():
        return True
    category = unicodedata.category(letter)
    return not (letter.isspace() or category in ("Cc", "Cf", "Co", "Cs") or category == "Mn" or letter == "\ufffd")


# Fields of other projects that have what "expressions" has here.
_OTHER_NAMES = {
    "expressions": {
        *("text", "texts", "sentence", "sentences", "phrase", "phrases", "prompt", "prompts", "query", "queries"),
        *("caption", "captions"),
    }
}


@functools.lru_cache  # a file may have a million entries with the same fields
def near_miss(field: str, names: tuple[str, ...]) -> str:
    """Return a message if one of an entry's field names may be a misspelt `field`; "" if none is, or `field` is there.

    Entries may have fields that are not read, so only very similar names count.
    """
    if field in names:
        return ""
    for name in names:
        written = name.lower().strip()
        is_anagram = sorted(written) == sorted(field)  # such as "spilt", which is not a close match
        if is_anagram or get_close_matches(written, [field], cutoff=0.88) or written in _OTHER_NAMES.get(field, ()):
            form = ", a list of strings" if field == "expressions" else ""
            return f"{name!r} is not a field that is read; did you mean {field!r}{form}?"
    return ""


@dataclass(frozen=True)
class Expression:
    """One expression and the mask of its referent; the segmentation [] means that it refers to nothing.

    `kind` is the kind of expression ("attribute", "relation", ...) if the source has kinds, else "". `id` is unique
    within the source's split and stable between runs. `referent` is the ref_id of the REFER layout; "" elsewhere.
    """

    text: str
    segmentation: Segmentation
    kind: str = ""
    id: str = ""
    referent: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.text, str):
            raise UserError(f"expression {self.id!r}: its text must be a string, got {self.text!r:.40}")

    @property
    def has_target(self) -> bool:
        """Whether the expression refers to something in the image."""
        return not (isinstance(self.segmentation, list) and not self.segmentation)


@dataclass(frozen=True)
class Example:
    """One image with all its expressions.

    `image` is uint8 [H, W, 3], or the path or the bytes of an image file. `height` and `width` are the original size
    in pixels; segmentations are in its coordinates. With `apply_exif` they are those of the image as viewers show it,
    rotated by its EXIF orientation.
    """

    id: str
    image: np.ndarray | Path | bytes
    height: int
    width: int
    expressions: tuple[Expression, ...]
    apply_exif: bool = False

    def load_image(self) -> UInt8[np.ndarray, "height width 3"]:
        """Return the pixels in RGB; raise a UserError if the file is missing or damaged."""
        return load_image(self.image, apply_exif=self.apply_exif)


@runtime_checkable  # for the type checks of the tests
class Source(Protocol):
    """Random access to the examples of one split; item i never changes. Readers of datasets are subclasses."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int) -> Example: ...

    def expression_count(self, index: int) -> int:
        """Return the number of expressions of example `index` without reading the example."""
        return sum(map(len, self.referents(index)))

    @abstractmethod
    def referents(self, index: int) -> Groups:
        """Return the positions of the expressions of example `index`, grouped by referent.

        Each position occurs once. An expression of unknown referent is a group of its own.
        """
        ...


class Batch(NamedTuple):
    """The input of the network and the loss: B images with K expressions of L tokens each.

    Attributes:
        images: [B, H, W, 3] uint8, RGB; the network normalizes them
        tokens: [B, K, L] int32, 0 for padding
        token_mask: [B, K, L] bool, true for real tokens including [CLS] and [SEP]
        targets: [B, K, W, ceil(H / 8)] uint8, the masks at the network's input size, one bit per pixel; see
            `encode.unpack_masks`
        valid: [B, K] bool, false for padding (an image with fewer than K expressions, a batch of fewer than B images)
        has_target: [B, K] bool, false if the expression refers to nothing, and for padding
    """

    images: np.ndarray
    tokens: np.ndarray
    token_mask: np.ndarray
    targets: np.ndarray
    valid: np.ndarray
    has_target: np.ndarray


def consecutive_groups(sizes: Sequence[int]) -> Groups:
    """Return groups of consecutive positions with these sizes."""
    groups, end = [], 0
    for size in sizes:
        groups.append(tuple(range(end, end + size)))
        end += size
    return tuple(groups)


class StoredSource(Source):
    """A source with its annotations in memory and its images on disk.

    Args:
        name: for error messages.
        examples: with all their expressions.
        referents: the groups of expressions of each example by referent.
        images_checked: whether the headers of the images were already compared with the examples.
        left_out: the problem of each expression that was left out because config.input.on_bad_example is "skip".
        splits_compared: whether to skip the comparison with the images of other splits, because it was already made
            or the splits may share images.
    """

    def __init__(
        self,
        name: str,
        examples: Sequence[Example],
        referents: Sequence[Groups],
        *,
        images_checked: bool = False,
        left_out: Sequence[str] = (),
        splits_compared: bool = False,
    ):
        self.left_out = tuple(left_out)
        self._splits_compared = splits_compared
        self._name, self._images_checked = name, images_checked
        self._examples, self._referents = tuple(examples), tuple(referents)

    @property
    def num_expressions(self) -> int:
        """The number of expressions of the split."""
        return sum(len(example.expressions) for example in self._examples)

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> Example:
        """Return an example; raise a UserError if its image file is missing."""
        example = self._examples[index]
        if isinstance(example.image, Path) and not example.image.is_file():
            raise UserError(f"the image {example.image} of {self._name} is missing; restore it")
        return example

    def __iter__(self) -> Iterator[Example]:
        return (self[index] for index in range(len(self)))

    def image_problems(self, count: int) -> list[str]:
        """Return the problems that the headers of the first `count` images show: missing, damaged, of another size.

        Images that are not files of their own are not checked, and none if that was done before.
        """
        if self._images_checked:
            return []
        examples = [(one.image, one) for one in self._examples[:count] if isinstance(one.image, Path)]
        headers = map_files(read_header, (path for path, _ in examples))
        problems = []
        for path, example in examples:
            header = headers[path]
            if header.problem:
                problems.append(header.problem)
            elif (header.height, header.width) != (example.height, example.width):
                problems.append(
                    f"{path} has {header.width} x {header.height} pixels, its annotation says "
                    f"{example.width} x {example.height}"
                )
        return problems

    def image_files(self) -> list[Path]:
        """Return the paths of images to compare with other splits: files of their own, none if that was done before."""
        return [] if self._splits_compared else [one.image for one in self._examples if isinstance(one.image, Path)]

    def referents(self, index: int) -> Groups:
        """Return the positions of the example's expressions, grouped by referent."""
        return self._referents[index]
