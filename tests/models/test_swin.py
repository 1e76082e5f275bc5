"""Swin against a brute-force attention over pairs of pixels, and its sizes against the published ones."""

from functools import cache, partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from s2rm_jax.models import swin as swin_module
from s2rm_jax.models.swin import PatchMerging, Swin, SwinBlock, WindowAttention, draw_survival
from tests.conftest import SWIN_SIZES


def attention_by_pixel_pairs(params, x, window, shift, heads):
    """Float64 reference: each pixel attends to the real pixels of its (shifted) window on its side of the border."""
    batch, height, width, channels = x.shape
    ys, xs = np.divmod(np.arange(height * width), width)

    def places(position, size):
        padded = -(-size // window) * window
        rolled = (position - shift) % padded
        return rolled // window, rolled % window, position < shift

    (win_y, in_y, wrapped_y), (win_x, in_x, wrapped_x) = places(ys, height), places(xs, width)
    key = np.stack([win_y, win_x, wrapped_y, wrapped_x], -1)
    together = (key[:, None] == key[None, :]).all(-1)
    row = (in_y[:, None] - in_y[None, :] + window - 1) * (2 * window - 1) + in_x[:, None] - in_x[None, :] + window - 1
    table = np.asarray(params["relative_position_bias_table"], np.float64)
    bias = np.where(together[..., None], table[np.where(together, row, 0)], 0)

    flat = x.reshape(batch, -1, channels).astype(np.float64)
    qkv = flat @ np.asarray(params["qkv"]["kernel"], np.float64) + np.asarray(params["qkv"]["bias"])
    q, k, v = np.split(qkv.reshape(batch, -1, 3 * channels), 3, -1)
    out = np.zeros_like(flat)
    size = channels // heads
    for h in range(heads):
        part = slice(h * size, (h + 1) * size)
        logits = q[..., part] @ k[..., part].transpose(0, 2, 1) * size**-0.5 + bias[..., h]
        logits = np.where(together, logits, -np.inf)
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        out[..., part] = weights / weights.sum(-1, keepdims=True) @ v[..., part]
    out = out @ np.asarray(params["projection"]["kernel"], np.float64) + np.asarray(params["projection"]["bias"])
    return out.reshape(x.shape)


def norm(x):
    x = np.asarray(x, np.float64)
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)


@pytest.fixture(scope="module")
def block_params():
    """Parameters of a block of 8 channels with two heads and a window of 4."""
    block = SwinBlock(num_heads=2, window_size=4, shifted=False)
    return jax.device_get(jax.jit(block.init)(jax.random.key(1), jnp.zeros((2, 8, 8, 8)))["params"])


@pytest.mark.parametrize("grid", [(8, 8), (5, 7), (9, 6), (4, 11)])
@pytest.mark.parametrize("shifted", [False, True])
def test_a_block_attends_within_windows_and_not_to_padding(block_params, grid, shifted):
    window, heads = 4, 2
    block = SwinBlock(num_heads=heads, window_size=window, shifted=shifted)
    x = np.random.default_rng(1).standard_normal((2, *grid, 8), np.float32)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: leaf + 0.3 * rng.normal(size=leaf.shape).astype(np.float32), block_params)
    params["norm1"] = {"scale": np.ones(8, np.float32), "bias": np.zeros(8, np.float32)}
    params["mlp_out"] = jax.tree.map(np.zeros_like, params["mlp_out"])  # leaves attention and its residual

    shift = window // 2 if shifted and min(grid) > window else 0
    expected = x + attention_by_pixel_pairs(params["attention"], norm(x), window, shift, heads)
    actual = jax.jit(block.apply)({"params": params}, x)
    assert np.linalg.norm(actual - expected) / np.linalg.norm(expected) < 1e-6


def test_without_masking_padding_takes_part():
    x = jax.random.normal(jax.random.key(0), (1, 5, 7, 8))
    block = SwinBlock(num_heads=2, window_size=4, shifted=False)
    variables = jax.jit(block.init)(jax.random.key(1), x)
    unmasked = jax.jit(block.clone(mask_padding=False).apply)(variables, x)
    assert not np.allclose(jax.jit(block.apply)(variables, x), unmasked, atol=1e-4)


def test_merging_concatenates_neighbours_rows_first_and_pads_odd_sides():
    x = jax.random.normal(jax.random.key(0), (1, 3, 5, 2))
    merging = PatchMerging()
    params = jax.jit(merging.init)(jax.random.key(1), x)["params"]
    padded = np.pad(np.asarray(x), ((0, 0), (0, 1), (0, 1), (0, 0)))
    joined = np.concatenate([padded[:, p::2, q::2] for q in (0, 1) for p in (0, 1)], -1)
    expected = norm(joined) @ np.asarray(params["reduction"]["kernel"])
    np.testing.assert_allclose(merging.apply({"params": params}, x), expected, atol=2e-5)


# Published totals (with a 1000-class head and one final norm, window 7) less the head.
PUBLISHED = {"tiny": 28_288_354 - 769_000, "small": 49_606_258 - 769_000, "base": 87_768_224 - 1_025_000}


@cache
def shapes_of(size, window, **changes):
    """The shapes of the outputs for an odd image, and of the parameters, from one trace of up to 24 blocks."""
    swin = Swin(**SWIN_SIZES[size] | changes, window_size=window)
    image = jax.ShapeDtypeStruct((2, 97, 130, 3), jnp.float32)
    return jax.eval_shape(swin.init_with_output, jax.random.key(0), image)


@pytest.mark.parametrize("size", PUBLISHED)
def test_parameter_counts_are_the_published_ones(size):
    _, shapes = shapes_of(size, 7)
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    extra_norms = 2 * sum(SWIN_SIZES[size]["embed_dim"] * 2**stage for stage in range(3))
    assert count - extra_norms == PUBLISHED[size]


