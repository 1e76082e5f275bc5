"""S2RM around the coparsing: distribution contains words only, balance weights sum to one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from s2rm_jax.models.s2rm import Balance, Distribute


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def test_distribution_matches_its_formula():
    vision, words = normal(1, 1, 2, 3, 8), normal(1, 2, 4, 5, seed=1)
    mask = jnp.asarray([[[True, True, True, False], [True, True, False, False]]])
    distribute = Distribute(width=8, num_heads=2)
    params = jax.jit(distribute.init)(jax.random.key(0), vision, words, mask)["params"]
    laid_out, attention = jax.jit(distribute.apply)({"params": params}, vision, words, mask)

    def project(name, x):
        return np.asarray(x @ params[name]["kernel"] + params[name]["bias"], np.float64)

    query, key, value = project("query", vision), project("key", words), project("value", words)
    for k in range(2):
        out = np.zeros((2, 3, 8))
        for head in range(2):
            part = slice(4 * head, 4 * head + 4)
            logits = query[0, 0, :, :, part] @ key[0, k, :, part].T / 2.0
            logits = np.where(mask[0, k], logits, -np.inf)
            weights = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
            np.testing.assert_allclose(attention[0, k, head], weights, atol=1e-5)
            out[..., part] = weights @ value[0, k, :, part]
        expected = (out - out.mean(-1, keepdims=True)) / np.sqrt(out.var(-1, keepdims=True) + 1e-6)
        np.testing.assert_allclose(laid_out[0, k], expected, atol=1e-4)


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
