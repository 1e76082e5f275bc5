"""Training on several REFER datasets at once, without any picture on which one of them is evaluated.

RefCOCO, RefCOCO+ and RefCOCOg are made on the same pictures of COCO, but each has splits of its own: a training picture
of one is a test picture of another. Trained on all three, a network has seen them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from s2rm_jax.errors import UserError
from s2rm_jax.input.example import Source
from s2rm_jax.input.mixture import MixtureSource, part_of_split
from s2rm_jax.input.refer import ReferSource
from s2rm_jax.input.refer_annotations import collector_paused, split_of
from s2rm_jax.input.refer_layout import find_annotations
from s2rm_jax.input.unpickle import load_refs

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
    """Returns one split of several REFER datasets together, each picture once for every dataset that has it.

    "train" leaves out every picture that has a referent in another split of any of the datasets, by COCO's picture id.
    Other splits are whole.

    Args:
      split: of each dataset; "DATASET:SPLIT", such as "refcoco:testA", is that split of one dataset alone.
      root: the folder of the layout, see ReferSource. What data/build.py writes for TFDS is not read here.
      datasets: "DATASET/SPLIT_BY" of each; ids are then "DATASET/...".
      held_out: further datasets, of the same form, that are not trained on but whose evaluation pictures are left out.
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
        leave_out = evaluation_pictures(root, [*split_by.items(), *map(pair_of, held_out)])
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
def evaluation_pictures(root: str | Path, pairs: Iterable[tuple[str, str]]) -> frozenset[int]:
    """Returns the ids of all pictures with a referent in any split but "train" of any (dataset, split_by)."""
    found: set[int] = set()
    for dataset, split_by in pairs:
        path, _ = find_annotations(root, dataset, split_by)
        found |= {ref["image_id"] for ref in load_refs(path) if split_of(ref, path) != "train"}
    return frozenset(found)


def pair_of(dataset: str) -> tuple[str, str]:
    """Reads "DATASET/SPLIT_BY" as (DATASET, SPLIT_BY)."""
    name, slash, split_by = dataset.partition("/")
    if not (name and slash and split_by):
        raise UserError(f"{dataset!r} is not of the form DATASET/SPLIT_BY, such as {', '.join(DATASETS)}")
    return name, split_by
