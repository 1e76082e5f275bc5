"""Predictions in the formats of other programs: COCO's results, and tasks of Label Studio.

Each image is a record: {"image": FILE, "width": ..., "height": ..., "results": [{"expression": ..., "score": ...,
"area": ..., "box": ..., "mask": RLE}, ...]}, as in the result.json of `predict`. `Records` are read several times, so
that those of many images can stay in a file.
"""

from __future__ import annotations

import json
import os
import re
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, count, islice
from pathlib import Path, PurePath
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

import numpy as np
from jaxtyping import Bool

from s2rm_jax.errors import UserError
from s2rm_jax.input.masks import decode_rle, encode_rle, mask_box
from s2rm_jax.input.web import is_url
from s2rm_jax.io import on_bucket, remove_earlier, write_atomically, writing

RESULTS_FILE = "coco_results.json"
IMAGES_FILE = "coco_images.json"
TRUTH_FILE = "coco_truth.json"
LABEL_STUDIO = "label_studio"

Record = Mapping[str, Any]
Records = Callable[[], Iterable[Record]]

_TASKS_PER_FILE = 1000  # about 20 MB of masks of COCO's images
_TASKS = r"tasks(-\d+-of-\d+)?-\d{4,}\.json"
LABEL_STUDIO_FILES = f"{LABEL_STUDIO}/{_TASKS}"
_CONFIG_FILE = "config.xml"
_MODEL = "s2rm_jax"
_COCO_NAME = re.compile(r"(?:^|_)(\d{12})$")  # of the names of COCO's images without the suffix


@dataclass(frozen=True)
class Naming:
    """How the images of a set are named: by their paths below `root`, and with the ids of COCO or numbered from 1."""

    root: str
    has_coco_ids: bool

    def file_name(self, record: Record) -> str:
        """Return the path of an image relative to `root`, with slashes; an address is returned unchanged."""
        image = record["image"]
        return image if _is_address(image) else PurePath(os.path.relpath(image, self.root)).as_posix()

    def image_id(self, record: Record, position: int) -> int:
        """Return the id of the image at a position, from 0, of the set."""
        coco_id = _coco_id(record) if self.has_coco_ids else None
        return record.get("number", position + 1) if coco_id is None else coco_id


def find_naming(records: Iterable[Record]) -> Naming:
    """Return the naming of a set of images.

    The ids are COCO's if every image has a different one: the number that is the "example" of its record, or the twelve
    digits at the end of its file name or its "example", as in COCO_train2014_000000000072.jpg.
    """
    ids, all_known, root = array("q"), True, None
    for record in records:
        coco_id = _coco_id(record)
        all_known = all_known and coco_id is not None
        if coco_id is not None and all_known:
            ids.append(coco_id)
        if not _is_address(record["image"]):
            folder = os.path.dirname(os.path.abspath(record["image"]))
            root = folder if root is None or root == folder else os.path.commonpath([root, folder])
    return Naming(root or "", all_known and len(np.unique(np.array(ids))) == len(ids))


def write_coco(out: Path, records: Records, naming: Naming, *, with_truth: bool = False) -> None:
    """Write coco_results.json, an entry for each expression, and the file of its images, which `COCO.loadRes` needs.

    That is coco_images.json without annotations, or coco_truth.json with the true masks. The category of an expression
    is its number in its image, so that COCOeval compares each mask with that of the same expression only.

    Args:
        out: an existing folder.
        records: returns the records of all images.
        naming: the names and ids of the images.
        with_truth: whether the results have a "truth", the true mask, or None for an expression without a referent.

    Raises:
        UserError: a file cannot be written.
    """

    def numbered() -> Iterator[tuple[int, Record]]:
        return ((naming.image_id(record, position), record) for position, record in enumerate(records()))

    def entries() -> Iterator[dict[str, Any]]:
        for image_id, record in numbered():
            for number, one in enumerate(record["results"], start=1):
                entry = {"image_id": image_id, "category_id": number, **_coco_mask(one), "score": one["score"]}
                yield entry | _about(one)

    def images() -> Iterator[dict[str, Any]]:
        for image_id, record in numbered():
            size = {"width": record["width"], "height": record["height"]}
            yield {"id": image_id, "file_name": naming.file_name(record), **size}

    def annotations() -> Iterator[dict[str, Any]]:
        ids = count(1)
        for image_id, record in numbered() if with_truth else ():
            for number, one in enumerate(record["results"], start=1):
                if one["truth"] is not None:
                    head = {"id": next(ids), "image_id": image_id, "category_id": number}
                    yield head | _coco_mask(one["truth"]) | {"iscrowd": 0} | _about(one)

    most = max((len(record["results"]) for record in records()), default=0)
    categories = ({"id": number, "name": f"expression {number}"} for number in range(1, most + 1))
    info = {"description": f"predictions of {_MODEL}", "image_root": naming.root}
    _write(out / RESULTS_FILE, _array(entries()))
    text = chain([f'{{"info": {json.dumps(info)},\n"images": '], _array(images()), [',\n"annotations": '])
    text = chain(text, _array(annotations()), [',\n"categories": '], _array(categories), ["}\n"])
    _write(out / (TRUTH_FILE if with_truth else IMAGES_FILE), text)


