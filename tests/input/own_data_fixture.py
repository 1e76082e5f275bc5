"""Write small datasets of one's own with generated images, as JSON lines and as COCO's JSON.

Both have three images of 48 x 64 pixels, drawn as in refer_fixture.py: 0.png and 1.png in split train, 2.png in val.
Each has two expressions for the left box, one for the right pair of boxes, and "the dog", which refers to nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from tests.input.refer_fixture import HEIGHT, WIDTH, boxes, draw_image

OWN_SPLITS = ("train", "train", "val")


def mask_of(index: int, *sides: str) -> np.ndarray:
    """The true mask of the boxes on these sides of image `index`."""
    mask = np.zeros((HEIGHT, WIDTH), bool)
    for x0, y0, x1, y1 in (box for side in sides for box in boxes(index, side)):
        mask[y0:y1, x0:x1] = True
    return mask


def polygons_of(index: int, side: str) -> list[list[int]]:
    """The same as polygons."""
    return [[x0, y0, x1, y0, x1, y1, x0, y1] for x0, y0, x1, y1 in boxes(index, side)]


def rle_of(mask: np.ndarray) -> dict[str, Any]:
    """A mask as compressed RLE with text counts."""
    code = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": [HEIGHT, WIDTH], "counts": code["counts"].decode()}


def write_json_lines(root: Path, edit: Callable[[list[dict[str, Any]]], None] | None = None) -> Path:
    """Write `root`/data.jsonl, images/ and masks/; returns `root`.

    Line 3i + 1 of image i is its left box, as a polygon, an RLE or a mask file (i = 0, 1, 2), line 3i + 2 the right
    ones as polygons, line 3i + 3 nothing. `edit` may change the entries.
    """
    entries = []
    (root / "masks").mkdir(parents=True, exist_ok=True)
    _draw_images(root / "images")
    for index, split in enumerate(OWN_SPLITS):
        left = mask_of(index, "left")
        Image.fromarray(left.astype(np.uint8) * 255).save(root / f"masks/{index}.png")
        kind = [
            {"polygon": polygons_of(index, "left")},
            {"rle": rle_of(left)},
            {"mask": f"masks/{index}.png"},
        ][index]
        image = {"image": f"images/{index}.png"}
        entries += [
            {**image, **kind, "expressions": ["the left one", "box on the left"], "split": split},
            {**image, "polygon": polygons_of(index, "right"), "expressions": ["the right one"], "split": split},
            {**image, "polygon": [], "expressions": ["the dog"], "split": split},
        ]
    if edit is not None:
        edit(entries)
    (root / "data.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return root


def write_coco_json(root: Path, edit: Callable[[dict[str, Any]], None] | None = None) -> Path:
    """Write `root`/annotations.json and images/; returns `root`.

    Annotations 10i, 10i + 1 and 10i + 2 of image i (image id i) are its left box, the right ones and nothing;
    10i + 3 is not referred to. Those of the split train do not name it. `edit` may change the content.
    """
    content: dict[str, Any] = {"images": [], "annotations": [], "categories": []}
    _draw_images(root / "images")
    for index, split in enumerate(OWN_SPLITS):
        content["images"].append({"id": index, "file_name": f"images/{index}.png", "height": HEIGHT, "width": WIDTH})
        in_split = {} if split == "train" else {"split": split}
        masks = [rle_of(mask_of(index, "left")) if index else polygons_of(index, "left"), polygons_of(index, "right")]
        for number, (mask, texts) in enumerate(
            [
                (masks[0], ["the left one", "box on the left"]),
                (masks[1], ["the right one"]),
                ([], ["the dog"]),
            ]
        ):
            annotation = {"id": 10 * index + number, "image_id": index, "category_id": 1, "segmentation": mask}
            content["annotations"].append({**annotation, "expressions": texts, **in_split})
        content["annotations"].append(
            {"id": 10 * index + 3, "image_id": index, "segmentation": [], "bbox": [0, 0, 9, 9]}
        )
    if edit is not None:
        edit(content)
    (root / "annotations.json").write_text(json.dumps(content))
    return root


def _draw_images(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(len(OWN_SPLITS)):
        draw_image(index).save(folder / f"{index}.png")
