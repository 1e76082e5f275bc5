"""Datasets that TFDS prepared, as a Source: those of our own builders (data/), and `ref_coco` of TFDS itself.

They are read from ArrayRecord files by `builder.as_data_source`, without TensorFlow.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from s2rm_jax.errors import UserError
from s2rm_jax.input import tfds_records
from s2rm_jax.input.example import Example
from s2rm_jax.input.refer_annotations import OVERLAPS, TEXT_FIELDS
from s2rm_jax.input.stored import Groups

BUILDER_NAMES = {"refcoco+": "refcocoplus"}  # TFDS allows no sign in the name of a dataset
STOCK = "ref_coco"
METADATA = "metadata.json"


class TfdsSource:
    """The pictures of one split, each with its expressions.

    The Examples are those that ReferSource gives, but for the picture: the bytes of the file in the place of its path.
    """

    def __init__(
        self,
        split: str,
        *,
        root: str | Path,
        dataset: str = "refcoco",
        split_by: str = "unc",
        sentence_field: str = "raw",
        overlap: str = "union",
    ):
        """Opens the newest version under `root`/`dataset`/`split_by`.

        Args:
          split: as it was prepared: train, val, test, testA, testB, ...; `ref_coco` calls val "validation", and both
            names are understood.
          root: what TFDS calls data_dir, the folder given to data/build.py as --out.
          dataset: refcoco, refcoco+, refcocog, refclef or grefcoco, as data/build.py wrote it; or "ref_coco", TFDS's
            own, with split_by refcoco_unc, refcoco_google, refcocoplus_unc, refcocog_google or refcocog_umd.
          split_by: who made the splits; the name of the TFDS config.
          sentence_field: "raw" or "sent"; `ref_coco` has "raw" only.
          overlap: "union" or "drop", see ReferSource; `ref_coco` has "union" only.

        Raises:
          UserError: TFDS is not installed, or the dataset, the split or what is asked of it is not there.
        """
        self._stock = dataset == STOCK
        _check(self._stock, sentence_field, overlap)
        folder = newest_version(root, dataset, split_by)
        self._name = f"{dataset} {split} at {folder}"
        self._field, self._overlap = sentence_field, overlap
        self._records = _open(folder, "validation" if self._stock and split == "val" else split)
        self._groups: list[Groups] | None = None
        self._positions = list(range(len(self._records)))
        if not self._stock:
            groups = _written_groups(folder, split, sentence_field)
            self._positions = [position for position, group in enumerate(groups) if group]
            self._groups = [groups[position] for position in self._positions]

    def __len__(self) -> int:
        return len(self._positions)

    def __getitem__(self, index: int) -> Example:
        """Reads a record; its picture is decoded where it is used."""
        record = self._records[self._positions[index]]
        if self._stock:
            return tfds_records.decode_ref_coco(record)
        return tfds_records.decode(record, self._field, self._overlap)

    def __iter__(self) -> Iterator[Example]:
        return (self[index] for index in range(len(self)))

    def expression_count(self, index: int) -> int:
        """Returns how many expressions the picture has; of `ref_coco`, see `referents`."""
        return sum(len(group) for group in self.referents(index))

    def referents(self, index: int) -> Groups:
        """Returns the positions of the picture's expressions, grouped by referent.

        Our own datasets have them in their metadata. `ref_coco` does not: the first call reads every record once.
        """
        if self._groups is None:
            self._groups = [tfds_records.ref_coco_groups(self._records[position]) for position in self._positions]
        return self._groups[index]


def _check(stock: bool, sentence_field: str, overlap: str) -> None:
    for name, value, choices in (
        ("sentence_field", sentence_field, ("raw",) if stock else TEXT_FIELDS),
        ("overlap", overlap, ("union",) if stock else OVERLAPS),
    ):
        if value not in choices:
            whose = f"{STOCK}, as TFDS prepares it, has only" if stock else "it must be one of:"
            raise UserError(f"{name} is {value!r}; {whose} {', '.join(choices)}")


def newest_version(root: str | Path, dataset: str, split_by: str) -> Path:
    """Returns the folder ROOT/DATASET/SPLIT_BY/VERSION with the highest version; a UserError says if there is none."""
    root = Path(root).expanduser()
    how = f"build it with: python -m data.build --dataset {dataset} --split-by {split_by} --root REFER_DIR --out {root}"
    if dataset == STOCK:
        how = f"prepare it with TFDS (and TensorFlow): tfds build ref_coco/{split_by} --file_format=array_record"
    if not root.is_dir():
        raise UserError(f"the folder of prepared datasets, {root}, does not exist; {how}")
    folder = root / BUILDER_NAMES.get(dataset, dataset) / split_by
    versions = [path for path in folder.glob("*.*.*") if (path / "dataset_info.json").is_file()]
    if not versions:
        there = sorted(str(path.parent.parent.relative_to(root)) for path in root.glob("*/*/*/dataset_info.json"))
        raise UserError(f"{folder} has no prepared dataset; {root} has {', '.join(there) or 'none at all'}; {how}")
    return max(versions, key=lambda path: tuple(int(part) for part in path.name.split(".") if part.isdigit()))


def _open(folder: Path, split: str) -> Any:
    """Opens a split for random access to its undecoded records."""
    try:
        import tensorflow_datasets as tfds
        from tensorflow_datasets.core.decode import DeserializeMethod
    except ImportError as error:
        raise UserError(
            f"reading {folder} needs TFDS ({error}); install it with: pip install 's2rm-jax[tfds]'"
        ) from error
    try:
        builder = tfds.builder_from_directory(folder)
    except Exception as error:  # TFDS raises nearly anything on damaged metadata
        raise UserError(f"{folder} is no dataset that TFDS can read ({' '.join(str(error).split())})") from error
    file_format = builder.info.file_format
    if file_format is None or file_format.value != "array_record":
        raise UserError(
            f"{folder} is stored as {file_format and file_format.value}, which has no random access; prepare it again "
            "with --file_format=array_record"
        )
    if split not in builder.info.splits:
        raise UserError(f"{folder} has no split {split!r}; it has {', '.join(builder.info.splits)}")
    return builder.as_data_source(split, deserialize_method=DeserializeMethod.RAW_BYTES)


def _written_groups(folder: Path, split: str, sentence_field: str) -> list[Groups]:
    """Returns for each record the positions of its expressions, grouped; from the sizes of the groups."""
    path = folder / METADATA
    try:
        sizes = json.loads(path.read_bytes())["referents"][split][sentence_field]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{path} does not hold what data/build.py writes ({error!r}); build the dataset again"
        ) from error
    return [_groups(group_sizes) for group_sizes in sizes]


def _groups(sizes: list[int]) -> Groups:
    groups, end = [], 0
    for size in sizes:
        groups.append(tuple(range(end, end + size)))
        end += size
    return tuple(groups)
