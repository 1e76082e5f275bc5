"""Masks: from the forms that datasets use to boolean arrays, and from one size to another.

Which pixels of a mask are wanted, so that no others are made.

Masks that are images of their own: what is not zero belongs to the referent.

COCO's run-length encoding of masks.

pycocotools can decode it too, but returns uninitialised memory for damaged codes and warns on every call under NumPy 2.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, reduce
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int, Int64
from PIL import Image
from pycocotools import mask as coco_mask

from s2rm_jax.errors import UserError
from s2rm_jax.input.example import Segmentation
from s2rm_jax.input.images import FORMATS


@dataclass(frozen=True, eq=False)
class Grid:
    """Row i and column j of what is wanted are `rows[i]` and `columns[j]` of a mask of `size` (height, width).

    Rows ascend; columns ascend or descend; each may come more than once.
    """

    size: tuple[int, int]
    rows: Int[np.ndarray, " h"]
    columns: Int[np.ndarray, " w"]

    @classmethod
    def whole(cls, height: int, width: int) -> Grid:
        """Return the grid of all pixels."""
        return cls((height, width), np.arange(height), np.arange(width))

    def resized(self, size: tuple[int, int]) -> Grid:
        """Return the grid of (height, width) pixels, each the one of this grid that is nearest to its centre.

        So do the data pipelines of LAVT, CARIS and CRIS. Nearest keeps a mask's area right on average and gives thin
        parts the same chance as thick ones.
        """
        rows, columns = (
            seen[(2 * np.arange(new) + 1) * len(seen) // (2 * new)]
            for seen, new in zip((self.rows, self.columns), size, strict=True)
        )
        return Grid(self.size, rows, columns)

    def of(self, mask: Bool[np.ndarray, "height width"]) -> Bool[np.ndarray, "h w"]:
        """Return the wanted pixels of a mask."""
        return mask[self.rows][:, self.columns]  # one axis at a time is faster than both together

    def of_runs(self, runs: Int[np.ndarray, " runs"]) -> Bool[np.ndarray, "h w"]:
        """Return the wanted pixels of the mask of which these are the lengths of runs, the background's first.

        Runs go down column after column. It is their ends that are moved to where they are among the wanted pixels.
        """
        column, row = np.divmod(np.cumsum(runs), self.size[0])
        ends = self._wanted_before_column[column]
        ends += self._rows_before[row] * self._is_wanted[column]
        mask = fill_runs(np.diff(ends, prepend=0), len(self.rows), int(self._is_wanted.sum()))
        return mask if self._place is None else mask.T[self._place].T

    @cached_property
    def _is_wanted(self) -> Bool[np.ndarray, " columns"]:
        wanted = np.zeros(self.size[1] + 1, bool)
        wanted[self.columns] = True
        return wanted

    @cached_property
    def _wanted_before_column(self) -> Int[np.ndarray, " columns"]:
        """How many wanted pixels lie in the columns before each column, those counted once that come several times."""
        return (np.cumsum(self._is_wanted) - self._is_wanted) * len(self.rows)

    @cached_property
    def _rows_before(self) -> Int[np.ndarray, " height"]:
        """How many wanted rows lie above each row."""
        return np.searchsorted(self.rows, np.arange(self.size[0]))

    @cached_property
    def _place(self) -> Int[np.ndarray, " w"] | None:
        """Where each column is among the wanted ones in ascending order; None where they are in that order."""
        place = self._wanted_before_column[self.columns] // len(self.rows)
        return None if np.array_equal(place, np.arange(len(place))) else place


def fill_runs(runs: Int[np.ndarray, " runs"], height: int, width: int) -> Bool[np.ndarray, "height width"]:
    """Lay runs, the background's first, column after column."""
    is_foreground = np.arange(len(runs)) % 2 == 1
    return np.repeat(is_foreground, runs).reshape(width, height).T


# One value a pixel (of a palette the index counts, as in PASCAL VOC), or colours of which any may be other than black.
# Transparency is refused: it cannot be told whether the transparent part or the black one is meant as background.
_MODES = ("1", "L", "P", "I", "I;16", "RGB")


