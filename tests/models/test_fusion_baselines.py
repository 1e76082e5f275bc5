"""Baselines of the fusion: each joins both maps, and self-attention is as large as coparsing."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from s2rm_jax.config import SIMPLER_FUSIONS
from s2rm_jax.models.s2rm import S2RM, SimplerFusion, inner_width, places


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


SEEN, LAID_OUT = normal(1, 1, 3, 4, 8), normal(1, 2, 3, 4, 8, seed=1)


@pytest.fixture(scope="module")
def joined():
    """Return the output of each mode as a function of both maps."""

    def initialized(mode):
        module = SimplerFusion(mode, num_heads=2, inner=16)
        variables = jax.jit(module.init)(jax.random.key(0), SEEN, LAID_OUT)
        return jax.jit(lambda *sides: module.apply(variables, *sides))

    return {mode: initialized(mode) for mode in SIMPLER_FUSIONS}


def test_sum_and_product_match_their_formulas(joined):
    np.testing.assert_array_equal(joined["sum"](SEEN, LAID_OUT), LAID_OUT)
    np.testing.assert_array_equal(joined["product"](SEEN, LAID_OUT), SEEN * LAID_OUT)


@pytest.mark.parametrize(("mode", "reach"), [("product", 1), ("concat", 6), ("attention", 12)])
def test_receptive_field_of_each_mode(joined, mode, reach):
    before = joined[mode](SEEN, LAID_OUT)
    assert before.shape == (1, 2, 3, 4, 16 if mode == "attention" else 8)
    for sides in ((SEEN.at[0, 0, 0, 1, 0].add(1.0), LAID_OUT), (SEEN, LAID_OUT.at[0, 1, 0, 1, 0].add(1.0))):
        changed = np.abs(joined[mode](*sides) - before).max(-1)[0, 1] > 1e-6
        assert changed[0, 1] and changed.sum() == reach, changed


def test_softmax_of_self_attention_is_in_float32():
    module = SimplerFusion("attention", num_heads=2, inner=16, dtype=jnp.bfloat16)
    sides = SEEN.astype(jnp.bfloat16), LAID_OUT.astype(jnp.bfloat16)
    variables = jax.eval_shape(module.init, jax.random.key(0), *sides)
    exponentials = re.findall(r":(\w+)\[[\d,]*\] = exp ", str(jax.make_jaxpr(module.apply)(variables, *sides)))
    assert exponentials == ["f32", "f32"]  # one a block


def test_self_attention_depends_on_positions():
    everywhere_alike = places(3, 4)
    assert everywhere_alike.shape == (3, 4, 16)
    assert len(np.unique(everywhere_alike.reshape(12, -1).round(6), axis=0)) == 12


@pytest.mark.parametrize(("width", "recurrent", "rotations"), [(128, 64, 4), (64, 48, 4), (64, 32, 2)])
def test_self_attention_has_as_many_parameters_as_coparsing(width, recurrent, rotations):
    inputs = (normal(1, 3, 3, 16), normal(1, 1, 4, 8), jnp.ones((1, 1, 4), bool))

    def size(mode):
        network = S2RM(width, recurrent, 4, mode=mode, rotations=(0, 90, 180, 270)[:rotations])
        shapes = jax.eval_shape(network.init, jax.random.key(0), *inputs)
        return sum(leaf.size for leaf in jax.tree.leaves(shapes))

    assert inner_width(width, recurrent, 2 * rotations) >= width
    assert size("attention") == pytest.approx(size("s2rm"), rel=0.06)


def test_without_distribution_every_position_has_the_same_language():
    network = S2RM(16, 8, 2, language="sentence", mode="sum")
    vision, words, mask = normal(1, 3, 4, 6), normal(1, 2, 5, 8, seed=1), jnp.ones((1, 2, 5), bool)
    params = jax.jit(network.init)(jax.random.key(0), vision, words, mask)["params"]
    assert set(params["distribute"]) == {"value", "norm"}
    apply = jax.jit(lambda *x: network.apply({"params": params}, *x))
    fused = apply(vision, words, mask)
    assert fused.word_attention.shape == (1, 2, 2, 3, 4, 5)
    assert (fused.word_attention[..., 0] == 1).all() and (fused.word_attention[..., 1:] == 0).all()
    other_words = words.at[:, :, 1:].add(1.0)  # all but [CLS]
    np.testing.assert_array_equal(apply(vision, other_words, mask).features, fused.features)
    flat = apply(jnp.broadcast_to(vision[:, :1, :1], vision.shape), words, mask).features
    np.testing.assert_allclose(flat, jnp.broadcast_to(flat[:, :, :1, :1], flat.shape), atol=1e-6)
