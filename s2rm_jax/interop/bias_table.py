"""Relative position bias tables for another window."""

from __future__ import annotations

import jax
import numpy as np
from jaxtyping import Float32


def resize_bias_table(table: Float32[np.ndarray, "n heads"], rows: int) -> Float32[np.ndarray, "{rows} heads"]:
    """Resizes a table from one window to another, bicubic over the plane of relative positions.

    A window of w has (2w - 1)² relative positions: `n` and `rows` are such squares. As published Swin code does, the
    same as torch.nn.functional.interpolate(mode="bicubic", align_corners=False), but computed in float64: in float32,
    rounded sampling points put either library off by some 1e-6 of the table.
    """
    side, new_side = round(len(table) ** 0.5), round(rows**0.5)
    shape = (new_side, new_side, table.shape[-1])
    with jax.enable_x64(True):
        plane = table.reshape(side, side, -1).astype(np.float64)
        resized = jax.image.resize(
            plane, shape, jax.image.ResizeMethod.CUBIC_PYTORCH, antialias=False, precision="highest"
        )
    return np.asarray(resized, np.float32).reshape(rows, -1)
