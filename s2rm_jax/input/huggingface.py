"""Datasets of the Hugging Face Hub as a Source: local Parquet files, or a dataset by its name on the Hub.

Two layouts are read; the columns of a file decide which it is. One row is one referent in both.

- ref_id, ann_id, image_id, split, sentences, raw_anns, raw_image_info, as in jxu124/refcoco, jxu124/refcocoplus and
  jxu124/refcocog; the images are in a folder of COCO's images (or in a column image).
- image, answer, segmentation, file_name, as in lmms-lab/RefCOCO, lmms-lab/RefCOCOplus and lmms-lab/RefCOCOg; and
  optionally split.

Rows become records of the REFER layout, so that referents, expressions, masks and splits are those of ReferSource.
"""

from __future__ import annotations

import json
import logging
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from s2rm_jax.errors import UserError, first_of
from s2rm_jax.hub import accessing_hub, is_repository
from s2rm_jax.input.example import Example, StoredSource
from s2rm_jax.input.images import read_size
from s2rm_jax.input.masks import part_problem
from s2rm_jax.input.parquet import ParquetFiles, Place, UnpackedImages, unpack_images
from s2rm_jax.input.refer import group_by_image
from s2rm_jax.input.refer_annotations import (
    MALFORMED,
    ImageFolder,
    add_annotation,
    add_image,
    check_choices,
    check_splits,
    collector_paused,
    find_image_folder,
    in_split,
    select_referents,
    split_error,
    split_of,
)
from s2rm_jax.input.refer_masks import Annotation, ImageEntry

_LOG = logging.getLogger(__name__)

_REFER_COLUMNS = ("ref_id", "ann_id", "image_id", "split", "sentences", "raw_anns", "raw_image_info")
_ANSWER_COLUMNS = ("image", "answer", "segmentation", "file_name")
_OPTIONAL_COLUMNS = ("bbox", "iscrowd", "split")
# The names of the files of a split; the first of the groups that exists is read. Files with another name than the split
# need the column "split": in jxu124/refcoco the file of testA is called test.
_FILE_NAMES = {
    "val": (("val", "validation"),),
    "testA": (("testA",), ("test",)),
    "test": (("test", "testA", "testB", "testC"),),
}
_SHARD = re.compile(r"-(\d{5})-of-(\d{5}).*")
# COCO's ids have up to six digits and are padded to twelve. The time in the name of a photograph is not such an id.
_COCO_ID = re.compile(r"(?<!\d)0{6}\d{6}(?!\d)")
_NO_COCO_ID = 10**12  # the first id of images that are not from COCO
_ANY_SIDE = 10_000  # pixels that any polygon covers, for an image of unknown size
_TYPES = {
    "file_name": (str, "a string"),
    "answer": (str | list | None, "a string, or a list of them"),
    "segmentation": (list | None, "a list of numbers, or of lists of them"),
    "bbox": (list | None, "a list of four numbers"),
}
_BOX_TOLERANCE = 1.0  # pixels between a box and its polygons


