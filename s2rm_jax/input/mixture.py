"""Several sources as one: mixed by weights for training, one after the other for evaluation.

Grain mixes too (MapDataset.mix), but ends when the first part is exhausted: an image of a part that is large for its
weight may then never be shown, since the one pipeline shuffles after the mixing and repeats the same images. So the
mixture is a source like any other, long enough to hold every image, and everything after it stays as it is.

Training on several REFER datasets at once, without any image on which one of them is evaluated.

RefCOCO, RefCOCO+ and RefCOCOg are made on the same images of COCO, but each has splits of its own: a training image
of one is a test image of another. Trained on all three, a network has seen them.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path

from s2rm_jax.errors import UserError
from s2rm_jax.input.example import Example, Source
from s2rm_jax.input.refer import ReferSource
from s2rm_jax.input.refer_annotations import collector_paused, find_annotations, load_refs, split_of

_LONGEST = 2**31 - 1  # images that the pipeline can shuffle


class MixtureSource:
    """The images of several sources; item i is a pure function of i, with the part's name before every id.

    With weights, part p takes the share weight_p / sum of weights of the items, to within one item. The source is just
    long enough for every image of every part to occur: max over p of images_p / share_p, to within rounding. One
    epoch is a pass over that: an image occurs n or n + 1 times in it, where n = items_p // images_p >= 1. (Which
    occur once more is the same in every epoch: the first ones of the part.)

    Without weights, every image of every part occurs exactly once.
    """

    def __init__(self, parts: Mapping[str, Source], weights: Mapping[str, int | float] | None = None):
        """Args: the sources by name; their weights by the same names, of any sum.

        Raises:
          UserError: no parts, an empty one, a weight that is not positive, or a mixture that would never end.
        """
        if not parts:
            raise UserError("a mixture has no parts; name at least one source")
        for name, source in parts.items():
            if len(source) == 0:
                raise UserError(f"part {name!r} of the mixture has no images; take it out")
        self._names = tuple(parts)
        self._parts = tuple(parts.values())
        self._counts = _counts(parts, weights) if weights is not None else tuple(map(len, self._parts))
        self._ends = tuple(accumulate(self._counts))
        if self._ends[-1] > _LONGEST:
            raise UserError(
                f"to show every image of every part, the mixture would have {self._ends[-1]:,} items; limit the "
                f"largest part (the length of synthetic scenes) or raise its weight"
            )

    @property
    def vocabulary(self) -> tuple[str, ...] | None:
        """The words that the parts bring, where they all bring the same; else None."""
        different = {getattr(part, "vocabulary", None) for part in self._parts}
        return different.pop() if len(different) == 1 else None

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Example:
        """Return an example of a part, its id and those of its expressions with the part's name before them."""
        number, position = self._locate(index)
        name, example = self._names[number], self._parts[number][position]
        expressions = tuple(replace(one, id=f"{name}/{one.id}") for one in example.expressions)
        return replace(example, id=f"{name}/{example.id}", expressions=expressions)

    def expression_count(self, index: int) -> int:
        """Return how many expressions an example has."""
        number, position = self._locate(index)
        return self._parts[number].expression_count(position)

    def referents(self, index: int) -> tuple[tuple[int, ...], ...]:
        """Return the positions of an example's expressions, grouped by referent."""
        number, position = self._locate(index)
        return self._parts[number].referents(position)

    def _locate(self, index: int) -> tuple[int, int]:
        """Return the number of a part and the position in it; each part has a stretch of the mixture."""
        if not 0 <= index < len(self):
            raise IndexError(f"item {index} of {len(self)}")
        number = bisect_right(self._ends, index)
        first = self._ends[number] - self._counts[number]
        return number, (index - first) % len(self._parts[number])


def part_of_split(split: str, names: Collection[str]) -> tuple[str, str]:
    """Read "NAME:SPLIT", a split of one part alone, as (NAME, SPLIT), and any other split as ("", SPLIT)."""
    name, colon, part_split = split.partition(":")
    if not colon:
        return "", split
    if name not in names:
        raise UserError(f"split {split!r}: there is no part {name!r}; there are {', '.join(sorted(names))}")
    return name, part_split


def _counts(parts: Mapping[str, Source], weights: Mapping[str, int | float]) -> tuple[int, ...]:
    """How many items of a mixture each part has."""
    for name in parts:
        if not (weights.get(name, 0) > 0 and math.isfinite(weights[name])):
            raise UserError(f"part {name!r} of the mixture has the weight {weights.get(name)}; it must be above 0")
    # One unit of weight stands for as many items as the part needs whose images are the most for its weight.
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
    """Return one split of several REFER datasets together, each image once for every dataset that has it.

    "train" leaves out every image that has a referent in another split of any of the datasets, by COCO's image id.
    Other splits are whole.

    Args:
      split: of each dataset; "DATASET:SPLIT", such as "refcoco:testA", is that split of one dataset alone.
      root: the folder of the layout, see ReferSource. What data/build.py writes for TFDS is not read here.
      datasets: "DATASET/SPLIT_BY" of each; ids are then "DATASET/...".
      held_out: further datasets, of the same form, that are not trained on but whose evaluation images are left out.
      image_root: this and the following are those of ReferSource, for all datasets.
      sentence_field: see ReferSource.
      overlap: see ReferSource.
      limit_referents: see ReferSource; of each dataset.

    Raises:
      UserError: as ReferSource; or a dataset that is not of the form, or twice.
    """
    split_by = dict(map(pair_of, datasets))
    if len(split_by) < len(datasets):
        raise UserError(f"datasets is {tuple(datasets)}; each dataset may be there once, with one of its splits")
    alone, split = part_of_split(split, split_by)
    leave_out: frozenset[int] = frozenset()
    if split == "train":
        leave_out = evaluation_images(root, [*split_by.items(), *map(pair_of, held_out)])
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
        if alone in ("", dataset)
    }
    return parts[alone] if alone else MixtureSource(parts)


@collector_paused()
def evaluation_images(root: str | Path, pairs: Iterable[tuple[str, str]]) -> frozenset[int]:
    """Return the ids of all images with a referent in any split but "train" of any (dataset, split_by)."""
    found: set[int] = set()
    for dataset, split_by in pairs:
        path, _ = find_annotations(root, dataset, split_by)
        found |= {ref["image_id"] for ref in load_refs(path) if split_of(ref, path) != "train"}
    return frozenset(found)


def pair_of(dataset: str) -> tuple[str, str]:
    """Read "DATASET/SPLIT_BY" as (DATASET, SPLIT_BY)."""
    name, slash, split_by = dataset.partition("/")
    if not (name and slash and split_by):
        raise UserError(f"{dataset!r} is not of the form DATASET/SPLIT_BY, such as {', '.join(DATASETS)}")
    return name, split_by
