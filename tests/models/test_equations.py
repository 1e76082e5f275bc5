"""S2RM and CASG compute the equations of docs/network.md, evaluated in NumPy with float64 (equations.py)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from s2rm_jax.models.casg import CASG
from s2rm_jax.models.network import build_network
from s2rm_jax.models.s2rm import S2RM

from . import equations
from .small import small_config, small_inputs

B, K, WORDS = 2, 3, 5
TOLERANCE = 2e-6  # norm of the difference over the norm of the expected values; float32 has 24 bits


def draw(rng, *shape, size=1.0):
    return jnp.asarray(size * rng.normal(size=shape), jnp.float32)


def draw_parameters(module, *inputs):
    """Draw parameters for which every term of the equations shows.

    Normalization scales are small, so that the ε of the next normalization changes more than the tolerance. Other
    parameters are large, so that gates, softmax and GELU leave their linear range.
    """
    rng = np.random.default_rng(1)

    def drawn(path, leaf):
        name = path[-1].key
        if name == "scale":
            return jnp.asarray(0.1 * rng.uniform(0.5, 1.5, leaf.shape), jnp.float32)
        fan_in = 1 if name.endswith("bias") else np.prod(leaf.shape[-2:-1] if leaf.ndim == 3 else leaf.shape[:-1])
        return draw(rng, *leaf.shape, size=(0.3 if name.endswith("bias") else 3.0) / np.sqrt(fan_in))

    shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]
    return jax.tree_util.tree_map_with_path(drawn, shapes)


def assert_close(found, expected):
    found, expected = np.asarray(found, np.float64), np.asarray(expected)
    assert found.shape == expected.shape
    assert np.linalg.norm(found - expected) <= TOLERANCE * np.linalg.norm(expected)


@pytest.mark.parametrize(
    ("grid", "options"),
    [
        ((3, 4), {}),
        ((5, 2), {}),
        ((4, 4), {}),
        ((3, 4), {"language": "sentence", "recurrence": "linear"}),
        ((4, 3), {"recurrence": "none", "rotations": (180, 90), "balance": "channel"}),
        ((2, 5), {"rotations": (270,), "pairs": ("vision_parses_language",)}),
        ((3, 4), {"balance": "mean", "pairs": ("language_parses_vision",), "residual": "vision"}),
    ],
    ids=str,
)
def test_s2rm_computes_the_equations(grid, options):
    rng = np.random.default_rng(0)
    vision, words = draw(rng, B, *grid, 7, size=0.1), draw(rng, B, K, WORDS, 6, size=0.1)
    mask = np.arange(WORDS) < rng.integers(1, WORDS + 1, (B, K, 1))
    module = S2RM(width=12, recurrent_width=5, num_heads=2, **options)
    params = draw_parameters(module, vision, words, mask)
    fused = jax.jit(module.apply)({"params": params}, vision, words, mask)
    exact, vision, words = jax.tree.map(lambda x: np.asarray(x, np.float64), (params, vision, words))
    for b, k in np.ndindex(B, K):
        features, attention, maps, weights = equations.s2rm(exact, vision[b], words[b, k], mask[b, k], 2, options)
        assert_close(fused.word_attention[b, k], attention)
        for pair in maps:
            assert_close(fused.group_maps[pair][:, b, k], maps[pair])
            found = fused.balance_weights[pair]
            assert_close(jnp.broadcast_to(found, (len(found), B, K, *found.shape[3:]))[:, b, k], weights[pair])
        assert fused.group_maps.keys() == fused.balance_weights.keys() == maps.keys()
        assert_close(fused.features[b, k], features)


@pytest.mark.parametrize(
    ("grids", "options"),
    [
        (((9, 14), (5, 7), (3, 4)), {}),
        (((17, 9), (9, 5), (5, 3), (3, 2)), {}),
        (((9, 14), (5, 7), (3, 4)), {"guidance": "maps", "semantics": ("sentence",)}),
        (((9, 14), (5, 7), (3, 4)), {"guidance": "none"}),
        (((9, 14), (5, 7), (3, 4)), {"semantics": ("stages",)}),
    ],
    ids=str,
)
def test_casg_computes_the_equations(grids, options):
    rng = np.random.default_rng(0)
    vision = tuple(draw(rng, B, h, w, 5, size=0.1) for h, w in grids)
    fused, sentence = draw(rng, B, K, *grids[-1], 8, size=0.1), draw(rng, B, K, 6)
    module = CASG(widths=(4, 6, 8, 10)[: len(grids)], **options)
    params = draw_parameters(module, fused, vision, sentence)
    logits = jax.jit(module.apply)({"params": params}, fused, vision, sentence)
    exact = jax.tree.map(lambda x: np.asarray(x, np.float64), (params, fused, vision, sentence))
    params, fused, vision, sentence = exact
    for b, k in np.ndindex(B, K):
        expected = equations.casg(params, fused[b, k], [v[b] for v in vision], sentence[b, k], options)
        assert len(logits) == len(expected)
        for found, one in zip(logits, expected, strict=True):
            assert_close(found[b, k], one)


def test_the_network_joins_its_parts_as_the_page_says():
    config = small_config(vision__depths=(1, 1, 1), text__num_layers=1, decoder__no_target_width=12)
    network = build_network(config)
    images, tokens, mask = small_inputs(B, K)
    params = draw_parameters(network, images, tokens, mask)

    @jax.jit
    def apply(params):
        """Return the output and what vision and text computed on the way."""
        output, kept = network.apply(
            {"params": params}, images, tokens, mask, capture_intermediates=lambda m, _: m.name in ("vision", "text")
        )
        return output, *(kept["intermediates"][name]["__call__"][0] for name in ("vision", "text"))

    output, vision, words = apply(params)
    words = words.reshape(B, K, tokens.shape[-1], -1)
    exact, vision, words = jax.tree.map(lambda x: np.asarray(x, np.float64), (params, vision, words))
    mask = np.asarray(mask)
    for b, k in np.ndindex(B, K):
        sentence = words[b, k, 0]
        fused, *_ = equations.s2rm(exact["fusion"], vision[-1][b], words[b, k], mask[b, k], 2, {})
        masks = equations.casg(exact["decoder"], fused, [v[b] for v in vision], sentence, {})
        for found, expected in zip((*output.coarse_logits, output.logits), masks, strict=True):
            full = expected is masks[-1]
            assert_close(found[b, k], equations.enlarge(expected, *images.shape[1:3], times=4) if full else expected)
        nothing = equations.no_target(exact["no_target"], sentence, fused, masks[0], masks[-1])
        assert_close(output.no_target_logits[b, k], nothing)
