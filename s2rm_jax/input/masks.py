"""Masks: from the forms that datasets use to boolean arrays, and from one size to another."""

from __future__ import annotations

from functools import reduce
from typing import Any

import numpy as np
from jaxtyping import Bool
from pycocotools import mask as coco_mask

from s2rm_jax.errors import UserError
from s2rm_jax.input.example import Segmentation
from s2rm_jax.input.grid import Grid
from s2rm_jax.input.mask_files import read_mask
from s2rm_jax.input.rle import decode_rle

FARTHEST = 1e5  # pixels; the polygon code of pycocotools takes time and memory in proportion to an edge's length


def has_mask(segmentation: object) -> bool:
    """Whether there is anything to rasterize: a polygon with at least three corners, an RLE, a file or an array."""
    if isinstance(segmentation, np.ndarray):
        return segmentation.size > 0
    if isinstance(segmentation, dict):
        return _holds_mask(segmentation)
    if isinstance(segmentation, list):
        return any(_holds_mask(part) if isinstance(part, dict) else _has_area(part) for part in segmentation)
    return False


def rasterize(segmentation: Segmentation, height: int, width: int, grid: Grid | None = None) -> Bool[np.ndarray, "_ _"]:
    """Turns a segmentation into a mask; where several polygons or RLEs are given, the mask is their union.

    Args:
      segmentation: an array [H, W] of booleans or integers (true where not zero); COCO polygons
        [[x0, y0, x1, y1, ...], ...] in pixels; a COCO RLE dict {"size": [H, W], "counts": ...}, compressed or not;
        {"png": FILE}, see mask_files.py; {"covered_once": [...]}, a list of polygons or RLEs of which the pixels count
        that exactly one of them covers; or a list of those. Polygons of fewer than three corners enclose nothing and
        add nothing. The empty list is the mask of nothing: false everywhere.
      height: of the picture, in pixels.
      width: of the picture, in pixels.
      grid: which pixels of the mask are wanted; None for all. A few are made faster than all.

    Raises:
      UserError: parts of which none makes a mask, a size that is not the picture's, or damaged polygons, RLE or file.
    """
    if isinstance(segmentation, np.ndarray):
        return _some(_from_array(segmentation, height, width), grid)
    if isinstance(segmentation, list) and not segmentation:
        return _empty(height, width, grid)
    if not has_mask(segmentation):
        raise UserError("the annotation has no mask: its segmentation is empty; remove the annotation or give it one")
    parts = [segmentation] if isinstance(segmentation, dict) else segmentation
    return reduce(np.logical_or, [_from_part(part, height, width, grid) for part in parts])


def means_nothing(segmentation: Segmentation, mask: Bool[np.ndarray, "height width"]) -> bool:
    """Whether a mask in a file of its own is black all over, and so says that there is nothing.

    Other forms say it by the empty list: a polygon, however small, stands for something.
    """
    return is_mask_file(segmentation) and not mask.any()


def is_mask_file(segmentation: Segmentation) -> bool:
    """Whether the mask lies in a file of its own."""
    return isinstance(segmentation, dict) and "png" in segmentation


def resize_mask(mask: Bool[np.ndarray, "h w"], size: tuple[int, int]) -> Bool[np.ndarray, "new_h new_w"]:
    """Resizes to (height, width) by the nearest pixel centre; see `Grid.resized`."""
    return Grid.whole(*mask.shape).resized(size).of(mask)


def _some(mask: Bool[np.ndarray, "height width"], grid: Grid | None) -> Bool[np.ndarray, "_ _"]:
    return mask if grid is None else grid.of(mask)


def _empty(height: int, width: int, grid: Grid | None) -> Bool[np.ndarray, "_ _"]:
    return np.zeros((height, width) if grid is None else (len(grid.rows), len(grid.columns)), bool)


def _holds_mask(part: dict[str, Any]) -> bool:
    return bool(part.get("counts") or part.get("png")) or has_mask(part.get("covered_once"))


def _has_area(polygon: object) -> bool:
    if not isinstance(polygon, (list, tuple, np.ndarray)):
        raise UserError(
            f"a mask's polygon must be a list of numbers [x0, y0, x1, y1, ...], got {polygon!r:.40}; "
            "a segmentation is a list of such lists"
        )
    return len(polygon) >= 6


def _from_part(part: Any, height: int, width: int, grid: Grid | None) -> np.ndarray:
    if not isinstance(part, dict):
        return _from_polygon(part, height, width, grid) if _has_area(part) else _empty(height, width, grid)
    if "covered_once" in part:
        layers = [_from_part(layer, height, width, grid) for layer in part["covered_once"]]
        return np.sum(layers, axis=0) == 1
    if "png" in part:
        return _some(read_mask(part["png"], height, width), grid)
    return decode_rle(part, height, width, grid)


def _from_array(mask: np.ndarray, height: int, width: int) -> np.ndarray:
    if mask.shape != (height, width):
        raise UserError(f"the mask has shape {mask.shape}, its picture is {height} x {width} pixels (height x width)")
    if mask.dtype != bool and not np.issubdtype(mask.dtype, np.integer):
        raise UserError(f"the mask is an array of {mask.dtype}; give booleans or integers (true where not zero)")
    return mask != 0


def _from_polygon(corners: Any, height: int, width: int, grid: Grid | None) -> np.ndarray:
    try:
        polygon = np.asarray(corners, dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(f"a mask's polygon holds something that is not a number: {corners!r:.60}") from error
    if polygon.ndim != 1 or len(polygon) % 2 or not (np.abs(polygon) < FARTHEST).all():
        raise UserError(
            f"a mask's polygon must be pairs of finite pixel coordinates x0, y0, x1, y1, ..., got {corners!r:.60}"
        )
    return decode_rle(coco_mask.frPyObjects([polygon.tolist()], height, width)[0], height, width, grid)
