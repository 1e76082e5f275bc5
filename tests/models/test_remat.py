"""What the backward pass computes anew changes what is kept, and nothing else."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from s2rm_jax.config import REMAT_POLICIES
from s2rm_jax.models.layers import rematerialised
from s2rm_jax.models.network import build_network
from s2rm_jax.models.swin import SwinBlock

from .small import small_config, small_inputs


def training_loss(policy):
    """The parameters and a function of them: a loss with drop path and dropout on."""
    config = small_config(vision__drop_path_rate=0.3, text__dropout_rate=0.3, text__num_layers=1)
    config.vision.update(depths=(1, 4), num_heads=(1, 2))
    config.decoder.widths = (8, 12)
    config.fusion.mode = "sum"
    config.remat = policy
    network = build_network(config)
    inputs = small_inputs(height=24, width=40)

    def loss(params):
        output = network.apply({"params": params}, *inputs, train=True, rngs={"dropout": jax.random.key(3)})
        return (jnp.sin(output.logits) ** 2).mean()

    return jax.eval_shape(network.init, jax.random.key(0), *inputs)["params"], loss


@cache
def value_and_gradient(policy):
    shapes, loss = training_loss(policy)
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda p: 0.1 * rng.normal(size=p.shape).astype(np.float32), shapes)
    return jax.jit(jax.value_and_grad(loss))(params)


@pytest.mark.parametrize("policy", REMAT_POLICIES[1:])
def test_parameters_loss_and_gradients_are_those_without(policy):
    assert training_loss(policy)[0] == training_loss("none")[0]
    (loss, gradient), (expected_loss, expected) = value_and_gradient(policy), value_and_gradient("none")
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-6)
    largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(expected))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6 * largest), gradient, expected)


def test_each_policy_keeps_less_than_the_one_before():
    def kept(policy):
        shapes, loss = training_loss(policy)
        residuals = jax.eval_shape(lambda params: jax.vjp(loss, params)[1], shapes)
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(residuals))

    none, dense, blocks = (kept(policy) for policy in REMAT_POLICIES)
    assert blocks < 0.9 * dense < 0.9 * 0.9 * none


def test_an_unknown_policy_is_refused():
    with pytest.raises(ValueError, match="remat must be one of"):
        rematerialised(SwinBlock, "all")
