"""Find what lies under a folder: which datasets, split by whom.

How large the benchmarks are known to be, and where people report to find their files.

Images and referents: the documentation of TFDS's ref_coco and the code of CRIS (utils/dataset.py) agree on them.
Expressions: those of RefCOCO as documented by FlagEval; of RefCOCO+ and RefCOCOg only the totals are certain.

Looks at image files: are they there, whole, and of the size that their annotation says?

Compares masks with the boxes of their annotations, without rasterizing polygons.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from s2rm_jax.errors import UserError
from s2rm_jax.input.images import FORMATS
from s2rm_jax.input.masks import decode_rle, has_mask


class SplitSize(NamedTuple):
    """How many there are of each; None where no figure is known for certain."""

    images: int | None
    referents: int | None
    expressions: int | None


PUBLISHED: dict[tuple[str, str], dict[str, SplitSize]] = {
    ("refcoco", "unc"): {
        "train": SplitSize(16_994, 42_404, 120_624),
        "val": SplitSize(1_500, 3_811, 10_834),
        "testA": SplitSize(750, 1_975, 5_657),
        "testB": SplitSize(750, 1_810, 5_095),
    },
    ("refcoco", "google"): {
        "train": SplitSize(19_213, 40_000, None),
        "val": SplitSize(4_559, 5_000, None),
        "test": SplitSize(4_527, 5_000, None),
    },
    ("refcoco+", "unc"): {
        "train": SplitSize(16_992, 42_278, None),
        "val": SplitSize(1_500, 3_805, None),
        "testA": SplitSize(750, 1_975, None),
        "testB": SplitSize(750, 1_798, None),
    },
    ("refcocog", "umd"): {
        "train": SplitSize(21_899, 42_226, None),
        "val": SplitSize(1_300, 2_573, None),
        "test": SplitSize(2_600, 5_023, None),
    },
    ("refcocog", "google"): {
        "train": SplitSize(24_698, 44_822, None),
        "val": SplitSize(4_650, 5_000, None),
    },
}

PUBLISHED_EXPRESSIONS = {
    ("refcoco", "unc"): 142_210,
    ("refcoco+", "unc"): 141_564,
    ("refcocog", "umd"): 95_010,
    ("refcocog", "google"): 95_010,
}

# Said, but not a reason to call a copy damaged: the files were renumbered in August 2023.
REPORTED = {
    ("grefcoco", "unc"): (
        "its authors report 278,232 expressions over 19,994 images, of which their file has 259,859: "
        "https://github.com/henghuiding/gRefCOCO/issues/6"
    ),
}

_ARCHIVE = "https://web.archive.org/web/{stamp}/https://bvisionweb1.cs.unc.edu/licheng/referit/data/{file}"
_STAMPS = {
    "refcoco": "20220413011718",
    "refcoco+": "20220413011656",
    "refcocog": "20220413012904",
    "refclef": "20220413011817",
}
_WORKING = "reported working in December 2025 in https://github.com/lichengunc/refer/issues/26"


def where_annotations(dataset: str) -> str:
    """Say where the annotations of a dataset have been found; none of these places is ours."""
    if dataset == "grefcoco":
        return "grefs(unc).json and instances.json: https://github.com/henghuiding/gRefCOCO"
    if dataset in _STAMPS:
        return f"{dataset}.zip: {_ARCHIVE.format(stamp=_STAMPS[dataset], file=f'{dataset}.zip')} ({_WORKING})"
    return f"{dataset} is no published dataset known here; take its files from where they came"


def where_images(dataset: str) -> str:
    """Say where the images of a dataset have been found."""
    if dataset == "refclef":
        archive = "https://web.archive.org/web/20220515000000/http://bvisionweb1.cs.unc.edu/licheng/referit/data/images"
        return f"saiapr_tc-12.zip: {archive}/saiapr_tc-12.zip ({_WORKING})"
    return (
        "train2014.zip (13 GB) from https://cocodataset.org/#download; train2017.zip has the same images, and more, "
        "under bare names"
    )


KNOWN = ("refcoco", "refcoco+", "refcocog", "refclef", "grefcoco")
_NAME = re.compile(r"g?refs\((.+)\)\.(p|json)")


class Found(NamedTuple):
    """A file of referents and the instances.json beside it, which need not exist."""

    dataset: str
    split_by: str
    refs: Path
    instances: Path


def discover(root: Path, dataset: str = "", split_by: str = "") -> list[Found]:
    """Return the datasets under `root`, or the one that is asked for, in the order of KNOWN, then by name.

    Raises UserError if the folder or what is asked for is not there; says what is, and where people get the rest.
    """
    if not root.is_dir():
        raise UserError(f"the folder {root} does not exist; give the one that holds refcoco, refcocog, ... as --root")
    found = [item for folder in sorted(path for path in root.iterdir() if path.is_dir()) for item in _in_folder(folder)]
    if not found:
        if _in_folder(root):
            raise UserError(f"{root} is the folder of one dataset; give the folder above it, {root.resolve().parent}")
        raise UserError(
            f"{root} has no folder with a file refs(...).p in it; unpack the annotations of a dataset there, for "
            f"example {where_annotations('refcoco')}; and the images: {where_images('refcoco')}"
        )
    wanted = [item for item in found if dataset in ("", item.dataset) and split_by in ("", item.split_by)]
    if not wanted:
        asked = " ".join(part for part in (dataset, split_by and f"split by {split_by}") if part)
        there = ", ".join(f"{item.dataset} split by {item.split_by}" for item in found)
        advice = f"; get {where_annotations(dataset)}" if dataset in KNOWN else ""
        raise UserError(f"{root} has no {asked}; it has {there}{advice}")
    order = {name: number for number, name in enumerate(KNOWN)}
    return sorted(wanted, key=lambda item: (order.get(item.dataset, len(KNOWN)), item.dataset, item.split_by))


def _in_folder(folder: Path) -> list[Found]:
    """The files of referents in a folder; of a pickle and a JSON file with one name, the pickle, as in training."""
    by_name: dict[str, Found] = {}
    for path in sorted(folder.iterdir(), reverse=True):  # .p before .json
        match = _NAME.fullmatch(path.name)
        if match and path.is_file():
            by_name.setdefault(match[1], Found(folder.name, match[1], path, folder / "instances.json"))
    return list(by_name.values())


_CHUNK = 512  # images handed to the threads at a time, so that Ctrl-C is heard


class ImageFile(NamedTuple):
    """A file and the size in pixels that it should have."""

    path: Path
    height: int
    width: int


def ailment(image: ImageFile, quick: bool = False) -> tuple[str, str]:
    """Return the kind of what is wrong with a file, and the case in words; two empty texts if it is well.

    The whole file is decoded, unless `quick`: then its header is read and nothing else. A JPEG is decoded to an eighth
    of its size, which still reads every byte of it and is several times as fast. What libjpeg can decode counts as
    whole: a flipped bit in the middle of a file often only changes some colours.
    """
    path, height, width = image
    try:
        with Image.open(path, formats=FORMATS) as file:
            size = file.size
            if not quick:
                file.draft(file.mode, (size[0] // 8, size[1] // 8))
                file.load()
    except FileNotFoundError:
        return "missing images", path.name
    except UnidentifiedImageError:
        reason = "not an image" if path.stat().st_size else "an empty file"
        return "damaged images", f"{path.name} ({reason})"
    except Exception as error:  # of damaged data Pillow raises nearly anything
        reason = " ".join(str(error).split()) or type(error).__name__
        return "damaged images", f"{path.name} ({reason})"
    if size != (width, height):
        found = f"{size[0]} x {size[1]} instead of {width} x {height}"
        return "images of another size than annotated", f"{path.name} ({found})"
    return "", ""


def ailments(images: Sequence[ImageFile], quick: bool = False, threads: int = 0) -> Iterator[tuple[str, str]]:
    """Yield the ailment of each image, in order; Pillow lets threads decode on all cores at once."""
    with ThreadPoolExecutor(threads or os.cpu_count() or 1) as pool:
        for first in range(0, len(images), _CHUNK):
            yield from pool.map(lambda image: ailment(image, quick), images[first : first + _CHUNK])


# Pixels. Boxes of COCO are the extent of the polygons to the last digit; other tools count pixels from 1, or leave out
# the last row and column, each of which moves an edge by one pixel.
TOLERANCE = 2.0

Extent = tuple[float, float, float, float]  # left, top, right, bottom in pixels


def extent_of(segmentation: Any, height: int, width: int) -> Extent | None:
    """Return the extent of polygons, as they are written, or of RLEs; None if there is no mask.

    Raises UserError for damaged polygons or RLE, or an RLE of another size than the image's.
    """
    if not has_mask(segmentation):
        return None
    parts = [segmentation] if isinstance(segmentation, dict) else segmentation
    extents = [
        _extent_of_rle(part, height, width) if isinstance(part, dict) else _extent_of_polygon(part) for part in parts
    ]
    found = [extent for extent in extents if extent is not None]
    if not found:
        return None
    lefts, tops, rights, bottoms = zip(*found, strict=True)
    return min(lefts), min(tops), max(rights), max(bottoms)


def misfit(extent: Extent, box: Any, height: int, width: int) -> str:
    """Return what does not fit between a mask's extent, its image and its box, or "" if all does.

    The box is x, y, width, height in pixels; None where the annotation has no box.
    """
    outside = max(-extent[0], -extent[1], extent[2] - width, extent[3] - height)
    if outside > TOLERANCE:
        return f"the mask ends {outside:.0f} pixels outside the image of {width} x {height}"
    if box is None:
        return ""
    try:
        left, top, wide, high = (float(value) for value in box)
    except (TypeError, ValueError):
        return f"the bbox is {box!r:.40}, not x, y, width, height"
    off = max(abs(a - b) for a, b in zip(extent, (left, top, left + wide, top + high), strict=True))
    return f"mask and box differ by {off:.0f} pixels" if off > TOLERANCE else ""


def _extent_of_polygon(polygon: Any) -> Extent | None:
    if len(polygon) < 6:
        return None
    try:
        corners = np.asarray(polygon, np.float64).reshape(-1, 2)
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(f"a polygon is not pairs of numbers: {polygon!r:.40}") from error
    if not np.isfinite(corners).all():
        raise UserError(f"a polygon has coordinates that are not finite: {polygon!r:.40}")
    (left, top), (right, bottom) = corners.min(axis=0), corners.max(axis=0)
    return float(left), float(top), float(right), float(bottom)


def _extent_of_rle(rle: dict[str, Any], height: int, width: int) -> Extent | None:
    rows, columns = np.nonzero(decode_rle(rle, height, width))
    if not len(rows):
        return None
    return float(columns.min()), float(rows.min()), float(columns.max() + 1), float(rows.max() + 1)