class HuggingFaceSource(StoredSource):
    """The images of one split, each with all expressions of the split that refer to it, in the order of their ids.

    Images in rows are unpacked into ~/.cache/s2rm_jax/images (or below XDG_CACHE_HOME) when the split is opened for the
    first time. When an example is accessed, its image is read from there.
    """

    def __init__(
        self,
        split: str,
        *,
        path: str | Path,
        revision: str = "",
        sentence_field: str = "raw",
        overlap: str = "union",
        root: str | Path = "",
    ):
        """Read the annotations, after downloading the files of the split if `path` is a name on the Hub.

        Args:
            split: "train", "val", "test", "testA", "testB" or another name. Rows are selected by the column "split" as
                in ReferSource; without that column, by the names of the files.
            path: a Parquet file, a folder with Parquet files, or USER/NAME on the Hub. Downloaded files are kept in the
                cache of huggingface_hub, whose environment variables (HF_HOME, HF_HUB_OFFLINE, HF_TOKEN, ...) are
                obeyed.
            revision: branch, tag or commit on the Hub; by default the newest.
            sentence_field: "raw" or "sent", see ReferSource; where images are in the rows there is only "raw".
            overlap: "union" or "drop", see ReferSource.
            root: folder of COCO's images, or a folder above it in one of the layouts of data/README.md; not needed
                where images are in the rows.

        Raises:
            UserError: pyarrow is not installed; the files cannot be found, downloaded or read; a column is missing; or
                the split has no usable expression. Or files of the split are missing, by the numbers in their names, or
                the images cannot be unpacked.
        """
        check_choices(sentence_field, overlap)
        where = Path(str(path))
        files = ParquetFiles(find_files(path, split, revision))
        with collector_paused():
            has_sizes = _layout_of(files, where) is _REFER_COLUMNS
            if not has_sizes:
                if sentence_field != "raw":
                    raise UserError(f"sentence_field is {sentence_field!r}; {where} has only 'raw' expressions")
                if "split" not in files.columns:
                    files = ParquetFiles(_named_files(files.paths, split, where))
            if not where.expanduser().is_file():  # a single file may be read by itself
                _require_all_shards(files.paths)
            records = _refer_records(files, where) if has_sizes else _answer_records(files, split, where)
            referents = select_referents(
                records.refs,
                records.images,
                records.annotations,
                where,
                split=split,
                sentence_field=sentence_field,
                overlap=overlap,
            )
        self.num_referents = len(referents)
        folder = (
            None
            if files.have_images
            else _image_folder(root, where, dict.fromkeys(one.image.file_name for one in referents))
        )
        examples, groups = group_by_image(referents, folder)
        name = f"{where} {split}"
        self._files = files
        numbers = [records.first_rows[image] for image in dict.fromkeys(one.image.id for one in referents)]
        self._places = [records.rows[number] for number in numbers]
        self._unpacked: UnpackedImages | None = None
        if records.unpacked:
            self._unpacked = records.unpacked.of(numbers)
        elif files.have_images:
            self._unpacked = unpack_images(files, self._places, name)
        super().__init__(name, examples, groups)

    def __getitem__(self, index: int) -> Example:
        """Return an example; raise a UserError if its image is missing or the header of the image is damaged."""
        example = super().__getitem__(index)
        if self._unpacked is None:
            return example
        image = self._unpacked.read(index)
        if not image:
            where = self._files.describe(self._places[index])
            raise UserError(f"{where} has no image; only images that are stored in the rows are read")
        if not self._unpacked.index[index, 2]:  # the header was not readable then, perhaps for lack of a decoder
            width, height = read_size(image, f"the image in {self._files.describe(self._places[index])}")
            example = replace(example, height=height, width=width)
        return replace(example, image=image)


def _image_folder(root: str | Path, where: Path, file_names: Iterable[str]) -> ImageFolder:
    if not str(root):
        raise UserError(
            f"config.input.source.root is empty, and {where} has no images; set it to the folder of COCO's train2014"
        )
    return find_image_folder(Path(root).expanduser(), "refcoco", Path(root).expanduser(), *file_names)


def find_files(path: str | Path, split: str, revision: str = "") -> list[Path]:
    """Return the Parquet files that may hold a split, in order; download them if `path` is a name on the Hub.

    Raises:
        UserError: there are none, or they cannot be downloaded.
    """
    folder = find_dataset(path)
    if folder is None:
        return _download(str(path), split, revision)
    files = sorted(folder.rglob("*.parquet")) if folder.is_dir() else [folder]
    if not files:
        raise UserError(f"{folder} has no Parquet file; give a folder with *.parquet, or USER/NAME on the Hub")
    of_split = ([file for file in files if _split_name(file) in names] for names in _names(split))
    return next(filter(None, of_split), files)


def find_dataset(path: str | Path) -> Path | None:
    """Return the local file or folder, or None for a name on the Hub; raise a UserError if `path` is neither."""
    if not str(path):
        raise UserError(
            "config.input.source.path is empty; set it to Parquet files, or to USER/NAME on the Hugging Face Hub"
        )
    local = Path(path).expanduser()
    if local.exists():
        return local
    if is_repository(str(path)) and local.suffix != ".parquet":
        return None
    raise UserError(
        f"config.input.source.path: {path} does not exist and is not a name on the Hub, USER/NAME; correct it"
    )


def _names(split: str) -> tuple[tuple[str, ...], ...]:
    return _FILE_NAMES.get(split, ((split,),))


def _split_name(file: Path) -> str:
    """Return the split of a file by its name: data/val-00000-of-00004.parquet, val.parquet or val/0000.parquet."""
    stem = _SHARD.sub("", file.stem)
    return file.parent.name if stem.isdigit() else stem


