"""Writes a small dataset in the REFER layout: generated pictures of coloured shapes, real file formats."""

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

HEIGHT, WIDTH = 48, 64
COLOURS = ("red", "green", "blue", "yellow", "purple", "orange")
FOLDER = "images/mscoco/images/train2014"
# Two pictures for each split.
SPLITS = ("train", "train", "val", "val", "testA", "testA", "testB", "testB")

Edit = Callable[[list[dict[str, Any]], dict[str, Any]], None]


def refer_mini() -> Path | None:
    """The folder of a real sample in this layout (see data/refer_mini/README.md), or None where it is absent."""
    default = Path(__file__).parents[2] / "../shared/data/refer_mini"
    root = Path(os.environ.get("S2RM_REFER_MINI") or default)
    return root.resolve() if root.is_dir() else None


def write_refer_layout(
    root: Path,
    dataset: str = "refcoco",
    split_by: str = "unc",
    *,
    splits: tuple[str, ...] = SPLITS,
    picture_folder: str = FOLDER,
    bare_names: bool = False,
    rle: bool = False,
    as_json: bool = False,
    edit: Edit | None = None,
) -> Path:
    """Writes `root`/`dataset` and the pictures; returns `root`.

    Picture i (id 100 + i, split `splits[i]`) is 48 x 64 and shows a coloured box on the left (polygon) and, on the
    right, two boxes of one colour that are one object (two polygons). Each is a referent with two sentences.
    `rle` stores the masks as refclef does, a list of RLE dicts with text counts. `edit` may change the referents and
    the content of instances.json before they are written.
    """
    refs: list[dict[str, Any]] = []
    instances: dict[str, Any] = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "box"}]}
    (root / picture_folder).mkdir(parents=True, exist_ok=True)
    for index, split in enumerate(splits):
        _add_picture(refs, instances, index, split, rle)
        bare = f"{100 + index:012d}.jpg"
        name = bare if bare_names else f"COCO_train2014_{bare}"
        _draw(index).save(root / picture_folder / name, quality=95)
    refs.reverse()  # readers must not rely on the order of the file
    if edit is not None:
        edit(refs, instances)
    folder = root / dataset
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "instances.json").write_text(json.dumps(instances))
    if as_json:
        (folder / f"refs({split_by}).json").write_text(json.dumps(refs))
    else:
        (folder / f"refs({split_by}).p").write_bytes(pickle.dumps(refs, protocol=2))
    return root


def boxes(index: int, side: str) -> list[tuple[int, int, int, int]]:
    """The boxes x0, y0, x1, y1 (pixels, ends excluded) of the object on the "left" or "right" of picture `index`."""
    top = 4 + index
    return [(6, top, 22, top + 20)] if side == "left" else [(36, top, 46, top + 12), (40, top + 16, 58, top + 28)]


def colour(index: int, side: str) -> str:
    """The name of the object's colour."""
    return COLOURS[(index + (side == "right")) % len(COLOURS)]


def _draw(index: int) -> Image.Image:
    picture = Image.new("RGB", (WIDTH, HEIGHT), (90, 90, 90))
    draw = ImageDraw.Draw(picture)
    for side in ("left", "right"):
        for x0, y0, x1, y1 in boxes(index, side):
            draw.rectangle((x0, y0, x1 - 1, y1 - 1), fill=colour(index, side))
    return picture


def _add_picture(refs: list, instances: dict[str, Any], index: int, split: str, rle: bool) -> None:
    id = 100 + index
    name = f"COCO_train2014_{id:012d}.jpg"
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
                "file_name": f"COCO_train2014_{id:012d}_{number}.jpg",
                "sent_ids": [2 * number, 2 * number + 1],
                "sentences": [
                    {"sent_id": 2 * number + i, "raw": text, "sent": text.lower(), "tokens": text.lower().split()}
                    for i, text in enumerate(raw)
                ],
            }
        )


def _rle(box: tuple[int, int, int, int]) -> dict[str, Any]:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8, order="F")
    x0, y0, x1, y1 = box
    mask[y0:y1, x0:x1] = 1
    code = coco_mask.encode(mask)
    return {"size": [HEIGHT, WIDTH], "counts": code["counts"].decode()}