def read_mask(path: str | Path, height: int, width: int) -> Bool[np.ndarray, "height width"]:
    """Read a mask from a PNG or another file without loss; true where the pixel is not zero.

    Raises:
      UserError: there is no such file, it is damaged, of another size than the image, or of an unsuitable kind.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            problem = _problem_of(image, height, width)
            values = None if problem else np.asarray(image)
    except Exception as error:
        raise UserError(_unreadable(path, error)) from error
    if values is None:
        raise UserError(f"the mask {path} {problem}")
    layers = values.reshape(height, width, -1)
    return (layers != 0).any(axis=-1)


def problem_of_file(path: str | Path, height: int, width: int) -> str:
    """Say what keeps a file from being the mask of an image of this size, or ""; looks at its header only."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            problem = _problem_of(image, height, width)
    except Exception as error:
        return _unreadable(path, error)
    return f"the mask {path} {problem}" if problem else ""


def _problem_of(image: Image.Image, height: int, width: int) -> str:
    if image.size != (width, height):
        return f"has {image.height} x {image.width} pixels, its image {height} x {width} (height x width)"
    if image.format in ("JPEG", "WEBP"):
        return f"is a {image.format}, which blurs masks; save it as PNG"
    if image.mode not in _MODES or image.has_transparency_data:
        return "has transparent pixels or values of an unknown kind; save it with one value from 0 to 255 per pixel"
    return ""


def _unreadable(path: str | Path, error: Exception) -> str:
    """What to say of a file at which a reader failed; on damaged data they raise nearly anything."""
    if isinstance(error, FileNotFoundError):
        return f"there is no mask at {path}; check the path"
    return f"the mask {path} cannot be read ({' '.join(str(error).split())}); write it again"


_LONGEST_NUMBER = 7  # characters, so 35 bits; more of them, in a damaged code, would not fit the arithmetic


def decode_rle(rle: dict[str, Any], height: int, width: int, grid: Grid | None = None) -> Bool[np.ndarray, "_ _"]:
    """Decode {"size": [H, W], "counts": ...}: run lengths in column order that begin with the background's.

    Args:
      rle: its counts are a list of run lengths, or their compressed form as text or bytes.
      height: of the image, in pixels.
      width: of the image, in pixels.
      grid: which of its pixels are wanted; None for all. Those that are not are never made.

    Raises:
      UserError: the size is not the image's, or the counts are damaged.
    """
    size = list(rle.get("size", ()))
    if size != [height, width]:
        raise UserError(f"the RLE of a mask has size {size}, its image is {height} x {width} pixels (height x width)")
    counts = rle.get("counts")
    runs = _decompress(counts) if isinstance(counts, str | bytes) else _checked(counts)
    if runs is None or (runs < 0).any():
        raise UserError(f"the RLE of a mask is damaged: its counts are no run lengths: {counts!r:.60}")
    if runs.sum() != height * width:
        raise UserError(f"the RLE of a mask is damaged: it covers {runs.sum()} pixels, the image has {height * width}")
    return fill_runs(runs, height, width) if grid is None else grid.of_runs(runs)


def _checked(counts: object) -> Int64[np.ndarray, " runs"] | None:
    if not isinstance(counts, list) or not all(isinstance(run, int) and abs(run) < 2**35 for run in counts):
        return None
    return np.array(counts, np.int64)


