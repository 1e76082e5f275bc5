"""Layers and helpers that the parts of the network share.

`Dense`, `Conv3x3`, `gelu` and `broadcast` compute what their Flax or JAX namesakes compute, with gradients that are
fast on CPUs too (measured in docs/results/optimization_notes.md). `rematerialize` and `repeat` change what a block
keeps for the backward pass and how often it is compiled.
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
    """Compute the product of nn.Dense with all leading axes of x merged into one.

    The gradient of the kernel then sums over one axis instead of several, which XLA's CPU code does twice as fast.
    Images must be the first axis: if they were merged behind another one, they could not stay sharded over devices.
    """
    ((contracted, _), _) = dimension_numbers
    assert contracted == (x.ndim - 1,), "only the last axis of x is contracted"
    flat = jax.lax.dot_general(x.reshape(-1, x.shape[-1]), kernel, (((1,), (0,)), ((), ())), **options)
    return flat.reshape(*x.shape[:-1], kernel.shape[-1])


Dense = partial(nn.Dense, dot_general=_flat_dot_general)
"""nn.Dense, with the same fields and parameters, for inputs of any rank."""


LayerNorm = partial(nn.LayerNorm, use_fast_variance=False)
"""nn.LayerNorm, with the same fields and parameters, whose variance is the mean of squared differences from the mean.

Flax's default, the mean of squares minus the square of the mean, loses precision where the mean is large: at a mean of
100 standard deviations, the output is off by 2.5e-3 instead of 8e-6 (float32, 128 channels).
"""


def _convolve(x: Float[Array, "n h w i"], kernel: Float[Array, "3 3 i o"]) -> Float[Array, "n h w o"]:
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def _kernel_gradient(x: Float[Array, "n h w i"], grad: Float[Array, "n h w o"]) -> Float[Array, "3 3 i o"]:
    """Compute the gradient of the kernel: a convolution of x with `grad` as a kernel of the size of the image."""
    axes = ("CHWN", "IHWO", "HWNC")  # sums over images, as a convolution usually does over channels
    return jax.lax.conv_general_dilated(x, grad, (1, 1), ((1, 1), (1, 1)), dimension_numbers=axes)


def _kernel_gradient_by_rows(x: Float[Array, "n h w i"], grad: Float[Array, "n h w o"]) -> Float[Array, "3 3 i o"]:
    """Compute the same by three matrix products, one for each row of the kernel, with all columns in one product.

    With a kernel as large as the image, XLA's CPU code takes up to ten times as long.
    """
    height, width = x.shape[1:3]
    padded_grad = jnp.pad(grad, ((0, 0), (0, 0), (1, 1), (0, 0)))
    columns = jnp.concatenate([padded_grad[:, :, 2 - column :][:, :, :width] for column in range(3)], axis=-1)
    padded = jnp.pad(x, ((0, 0), (1, 1), (0, 0), (0, 0)))
    rows = [
        jnp.einsum("nhwp,nhwi->pi", columns, padded[:, row : row + height], preferred_element_type=jnp.float32)
        for row in range(3)
    ]
    return jnp.stack(rows).reshape(3, 3, grad.shape[-1], x.shape[-1]).swapaxes(2, 3).astype(x.dtype)


@jax.custom_vjp
def _convolution(x: Float[Array, "n h w i"], kernel: Float[Array, "3 3 i o"]) -> Float[Array, "n h w o"]:
    return _convolve(x, kernel)


def _convolution_forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _convolve(x, kernel), (x, kernel)


def _convolution_backward(kept: tuple[jax.Array, jax.Array], grad: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = kept
    (x_gradient,) = jax.linear_transpose(lambda x: _convolve(x, kernel), x)(grad)
    return x_gradient, jax.lax.platform_dependent(x, grad, cpu=_kernel_gradient_by_rows, default=_kernel_gradient)


_convolution.defvjp(_convolution_forward, _convolution_backward)


def _conv_general_dilated(x: jax.Array, kernel: jax.Array, strides: Any, padding: Any, **options: Any) -> jax.Array:
    """Replace the function that nn.Conv calls; its options must be those of a plain 3 x 3 convolution."""
    plain = kernel.shape[:2] == (3, 3) and padding == "SAME" and options["feature_group_count"] == 1
    undilated = set(strides) == set(options["lhs_dilation"]) == set(options["rhs_dilation"]) == {1}
    assert plain and undilated and options["precision"] is None, (
        "Conv3x3 is a plain 3 x 3 convolution: use nn.Conv for another one"
    )
    return _convolution(x, kernel)


Conv3x3 = partial(nn.Conv, kernel_size=(3, 3), use_bias=False, conv_general_dilated=_conv_general_dilated)
"""nn.Conv of 3 x 3 without bias and stride, with the same parameters.

