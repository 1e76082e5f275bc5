"""Measure the two ways to store a REFER dataset: sizes on disk, reading speed, and possible forms of masks.

    python -m data.measure                                          # 500 generated images of 640 x 480
    python -m data.measure --root DATA --split_by mini              # the refcoco in that folder

Prints Markdown. docs/results/tfds.md has the result. One thread reads images in random order from the page cache, so
disks and networks are not measured. Rates are by processor time, the best of three rounds.
"""

from __future__ import annotations

import io
import json
import tempfile
import time
import zlib
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from PIL import Image
from pycocotools import mask as coco_mask

from data.build import build
from s2rm_jax import command_line
from s2rm_jax.input.images import load_image
from s2rm_jax.input.masks import decode_rle, rasterize
from s2rm_jax.input.refer import ReferSource
from s2rm_jax.input.tfds import TfdsSource

FLAGS = flags.FlagValues()
ROOT = flags.DEFINE_string("root", "", "folder in the REFER layout; by default images are generated", flag_values=FLAGS)
SPLIT_BY = flags.DEFINE_string("split_by", "unc", "who made the splits, such as unc or umd", flag_values=FLAGS)
IMAGES = flags.DEFINE_integer("images", 500, "number of generated images", lower_bound=1, flag_values=FLAGS)

HEIGHT, WIDTH = 480, 640


def main() -> None:
    """Measure with the settings of the flags."""
    with tempfile.TemporaryDirectory() as scratch:
        made = Path(scratch, "files")
        root = Path(ROOT.value) if ROOT.value else write_images(made, IMAGES.value or 0)
        started = time.perf_counter()
        folder = build("refcoco", root, Path(scratch, "out"), split_by=SPLIT_BY.value or "")
        seconds = time.perf_counter() - started
        files = ReferSource("train", root=root, split_by=SPLIT_BY.value or "")
        records = TfdsSource("train", root=Path(scratch, "out"), split_by=SPLIT_BY.value or "")
        images = sum(Path(str(example.image)).stat().st_size for example in files)
        stored = sum(path.stat().st_size for path in folder.glob("refcoco-train.*"))
        versions = ", ".join(f"{name} {version(name)}" for name in ("tensorflow-datasets", "array-record", "pillow"))
        print(f"{len(files)} images, {files.num_expressions} expressions; {versions}\n")
        print("| train split | size, MB | reading, images/s | reading and decoding, images/s |\n|---|---|---|---|")
        bytes_of_files = rate(lambda i: Path(str(files[i].image)).read_bytes(), len(files))
        decoded_files = rate(lambda i: load_image(files[i].image), len(files))
        print(f"| images as files | {images / 1e6:.2f} | {bytes_of_files:,.0f} | {decoded_files:,.0f} |")
        bytes_of_records = rate(lambda i: records._records[i], len(files))
        decoded_records = rate(lambda i: load_image(records[i].image), len(files))
        print(f"| ArrayRecord | {stored / 1e6:.2f} | {bytes_of_records:,.0f} | {decoded_records:,.0f} |\n")
        print(f"Building all splits took {seconds:.1f} s.\n")
        print_mask_forms(files)


def rate(read: Callable[[int], Any], count: int) -> float:
    """Return the items read per second of processor time, in random order; the best of three rounds."""
    order = np.random.default_rng(0).permutation(count).tolist()
    best = float("inf")
    for _ in range(3):
        started = time.process_time()
        for index in order:
            read(index)
        best = min(best, time.process_time() - started)
    return count / best


