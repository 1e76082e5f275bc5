"""The layers match those of Flax and JAX in values and gradients, and rematerialization changes memory only."""

from functools import cache

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from s2rm_jax.config import REMAT_POLICIES
from s2rm_jax.models.layers import (
    Conv3x3,
    LayerNorm,
    _kernel_gradient,
    _kernel_gradient_by_rows,
    _sum_by_product,
    broadcast,
    rematerialize,
    repeat,
)
from s2rm_jax.models.network import build_network
from s2rm_jax.models.swin import SwinBlock

from .small import small_config, small_inputs


@pytest.mark.parametrize("shape", [(2, 7, 5, 6), (1, 1, 4, 3), (3, 2, 1, 8)])
def test_conv3x3_matches_nn_conv_values_and_gradients(shape):
    x = jax.random.normal(jax.random.key(0), shape)
    ours, plain = Conv3x3(4), nn.Conv(4, (3, 3), use_bias=False)
    params = jax.jit(ours.init)(jax.random.key(1), x)
    plain_shapes = jax.eval_shape(plain.init, jax.random.key(1), x)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, plain_shapes)

    def loss(module, params, x):
        return jnp.sin(module.apply(params, x)).sum()

    np.testing.assert_array_equal(jax.jit(ours.apply)(params, x), jax.jit(plain.apply)(params, x))
    gradients = jax.jit(jax.grad(loss, argnums=(1, 2)), static_argnums=0)
    found, expected = gradients(ours, params, x), gradients(plain, params, x)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), found, expected)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_both_kernel_gradients_agree(dtype):
    """CPUs use the first and other devices the second, also in a program compiled for both."""
    x = jax.random.normal(jax.random.key(0), (2, 9, 6, 5)).astype(dtype)
    grad = jax.random.normal(jax.random.key(1), (2, 9, 6, 7)).astype(dtype)
    rows, whole = jax.jit(_kernel_gradient_by_rows)(x, grad), jax.jit(_kernel_gradient)(x, grad)
    assert rows.dtype == whole.dtype == dtype and rows.shape == whole.shape == (3, 3, 5, 7)
    allowed = 1e-5 if dtype == jnp.float32 else 0.01  # bfloat16 has 8 bits
    np.testing.assert_allclose(rows.astype(jnp.float32), whole.astype(jnp.float32), rtol=allowed, atol=10 * allowed)
    assert jax.jit(_kernel_gradient_by_rows).lower(x, grad).as_text().count("dot_general") == 3


def test_layer_norm_is_accurate_where_the_mean_is_large():
    x = np.random.default_rng(0).normal(size=(64, 128)) + 1000
    expected = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    norm = LayerNorm()
    params = norm.init(jax.random.key(0), x)
    np.testing.assert_allclose(norm.apply(params, x.astype(np.float32)), expected, atol=5e-4)


def test_every_norm_of_the_network_is_accurate():
    norms = []

    def note(call, args, kwargs, context):
        if isinstance(context.module, nn.LayerNorm):
            norms.append(context.module)
        return call(*args, **kwargs)

    with nn.intercept_methods(note):
        jax.eval_shape(build_network(small_config()).init, jax.random.key(0), *small_inputs())
    assert len(norms) > 20 and not any(norm.use_fast_variance for norm in norms)


@pytest.mark.parametrize("platform", ["cpu", "default"])
@pytest.mark.parametrize(("sizes", "axis"), [((3,), 0), ((2, 5), 0), ((3,), 1), ((1,), 1), ((), 0), ((2, 3), 2)])
def test_broadcast_matches_jnp_values_and_gradients(sizes, axis, platform, monkeypatch):
    """Also with the gradient of GPUs and TPUs, which runs here in place of that of CPUs."""
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda *arrays, **forms: forms[platform](*arrays))
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 4, 3), np.float32)
    kept = (*x.shape[:axis], *([1] * len(sizes)), *x.shape[axis:])
    shape = (*x.shape[:axis], *sizes, *x.shape[axis:])
    weights = rng.standard_normal(shape, np.float32)

    def plain(x):
        return jnp.broadcast_to(x.reshape(kept), shape)

    def value_and_gradient(form):
        return jax.jit(lambda x: (form(x), jax.grad(lambda x: (weights * form(x) ** 2).sum())(x)))(x)

    found_value, found = value_and_gradient(lambda x: broadcast(x, sizes, axis))
    expected_value, expected = value_and_gradient(plain)
    np.testing.assert_array_equal(found_value, expected_value)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


def test_the_gradient_of_broadcast_is_a_product_on_cpus():
    """XLA's own sum over an axis other than the last is slow there."""
    x = jnp.ones((4, 3))
    assert broadcast(x, (6,)).shape == (6, 4, 3)
    gradient = jax.grad(lambda x: broadcast(x, (6,)).sum())
    assert "dot_general" in jax.jit(gradient).lower(x).as_text()
    np.testing.assert_allclose(_sum_by_product(jnp.ones((2, 5, 3))), 5.0)
    many = jnp.full((1, 1000, 2), 1.0078125, jnp.bfloat16)  # a sum in bfloat16 would stop at 256
    assert _sum_by_product(many).dtype == jnp.bfloat16 and float(_sum_by_product(many)[0, 0]) == 1008


def test_repeat_casts_kernels_only():
    operand = {"dense": {"kernel": jnp.float32(2), "bias": jnp.float32(3)}, "norm": {"scale": jnp.float32(5)}}

    def block(x, operand):
        dense, norm = operand["dense"], operand["norm"]
        assert dense["kernel"].dtype == jnp.bfloat16
        assert dense["bias"].dtype == norm["scale"].dtype == jnp.float32
        return x * dense["kernel"].astype(x.dtype) + norm["scale"]

    assert repeat(block, jnp.float32(1), [operand] * 3, jnp.bfloat16) == ((1 * 2 + 5) * 2 + 5) * 2 + 5


@cache
def training_loss(policy):
    """Return shapes of parameters and a loss of parameters with drop path and dropout."""
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

    # Traced once for the gradient and for what is kept for it.
    return jax.eval_shape(network.init, jax.random.key(0), *inputs)["params"], jax.jit(loss)


@cache
def value_and_gradient(policy):
    shapes, loss = training_loss(policy)
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda p: 0.1 * rng.normal(size=p.shape).astype(np.float32), shapes)
    return jax.jit(jax.value_and_grad(loss))(params)


@pytest.mark.parametrize("policy", REMAT_POLICIES[1:])
def test_remat_changes_no_parameter_loss_or_gradient(policy):
    assert training_loss(policy)[0] == training_loss("none")[0]
    (loss, gradient), (expected_loss, expected) = value_and_gradient(policy), value_and_gradient("none")
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-6)
    largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(expected))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6 * largest), gradient, expected)


def test_each_policy_keeps_less_memory():
    def kept(policy):
        shapes, loss = training_loss(policy)
        residuals = jax.eval_shape(lambda params: jax.vjp(loss, params)[1], shapes)
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(residuals))

    none, dense, blocks = (kept(policy) for policy in REMAT_POLICIES)
    assert blocks < 0.9 * dense < 0.9 * 0.9 * none


def test_an_unknown_policy_is_refused():
    with pytest.raises(ValueError, match="remat must be one of"):
        rematerialize(SwinBlock, "all")
