"""The dense layer of this package.

The 3 x 3 convolution of this package.

The GELU of Swin and BERT.

What is the same for many: a parameter for all windows, or a map of an image for all of its sentences.

Rematerialisation: which results of a block the backward pass computes anew instead of keeping them.

Blocks of the same shape, one after another, as one loop: their program is compiled once, however many there are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from s2rm_jax.config import REMAT_POLICIES


def _flat_dot_general(x: jax.Array, kernel: jax.Array, dimension_numbers: Any, **options: Any) -> jax.Array:
    """The product of nn.Dense with all leading axes of x made one.

    The gradient of the kernel then sums over one axis and not over several, which XLA's CPU code does twice as fast.
    Images must be the first axis: merged behind another one they could not stay spread over devices.
    """
    ((contracted, _), _) = dimension_numbers
    assert contracted == (x.ndim - 1,), "only the last axis of x is contracted"
    flat = jax.lax.dot_general(x.reshape(-1, x.shape[-1]), kernel, (((1,), (0,)), ((), ())), **options)
    return flat.reshape(*x.shape[:-1], kernel.shape[-1])


Dense = partial(nn.Dense, dot_general=_flat_dot_general)
"""nn.Dense, with the same fields and parameters, for inputs of any rank."""


_SIZE = 3
_AXES = ("NHWC", "HWIO", "NHWC")


def _convolve(x: Float[Array, "n h w i"], kernel: Float[Array, "3 3 i o"]) -> Float[Array, "n h w o"]:
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=_AXES)


def _kernel_gradient(x: Float[Array, "n h w i"], grad: Float[Array, "n h w o"]) -> Float[Array, "3 3 i o"]:
    """The convolution that is the gradient: of x with `grad` as a kernel of the size of the image."""
    axes = ("CHWN", "IHWO", "HWNC")  # images are summed over, as channels usually are
    return jax.lax.conv_general_dilated(x, grad, (1, 1), ((1, 1), (1, 1)), dimension_numbers=axes)


def _kernel_gradient_by_rows(x: Float[Array, "n h w i"], grad: Float[Array, "n h w o"]) -> Float[Array, "3 3 i o"]:
    """The same as three products of matrices, one for each row of the kernel; all its columns are in one product.

    With a kernel as large as the image, XLA's CPU code takes up to ten times as long (docs/results/speed.md).
    """
    height, width = x.shape[1:3]
    around = jnp.pad(grad, ((0, 0), (0, 0), (1, 1), (0, 0)))
    shifted = [around[:, :, _SIZE - 1 - column :][:, :, :width] for column in range(_SIZE)]
    columns = jnp.concatenate(shifted, axis=-1)
    above_and_below = jnp.pad(x, ((0, 0), (1, 1), (0, 0), (0, 0)))
    rows = [
        jnp.einsum("nhwp,nhwi->pi", columns, above_and_below[:, row : row + height], preferred_element_type=jnp.float32)
        for row in range(_SIZE)
    ]
    return jnp.stack(rows).reshape(_SIZE, _SIZE, grad.shape[-1], x.shape[-1]).swapaxes(2, 3).astype(x.dtype)


@jax.custom_vjp
def _convolution(x: Float[Array, "n h w i"], kernel: Float[Array, "3 3 i o"]) -> Float[Array, "n h w o"]:
    return _convolve(x, kernel)


def _forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _convolve(x, kernel), (x, kernel)


def _backward(kept: tuple[jax.Array, jax.Array], grad: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = kept
    (of_x,) = jax.linear_transpose(lambda x: _convolve(x, kernel), x)(grad)
    return of_x, jax.lax.platform_dependent(x, grad, cpu=_kernel_gradient_by_rows, default=_kernel_gradient)


_convolution.defvjp(_forward, _backward)


def _conv_general_dilated(x: jax.Array, kernel: jax.Array, strides: Any, padding: Any, **options: Any) -> jax.Array:
    """What nn.Conv calls; it is told what is taken for granted here."""
    plain = kernel.shape[:2] == (_SIZE, _SIZE) and padding == "SAME" and options["feature_group_count"] == 1
    undilated = set(strides) == set(options["lhs_dilation"]) == set(options["rhs_dilation"]) == {1}
    assert plain and undilated and options["precision"] is None, (
        "Conv3x3 is a plain 3 x 3 convolution: use nn.Conv for another one"
    )
    return _convolution(x, kernel)


Conv3x3 = partial(nn.Conv, kernel_size=(_SIZE, _SIZE), use_bias=False, conv_general_dilated=_conv_general_dilated)
"""nn.Conv of 3 x 3 without bias, at every position, with the same parameters; its gradient is fast on CPUs too.

