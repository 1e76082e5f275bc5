"""Masks: conversion of all forms that datasets use to boolean arrays, resizing, and outlines.

COCO's run-length encoding is decoded here and not by pycocotools, which returns uninitialized memory for damaged codes
and warns on every call under NumPy 2.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, reduce
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int, Int64
from PIL import Image
from pycocotools import mask as coco_mask

from s2rm_jax.errors import UserError, counted, one_line
from s2rm_jax.input.example import Segmentation
from s2rm_jax.input.images import FORMATS, advice_on_missing, orientation_of

_NEAREST = Image.Resampling.NEAREST
MAX_COORDINATE = 1e5  # pixels; pycocotools' polygon code takes time and memory in proportion to an edge's length


@dataclass(frozen=True, eq=False)
class Grid:
    """A selection of pixels of a mask of `size` (height, width): row i is `rows[i]`, column j is `columns[j]`.

    Other pixels are never computed. Rows ascend; columns ascend or descend; each may occur more than once.
    """

    size: tuple[int, int]
    rows: Int[np.ndarray, " h"]
    columns: Int[np.ndarray, " w"]

    @classmethod
    def whole(cls, height: int, width: int) -> Grid:
        """Return the grid of all pixels."""
        return cls((height, width), np.arange(height), np.arange(width))

    def resized(self, size: tuple[int, int]) -> Grid:
        """Return the grid of (height, width) pixels, each the pixel of this grid nearest to its centre.

        Pillow chooses the pixels, as in LAVT and CARIS, so that ties are decided as there: of 640 columns reduced to
        480, 99 depend on it. Nearest keeps the area of a mask on average, and treats thin parts like thick ones.
        """
        rows, columns = (
            old[np.asarray(Image.fromarray(np.arange(len(old), dtype=np.int32)[None]).resize((new, 1), _NEAREST))[0]]
            for old, new in zip((self.rows, self.columns), size, strict=True)
        )
        return Grid(self.size, rows, columns)

    def of(self, mask: Bool[np.ndarray, "height width"]) -> Bool[np.ndarray, "h w"]:
        """Return the selected pixels of a mask."""
        return mask[self.rows][:, self.columns]  # one axis at a time is faster than both together

    def of_runs(self, runs: Int[np.ndarray, " runs"]) -> Bool[np.ndarray, "h w"]:
        """Return the selected pixels of a mask given by run lengths in column order, the background's first.

        The ends of the runs are mapped to the selected pixels.
        """
        column, row = np.divmod(np.cumsum(runs), self.size[0])
        ends = self._selected_before_column[column]
        ends += self._rows_before[row] * self._is_selected[column]
        mask = fill_runs(np.diff(ends, prepend=0), len(self.rows), int(self._is_selected.sum()))
        return mask if self._order is None else mask.T[self._order].T

    @cached_property
    def _is_selected(self) -> Bool[np.ndarray, " columns"]:
        selected = np.zeros(self.size[1] + 1, bool)
        selected[self.columns] = True
        return selected

    @cached_property
    def _selected_before_column(self) -> Int[np.ndarray, " columns"]:
        """The number of selected pixels in the columns before each column; repeated columns count once."""
        return (np.cumsum(self._is_selected) - self._is_selected) * len(self.rows)

    @cached_property
    def _rows_before(self) -> Int[np.ndarray, " height"]:
        """The number of selected rows above each row."""
        return np.searchsorted(self.rows, np.arange(self.size[0]))

    @cached_property
    def _order(self) -> Int[np.ndarray, " w"] | None:
        """The index of each column among the different columns in ascending order; None if it is the identity."""
        order = self._selected_before_column[self.columns] // len(self.rows)
        return None if np.array_equal(order, np.arange(len(order))) else order


def fill_runs(runs: Int[np.ndarray, " runs"], height: int, width: int) -> Bool[np.ndarray, "height width"]:
    """Return the mask of run lengths in column order, the background's first."""
    is_foreground = np.arange(len(runs)) % 2 == 1
    return np.repeat(is_foreground, runs).reshape(width, height).T


