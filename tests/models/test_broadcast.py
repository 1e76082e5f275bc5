"""What is broadcast is broadcast, and its gradient is the sum over all places."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from s2rm_jax.models.layers import _sum_by_product, broadcast


@pytest.mark.parametrize(("sizes", "axis"), [((3,), 0), ((2, 5), 0), ((3,), 1), ((1,), 1), ((), 0), ((2, 3), 2)])
def test_broadcast_matches_jnp_values_and_gradients(sizes, axis):
    x = jax.random.normal(jax.random.key(0), (2, 4, 3))
    kept = (*x.shape[:axis], *([1] * len(sizes)), *x.shape[axis:])
    shape = (*x.shape[:axis], *sizes, *x.shape[axis:])
    weights = jax.random.normal(jax.random.key(1), shape)

    def plain(x):
        return jnp.broadcast_to(x.reshape(kept), shape)

    np.testing.assert_array_equal(broadcast(x, sizes, axis), plain(x))
    found = jax.grad(lambda x: (weights * broadcast(x, sizes, axis) ** 2).sum())(x)
    expected = jax.grad(lambda x: (weights * plain(x) ** 2).sum())(x)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


def test_the_gradient_is_a_product_on_cpus():
    """XLA's own sum over an axis that is not the last is what makes the gradient slow there."""
    x = jnp.ones((4, 3))
    gradient = jax.grad(lambda x: broadcast(x, (6,)).sum())
    assert "dot_general" in jax.jit(gradient).lower(x).as_text()
    np.testing.assert_allclose(_sum_by_product(jnp.ones((2, 5, 3))), 5.0)
    many = jnp.full((1, 1000, 2), 1.0078125, jnp.bfloat16)  # added up in bfloat16 they would stop at 256
    assert _sum_by_product(many).dtype == jnp.bfloat16 and float(_sum_by_product(many)[0, 0]) == 1008