def _require_all_shards(paths: Sequence[Path]) -> None:
    """Raise a UserError unless the files of each split are all of one version, by NUMBER-of-TOTAL in their names."""
    found: defaultdict[tuple[Path, str], list[tuple[int, int]]] = defaultdict(list)
    for path in paths:
        if match := _SHARD.search(path.stem):
            found[path.parent, path.stem[: match.start()]].append((int(match[1]), int(match[2])))
    for (folder, name), shards in found.items():
        totals = sorted({total for _, total in shards})
        if len(totals) > 1 or len(set(shards)) < len(shards):
            of = " and ".join(f"{name}-*-of-{total:05d}" for total in totals)
            raise UserError(
                f"{folder} has Parquet files of several versions of one split ({of}); keep those of one version"
            )
        numbers = {number for number, _ in shards}
        missing = [f"{name}-{one:05d}-of-{totals[0]:05d}.parquet" for one in range(totals[0]) if one not in numbers]
        if missing:
            raise UserError(
                f"{folder} lacks files of the split: {first_of(missing, ', ')}; copy or download them again"
            )


def _download(name: str, split: str, revision: str) -> list[Path]:
    """Return the files of a split in the cache, after downloading those that are not there yet."""
    from huggingface_hub import snapshot_download

    what = f"config.input.source.path: {name} is not a local path and cannot be downloaded from the Hugging Face Hub"
    by_hand = f"download its Parquet files from https://huggingface.co/datasets/{name} and give their folder"
    for names in _names(split):
        forms = [form.format(one) for one in names for form in ("{}-*.parquet", "{}.parquet", "{}/*.parquet")]
        patterns = [*forms, *(f"*/{form}" for form in forms)]
        with accessing_hub(what, by_hand, may_be_path=True):
            folder = snapshot_download(name, repo_type="dataset", revision=revision or None, allow_patterns=patterns)
        files = [file for file in sorted(Path(folder).rglob("*.parquet")) if _split_name(file) in names]
        if files:
            return files
    raise UserError(
        f"{name} on the Hugging Face Hub has no Parquet file of the split {split!r}, or it is not in the cache while "
        f"the Hub cannot be reached; see https://huggingface.co/datasets/{name}/tree/main"
    )


class _Records(NamedTuple):
    """Rows as records of the REFER layout.

    `first_rows` has the number in `rows` of the first row of each image, by the image's id. `unpacked` has the images
    of all rows if they had to be compared.
    """

    refs: list[dict[str, Any]]
    images: dict[int, ImageEntry]
    annotations: dict[int, Annotation]
    rows: list[Place]
    first_rows: dict[int, int]
    unpacked: UnpackedImages | None = None


def _layout_of(files: ParquetFiles, where: Path) -> tuple[str, ...]:
    """Return the columns to read; raise a UserError that names the missing ones."""
    layout = _ANSWER_COLUMNS if "answer" in files.columns else _REFER_COLUMNS
    missing = [name for name in layout if name not in files.columns]
    if missing:
        raise UserError(
            f"{where} lacks the columns {', '.join(missing)}; it has {', '.join(sorted(files.columns))}; it "
            f"needs {', '.join(_REFER_COLUMNS)}, or {', '.join(_ANSWER_COLUMNS)}"
        )
    return layout


def _named_files(paths: list[Path], split: str, where: Path) -> list[Path]:
    """Return the files of a split by their names alone; "test" joins testA and testB where no file has that name."""
    named = [path for path in paths if _split_name(path) in _names(split)[0]]
    if not named:
        available = ", ".join(sorted({_split_name(path) for path in paths}))
        raise UserError(f"split {split!r} not found in {where}, by the names of its files; available: {available}")
    return [path for path in named if _split_name(path) == split] or named


def _refer_records(files: ParquetFiles, where: Path) -> _Records:
    records = _Records([], {}, {}, [], {})
    for number, (place, row) in enumerate(files.rows(_REFER_COLUMNS)):
        try:
            image, annotation = json.loads(row["raw_image_info"]), json.loads(row["raw_anns"])
            id, ann_id = int(row["image_id"]), int(row["ann_id"])
            add_image(records.images, id, image, where)
            add_annotation(records.annotations, ann_id, {"image_id": id} | annotation, records.images, where)
        except MALFORMED as error:
            raise UserError(
                f"{files.describe(place)}: raw_anns and raw_image_info must be JSON objects of COCO, and ids numbers "
                f"({error!r})"
            ) from error
        records.refs.append({**row, "image_id": id, "ann_id": ann_id, "sentences": row["sentences"] or []})
        records.rows.append(place)
        records.first_rows.setdefault(id, number)
    return records