def rasterize(segmentation: Segmentation, height: int, width: int, grid: Grid | None = None) -> Bool[np.ndarray, "_ _"]:
    """Convert a segmentation to a mask, the union of its polygons or RLEs.

    Args:
        segmentation: an array [H, W] of booleans or integers (true if not zero); COCO polygons [[x0, y0, x1, y1, ...],
            ...] in pixels; a COCO RLE dict {"size": [H, W], "counts": ...}, compressed or not; {"png": FILE}, see
            `read_mask`; {"covered_once": [...]}, a list of polygons or RLEs, for the pixels that exactly one of them
            covers; or a list of these. Polygons of fewer than three corners are empty. The empty list is an empty mask.
        height: height of the image in pixels.
        width: width of the image in pixels.
        grid: the pixels to compute; None for all. Fewer pixels are faster.

    Raises:
        UserError: no part is a mask, polygons are in fractions of the image, the size is not the image's, or a polygon,
            RLE or file is damaged.
    """
    if isinstance(segmentation, np.ndarray):
        return _select(_from_array(segmentation, height, width), grid)
    if isinstance(segmentation, list) and not segmentation:
        return np.zeros((height, width) if grid is None else (len(grid.rows), len(grid.columns)), bool)
    return reduce(np.logical_or, [_from_part(part, height, width, grid) for part in _parts(segmentation)])


def has_pixels(segmentation: Segmentation, height: int, width: int) -> bool:
    """Return whether a mask has a pixel in its image; without one its expressions refer to nothing.

    Arguments and errors are those of `rasterize`, whose whole mask this does not build.
    """
    if isinstance(segmentation, np.ndarray):
        return bool(_from_array(segmentation, height, width).any())
    if isinstance(segmentation, list) and not segmentation:
        return False
    return any(_part_has_pixels(part, height, width) for part in _parts(segmentation))


class Usable(NamedTuple):
    """What can be decoded of a stored segmentation.

    Attributes:
        segmentation: the polygons and RLEs that can be decoded; [] if none can
        problems: one for each part that cannot be decoded
        is_empty: whether there are only polygons and none covers a pixel. Such a segmentation is not a mask; an RLE or
            file without a pixel means that the expression refers to nothing.
        has_pixels: whether a part covers a pixel.
    """

    segmentation: Any
    problems: list[str]
    is_empty: bool
    has_pixels: bool


def usable_parts(segmentation: Any, height: int, width: int) -> Usable:
    """Separate the parts of a segmentation, polygons or RLEs, into those that can be decoded and the others."""
    good, problems, covers = [], [], False
    for part in [segmentation] if isinstance(segmentation, dict) else segmentation:
        try:
            problem = part_problem(part)
            if not problem and (not covers or isinstance(part, dict)):  # of polygons, one with a pixel is enough
                covers |= _part_has_pixels(part, height, width)
        except UserError as error:
            problem = str(error)
        if problem:
            problems.append(problem)
        else:
            good.append(part)
    whole = segmentation if isinstance(segmentation, dict) and good else good
    is_empty = bool(good) and not covers and not any(isinstance(part, dict) for part in good)
    return Usable(whole, problems, is_empty, covers)


def part_problem(part: Any) -> str:
    """Return why a polygon or an RLE cannot be decoded, as far as its fields show it, or ""."""
    if isinstance(part, dict) and not part.keys() & {"size", "counts"}:
        return f"a mask's part must be a polygon [x0, y0, x1, y1, ...] or an RLE with size and counts, got {part!r:.40}"
    return _rle_problem(part) if isinstance(part, dict) else _polygon_problem(part)


