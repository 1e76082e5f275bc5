"""Relative position bias tables for another window."""

from __future__ import annotations

import jax
import numpy as np
from jaxtyping import Float32


def resize_bias_table(table: Float32[np.ndarray, "n heads"], rows: int) -> Float32[np.ndarray, "{rows} heads"]:
    """Resizes a table from one window to another, bicubic over the plane of relative positions.

    A window of w has (2w - 1)² relative positions: `n` and `rows` are such squares. As published Swin code does, the
    same as torch.nn.functional.interpolate(mode="bicubic", align_corners=False).
    """
    side, new_side = round(len(table) ** 0.5), round(rows**0.5)
    plane = table.reshape(side, side, -1)
    shape = (new_side, new_side, plane.shape[-1])
    resized = jax.image.resize(plane, shape, jax.image.ResizeMethod.CUBIC_PYTORCH, antialias=False, precision="highest")
    return np.asarray(resized).reshape(rows, -1)
