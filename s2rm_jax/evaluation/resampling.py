"""Bringing a grid of logits or probabilities to another size, in the ways that protocols ask for."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from jaxtyping import Float

from s2rm_jax.evaluation.original_size import resize_logits
from s2rm_jax.evaluation.protocols import Resampling

_A = -0.75  # the sharpness of the cubic kernel in OpenCV and PyTorch (Pillow has -0.5)


def resample(values: Float[np.ndarray, "h w"], height: int, width: int, how: Resampling) -> np.ndarray:
    """Resizes to `height` x `width`; nothing is done where the size is right already."""
    if values.shape == (height, width):
        return values
    if how == "bilinear":
        return resize_logits(values, height, width)
    if how == "nearest":
        rows, columns = (np.arange(new) * old // new for new, old in zip((height, width), values.shape, strict=True))
        return values[rows[:, None], columns]
    aligned = how == "bicubic, corners aligned"
    rows, columns = (_cubic(old, new, aligned) for old, new in zip(values.shape, (height, width), strict=True))
    return rows @ values @ columns.T


@lru_cache(maxsize=64)
def _cubic(old: int, new: int, corners_aligned: bool) -> Float[np.ndarray, "new old"]:
    """The weights of cubic convolution (Keys 1981) from `old` samples to `new` ones; borders are repeated outwards."""
    if corners_aligned:
        at = np.arange(new) * ((old - 1) / (new - 1) if new > 1 else 0.0)
    else:
        at = (np.arange(new) + 0.5) * old / new - 0.5
    first = np.floor(at).astype(int)
    weights = np.zeros((new, old), np.float32)
    for tap in (-1, 0, 1, 2):
        x = np.abs(at - first - tap)
        near = ((_A + 2) * x - (_A + 3)) * x * x + 1
        far = ((_A * x - 5 * _A) * x + 8 * _A) * x - 4 * _A
        taken = np.clip(first + tap, 0, old - 1)
        np.add.at(weights, (np.arange(new), taken), np.where(x <= 1, near, np.where(x < 2, far, 0)).astype(np.float32))
    return weights