@pytest.mark.parametrize(("size", "window"), [(size, window) for size in SWIN_SIZES for window in (7, 12)])
def test_every_size_accepts_any_image(size, window, long):
    # Another window changes what each block pads, so that two blocks of each stage, one shifted, show it.
    changes = {} if long or window == 7 else {"depths": (2, 2, 2, 2)}
    outputs, _ = shapes_of(size, window, **changes)
    width = SWIN_SIZES[size]["embed_dim"]
    expected = [(2, -(-97 // s), -(-130 // s), width * 2**i) for i, s in enumerate((4, 8, 16, 32))]
    assert [output.shape for output in outputs] == expected


def test_attention_computes_in_bfloat16_with_float32_parameters():
    attention = WindowAttention(num_heads=2, window_size=2, dtype=jnp.bfloat16)
    x = jax.random.normal(jax.random.key(0), (1, 3, 4, 8))
    out, variables = jax.jit(lambda x: attention.init_with_output(jax.random.key(1), x, None))(x)
    assert out.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


def test_survival_drops_branches_of_whole_images_and_keeps_the_mean():
    rates = np.array([0.0, 0.25, 0.5])
    survival = np.asarray(draw_survival(jax.random.key(2), rates, 4000))
    assert survival.shape == (3, 2, 4000)
    for factors, rate in zip(survival, rates, strict=True):
        assert set(np.unique(factors)) <= {0, np.float32(1 / (1 - rate))}
        np.testing.assert_allclose((factors == 0).mean(-1), rate, atol=0.03)

    block = SwinBlock(num_heads=2, window_size=4, shifted=False)
    x = jax.random.normal(jax.random.key(0), (3, 4, 4, 8))
    variables = jax.jit(block.init)(jax.random.key(1), x)
    apply = jax.jit(block.apply)
    once, twice = apply(variables, x), apply(variables, x, jnp.array([[1, 0, 1], [1, 0, 2]], jnp.float32))
    np.testing.assert_allclose(twice[0], once[0], rtol=1e-6)
    np.testing.assert_array_equal(twice[1], x[1])
    attended = apply(variables, x, jnp.array([[1, 1, 1], [0, 0, 0]], jnp.float32))
    assert np.abs(once[2] - attended[2]).max() > 0.01  # the MLP was dropped
    np.testing.assert_allclose(twice[2] - attended[2], 2 * (once[2] - attended[2]), atol=1e-5)


def test_the_drop_path_rate_grows_linearly_and_each_block_gets_its_own_factors(monkeypatch):
    rates, factors = [], jax.random.uniform(jax.random.key(0), (5, 2, 2), minval=0.5, maxval=2.0)

    def fixed_factors(key, rates_by_block, images):
        rates.append(rates_by_block)
        return factors

    def block_by_block(params, x):
        y = nn.Conv(4, (4, 4), (4, 4)).apply({"params": params["patch_embed"]}, x)
        y = nn.LayerNorm(1e-5).apply({"params": params["patch_norm"]}, y)
        y = SwinBlock(1, 4, shifted=False).apply({"params": params["stage1_block0"]}, y, factors[0])
        y = PatchMerging().apply({"params": params["stage2_merge"]}, y)
        for number in range(4):
            block = SwinBlock(2, 4, shifted=number % 2 == 1)
            y = block.apply({"params": params[f"stage2_block{number}"]}, y, factors[1 + number])
        return nn.LayerNorm(1e-5).apply({"params": params["stage2_norm"]}, y)

    monkeypatch.setattr(swin_module, "draw_survival", fixed_factors)
    swin = Swin(embed_dim=4, depths=(1, 4), num_heads=(1, 2), window_size=4, drop_path_rate=0.4)
    x = jax.random.normal(jax.random.key(0), (2, 16, 24, 3))
    params = jax.jit(swin.init)(jax.random.key(1), x)["params"]
    found = jax.jit(lambda p: swin.apply({"params": p}, x, train=True, rngs={"dropout": jax.random.key(2)})[-1])(params)
    np.testing.assert_allclose(rates, [[0.0, 0.1, 0.2, 0.3, 0.4]], atol=1e-12)
    np.testing.assert_allclose(found, jax.jit(block_by_block)(params, x), atol=1e-5)


@pytest.mark.parametrize(("depth", "dtype", "tolerance"), [(5, jnp.float32, 1e-5), (4, jnp.bfloat16, 5e-2)])
def test_looped_blocks_match_sequential_blocks(depth, dtype, tolerance):
    swin = Swin(embed_dim=8, depths=(1, depth), num_heads=(1, 2), window_size=4, dtype=dtype)
    x = jax.random.normal(jax.random.key(0), (2, 40, 56, 3))
    params = jax.jit(swin.init)(jax.random.key(1), x)["params"]
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: leaf + 0.1 * rng.normal(size=leaf.shape).astype(np.float32), params)

    @partial(jax.jit, static_argnums=1)  # traced once for the jaxpr and for the gradient
    def loss(params, train):
        outputs = swin.apply({"params": params}, x, train)
        return sum((jnp.sin(3 * y.astype(jnp.float32)) * jnp.arange(y.shape[-1])).mean() for y in outputs)

    def loops(train):
        return str(loss.trace(params, train).jaxpr).count("scan[")

    assert (loops(True), loops(False)) == (1, 0)
    gradient = jax.jit(jax.grad(loss), static_argnums=1)
    looped, one_by_one = (
        jnp.concatenate([g.ravel() for g in jax.tree.leaves(gradient(params, t))]) for t in (True, False)
    )
    assert np.linalg.norm(looped - one_by_one) / np.linalg.norm(one_by_one) < tolerance
