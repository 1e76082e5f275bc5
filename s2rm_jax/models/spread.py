"""What is the same for many: a parameter for all windows, or a map of a picture for all of its sentences."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def spread(x: Array, sizes: tuple[Any, ...], axis: int = 0) -> Array:
    """Returns `x` repeated along new axes of these sizes (int, or symbolic in an export), the first of which is `axis`.

    It is jnp.broadcast_to, with a gradient that is fast on CPUs too: there XLA's sums over axes that are not the last
    take fifty times as long as a product with ones.
    """
    kept = jnp.expand_dims(x, tuple(range(axis, axis + len(sizes))))
    return jnp.broadcast_to(kept, (*x.shape[:axis], *sizes, *x.shape[axis:]))


def _forward(x: Array, sizes: tuple[Any, ...], axis: int) -> tuple[Array, None]:
    return spread(x, sizes, axis), None


def _backward(sizes: tuple[Any, ...], axis: int, _: None, grad: Array) -> tuple[Array]:
    before, after = grad.shape[:axis], grad.shape[axis + len(sizes) :]
    flat = grad.reshape(math.prod(before), math.prod(sizes), math.prod(after))
    total = jax.lax.platform_dependent(flat, cpu=_sum_by_product, default=partial(jnp.sum, axis=1))
    return (total.reshape(*before, *after),)


def _sum_by_product(grad: Float[Array, "b n m"]) -> Float[Array, "b m"]:
    ones = jnp.ones(grad.shape[:2], grad.dtype)
    return jnp.einsum("bn,bnm->bm", ones, grad, preferred_element_type=jnp.float32).astype(grad.dtype)


spread.defvjp(_forward, _backward)