Under shard_map the kernel must vary over the devices as x does (jax.lax.pcast), as all parameters of a step do.
"""


@jax.custom_jvp
def _erf(x: jax.Array) -> jax.Array:
    return jax.lax.erf(x)


# That of lax.erf before JAX 0.12, in which it fails under shard_map.
_erf.defjvps(lambda tangent, _, x: np.float32(2 / np.sqrt(np.pi)) * (tangent * jnp.exp(-jnp.square(x))))


@jax.checkpoint
def gelu(x: jax.Array) -> jax.Array:
    """Return x · Φ(x) without approximation, where Φ is the cumulative distribution function of the normal.

    The gradient keeps x only and recomputes the rest in one pass. Left to themselves, compilers keep several arrays of
    the size of the widest layer, and reading them takes longer. This uses erf. nn.gelu uses erfc, which is more
    accurate below -3, where the result is almost zero, but takes three times as long.
    """
    wide = x.astype(jnp.float32)
    return (0.5 * wide * (1 + _erf(wide * np.float32(np.sqrt(0.5))))).astype(x.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def broadcast(x: Array, sizes: tuple[Any, ...], axis: int = 0) -> Array:
    """Return `x` repeated along new axes of these sizes (int, or symbolic in an export), the first of which is `axis`.

    Used where many share one array: a parameter for all windows, or a map of an image for all of its expressions. The
    gradient sums by a product with ones on CPUs, where XLA's sums over axes other than the last take fifty times as
    long.
    """
    expanded = jnp.expand_dims(x, tuple(range(axis, axis + len(sizes))))
    return jnp.broadcast_to(expanded, (*x.shape[:axis], *sizes, *x.shape[axis:]))


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


def rematerialize(block: Block, policy: str, looped: bool = False) -> Block:
    """Return the module class `block`, changed to keep for the backward pass only what `policy` allows.

    Values, gradients, dropout and the tree of parameters are the same with every policy.

    Args:
        block: a class of modules.
        policy: "none" keeps everything that the gradient needs. "dense" keeps the outputs of dense layers and
            recomputes what is cheap for its size: attention weights, norms, GELUs. "blocks" keeps only the input of
            the block, so its forward pass runs a second time.
        looped: whether the blocks run inside a loop, where the compiler cannot merge the two computations.

    Raises:
        ValueError: the policy is unknown.
    """
    if policy not in REMAT_POLICIES:
        raise ValueError(f"remat must be one of {REMAT_POLICIES}, not {policy!r}")
    if policy == "none":
        return block
    # The products of attention have batch dimensions, those of dense layers have none.
    kept = jax.checkpoint_policies.dots_with_no_batch_dims_saveable if policy == "dense" else None
    return nn.remat(block, policy=kept, prevent_cse=not looped)


def repeat(block: Callable[[Any, Any], Any], x: jax.Array, operands: Sequence[Any], dtype: DTypeLike) -> jax.Array:
    """Compute x = block(x, operand) for each operand in turn, as one loop whose body is compiled once.

    Operands are stacked at run time. The tree of parameters, and with it checkpoints, names and shardings, does not
    depend on the loop.

    Args:
        block: a pure function that returns an array of the shape and type of its first argument.
        x: the input of the first block.
        operands: parameters and other inputs of each block: nested arrays, of the same shapes for each.
        dtype: of the computation; kernels are cast to it before they are stacked, so less is copied.
    """

    def stacked(path: tuple[Any, ...], *leaves: jax.Array) -> jax.Array:
        is_kernel = getattr(path[-1], "key", "") == "kernel"  # others, such as norms, keep their own precision
        return jnp.stack([leaf.astype(dtype) if is_kernel else leaf for leaf in leaves])

    return jax.lax.scan(
        lambda x, operand: (block(x, operand), None), x, jax.tree_util.tree_map_with_path(stacked, *operands)
    )[0]
