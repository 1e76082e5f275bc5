"""Balance: its weights sum to one, and equal maps are returned unchanged."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from s2rm_jax.models.s2rm import Balance


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@pytest.mark.parametrize("kind", ["position", "channel", "mean"])
def test_balance_is_a_weighted_mean_over_directions(kind):
    maps = normal(4, 1, 2, 3, 5, 8)
    balance = Balance(kind)
    variables = jax.jit(balance.init)(jax.random.key(0), maps)
    balanced, weights = jax.jit(balance.apply)(variables, maps)
    assert (
        weights.shape
        == {
            "position": (4, 1, 2, 3, 5, 1),
            "channel": (4, 1, 2, 1, 1, 8),
            "mean": (4, 1, 1, 1, 1, 1),
        }[kind]
    )
    np.testing.assert_allclose(weights.sum(0), 1, atol=1e-6)
    np.testing.assert_allclose(balanced, (np.asarray(weights) * np.asarray(maps)).sum(0), atol=1e-5)
    same = jnp.broadcast_to(maps[:1], maps.shape)
    np.testing.assert_allclose(balance.apply(variables, same)[0], maps[0], atol=1e-5)
