"""Predictions in the formats of other programs: COCO's results, tasks of Label Studio, and the folder of CRIS's test.

Each image is a record: {"image": FILE, "width": ..., "height": ..., "results": [{"expression": ..., "score": ...,
"area": ..., "box": ..., "mask": RLE}, ...]}, as in the result.json of `predict`. Records are read from a file several
times and never held in memory together.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import tempfile
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, count, groupby, islice
from operator import itemgetter
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any
from urllib.parse import quote
from uuid import uuid4
from xml.sax.saxutils import quoteattr

import numpy as np
from jaxtyping import Bool
from PIL import Image

from s2rm_jax.errors import UserError
from s2rm_jax.input.images import file_suffix, is_url
from s2rm_jax.input.masks import decode_rle, encode_rle, mask_box
from s2rm_jax.io import on_bucket, read_object, remove_earlier, safe_name, slug, write_atomically, writing
from s2rm_jax.parallel import distributed

if TYPE_CHECKING:
    from s2rm_jax.evaluation.evaluator import Answer, Prediction
    from s2rm_jax.input.example import Example

RESULTS_FILE = "coco_results.json"
IMAGES_FILE = "coco_images.json"
TRUTH_FILE = "coco_truth.json"
LABEL_STUDIO = "label_studio"
CRIS_FOLDER = "vis"  # the name that CRIS gives it
_PARTIAL_FOLDER = f".{CRIS_FOLDER}.partial"

Record = Mapping[str, Any]
Records = Callable[[], Iterable[Record]]

_TASKS_PER_FILE = 1000  # about 20 MB of masks of COCO's images
_TASKS = r"tasks(-\d+-of-\d+)?-\d{4,}\.json"
LABEL_STUDIO_FILES = f"{LABEL_STUDIO}/{_TASKS}"
_CONFIG_FILE = "config.xml"
_METRICS_FILE = "metrics.json"  # every evaluation writes it
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


def require_no_report(out: Path) -> None:
    """Check that a prediction would not replace files of an evaluation in the same folder.

    Raises:
        UserError: the folder has the report of an evaluation, or files of an unfinished one.
    """
    unfinished = (out / TRUTH_FILE).exists() or (out / _PARTIAL_FOLDER).exists()
    if unfinished or "protocol" in read_object(out / _METRICS_FILE):
        raise UserError(f"--out: {out} has the report of an evaluation; give another --out")


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


class EvaluationFiles:
    """Write the files of an evaluation for other programs; several processes may share the work.

    Pass `record` to the Evaluator, call `add` with each prediction and `end_batch` after each batch, and `write` at the
    end. Until then the records are in an anonymous temporary file in the folder. As a context manager, it leaves
    nothing there after an error.

    Args:
        out: an existing folder, which all processes share.
        coco: whether to write COCO's results.
        label_studio: the address of the images for Label Studio; "" writes no tasks.
        save_masks: whether to write the masks in CRIS's layout.
    """

    def __init__(self, out: Path, *, coco: bool, label_studio: str, save_masks: bool):
        self._out, self._coco, self._label_studio, self._save_masks = out, coco, label_studio, save_masks
        self._keeps_records = coco or bool(label_studio)
        self._partial = out / _PARTIAL_FOLDER
        with writing(out):
            if self._keeps_records or save_masks:
                self._make_partial()
            self._file = tempfile.TemporaryFile(dir=out)  # noqa: SIM115  closed by `__exit__`

    def _make_partial(self) -> None:
        """Create the folder for unfinished masks; raise UserError unless all processes see it."""
        if distributed.is_first():
            shutil.rmtree(self._partial, ignore_errors=True)  # left by a killed process
            self._partial.mkdir()
        token = self._partial / distributed.gather(uuid4().hex)[0]  # a new name: no host has cached that it is missing
        if distributed.is_first():
            token.touch()
        try:
            distributed.require_everywhere(
                lambda: os.path.exists(token), f"--out: {self._out} must be a folder that all processes share."
            )
        except UserError:
            self._remove_partial()
            raise
        if distributed.is_first():
            token.unlink()

    def _remove_partial(self) -> None:
        if distributed.is_first():  # others may still write their masks when one has failed
            shutil.rmtree(self._partial, ignore_errors=True)

    def __enter__(self) -> EvaluationFiles:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._remove_partial()

    def record(self, prediction: Prediction, answer: Answer) -> bytes:
        """Write the masks of a prediction and return its record as a line."""
        if self._save_masks:
            _write_cris(self._partial, prediction, answer)
        if not self._keeps_records:
            return b""
        example, score = prediction.example, prediction.score
        entry = {"expression": score.expression, "id": score.id, "score": round(answer.score, 4)}
        truth = mask_entry(answer.true) if score.targeted else None
        record = {
            "image": self._image_file(example),
            "example": example.id,
            "width": example.width,
            "height": example.height,
            "results": [entry | mask_entry(answer.predicted) | {"truth": truth}],
        }
        return json.dumps(record).encode() + b"\n"

    def add(self, prediction: Prediction) -> None:
        """Keep the record of a prediction; predictions come in the order of the data."""
        with writing(self._out):
            self._file.write(prediction.record or b"")

    def end_batch(self) -> None:
        """Mark the end of a batch, of which each process has a part."""
        with writing(self._out):
            self._file.write(b"\n")

    def write(self) -> None:
        """Write all files on the first process; every process must call it."""
        with writing(self._out):
            self._gather()
            distributed.gather(None)  # all masks are written
            if distributed.is_first():
                if (self._out / _METRICS_FILE).exists():  # else another program wrote the files with such names
                    remove_result_files(self._out, _EVALUATION_FILES)
                naming = find_naming(self._records())
                if self._coco:
                    write_coco(self._out, self._records, naming, with_truth=True)
                if self._label_studio:
                    write_label_studio(self._out, self._records(), naming, self._label_studio)
                if self._save_masks:
                    self._finish_masks()
            distributed.gather(None)  # all files are complete

    def _finish_masks(self) -> None:
        folder = self._out / CRIS_FOLDER
        folder.mkdir(exist_ok=True)
        remove_earlier(folder, _CRIS_FILES)
        for path in self._partial.iterdir():
            path.replace(folder / path.name)
        self._partial.rmdir()

    def _image_file(self, example: Example) -> str:
        """Return the file of the image; an image without a file gets one in images/.

        The name has a checksum of the image, so that the file of an earlier evaluation is never taken for it.
        """
        if isinstance(example.image, Path):
            return os.path.abspath(example.image)
        image = example.image if isinstance(example.image, bytes) else example.load_image()
        content, suffix = (image, file_suffix(image)) if isinstance(image, bytes) else (image.tobytes(), "png")
        digest = hashlib.blake2b(f"{example.width} {example.height} ".encode() + content, digest_size=8).hexdigest()
        path = self._out / "images" / f"{slug(example.id)}_{digest}.{suffix}"
        with writing(path):
            path.parent.mkdir(exist_ok=True)
        if not path.exists():  # it does after the first expression
            _write(path, image if isinstance(image, bytes) else _png(image))
        return os.path.abspath(path)

    def _gather(self) -> None:
        """Bring the records of all processes, in the order of the data, into the file of the first one."""
        if distributed.is_alone():
            return
        with tempfile.TemporaryFile(dir=self._out) as mine:
            self._file.seek(0)
            shutil.copyfileobj(self._file, mine)
            self._file.seek(0)
            self._file.truncate()
            mine.seek(0)
            batches = _batches(mine)
            while any(shares := distributed.gather(list(islice(batches, _BATCHES_AT_ONCE)))):
                if distributed.is_first():  # batch by batch, the shares of the processes one after the other
                    for batch in zip(*shares, strict=True):
                        self._file.writelines(batch)

    def _records(self) -> Iterator[Record]:
        self._file.seek(0)
        lines = (json.loads(line) for line in self._file if line != b"\n")
        for _, group in groupby(lines, key=itemgetter("example")):  # an image may fill several rows of a batch
            first, *others = group
            yield first | {"results": [one for record in (first, *others) for one in record["results"]]}


_BATCHES_AT_ONCE = 16


def _batches(file: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the lines of each batch together."""
    lines: list[bytes] = []
    for line in file:
        if line == b"\n":
            yield b"".join(lines)
            lines = []
        else:
            lines.append(line)