Under shard_map the kernel must vary over the devices as x does (jax.lax.pcast), as all parameters of a step do.
"""


@jax.checkpoint
def gelu(x: jax.Array) -> jax.Array:
    """Returns x · Φ(x), Φ being the distribution function of the normal distribution, without approximation.

    The gradient keeps x and computes the rest anew in one pass. Left to themselves, compilers keep what they have
    computed, which are several arrays of the size of the widest layer, and to read them takes longer. By erf and not
    by erfc as in nn.gelu, which is more exact below -3, where the result is next to nothing, and three times as dear.
    """
    wide = x.astype(jnp.float32)
    return (0.5 * wide * (1 + jax.lax.erf(wide * np.float32(np.sqrt(0.5))))).astype(x.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def broadcast(x: Array, sizes: tuple[Any, ...], axis: int = 0) -> Array:
    """Returns `x` repeated along new axes of these sizes (int, or symbolic in an export), the first of which is `axis`.

    It is jnp.broadcast_to, with a gradient that is fast on CPUs too: there XLA's sums over axes that are not the last
    take fifty times as long as a product with ones.
    """
    kept = jnp.expand_dims(x, tuple(range(axis, axis + len(sizes))))
    return jnp.broadcast_to(kept, (*x.shape[:axis], *sizes, *x.shape[axis:]))


def _broadcast_forward(x: Array, sizes: tuple[Any, ...], axis: int) -> tuple[Array, None]:
    return broadcast(x, sizes, axis), None


def _broadcast_backward(sizes: tuple[Any, ...], axis: int, _: None, grad: Array) -> tuple[Array]:
    before, after = grad.shape[:axis], grad.shape[axis + len(sizes) :]
    flat = grad.reshape(math.prod(before), math.prod(sizes), math.prod(after))
    total = jax.lax.platform_dependent(flat, cpu=_sum_by_product, default=partial(jnp.sum, axis=1))
    return (total.reshape(*before, *after),)


def _sum_by_product(grad: Float[Array, "b n m"]) -> Float[Array, "b m"]:
    ones = jnp.ones(grad.shape[:2], grad.dtype)
    return jnp.einsum("bn,bnm->bm", ones, grad, preferred_element_type=jnp.float32).astype(grad.dtype)


broadcast.defvjp(_broadcast_forward, _broadcast_backward)


Block = TypeVar("Block", bound=type[nn.Module])


def rematerialised(block: Block, policy: str, looped: bool = False) -> Block:
    """Returns the module class `block`, whose instances keep for the backward pass what `policy` says.

    Values, gradients, dropout and the tree of parameters are the same with every policy.

    Args:
        block: a class of modules.
        policy: "none" keeps everything that the gradient needs. "dense" keeps what comes out of dense layers and
            computes anew what is cheap for its size: attention weights, norms, GELUs. "blocks" keeps nothing but the
            input of the block, so that its forward pass runs a second time.
        looped: they run inside a loop, where the compiler cannot take the second computation for the first.

    Raises:
        ValueError: there is no such policy.
    """
    if policy not in REMAT_POLICIES:
        raise ValueError(f"remat must be one of {REMAT_POLICIES}, not {policy!r}")
    if policy == "none":
        return block
    # The products of attention have batch dimensions, those of dense layers have none.
    kept = jax.checkpoint_policies.dots_with_no_batch_dims_saveable if policy == "dense" else None
    return nn.remat(block, policy=kept, prevent_cse=not looped)


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