def _answer_records(files: ParquetFiles, split: str, where: Path) -> _Records:
    columns = [*_ANSWER_COLUMNS[1:], *(name for name in _OPTIONAL_COLUMNS if name in files.columns)]
    rows = list(files.rows(columns))
    if "split" in columns:
        rows = _rows_in(split, rows, where)
    places = [place for place, _ in rows]
    unpacked = unpack_images(files, places, f"{where} {split}")
    records = _Records([], {}, {}, places, {}, unpacked)
    ids: dict[tuple[int | str, int, int], int] = {}  # by the id or name, and by the place of the image's bytes
    partial = []
    for number, ((place, row), stored) in enumerate(zip(rows, unpacked.index.tolist(), strict=True)):
        _check_types(row, files.describe(place))
        start, size, height, width = stored
        coco_id = _COCO_ID.search(row["file_name"])
        name = int(coco_id[0]) if coco_id else row["file_name"]
        is_new = isinstance(name, str) or name in records.images
        image_id = ids.setdefault((name, start, size), _NO_COCO_ID + len(ids) if is_new else name)
        # An image without a readable header is refused when it is accessed.
        size_or_any = (height, width) if height else (_ANY_SIDE, _ANY_SIDE)
        records.images.setdefault(image_id, ImageEntry(image_id, row["file_name"], *size_or_any))
        polygons = _polygons(row["segmentation"])
        records.annotations[number] = Annotation(None if row.get("iscrowd") else polygons, False, image_id)
        texts = [row["answer"]] if isinstance(row["answer"], str) else row["answer"] or []
        sentences = [{"sent_id": f"{number}-{position}", "raw": text} for position, text in enumerate(texts)]
        records.refs.append({"ann_id": number, "image_id": image_id, "split": split, "sentences": sentences})
        records.first_rows.setdefault(image_id, number)
        partial += [number] if _is_partial(polygons, row.get("bbox")) else []
    if partial:
        _LOG.warning(
            "%s %s: masks that do not fill their boxes: %d of %d (row %d first): this layout has one polygon for each "
            "object and loses the others of an object in several parts, so scores are not those on the REFER files",
            *(where, split, len(partial), len(records.refs), partial[0]),
        )
    return records


def _rows_in(split: str, rows: list[tuple[Place, dict[str, Any]]], where: Path) -> list[tuple[Place, dict[str, Any]]]:
    """Return the rows of a split by their column `split`, before the images of the others are unpacked."""
    splits = [split_of(row, where) for _, row in rows]
    chosen = [row for row, its_split in zip(rows, splits, strict=True) if in_split(its_split, split)]
    if not chosen:
        raise split_error(split, where, splits)
    check_splits(splits, split, where)
    return chosen


def _check_types(row: dict[str, Any], place: str) -> None:
    """Raise a UserError if a column has values of a type that is not read."""
    if not row["file_name"]:
        raise UserError(f"{place} has no file_name, which with the image says which rows have the same image")
    for name, (types, what) in _TYPES.items():
        if not isinstance(row.get(name), types):
            raise UserError(f"{place} has {row[name]!r:.40} as {name}; it must be {what}")


def _polygons(segmentation: list[Any] | None) -> list[Any] | None:
    """Return a column that holds one polygon, or a list of them, as a list of polygons; None for none."""
    if not segmentation:
        return None
    return [_decimal(polygon) for polygon in (segmentation if isinstance(segmentation[0], list) else [segmentation])]


def _decimal(values: Any) -> Any:
    """Return a polygon of float32 values as the decimal numbers that they were, so that masks are the same."""
    if part_problem(values):
        return values
    single = np.asarray(values, np.float32)
    return [float(str(value)) for value in single] if np.array_equal(single, values) else values


def _is_partial(polygons: list[Any] | None, box: list[Any] | None) -> bool:
    """Return whether polygons leave out a part of their box (x, y, width, height)."""
    if not polygons or any(map(part_problem, polygons)) or not box or len(box) != 4 or None in box:
        return False
    xs, ys = ([value for polygon in polygons for value in polygon[axis::2]] for axis in (0, 1))
    x, y, width, height = box
    return (
        max(min(xs) - x, min(ys) - y) > _BOX_TOLERANCE
        or max(x + width - max(xs), y + height - max(ys)) > _BOX_TOLERANCE
    )