def mask_entry(mask: Bool[np.ndarray, "height width"]) -> dict[str, Any]:
    """Return the fields of a mask in a record."""
    return {"area": int(np.count_nonzero(mask)), "box": mask_box(mask), "mask": encode_rle(mask)}


_CRIS_FILES = r".+-(img\.jpg|mask\.png|iou=(\d+\.\d\d|nan)-.*\.png)"
_EVALUATION_FILES = (re.escape(RESULTS_FILE), re.escape(TRUTH_FILE), LABEL_STUDIO_FILES, f"{CRIS_FOLDER}/{_CRIS_FILES}")
# Bytes. Most file systems allow 255 in a name, which also has two checksums of 9, the IoU of at most 12, and a suffix.
_LONGEST_REFERENT, _LONGEST_WORDS = 60, 150


def _write_cris(folder: Path, prediction: Prediction, answer: Answer) -> None:
    """Write a prediction as CRIS's test does: REFERENT-img.jpg, REFERENT-mask.png, REFERENT-iou=87.65-the_man.png."""
    score = prediction.score
    referent = safe_name(answer.referent or score.id, _LONGEST_REFERENT)
    image, true = folder / f"{referent}-img.jpg", folder / f"{referent}-mask.png"
    if not true.exists():
        buffer = io.BytesIO()
        Image.fromarray(prediction.example.load_image()).save(buffer, "JPEG", quality=95)
        _write(image, buffer.getvalue())
        _write(true, _png(answer.true.astype(np.uint8) * 255))
    iou = float("nan") if score.iou is None else 100 * score.iou
    words = safe_name("_".join(score.expression.split(" ")), _LONGEST_WORDS)
    _write(folder / f"{referent}-iou={iou:.2f}-{words}.png", _png(answer.predicted.astype(np.uint8) * 255))


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
