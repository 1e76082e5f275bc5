"""Blocks of the same shape, one after another, as one loop: their program is compiled once, however many there are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike


def repeat(block: Callable[[Any, Any], Any], x: jax.Array, operands: Sequence[Any], dtype: DTypeLike) -> jax.Array:
    """Computes x = block(x, operand) for one operand after another.

    Operands are stacked while the program runs, so that the tree of parameters, and with it checkpoints, names and
    shardings, knows nothing of the loop.

    Args:
        block: a pure function, which returns an array of the shape and type of its first argument.
        x: what goes into the first block.
        operands: parameters of each block and what else it needs: nested arrays, the same shapes for each.
        dtype: of the computation; kernels are cast to it before they are stacked, which is less to copy.
    """

    def stacked(path: tuple[Any, ...], *leaves: jax.Array) -> jax.Array:
        is_kernel = getattr(path[-1], "key", "") == "kernel"  # the rest, such as norms, counts in its own precision
        return jnp.stack([leaf.astype(dtype) if is_kernel else leaf for leaf in leaves])

    return jax.lax.scan(
        lambda x, operand: (block(x, operand), None), x, jax.tree_util.tree_map_with_path(stacked, *operands)
    )[0]