def _coco_id(record: Record) -> int | None:
    example = record.get("example", "")
    if re.fullmatch(r"0|[1-9]\d{0,17}", example):
        return int(example)
    found = _COCO_NAME.search(PurePath(record["image"]).stem) or _COCO_NAME.search(example)
    return int(found[1]) if found else None


def _coco_mask(one: Mapping[str, Any]) -> dict[str, Any]:
    left, top, right, bottom = one["box"] or (0, 0, 0, 0)
    return {"segmentation": one["mask"], "bbox": [left, top, right - left, bottom - top], "area": one["area"]}


def _about(one: Mapping[str, Any]) -> dict[str, Any]:
    return {"expression": one["expression"]} | ({"expression_id": one["id"]} if "id" in one else {})


def _is_address(image: str) -> bool:
    return is_url(image) or on_bucket(image)


def _array(values: Iterable[Any]) -> Iterator[str]:
    """Yield the text of a JSON array, one value per line."""
    separator = "["
    for value in values:
        yield f"{separator}\n{json.dumps(value)}"
        separator = ","
    yield "[]" if separator == "[" else "\n]"


def _write(path: Path, content: bytes | Iterable[str]) -> None:
    with writing(path):
        write_atomically(path, content)


def check_address(prefix: str | None) -> None:
    """Check the value of --label_studio, None if the flag is not given.

    Raises:
        UserError: it is not the beginning of an address.
    """
    if prefix is not None and not (prefix.startswith("/") or on_bucket(prefix)):
        raise UserError(
            f"--label_studio: {prefix} is not the beginning of the addresses of images; give the one under which Label "
            "Studio finds the folder of the images, such as https://example.org/images or "
            "/data/local-files/?d=images"
        )


def write_label_studio(out: Path, records: Iterable[Record], naming: Naming, prefix: str, share: str = "") -> None:
    """Write label_studio/: config.xml, the labeling configuration, and tasks-0001.json ..., files of up to 1,000 tasks.

    A task is an image with its expressions; the prediction has a brush mask for each that is not empty, and its
    expression as the text of that region.

    Args:
        out: an existing folder.
        records: the records of the images.
        naming: the names of the images.
        prefix: the address of the folder `naming.root`; images with an address of their own keep it.
        share: "I-of-N", the share of this process, which becomes part of the names of the files.

    Raises:
        UserError: a file cannot be written.
    """
    folder = out / LABEL_STUDIO
    name = f"tasks-{share}" if share else "tasks"
    prefix = prefix if prefix.endswith(("/", "=")) else f"{prefix}/"
    with writing(folder):
        folder.mkdir(exist_ok=True)
        remove_earlier(folder, rf"{re.escape(name)}-\d{{4,}}\.json" if share else _TASKS)
    _write(folder / _CONFIG_FILE, [_LABELING])
    tasks = (_task(record, naming, prefix) for record in records)
    for number in count(1):
        batch = islice(tasks, _TASKS_PER_FILE)
        if (first := next(batch, None)) is None:
            return
        _write(folder / f"{name}-{number:04d}.json", _array(chain([first], batch)))


_LABEL = "referent"
# The expressions are above the image, which may fill the window. "region-list" shows each beside its mask in the list
# of regions; otherwise only that of a selected mask is shown.
_LABELING = f"""<View>
  <Text name="expressions" value="$expressions"/>
  <Image name="image" value="$image" zoom="true"/>
  <BrushLabels name="mask" toName="image">
    <Label value={quoteattr(_LABEL)} background="#2f7fc1"/>
  </BrushLabels>
  <TextArea name="expression" toName="image" perRegion="true" editable="true" displayMode="region-list"/>
</View>
"""


