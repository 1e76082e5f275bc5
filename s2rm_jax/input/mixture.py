"""Several sources as one: mixed by weights, or several REFER datasets without leaks between their splits.

Grain can mix too (MapDataset.mix), but stops when the first part is exhausted. An image of a part that is large for
its weight might then never be shown, since the pipeline shuffles after mixing and repeats the same images. So a
mixture is a source like any other, long enough to hold every image.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate, chain
from pathlib import Path
from typing import Any

from s2rm_jax.errors import UserError
from s2rm_jax.input.example import Example, Groups, Source
from s2rm_jax.input.refer import ReferSource
from s2rm_jax.input.refer_annotations import (
    check_splits,
    collector_paused,
    find_annotations,
    image_id_of,
    load_refs,
    split_of,
)

_MAX_LENGTH = 2**31 - 1  # images that the pipeline can shuffle


class MixtureSource(Source):
    """The images of several sources. Item i is a pure function of i; every id begins with the name of the part.

    With weights, part p has the share weight_p / sum(weights) of the items, to within one item. The source is just
    long enough for every image of every part to occur: max over p of images_p / share_p, to within rounding. In one
    epoch an image occurs n or n + 1 times, where n = items_p // images_p >= 1. (The images that occur once more are
    the first ones of the part, in every epoch.)

    Without weights, every image of every part occurs exactly once.
    """

    def __init__(self, parts: Mapping[str, Source], weights: Mapping[str, Any] | None = None):
        """Take sources and weights of any sum, both by name; raise a UserError if a part or a weight is unsuitable."""
        if not parts:
            raise UserError("a mixture has no parts; name at least one source")
        for name, source in parts.items():
            if len(source) == 0:
                raise UserError(f"part {name!r} of the mixture has no images; remove it")
        self._names = tuple(parts)
        self._parts = tuple(parts.values())
        self._counts = _counts(parts, weights) if weights is not None else tuple(map(len, self._parts))
        self._ends = tuple(accumulate(self._counts))
        if self._ends[-1] > _MAX_LENGTH:
            raise UserError(
                f"to show every image of every part, the mixture would have {self._ends[-1]:,} items; limit the "
                f"largest part (the length of synthetic scenes) or raise its weight"
            )

    @property
    def vocabulary(self) -> tuple[str, ...] | None:
        """The vocabulary of the parts if they all have the same one, else None."""
        different = {getattr(part, "vocabulary", None) for part in self._parts}
        return different.pop() if len(different) == 1 else None

    @property
    def left_out(self) -> tuple[str, ...]:
        """The problems of the expressions that the parts left out; see StoredSource."""
        return tuple(chain.from_iterable(getattr(part, "left_out", ()) for part in self._parts))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Example:
        """Return an example of a part, with the part's name before its id and those of its expressions."""
        number, position = self._locate(index)
        name, example = self._names[number], self._parts[number][position]
        expressions = tuple(
            replace(one, id=f"{name}/{one.id}", referent=one.referent and f"{name}/{one.referent}")
            for one in example.expressions
        )
        return replace(example, id=f"{name}/{example.id}", expressions=expressions)

    def referents(self, index: int) -> Groups:
        """Return the positions of an example's expressions, grouped by referent."""
        number, position = self._locate(index)
        return self._parts[number].referents(position)

    def image_problems(self, count: int) -> list[str]:
        """Return the problems of the images of the first `count` items; see StoredSource."""
        problems: list[str] = []
        first = 0
        for part, end in zip(self._parts, self._ends, strict=True):
            find = getattr(part, "image_problems", None)
            problems += find(min(count, end) - first) if find and count > first else []
            first = end
        return problems

    def image_files(self) -> list[Path]:
        """Return the paths of the parts' images to compare with other splits."""
        return [path for part in self._parts for path in getattr(part, "image_files", list)()]

    def _locate(self, index: int) -> tuple[int, int]:
        """Return the number of a part and the position in it; the items of a part are consecutive."""
        if not 0 <= index < len(self):
            raise IndexError(f"item {index} of {len(self)}")
        number = bisect_right(self._ends, index)
        first = self._ends[number] - self._counts[number]
        return number, (index - first) % len(self._parts[number])


