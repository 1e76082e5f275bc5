"""Masks in the forms in which other programs take them."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from jaxtyping import Bool
from PIL import Image
from pycocotools import mask as coco_mask

from s2rm_jax.input.outlines import outlines


def as_png(mask: Bool[np.ndarray, "h w"]) -> bytes:
    """Returns a PNG of the mask's size with one value a pixel: 255 inside, 0 outside."""
    buffer = io.BytesIO()
    Image.fromarray(mask.astype(np.uint8) * 255).save(buffer, "PNG")
    return buffer.getvalue()


def as_rle(mask: Bool[np.ndarray, "h w"]) -> dict[str, Any]:
    """Returns COCO's compressed run lengths: {"size": [height, width], "counts": text}."""
    code = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    return {"size": list(mask.shape), "counts": code["counts"].decode("ascii")}


def as_polygons(mask: Bool[np.ndarray, "h w"]) -> dict[str, Any]:
    """Returns {"size": [height, width], "polygons": [[x0, y0, ...], ...], "holes": [...]}, see `outlines`.

    Without holes the polygons are a segmentation of COCO as they are.
    """
    around, holes = outlines(mask)
    return {"size": list(mask.shape), "polygons": around, "holes": holes}