def _task(record: Record, naming: Naming, prefix: str) -> dict[str, Any]:
    image, (width, height) = record["image"], (record["width"], record["height"])
    if not _is_address(image):
        image = prefix + quote(os.fsencode(naming.file_name(record)))
    size = {"original_width": width, "original_height": height, "image_rotation": 0}
    regions: list[dict[str, Any]] = []
    for number, one in enumerate(record["results"], start=1):
        if one["area"]:
            region = {"id": f"expression{number}", "to_name": "image", **size}
            brush = {"format": "rle", "rle": encode_brush(decode_rle(one["mask"], height, width))}
            regions += [
                region
                | {"from_name": "mask", "type": "brushlabels", "value": brush | {"brushlabels": [_LABEL]}}
                | {"score": one["score"]},
                region | {"from_name": "expression", "type": "textarea", "value": {"text": [one["expression"]]}},
            ]
    listed = "\n".join(f"{number}. {one['expression']}" for number, one in enumerate(record["results"], start=1))
    scores = [one["score"] for one in record["results"]]
    prediction = {"model_version": _MODEL, "score": sum(scores) / len(scores), "result": regions}
    return {"data": {"image": image, "expressions": listed}, "predictions": [prediction]}


_RUN_BITS = (3, 4, 8, 16)  # the numbers of bits for the length of a run that a brush mask chooses from
_LONGEST = 2 ** _RUN_BITS[-1]


def encode_brush(mask: Bool[np.ndarray, "height width"]) -> list[int]:
    """Return a mask in the run-length encoding of Label Studio's brush, as a list of bytes.

    The encoded values are those of an image of four channels, row by row, each 0 or 255. The bits are: the number of
    values (32), the bits of a value - 1 (5), the four numbers of bits for lengths - 1 (4 each), and then for each run
    of equal values a 1, the index of the number of bits for its length (2), its length - 1, and the value (8).
    """
    flat = mask.ravel()
    ends = np.append(np.flatnonzero(flat[1:] != flat[:-1]) + 1, flat.size)
    lengths, values = 4 * np.diff(ends, prepend=0), np.where(flat[ends - 1], 255, 0)
    pieces = -(-lengths // _LONGEST)  # a run that is too long is several
    last = np.cumsum(pieces) - 1
    values, rest = np.repeat(values, pieces), lengths - (pieces - 1) * _LONGEST
    lengths = np.full(len(values), _LONGEST)
    lengths[last] = rest
    index = np.searchsorted(2 ** np.array(_RUN_BITS), lengths)
    bits = np.array(_RUN_BITS)[index]
    codes = ((4 + index) << bits | (lengths - 1)) << 8 | values
    header = [(4 * flat.size, 32), (8 - 1, 5), *((number - 1, 4) for number in _RUN_BITS)]
    codes = np.concatenate([[code for code, _ in header], codes])
    widths = np.concatenate([[width for _, width in header], 3 + bits + 8])
    every = np.unpackbits(codes.astype(">u4").view(np.uint8).reshape(-1, 4), axis=1)
    return np.packbits(every[np.arange(32) >= 32 - widths[:, None]]).tolist()


def remove_result_files(out: Path, names: Iterable[str]) -> None:
    """Remove the files of an earlier command in the same folder, and subfolders that become empty.

    Args:
        out: the folder.
        names: regular expressions for their names; "FOLDER/NAMES" for those in a subfolder.

    Raises:
        UserError: a file cannot be removed.
    """
    for name in names:
        below, _, files = name.rpartition("/")
        folder = out / below
        with writing(folder):
            if not folder.is_dir():
                continue
            remove_earlier(folder, files)
            config = folder / _CONFIG_FILE
            if below == LABEL_STUDIO and config.is_file() and config.read_bytes() == _LABELING.encode():
                config.unlink()  # any other is one of the user
            if below and not any(folder.iterdir()):
                folder.rmdir()


def mask_entry(mask: Bool[np.ndarray, "height width"]) -> dict[str, Any]:
    """Return the fields of a mask in a record."""
    return {"area": int(np.count_nonzero(mask)), "box": mask_box(mask), "mask": encode_rle(mask)}