def fractions_problem(segmentation: Any) -> str:
    """Return that polygons are given in fractions of the image and not in pixels, or "".

    In pixels, such polygons would cover one pixel at most, which no referent does. Fractions may be slightly outside of
    0 ... 1, where an object was drawn across the border of its image.
    """
    if not (isinstance(segmentation, list) and segmentation and all(map(_is_in_fractions, segmentation))):
        return ""
    return (
        "its polygons seem to be in fractions of the image, as all coordinates are about 0 to 1; multiply x by its "
        "width and y by its height"
    )


def _is_in_fractions(part: Any) -> bool:
    if not isinstance(part, list | tuple | np.ndarray):
        return False
    return all(isinstance(number, int | float | np.number) and -0.05 <= number <= 1.05 for number in part) and any(part)


def _polygon_problem(value: Any) -> str:
    if not isinstance(value, list):
        return f"a polygon must be a list [x0, y0, x1, y1, ...] in a list of polygons, got {value!r:.40}"
    if not all(isinstance(number, int | float) and abs(number) < MAX_COORDINATE for number in value):  # refuses NaN
        if any(isinstance(number, list) for number in value):
            return f"a polygon has lists in it, got {value!r:.40}; write x0, y0, x1, y1, ... in one flat list"
        return f"a polygon has an invalid pixel coordinate: {value!r:.40}"
    if len(value) % 2:
        return f"a polygon has an odd number of coordinates ({len(value)})"
    return "" if len(value) >= 6 else f"a polygon has {counted(len(value) // 2, 'corner')}; it needs at least 3"


def _rle_problem(value: dict[str, Any]) -> str:
    size, counts = value.get("size"), value.get("counts")
    if not (isinstance(size, list) and len(size) == 2 and all(isinstance(side, int) for side in size)):
        return f"an RLE needs a size [height, width], got {size!r:.40}"
    if isinstance(counts, str | bytes) and counts:
        return ""
    if not isinstance(counts, list) or not all(isinstance(run, int) and run >= 0 for run in counts):
        return f"an RLE needs counts, as a string or a list of run lengths, got {counts!r:.40}"
    covered, pixels = sum(counts), size[0] * size[1]
    return "" if covered == pixels else f"an RLE covers {covered} pixels, its size has {pixels}"


def has_mask(segmentation: object) -> bool:
    """Return whether a segmentation has a polygon with at least three corners, an RLE, a file or an array."""
    if isinstance(segmentation, np.ndarray):
        return segmentation.size > 0
    if isinstance(segmentation, dict):
        filled = segmentation.get("counts") or segmentation.get("png")
        return bool(filled) or has_mask(segmentation.get("covered_once"))
    if isinstance(segmentation, list):
        return any(has_mask(part) if isinstance(part, dict) else _has_area(part) for part in segmentation)
    return False


def resize_mask(mask: Bool[np.ndarray, "h w"], size: tuple[int, int]) -> Bool[np.ndarray, "new_h new_w"]:
    """Resize to (height, width) by the nearest pixel centre; see `Grid.resized`."""
    return Grid.whole(*mask.shape).resized(size).of(mask)


def _select(mask: Bool[np.ndarray, "height width"], grid: Grid | None) -> Bool[np.ndarray, "_ _"]:
    return mask if grid is None else grid.of(mask)


def _parts(segmentation: Any) -> list[Any]:
    if not has_mask(segmentation):
        raise UserError("the annotation has no mask: its segmentation is empty; remove the annotation or add a mask")
    if problem := fractions_problem(segmentation):
        raise UserError(problem)
    return [segmentation] if isinstance(segmentation, dict) else segmentation


def _has_area(polygon: object) -> bool:
    if not isinstance(polygon, (list, tuple, np.ndarray)):
        raise UserError(
            f"a mask's polygon must be a list of numbers [x0, y0, x1, y1, ...], got {polygon!r:.40}; "
            "a segmentation is a list of such lists"
        )
    return len(polygon) >= 6


