"""Bringing a grid of logits or probabilities to another size, in the ways that protocols ask for."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from jaxtyping import Float, Int

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
    return _cubic_rows(_cubic_rows(values, height, aligned).T, width, aligned).T


def _cubic_rows(values: Float[np.ndarray, "old w"], new: int, corners_aligned: bool) -> Float[np.ndarray, "new w"]:
    """Resizes the first axis by cubic convolution (Keys 1981); beyond the borders their values are repeated."""
    weights, taken = _cubic(len(values), new, corners_aligned)
    return sum(weights[:, tap, None] * values[taken[:, tap]] for tap in range(4))


@lru_cache(maxsize=64)
def _cubic(old: int, new: int, corners_aligned: bool) -> tuple[Float[np.ndarray, "new 4"], Int[np.ndarray, "new 4"]]:
    """The weights of the four samples that each new one is made of, and which they are."""
    if corners_aligned:
        at = np.arange(new) * ((old - 1) / (new - 1) if new > 1 else 0.0)
    else:
        at = (np.arange(new) + 0.5) * old / new - 0.5
    taken = np.floor(at).astype(int)[:, None] + np.arange(-1, 3)
    x = np.abs(at[:, None] - taken)
    near = ((_A + 2) * x - (_A + 3)) * x * x + 1
    far = ((_A * x - 5 * _A) * x + 8 * _A) * x - 4 * _A
    return np.where(x <= 1, near, far).astype(np.float32), np.clip(taken, 0, old - 1)
