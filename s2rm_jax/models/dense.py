"""The dense layer of this package."""

from __future__ import annotations

from functools import partial
from typing import Any

import flax.linen as nn
import jax


def _flat_dot_general(x: jax.Array, kernel: jax.Array, dimension_numbers: Any, **options: Any) -> jax.Array:
    """The product of nn.Dense with all leading axes of x made one.

    The gradient of the kernel then sums over one axis and not over several, which XLA's CPU code does twice as fast.
    Pictures must be the first axis: merged behind another one they could not stay spread over devices.
    """
    ((contracted, _), _) = dimension_numbers
    assert contracted == (x.ndim - 1,), "only the last axis of x is contracted"
    flat = jax.lax.dot_general(x.reshape(-1, x.shape[-1]), kernel, (((1,), (0,)), ((), ())), **options)
    return flat.reshape(*x.shape[:-1], kernel.shape[-1])


Dense = partial(nn.Dense, dot_general=_flat_dot_general)
"""nn.Dense, with the same fields and parameters, for inputs of any rank."""