def _from_part(part: Any, height: int, width: int, grid: Grid | None) -> np.ndarray:
    if isinstance(part, dict) and "covered_once" in part:
        layers = [_from_part(layer, height, width, grid) for layer in part["covered_once"]]
        return np.sum(layers, axis=0) == 1
    if isinstance(part, dict) and "png" in part:
        return _select(read_mask(part["png"], height, width), grid)
    if isinstance(part, dict):
        runs = _runs_of_rle(part, height, width)
    elif _has_area(part):
        runs = _runs_of_rle(_encode_polygon(part, height, width), height, width)
    else:
        runs = np.array([height * width])
    return fill_runs(runs, height, width) if grid is None else grid.of_runs(runs)


def _part_has_pixels(part: Any, height: int, width: int) -> bool:
    if not isinstance(part, dict):
        return _has_area(part) and bool(coco_mask.area(_encode_polygon(part, height, width)))
    if "covered_once" in part or "png" in part:
        return bool(_from_part(part, height, width, None).any())
    return bool(_runs_of_rle(part, height, width)[1::2].any())


def _from_array(mask: np.ndarray, height: int, width: int) -> np.ndarray:
    if mask.shape != (height, width):
        raise UserError(f"the mask has shape {mask.shape}, but its image is {height} x {width} pixels (height x width)")
    if mask.dtype != bool and not np.issubdtype(mask.dtype, np.integer):
        raise UserError(f"the mask is an array of {mask.dtype}; give booleans or integers (true if not zero)")
    return mask != 0


