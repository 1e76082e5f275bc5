"""Write small datasets in the REFER layout: generated images of coloured shapes, real file formats.

`write_refer_layout` writes RefCOCO and its kin, `write_refclef_layout` ReferIt, `write_grefcoco_layout` gRefCOCO.
"""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask

from tests.input import python2_pickle

HEIGHT, WIDTH = 48, 64
COLOURS = ("red", "green", "blue", "yellow", "purple", "orange")
FOLDER = "images/mscoco/images/train2014"
COCO_NAME = "COCO_train2014_{:012d}.jpg"
# Two images for each split.
SPLITS = ("train", "train", "val", "val", "testA", "testA", "testB", "testB")

Edit = Callable[[list[dict[str, Any]], dict[str, Any]], None]


def refer_mini() -> Path | None:
    """The folder of a real sample in this layout, S2RM_REFER_MINI, or None (see data/refer_mini/README.md)."""
    root = os.environ.get("S2RM_REFER_MINI")
    return Path(root).resolve(strict=True) if root else None


def write_refer_layout(
    root: Path,
    dataset: str = "refcoco",
    split_by: str = "unc",
    *,
    splits: tuple[str, ...] = SPLITS,
    first_id: int = 100,
    image_folder: str = FOLDER,
    image_name: str = COCO_NAME,
    bare_names: bool = False,
    rle: bool = False,
    as_json: bool = False,
    python2_protocol: int | None = None,
    file_prefix: str = "refs",
    edit: Edit | None = None,
) -> Path:
    """Write `root`/`dataset` and the images; returns `root`.

    Image i (id `first_id` + i, split `splits[i]`) is 48 x 64 and shows a coloured box on the left (polygon) and, on
    the right, two boxes of one colour that are one object (two polygons). Each is a referent with two expressions.
    `rle` stores the masks as refclef does, a list of RLE dicts with text counts. `bare_names` stores the image
    COCO_train2014_000000000100.jpg as 000000000100.jpg. The referents are pickled with protocol 2, or with one of
    Python 2's (0, 1, 2) and its byte strings, or written as JSON. `edit` may change the referents and the content of
    instances.json before they are written.
    """
    refs: list[dict[str, Any]] = []
    instances: dict[str, Any] = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "box"}]}
    (root / image_folder).mkdir(parents=True, exist_ok=True)
    for index, split in enumerate(splits):
        name = image_name.format(first_id + index)
        _add_image(refs, instances, index, first_id + index, name, split, rle)
        stored = name.rsplit("_", 1)[-1] if bare_names else name
        draw_image(index).save(root / image_folder / stored, quality=95)
    refs.reverse()  # readers must not rely on the order of the file
    if edit is not None:
        edit(refs, instances)
    folder = root / dataset
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "instances.json").write_text(json.dumps(instances))
    stem = folder / f"{file_prefix}({split_by})"
    if as_json:
        stem.with_suffix(".json").write_text(json.dumps(refs))
    elif python2_protocol is None:
        stem.with_suffix(".p").write_bytes(pickle.dumps(refs, protocol=2))
    else:
        stem.with_suffix(".p").write_bytes(python2_pickle.dumps(refs, python2_protocol))
    return root


def write_refclef_layout(root: Path, split_by: str = "berkeley", **arguments: Any) -> Path:
    """Write `root`/refclef: as `write_refer_layout`, with the names and masks of ReferIt."""
    own = {"image_folder": "images/saiapr_tc-12", "image_name": "{}.jpg", "rle": True}
    return write_refer_layout(root, "refclef", split_by, **{**own, **arguments})


