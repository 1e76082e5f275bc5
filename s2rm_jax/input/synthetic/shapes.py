"""The outlines of the shapes: of the area of the unit disc, so that equal radius means equal size, and centred."""

from __future__ import annotations

import math
from functools import cache, lru_cache

import numpy as np

_ROUND = 48  # corners that stand for a circle


@cache
def outline(shape: str) -> tuple[np.ndarray, ...]:
    """Returns the closed loops of a shape, each [N, 2] as (x, y), y downwards, of joint area pi.

    The first loop is filled, those after it are holes. The centre of gravity is the origin.
    """
    loops = tuple(loop - _centre(_LOOPS[shape][0]) for loop in _LOOPS[shape])
    area = _area(loops[0]) - sum(_area(hole) for hole in loops[1:])
    scaled = tuple(loop * math.sqrt(math.pi / area) for loop in loops)
    for loop in scaled:
        loop.setflags(write=False)
    return scaled


@cache
def reach(shape: str) -> float:
    """Returns how far the outline goes from its centre, in radii of the disc of the same area."""
    return float(np.linalg.norm(outline(shape)[0], axis=1).max())


@lru_cache(maxsize=1024)
def reach_towards(shape: str, turn: float, x: int, y: int) -> float:
    """Returns how far the outline, turned by `turn` radians, goes from its centre in the direction of the unit vector.

    In radii of the disc of the same area.
    """
    cos, sin = math.cos(turn), math.sin(turn)
    return float((outline(shape)[0] @ (x * cos + y * sin, y * cos - x * sin)).max())  # the direction turned back


def _area(loop: np.ndarray) -> float:
    x, y = loop.T
    return abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2


def _centre(loop: np.ndarray) -> np.ndarray:
    """The centre of gravity of what a loop encloses: that of the triangles between its sides and the origin."""
    following = np.roll(loop, -1, axis=0)
    areas = loop[:, 0] * following[:, 1] - loop[:, 1] * following[:, 0]
    return (areas[:, None] * (loop + following)).sum(axis=0) / (3 * areas.sum())


def _polar(radii: list[float], count: int) -> np.ndarray:
    """Corners at equal angles from the top, with the radii in turn."""
    angles = np.arange(count) * (2 * math.pi / count) - math.pi / 2
    return np.stack([np.cos(angles), np.sin(angles)], axis=1) * np.resize(radii, count)[:, None]


def _heart() -> np.ndarray:
    t = np.arange(_ROUND) * (2 * math.pi / _ROUND)
    x = 16 * np.sin(t) ** 3
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    return np.stack([x, y], axis=1)


def _cross() -> np.ndarray:
    arm, half = 1.0, 0.36
    quarter = np.array([(-half, -half), (-half, -arm), (half, -arm)])
    turns = [np.array([[math.cos(a), -math.sin(a)], [math.sin(a), math.cos(a)]]) for a in np.arange(4) * math.pi / 2]
    return np.concatenate([quarter @ turn.T for turn in turns])


_CIRCLE = _polar([1.0], _ROUND)
_LOOPS = {
    "circle": (_CIRCLE,),
    "square": (np.array([(-1.0, -1.0), (1.0, -1.0), (1.0, 1.0), (-1.0, 1.0)]),),
    "triangle": (_polar([1.0], 3),),
    "diamond": (_polar([1.3, 1.0], 4),),
    "star": (_polar([1.0, 0.5], 10),),
    "cross": (_cross(),),
    "heart": (_heart(),),
    "ring": (_CIRCLE, _CIRCLE * 0.42),
}
