"""Compares masks with the boxes of their annotations, without rasterizing polygons."""

from __future__ import annotations

from typing import Any

import numpy as np

from s2rm_jax.errors import UserError
from s2rm_jax.input.masks import has_mask
from s2rm_jax.input.rle import decode_rle

# Pixels. Boxes of COCO are the extent of the polygons to the last digit; other tools count pixels from 1, or leave out
# the last row and column, each of which moves an edge by one pixel.
TOLERANCE = 2.0

Extent = tuple[float, float, float, float]  # left, top, right, bottom in pixels


def extent_of(segmentation: Any, height: int, width: int) -> Extent | None:
    """Returns the extent of polygons, as they are written, or of RLEs; None if there is no mask.

    Raises UserError for damaged polygons or RLE, or an RLE of another size than the picture's.
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
    """Returns what does not fit between a mask's extent, its picture and its box, or "" if all does.

    The box is x, y, width, height in pixels; None where the annotation has no box.
    """
    outside = max(-extent[0], -extent[1], extent[2] - width, extent[3] - height)
    if outside > TOLERANCE:
        return f"the mask ends {outside:.0f} pixels outside the picture of {width} x {height}"
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
