"""The 3 x 3 convolution of this package."""

from __future__ import annotations

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

_SIZE = 3
_AXES = ("NHWC", "HWIO", "NHWC")


def _convolve(x: Float[Array, "n h w i"], kernel: Float[Array, "3 3 i o"]) -> Float[Array, "n h w o"]:
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=_AXES)


def _kernel_gradient(x: Float[Array, "n h w i"], grad: Float[Array, "n h w o"]) -> Float[Array, "3 3 i o"]:
    """The convolution that is the gradient: of x with `grad` as a kernel of the size of the picture."""
    axes = ("CHWN", "IHWO", "HWNC")  # pictures are summed over, as channels usually are
    return jax.lax.conv_general_dilated(x, grad, (1, 1), ((1, 1), (1, 1)), dimension_numbers=axes)


def _kernel_gradient_by_rows(x: Float[Array, "n h w i"], grad: Float[Array, "n h w o"]) -> Float[Array, "3 3 i o"]:
    """The same as three products of matrices, one for each row of the kernel; all its columns are in one product.

    With a kernel as large as the picture, XLA's CPU code takes up to ten times as long (docs/results/speed.md).
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