def parse_split(split: str, names: Collection[str]) -> tuple[str, str]:
    """Return (NAME, SPLIT) for "NAME:SPLIT", the split of one part alone, and ("", SPLIT) for any other split."""
    name, colon, part_split = split.partition(":")
    if not colon:
        return "", split
    if name not in names:
        raise UserError(f"split {split!r}: part {name!r} not found; available: {', '.join(sorted(names))}")
    return name, part_split


def _counts(parts: Mapping[str, Source], weights: Mapping[str, Any]) -> tuple[int, ...]:
    for name in parts:
        weight = weights.get(name)
        if not (isinstance(weight, int | float) and weight > 0 and math.isfinite(weight)):
            raise UserError(f"part {name!r} of the mixture has the weight {weight!r}; it must be a number above 0")
    # The number of items per unit of weight, set by the part that has the most images for its weight.
    unit = max(len(source) / weights[name] for name, source in parts.items())
    return tuple(max(len(source), round(unit * weights[name])) for name, source in parts.items())


DATASETS = ("refcoco/unc", "refcoco+/unc", "refcocog/umd")


def combined_source(
    split: str,
    *,
    root: str | Path,
    datasets: Sequence[str] = DATASETS,
    held_out: Sequence[str] = (),
    image_root: str | Path = "",
    sentence_field: str = "raw",
    overlap: str = "union",
    limit_referents: int = 0,
) -> Source:
    """Return one split of several REFER datasets together; an image occurs once for every dataset that has it.

    RefCOCO, RefCOCO+ and RefCOCOg use the same images of COCO with different splits: a training image of one is a test
    image of another. So "train" leaves out every image that has a referent in another split of any of the datasets, by
    COCO's image id. Other splits are complete.

    Args:
        split: the split of each dataset; "DATASET:SPLIT", such as "refcoco:testA", is that split of one dataset alone.
        root: folder in the REFER layout, see ReferSource. TFDS datasets of data/build.py are not supported here.
        datasets: "DATASET/SPLIT_BY" of each; ids begin with "DATASET/".
        held_out: further datasets, in the same form, that are not trained on but whose evaluation images are left out.
        image_root, sentence_field, overlap, limit_referents: as in ReferSource, for each dataset.

    Raises:
        UserError: as ReferSource; or a dataset is malformed or occurs twice.
    """
    split_by = dict(map(parse_dataset, datasets))
    if len(split_by) < len(datasets):
        raise UserError(f"datasets is {tuple(datasets)}; name each dataset once, with one split_by")
    selected, split = parse_split(split, split_by)
    leave_out: frozenset[int] = frozenset()
    if split == "train":
        leave_out = evaluation_images(root, [*split_by.items(), *map(parse_dataset, held_out)])
    parts = {
        dataset: ReferSource(
            split,
            root=root,
            dataset=dataset,
            split_by=by,
            sentence_field=sentence_field,
            overlap=overlap,
            limit_referents=limit_referents,
            image_root=image_root,
            leave_out=leave_out,
        )
        for dataset, by in split_by.items()
        if selected in ("", dataset)
    }
    return parts[selected] if selected else MixtureSource(parts)


@collector_paused()
def evaluation_images(root: str | Path, datasets: Iterable[tuple[str, str]]) -> frozenset[int]:
    """Return the ids of all images with a referent in any split but "train" of any (dataset, split_by)."""
    found: set[int] = set()
    for dataset, split_by in datasets:
        path, _ = find_annotations(root, dataset, split_by)
        refs = load_refs(path)
        check_splits([split_of(ref, path) for ref in refs], "train", path)
        found |= {image_id_of(ref, path) for ref in refs if split_of(ref, path) != "train"}
    return frozenset(found)


def parse_dataset(dataset: str) -> tuple[str, str]:
    """Return (DATASET, SPLIT_BY) for "DATASET/SPLIT_BY"."""
    name, slash, split_by = dataset.partition("/")
    if not (name and slash and split_by):
        raise UserError(f"{dataset!r} is not of the form DATASET/SPLIT_BY, such as {', '.join(DATASETS)}")
    return name, split_by