def _encode_polygon(corners: Any, height: int, width: int) -> dict[str, Any]:
    try:
        polygon = np.asarray(corners, dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(f"a mask's polygon has an entry that is not a number: {corners!r:.60}") from error
    if polygon.ndim != 1 or len(polygon) % 2 or not (np.abs(polygon) < MAX_COORDINATE).all():
        raise UserError(
            f"a mask's polygon must be pairs of finite pixel coordinates x0, y0, x1, y1, ..., got {corners!r:.60}"
        )
    return coco_mask.frPyObjects([polygon.tolist()], height, width)[0]


_MAX_DIGITS = 7  # characters of 5 bits; more, in a damaged code, would overflow


def encode_rle(mask: Bool[np.ndarray, "height width"]) -> dict[str, Any]:
    """Return a mask in COCO's compressed run-length encoding: {"size": [height, width], "counts": text}."""
    encoded = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    return {"size": list(mask.shape), "counts": encoded["counts"].decode("ascii")}


def mask_box(mask: Bool[np.ndarray, "height width"]) -> tuple[int, int, int, int] | None:
    """Return the (left, top, right, bottom) of a mask in pixels, right and bottom exclusive; None if it is empty."""
    return Image.fromarray(mask.astype(np.uint8)).getbbox()


def decode_rle(rle: dict[str, Any], height: int, width: int) -> Bool[np.ndarray, "height width"]:
    """Decode {"size": [H, W], "counts": ...}: run lengths in column order, beginning with the background.

    The counts are a list of run lengths, or their compressed form as text or bytes.

    Raises:
        UserError: the size is not the image's, or the counts are damaged.
    """
    return fill_runs(_runs_of_rle(rle, height, width), height, width)


def _runs_of_rle(rle: dict[str, Any], height: int, width: int) -> Int[np.ndarray, " runs"]:
    size = list(rle.get("size", ()))
    if size != [height, width]:
        raise UserError(
            f"the RLE of a mask has size {size}, but its image is {height} x {width} pixels (height x width)"
        )
    counts, runs = rle.get("counts"), None
    if isinstance(counts, str | bytes):
        runs = _decompress(counts)
    elif isinstance(counts, list) and all(isinstance(run, int) and abs(run) < 2**35 for run in counts):
        runs = np.array(counts, np.int64)
    if runs is None or (runs < 0).any():
        raise UserError(f"the RLE of a mask is damaged: its counts are not run lengths: {counts!r:.60}")
    if runs.sum() != height * width:
        raise UserError(
            f"the RLE of a mask is damaged: it covers {runs.sum()} pixels, but the image has {height * width}"
        )
    return runs


def _decompress(counts: str | bytes) -> Int64[np.ndarray, " runs"] | None:
    """Return the run lengths, or None for an invalid character or number.

    Each number is a sequence of characters of six bits (from "0" on), the least significant first: five bits of the
    number in two's complement, and one that is set if another character follows. From the fourth number on, the
    difference to the number two before (the last run of the same colour) is stored.
    """
    codes = np.frombuffer(counts.encode() if isinstance(counts, str) else counts, np.uint8).astype(np.int64) - ord("0")
    if ((codes < 0) | (codes >= 64)).any():
        return None
    last = np.flatnonzero(codes < 0b100000)  # the last character of each number
    if len(last) == 0:
        return last
    first = np.concatenate([[0], last[:-1] + 1])
    length = last - first + 1
    if length.max() > _MAX_DIGITS:
        return None
    codes = codes[: last[-1] + 1]
    place = np.arange(len(codes)) - np.repeat(first, length)
    runs = np.add.reduceat((codes & 0b011111) << 5 * place, first)
    runs -= np.where(codes[last] & 0b010000, 1 << 5 * length, 0)
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    return runs


# One value per pixel (for a palette the index, as in PASCAL VOC), or colours, of which any but black is the mask.
# Transparency is refused unless every pixel is opaque, as either the transparent or the black part may be the
# background.
_MASK_MODES = ("1", "L", "P", "I", "I;16", "RGB", "LA", "RGBA")
_LOSSY = ("JPEG", "MPO", "WEBP", "AVIF", "HEIF")


def read_mask(path: str | Path, height: int, width: int) -> Bool[np.ndarray, "height width"]:
    """Read a mask from a PNG or another lossless file; true where the pixel is not zero.

    Raises:
        UserError: the file is missing or damaged, its size differs from the image's, or its kind is unsuitable.
    """
    values, problem = _open_mask(path, height, width, with_pixels=True)
    if values is None:
        raise UserError(problem)
    layers = values.reshape(height, width, -1)
    if layers.shape[-1] in (2, 4):  # the last one is the opacity
        layers = layers[..., :-1]
    return (layers != 0).any(axis=-1)


def mask_file_problem(path: str | Path, height: int, width: int) -> str:
    """Return why a file cannot be the mask of an image of this size, or ""; read its header, of RGBA the pixels too."""
    return _open_mask(path, height, width, with_pixels=False)[1]


def _open_mask(path: str | Path, height: int, width: int, *, with_pixels: bool) -> tuple[np.ndarray | None, str]:
    """Return the values of a mask file, or None and why it cannot be the mask of an image of this size."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            problem = _mask_problem(image, height, width)
            values = np.asarray(image) if with_pixels and not problem else None
    except FileNotFoundError:
        return None, f"mask {path} not found; {advice_on_missing(path)}"
    except Exception as error:  # on damaged data decoders raise nearly any exception
        return None, f"the mask {path} cannot be read ({one_line(error)}); recreate the mask"
    return values, problem and f"the mask {path} {problem}"


def _mask_problem(image: Image.Image, height: int, width: int) -> str:
    if image.format == "TIFF" and orientation_of(image) != 1:
        return "is a TIFF with an EXIF orientation, by which programs rotate it or not; save it as PNG"
    if image.size != (width, height):
        return f"has {image.height} x {image.width} pixels, its image {height} x {width} (height x width)"
    if image.format in _LOSSY:
        return f"has the format {image.format}, which may be lossy; save it as PNG"
    opaque = not image.has_transparency_data or image.convert("RGBA").getchannel("A").getextrema() == (255, 255)
    if image.mode not in _MASK_MODES or not opaque:
        return "has transparent pixels or values of an unknown kind; save it with one value from 0 to 255 per pixel"
    return ""