def write_grefcoco_layout(root: Path, *, as_json: bool = True, edit: Edit | None = None, **arguments: Any) -> Path:
    """Write `root`/grefcoco: grefs(unc).json (or .p), whose referents are lists of annotations.

    The referents of image i are, after its left and right object: both of them (expressions "both boxes", "two boxes"),
    nothing ("the dog", "a cat") and the left object together with a crowd annotation, 9000 + i, which covers the left
    half of the image and is to be skipped ("the crowded one").
    """

    def generalize(refs: list[dict[str, Any]], instances: dict[str, Any]) -> None:
        for ref in refs:
            ref["ann_id"], ref["category_id"] = [ref["ann_id"]], [ref["category_id"]]
        crowd = {"size": [HEIGHT, WIDTH], "counts": [0, HEIGHT * WIDTH // 2, HEIGHT * WIDTH // 2]}
        for index, (right, left) in enumerate(zip(refs[-2::-2], refs[::-1][::2], strict=True)):
            annotation = {"id": 9000 + index, "image_id": left["image_id"], "category_id": 1, "iscrowd": 1}
            instances["annotations"].append({**annotation, "segmentation": crowd})
            objects = [*left["ann_id"], *right["ann_id"]]
            for number, (ann_ids, texts) in enumerate(
                [
                    (objects, ["both boxes", "two boxes"]),
                    ([-1], ["the dog", "a cat"]),
                    ([*left["ann_id"], 9000 + index], ["the crowded one"]),
                ]
            ):
                refs.append(_several(left, 5000 + 10 * index + number, ann_ids, texts))
        if edit is not None:
            edit(refs, instances)

    return write_refer_layout(root, "grefcoco", as_json=as_json, file_prefix="grefs", edit=generalize, **arguments)


def boxes(index: int, side: str) -> list[tuple[int, int, int, int]]:
    """The boxes x0, y0, x1, y1 (pixels, ends excluded) of the object on the "left" or "right" of image `index`."""
    top = 4 + index
    return [(6, top, 22, top + 20)] if side == "left" else [(36, top, 46, top + 12), (40, top + 16, 58, top + 28)]


def colour(index: int, side: str) -> str:
    """The name of the object's colour."""
    return COLOURS[(index + (side == "right")) % len(COLOURS)]


def draw_image(index: int) -> Image.Image:
    """The boxes of image `index` on grey."""
    image = Image.new("RGB", (WIDTH, HEIGHT), (90, 90, 90))
    draw = ImageDraw.Draw(image)
    for side in ("left", "right"):
        for x0, y0, x1, y1 in boxes(index, side):
            draw.rectangle((x0, y0, x1 - 1, y1 - 1), fill=colour(index, side))
    return image


def _add_image(refs: list, instances: dict[str, Any], index: int, id: int, name: str, split: str, rle: bool) -> None:
    instances["images"].append({"id": id, "file_name": name, "height": HEIGHT, "width": WIDTH})
    for position, side in enumerate(("left", "right")):
        number = 2 * index + position
        parts = boxes(index, side)
        polygons = [[x0, y0, x1, y0, x1, y1, x0, y1] for x0, y0, x1, y1 in parts]
        instances["annotations"].append(
            {
                "id": 1000 + number,
                "image_id": id,
                "category_id": 1,
                "iscrowd": 0,
                "area": sum((x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in parts),
                "segmentation": [_rle(box) for box in parts] if rle else polygons,
            }
        )
        raw = [f"The {side} one", f"{colour(index, side)} box"]
        refs.append(
            {
                "ref_id": number,
                "ann_id": 1000 + number,
                "image_id": id,
                "category_id": 1,
                "split": split,
                "file_name": f"{name.removesuffix('.jpg')}_{number}.jpg",
                "sent_ids": [2 * number, 2 * number + 1],
                "sentences": [
                    {"sent_id": 2 * number + i, "raw": text, "sent": text.lower(), "tokens": text.lower().split()}
                    for i, text in enumerate(raw)
                ],
            }
        )


def _several(like: dict[str, Any], ref_id: int, ann_ids: list[int], texts: list[str]) -> dict[str, Any]:
    """A referent of gRefCOCO on the image and in the split of another."""
    sent_ids = [10 * ref_id + number for number in range(len(texts))]
    return {
        **like,
        "ref_id": ref_id,
        "ann_id": ann_ids,
        "category_id": [-1 if ann_id == -1 else 1 for ann_id in ann_ids],
        "no_target": ann_ids == [-1],
        "sent_ids": sent_ids,
        "sentences": [
            {"sent_id": id, "raw": text, "sent": text, "tokens": text.split()}
            for id, text in zip(sent_ids, texts, strict=True)
        ],
    }


def _rle(box: tuple[int, int, int, int]) -> dict[str, Any]:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8, order="F")
    x0, y0, x1, y1 = box
    mask[y0:y1, x0:x1] = 1
    code = coco_mask.encode(mask)
    return {"size": [HEIGHT, WIDTH], "counts": code["counts"].decode()}
