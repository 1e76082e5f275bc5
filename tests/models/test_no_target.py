"""The no-target head: gradients, independence of other expressions, and its absence."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from s2rm_jax.models.cost import network_cost
from s2rm_jax.models.network import build_network
from s2rm_jax.training.losses import no_target_loss
from tests.models.small import small_config, small_inputs, small_network

SHALLOW = {"vision__depths": (1, 1, 1), "text__num_layers": 1}  # the head reads what comes out of both


@pytest.fixture(scope="module")
def small():
    return small_network(**SHALLOW, decoder__no_target_width=12)


def test_expressions_together_equal_one_by_one(small):
    _, params, apply = small
    images, tokens, mask = small_inputs()
    together = apply(params, images, tokens, mask).no_target_logits
    assert together.shape == (2, 3) and together.dtype == jnp.float32
    assert np.ptp(together) > 1e-3
    for k in range(3):
        alone = apply(params, images, tokens[:, k : k + 1], mask[:, k : k + 1]).no_target_logits
        np.testing.assert_allclose(together[:, k : k + 1], alone, atol=1e-5)


def test_gradients_reach_the_head_and_all_of_its_inputs(small):
    _, params, apply = small
    inputs = small_inputs()
    valid = jnp.array([[True, True, False], [True, False, True]])
    has_target = jnp.array([[True, False, False], [False, False, True]])

    def loss(p):
        return no_target_loss(apply(p, *inputs).no_target_logits, has_target, valid)

    gradients = jax.jit(jax.grad(loss))(params)
    for path, gradient in jax.tree_util.tree_leaves_with_path(gradients["no_target"]):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        assert np.isfinite(gradient).all() and (np.abs(gradient).max(tuple(range(gradient.ndim - 1))) > 0).all(), name
    rows = np.abs(gradients["no_target"]["hidden"]["kernel"]).max(1)
    assert rows.shape == (16 + 16 + 16 + 2,) and (rows > 0).all()  # sentence, image, foreground, peak and share
    for part in ("vision", "text", "fusion", "decoder"):
        leaves = jax.tree.leaves(gradients[part])
        assert all(np.isfinite(leaf).all() for leaf in leaves) and any(leaf.any() for leaf in leaves), part


def test_the_head_changes_no_mask_and_is_optional(small):
    _, params, apply = small
    inputs = small_inputs()
    plain = build_network(small_config(**SHALLOW))
    rest = {part: value for part, value in params.items() if part != "no_target"}
    shapes = jax.eval_shape(plain.init, jax.random.key(0), *inputs)["params"]
    assert jax.tree.structure(shapes) == jax.tree.structure(rest)
    output = jax.jit(lambda p: plain.apply({"params": p}, *inputs))(rest)
    assert output.no_target_logits is None
    np.testing.assert_allclose(output.logits, apply(params, *inputs).logits, atol=1e-6)


def test_the_cost_of_the_head_is_counted():
    assert "no_target" not in network_cost(small_config(**SHALLOW))
    cost = network_cost(small_config(**SHALLOW, decoder__no_target_width=12))["no_target"]
    assert cost.parameters == 50 * 12 + 12 + 12 + 1
    assert cost.flops_first == cost.flops_further == 2 * (50 * 12 + 12) + 2 * 3 * 4 * 16  # and the foreground mean