def print_mask_forms(source: ReferSource) -> None:
    """Compare possible storage forms of masks: bytes, and the time to convert them to a boolean array."""
    masks = [
        (example.expressions[group[0]].segmentation, example.height, example.width)
        for index, example in enumerate(source)
        for group in source.referents(index)
    ]

    def rle(polygons: Any, h: int, w: int) -> bytes:
        counts = coco_mask.merge(coco_mask.frPyObjects(polygons, h, w))["counts"]
        return json.dumps({"size": [h, w], "counts": counts.decode()}).encode()

    def png(polygons: Any, h: int, w: int) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(rasterize(polygons, h, w)).save(buffer, "PNG")
        return buffer.getvalue()

    forms: dict[str, tuple[Callable[..., bytes], Callable[[bytes, int, int], np.ndarray]]] = {
        "polygons as JSON (stored)": (
            lambda polygons, h, w: json.dumps(polygons, separators=(",", ":")).encode(),
            lambda data, h, w: rasterize(json.loads(data), h, w),
        ),
        "polygons as JSON, zlib": (
            lambda polygons, h, w: zlib.compress(json.dumps(polygons, separators=(",", ":")).encode()),
            lambda data, h, w: rasterize(json.loads(zlib.decompress(data)), h, w),
        ),
        "RLE": (rle, lambda data, h, w: decode_rle(json.loads(data), h, w)),
        "PNG of 1 bit": (png, lambda data, h, w: np.asarray(Image.open(io.BytesIO(data)))),
    }
    print("| form of a mask | bytes, mean | to a boolean array, ms |\n|---|---|---|")
    for name, (write, read) in forms.items():
        stored = [(write(*mask), *mask[1:]) for mask in masks]
        assert all((read(*data) == rasterize(*mask)).all() for data, mask in zip(stored, masks, strict=True))
        size = sum(len(data) for data, *_ in stored) / len(stored)
        print(f"| {name} | {size:,.0f} | {milliseconds(read, stored):.2f} |")


def milliseconds(read: Callable[..., Any], arguments: list[tuple[Any, ...]]) -> float:
    """Return the mean time of a call of `read`."""
    return 1000 / rate(lambda index: read(*arguments[index]), len(arguments))


def write_images(root: Path, count: int) -> Path:
    """Write `count` JPEGs with COCO's usual file size, each with three referents and seven expressions."""
    rng = np.random.default_rng(0)
    images = root / "images/train2014"
    images.mkdir(parents=True)
    refs: list[dict[str, Any]] = []
    instances: dict[str, Any] = {"images": [], "annotations": []}
    for number in range(count):
        smooth = rng.integers(0, 256, (24, 32, 3), np.uint8)
        large = np.asarray(Image.fromarray(smooth).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC), np.float32)
        noisy = np.clip(large + rng.normal(0, 12, (HEIGHT, WIDTH, 1)), 0, 255).astype(np.uint8)
        name = f"COCO_train2014_{number:012d}.jpg"
        Image.fromarray(noisy).save(images / name, quality=90)
        instances["images"].append({"id": number, "file_name": name, "height": HEIGHT, "width": WIDTH})
        for expressions in (2, 2, 3):
            refs.append(_referent(len(refs), number, expressions))
            instances["annotations"].append({"id": len(refs) - 1, "segmentation": [_outline(rng)]})
    (root / "refcoco").mkdir()
    (root / "refcoco/refs(unc).json").write_text(json.dumps(refs))
    (root / "refcoco/instances.json").write_text(json.dumps(instances))
    return root


def _referent(id: int, image: int, count: int) -> dict[str, Any]:
    texts = [f"The {id} thing on the left, number {number}" for number in range(count)]
    expressions = [{"sent_id": 10 * id + n, "raw": text, "sent": text.lower()} for n, text in enumerate(texts)]
    return {"ref_id": id, "ann_id": id, "image_id": image, "split": "train", "sentences": expressions}


def _outline(rng: np.random.Generator) -> list[float]:
    """Return a wavy outline of 40 corners, COCO's usual number, to a hundredth of a pixel."""
    angles = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    radius = rng.uniform(30, 110) * (1 + 0.15 * rng.standard_normal(40))
    centre = rng.uniform((150, 150), (WIDTH - 150, HEIGHT - 150))
    corners = centre + radius[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return np.round(np.clip(corners, 0, (WIDTH, HEIGHT)), 2).ravel().tolist()


if __name__ == "__main__":
    command_line.run_and_exit(main, FLAGS, __doc__)
