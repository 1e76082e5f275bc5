"""The outlines of a mask, as polygons along the edges of its pixels."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool

Corner = tuple[int, int]  # x, y; pixel (row 0, column 0) lies between the corners (0, 0) and (1, 1)


def outlines(mask: Bool[np.ndarray, "h w"]) -> tuple[list[list[int]], list[list[int]]]:
    """Return the polygons around the mask's parts and around its holes, each as [x0, y0, x1, y1, ...] in pixels.

    They follow the edges of the pixels and are exact: the mask is the set of pixels that an odd number of all polygons
    covers. No polygon passes a point twice; parts that touch at a corner only are separate.
    """
    around: list[list[int]] = []
    holes: list[list[int]] = []
    for corners in _loops(_edges(mask)):
        flat = [coordinate for corner in corners for coordinate in corner]
        (around if _area(corners) > 0 else holes).append(flat)
    return around, holes


def _edges(mask: Bool[np.ndarray, "h w"]) -> dict[Corner, list[Corner]]:
    """Return the pixel edges between mask and background, from start to ends; the mask is on their right."""
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
    """Join edges end to start; yield each loop as soon as it is closed, so that none touches itself."""
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
    """Remove an edge at the end of the path and return its end; of two, the one to the right, along the same pixel."""
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
    """Return the points of a loop at which its direction changes."""
    around = zip(loop[-1:] + loop[:-1], loop, [*loop[1:], loop[0]], strict=True)
    return [(x, y) for (x0, y0), (x, y), (x1, y1) in around if (x - x0, y - y0) != (x1 - x, y1 - y)]


def _area(corners: list[Corner]) -> int:
    """Return twice the area, positive if the loop runs clockwise on the screen, with the mask inside."""
    following = [*corners[1:], corners[0]]
    return sum(x * after_y - after_x * y for (x, y), (after_x, after_y) in zip(corners, following, strict=True))
