"""The background of a scene: muted tones, which no object has, in gradients, clouds, stripes and grain."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image


def paint_ground(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """Returns a background, float32 [H, W, 3] in 0 ... 255."""
    first, second = _tone(rng), _tone(rng)
    second = first + (second - first) * 0.5
    rows = np.linspace(-0.5, 0.5, height, dtype=np.float32)[:, None]
    columns = np.linspace(-0.5, 0.5, width, dtype=np.float32)[None, :]
    angle = rng.uniform(0, 2 * math.pi)
    along = columns * math.cos(angle) + rows * math.sin(angle)
    kind = int(rng.integers(5))
    share: np.ndarray
    if kind == 0:  # a gradient
        share = along + 0.5
    elif kind == 1:  # a glow around some point
        share = 1.2 * np.hypot(rows - rng.uniform(-0.5, 0.5), columns - rng.uniform(-0.5, 0.5))
    elif kind == 2:  # faint stripes
        share = 0.5 + 0.25 * np.sin(along * (2 * math.pi * rng.uniform(4, 12)))
    elif kind == 3:  # clouds
        cells = Image.fromarray(rng.random((5, 5), dtype=np.float32))
        share = np.asarray(cells.resize((width, height), Image.Resampling.BICUBIC))
    else:  # plain
        share = np.zeros((height, width), np.float32)
    ground = first + (second - first) * share[..., None].astype(np.float32)
    grain = rng.standard_normal((height, width, 1), dtype=np.float32) * rng.uniform(0, 5)
    return ground + grain.astype(np.float32)


def _tone(rng: np.random.Generator) -> np.ndarray:
    """A grey with a touch of colour, either dark or light."""
    low, high = (28, 80) if rng.random() < 0.4 else (150, 235)
    return (rng.uniform(low, high) + rng.uniform(-10, 10, 3)).astype(np.float32)
