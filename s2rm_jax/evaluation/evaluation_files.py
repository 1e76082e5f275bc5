"""The files of `evaluate` for other programs: COCO's results, tasks of Label Studio, and the folder of CRIS's test.

Several processes may share an evaluation. Its report has the records of all predictions (see `exchange_formats`); the
first process writes the files.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Iterable
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import numpy as np
from PIL import Image

from s2rm_jax.errors import UserError
from s2rm_jax.evaluation.exchange_formats import (
    LABEL_STUDIO_FILES,
    RESULTS_FILE,
    TRUTH_FILE,
    Record,
    find_naming,
    mask_entry,
    remove_result_files,
    write_coco,
    write_label_studio,
)
from s2rm_jax.evaluation.overlay import image_bytes
from s2rm_jax.input.images import file_suffix
from s2rm_jax.io import read_object, remove_earlier, safe_name, slug, write_atomically, writing
from s2rm_jax.parallel import distributed

if TYPE_CHECKING:
    from s2rm_jax.evaluation.evaluator import ImageMasks, Prediction
    from s2rm_jax.input.example import Example

_METRICS_FILE = "metrics.json"  # every evaluation writes it
_CRIS_FOLDER = "vis"  # the name that CRIS gives it
_PARTIAL_FOLDER = f".{_CRIS_FOLDER}.partial"
_CRIS_FILES = r".+-(img\.jpg|mask\.png|iou=(\d+\.\d\d|nan)-.*\.png)"
_FILES = (re.escape(RESULTS_FILE), re.escape(TRUTH_FILE), LABEL_STUDIO_FILES, f"{_CRIS_FOLDER}/{_CRIS_FILES}")
# Bytes. Most file systems allow 255 in a name, which also has two checksums of 9, the IoU of at most 12, and a suffix.
_LONGEST_REFERENT, _LONGEST_WORDS = 60, 150


def require_no_report(out: Path) -> None:
    """Check that a prediction would not replace files of an evaluation in the same folder.

    Raises:
        UserError: the folder has the report of an evaluation, or files of an unfinished one.
    """
    unfinished = (out / TRUTH_FILE).exists() or (out / _PARTIAL_FOLDER).exists()
    if unfinished or "protocol" in read_object(out / _METRICS_FILE):
        raise UserError(f"--out: {out} has the report of an evaluation; give another --out")


class EvaluationFiles:
    """Write the files of an evaluation for other programs; several processes may share the work.

    Pass `record` to the Evaluator, and the records of its report to `write`. As a context manager, it leaves nothing in
    the folder after an error.

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
        if self._keeps_records or save_masks:
            with writing(out):
                self._make_partial()

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
                lambda: os.path.exists(token), f"--out: {self._out} must be a folder that all processes share"
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
        self._remove_partial()

    def record(self, prediction: Prediction, masks: ImageMasks) -> Record | None:
        """Write the masks of a prediction and return its record, or None if no file needs it."""
        if self._save_masks:
            _write_cris(self._partial, prediction, masks)
        if not self._keeps_records:
            return None
        example, score = prediction.example, prediction.score
        entry = {"expression": score.expression, "id": score.id, "score": round(masks.score, 4)}
        truth = mask_entry(masks.true) if score.targeted else None
        return {
            "image": self._image_file(example),
            "example": example.id,
            "width": example.width,
            "height": example.height,
            "results": [entry | mask_entry(masks.predicted) | {"truth": truth}],
        }

    def write(self, records: Iterable[Record | None]) -> None:
        """Write all files on the first process, from the records of all; every process must call it."""
        with writing(self._out):
            distributed.gather(None)  # all masks are written
            if distributed.is_first():
                if (self._out / _METRICS_FILE).exists():  # else another program wrote the files with such names
                    remove_result_files(self._out, _FILES)
                images = _by_image(record for record in records if record)
                naming = find_naming(images)
                if self._coco:
                    write_coco(self._out, lambda: images, naming, with_truth=True)
                if self._label_studio:
                    write_label_studio(self._out, images, naming, self._label_studio)
                if self._save_masks:
                    self._finish_masks()
            distributed.gather(None)  # all files are complete

    def _finish_masks(self) -> None:
        folder = self._out / _CRIS_FOLDER
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
                write_atomically(path, image if isinstance(image, bytes) else _png(image), durable=False)
        return os.path.abspath(path)


def _by_image(records: Iterable[Record]) -> list[Record]:
    """Merge the consecutive records of each image into one."""
    groups = [list(group) for _, group in groupby(records, key=itemgetter("example"))]
    return [{**group[0], "results": [one for record in group for one in record["results"]]} for group in groups]


def _write_cris(folder: Path, prediction: Prediction, masks: ImageMasks) -> None:
    """Write a prediction as CRIS's test does: REFERENT-img.jpg, REFERENT-mask.png, REFERENT-iou=87.65-the_man.png."""
    score = prediction.score
    referent = safe_name(masks.referent or score.id, _LONGEST_REFERENT)
    iou = float("nan") if score.iou is None else 100 * score.iou
    words = safe_name("_".join(score.expression.split(" ")), _LONGEST_WORDS)
    files = {f"{referent}-iou={iou:.2f}-{words}.png": _png(masks.predicted.astype(np.uint8) * 255)}
    if not (folder / f"{referent}-mask.png").exists():  # it does after the first expression
        files[f"{referent}-img.jpg"] = image_bytes(Image.fromarray(prediction.example.load_image()), "JPEG", quality=95)
        files[f"{referent}-mask.png"] = _png(masks.true.astype(np.uint8) * 255)
    for name, content in files.items():
        with writing(folder / name):
            write_atomically(folder / name, content, durable=False)


def _png(pixels: np.ndarray) -> bytes:
    return image_bytes(Image.fromarray(pixels), compress_level=1)