def _decompress(counts: str | bytes) -> Int64[np.ndarray, " runs"] | None:
    """Return the run lengths, or None if there is a character or a number that the code does not have.

    Each number is written in characters of six bits (from "0" on), the least significant first: five of them are the
    number's, in two's complement, the sixth says that another character follows. From the fourth number on, what is
    written is the difference to the number two before, the last run of the same colour.
    """
    codes = np.frombuffer(counts.encode() if isinstance(counts, str) else counts, np.uint8).astype(np.int64) - ord("0")
    if ((codes < 0) | (codes >= 64)).any():
        return None
    last = np.flatnonzero(codes < 0b100000)  # of each number
    if len(last) == 0:
        return last
    first = np.concatenate([[0], last[:-1] + 1])
    length = last - first + 1
    if length.max() > _LONGEST_NUMBER:
        return None
    codes = codes[: last[-1] + 1]
    place = np.arange(len(codes)) - np.repeat(first, length)
    runs = np.add.reduceat((codes & 0b011111) << 5 * place, first)
    runs -= np.where(codes[last] & 0b010000, 1 << 5 * length, 0)
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    return runs


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
    """Turn a segmentation into a mask; where several polygons or RLEs are given, the mask is their union.

    Args:
      segmentation: an array [H, W] of booleans or integers (true where not zero); COCO polygons
        [[x0, y0, x1, y1, ...], ...] in pixels; a COCO RLE dict {"size": [H, W], "counts": ...}, compressed or not;
        {"png": FILE}, see mask_files.py; {"covered_once": [...]}, a list of polygons or RLEs of which the pixels count
        that exactly one of them covers; or a list of those. Polygons of fewer than three corners enclose nothing and
        add nothing. The empty list is the mask of nothing: false everywhere.
      height: of the image, in pixels.
      width: of the image, in pixels.
      grid: which pixels of the mask are wanted; None for all. A few are made faster than all.

    Raises:
      UserError: parts of which none makes a mask, a size that is not the image's, or damaged polygons, RLE or file.
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
    """Resize to (height, width) by the nearest pixel centre; see `Grid.resized`."""
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
        raise UserError(f"the mask has shape {mask.shape}, its image is {height} x {width} pixels (height x width)")
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


Corner = tuple[int, int]  # x, y; pixel (row 0, column 0) lies between the corners (0, 0) and (1, 1)


def outlines(mask: Bool[np.ndarray, "h w"]) -> tuple[list[list[int]], list[list[int]]]:
    """Return the polygons around the mask's parts and those around its holes, each as [x0, y0, x1, y1, ...] in pixels.

    They are exact: the pixels that an odd number of all these polygons covers are the mask. None passes a point twice;
    parts that touch at a corner only are apart.
    """
    around: list[list[int]] = []
    holes: list[list[int]] = []
    for corners in _loops(_edges(mask)):
        flat = [coordinate for corner in corners for coordinate in corner]
        (around if _area(corners) > 0 else holes).append(flat)
    return around, holes


def _edges(mask: Bool[np.ndarray, "h w"]) -> dict[Corner, list[Corner]]:
    """The sides of pixels that part the mask from what is outside, by their starts; the mask lies on their right."""
    padded = np.pad(mask, 1)
    inside = padded[1:-1, 1:-1]
    sides = (
        (padded[:-2, 1:-1], (0, 0), (1, 0)),  # above: from the upper left corner to the upper right one
        (padded[1:-1, 2:], (1, 0), (1, 1)),
        (padded[2:, 1:-1], (1, 1), (0, 1)),
        (padded[1:-1, :-2], (0, 1), (0, 0)),
    )
    edges = defaultdict(list)
    for neighbour, start, end in sides:
        rows, columns = np.nonzero(inside & ~neighbour)
        for x, y in zip(columns.tolist(), rows.tolist(), strict=True):
            edges[x + start[0], y + start[1]].append((x + end[0], y + end[1]))
    return edges


def _loops(edges: dict[Corner, list[Corner]]) -> Iterator[list[Corner]]:
    """Join edges end to start, and yields each loop as soon as it is closed, so that none touches itself."""
    while edges:
        path = [next(iter(edges))]
        place = {path[0]: 0}
        while len(path) > 1 or path[0] in edges:
            end = _take_edge(edges, path)
            if end not in place:
                place[end] = len(path)
                path.append(end)
                continue
            loop = path[place[end] :]
            del path[place[end] + 1 :]
            for corner in loop[1:]:
                del place[corner]
            yield _corners(loop)


def _take_edge(edges: dict[Corner, list[Corner]], path: list[Corner]) -> Corner:
    """Take the edge at the end of the path out of `edges`; of two the one to the right, which stays at its pixel."""
    x, y = path[-1]
    ends = edges[x, y]
    before_x, before_y = path[-2] if len(path) > 1 else (x, y)
    right = (x - (y - before_y), y + (x - before_x))
    end = right if right in ends else ends[0]
    ends.remove(end)
    if not ends:
        del edges[x, y]
    return end


def _corners(loop: list[Corner]) -> list[Corner]:
    """The points of a loop at which its direction changes."""
    around = zip(loop[-1:] + loop[:-1], loop, [*loop[1:], loop[0]], strict=True)
    return [(x, y) for (x0, y0), (x, y), (x1, y1) in around if (x - x0, y - y0) != (x1 - x, y1 - y)]


def _area(corners: list[Corner]) -> int:
    """Twice the area, positive where the loop runs clockwise on the screen, with the mask inside."""
    following = [*corners[1:], corners[0]]
    return sum(x * after_y - after_x * y for (x, y), (after_x, after_y) in zip(corners, following, strict=True))
