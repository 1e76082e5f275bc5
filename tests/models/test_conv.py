"""The convolution of the package is nn.Conv; only how its gradient is computed is its own."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from s2rm_jax.models.layers import Conv3x3, _kernel_gradient, _kernel_gradient_by_rows


@pytest.mark.parametrize("shape", [(2, 7, 5, 6), (1, 1, 4, 3), (3, 2, 1, 8)])
def test_conv3x3_matches_nn_conv_values_and_gradients(shape):
    x = jax.random.normal(jax.random.key(0), shape)
    ours, plain = Conv3x3(4), nn.Conv(4, (3, 3), use_bias=False)
    params = ours.init(jax.random.key(1), x)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, plain.init(jax.random.key(1), x))

    def loss(module, params, x):
        return jnp.sin(module.apply(params, x)).sum()

    np.testing.assert_array_equal(ours.apply(params, x), plain.apply(params, x))
    found = jax.grad(loss, argnums=(1, 2))(ours, params, x)
    expected = jax.grad(loss, argnums=(1, 2))(plain, params, x)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), found, expected)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_both_kernel_gradients_agree(dtype):
    """CPUs take the one and other devices the other, also where the program is compiled for both."""
    x = jax.random.normal(jax.random.key(0), (2, 9, 6, 5)).astype(dtype)
    grad = jax.random.normal(jax.random.key(1), (2, 9, 6, 7)).astype(dtype)
    rows, whole = _kernel_gradient_by_rows(x, grad), _kernel_gradient(x, grad)
    assert rows.dtype == whole.dtype == dtype and rows.shape == whole.shape == (3, 3, 5, 7)
    allowed = 1e-5 if dtype == jnp.float32 else 0.01  # which are rounded to 8 bits
    np.testing.assert_allclose(rows.astype(jnp.float32), whole.astype(jnp.float32), rtol=allowed, atol=10 * allowed)
    assert jax.jit(_kernel_gradient_by_rows).lower(x, grad).as_text().count("dot_general") == 3
