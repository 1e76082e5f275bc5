"""CASG keeps positions, and its helpers have known values. Its equations: test_equations.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from s2rm_jax.models.casg import CASG, MaskHead, NoTargetHead, foreground_mean, upsample

GRIDS = ((9, 14), (5, 7), (3, 4))  # halved as the backbone does, rounding up


def inputs(k=2, grids=GRIDS):
    rng = np.random.default_rng(0)
    vision = tuple(jnp.asarray(rng.normal(size=(1, h, w, 6)), jnp.float32) for h, w in grids)
    fused = jnp.asarray(rng.normal(size=(1, k, *grids[-1], 8)), jnp.float32)
    return fused, vision, jnp.asarray(rng.normal(size=(1, k, 5)), jnp.float32)


def test_logits_have_the_grids_of_the_vision_maps():
    decoder = CASG(widths=(4, 6, 8))
    logits = jax.jit(lambda *x: decoder.init_with_output(jax.random.key(0), *x)[0])(*inputs())
    assert [x.shape for x in logits] == [(1, 2, *grid) for grid in reversed(GRIDS)]


def test_the_features_of_each_stage_have_its_width():
    widths = (4, 6, 8)
    params = jax.eval_shape(CASG(widths=widths).init, jax.random.key(0), *inputs())["params"]
    features = [params[f"stage{stage}_block"]["conv"]["kernel"].shape[-1] for stage in (1, 2, 3)]
    assert features == list(widths)


def test_logits_change_around_the_changed_position():
    decoder = CASG(widths=(4, 6, 8), guidance="none")
    fused, vision, sentence = jax.tree.map(jnp.zeros_like, inputs(1, grids=((25, 34), (13, 17), (7, 9))))
    params = jax.jit(decoder.init)(jax.random.key(0), fused, vision, sentence)["params"]
    for name in params:
        if name.endswith("block"):  # symmetric kernels, so that only a misaligned grid can move the centre
            kernel = params[name]["conv"]["kernel"]
            params[name]["conv"]["kernel"] = jnp.broadcast_to(kernel.mean((0, 1), keepdims=True), kernel.shape)
    finest = jax.jit(lambda x: decoder.apply({"params": params}, x, vision, sentence)[-1][0, 0])
    for row, column in [(3, 3), (3, 5)]:
        changed = np.abs(finest(fused.at[0, 0, row, column].add(3.0)) - finest(fused))
        place = [np.average(axis, weights=changed) for axis in np.indices(changed.shape)]
        centre = np.array([4 * row + 1.5, 4 * column + 1.5])  # of the place, in pixels of the finest grid
        assert np.abs(place - centre).max() < 1.0, (row, column, place)


def test_upsampling_doubles_bilinearly_and_crops():
    x = jnp.arange(6.0).reshape(1, 1, 2, 3, 1)
    up = np.asarray(upsample(x, 3, 5))[0, 0, :, :, 0]
    expected = np.array(
        [[0, 0.25, 0.75, 1.25, 1.75], [0.75, 1.0, 1.5, 2.0, 2.5], [2.25, 2.5, 3.0, 3.5, 4.0]]
    )  # half-pixel centres: weights 3/4 and 1/4, clamped at the border
    np.testing.assert_allclose(up, expected, atol=1e-6)


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-6), (jnp.bfloat16, 0.01)])
def test_upsampling_and_its_gradient_are_those_of_resize(dtype, tolerance):
    x, weights = (np.random.default_rng(0).standard_normal(shape) for shape in ((2, 3, 5, 1, 4), (2, 3, 10, 2, 4)))
    x = jnp.asarray(x, dtype)

    def resized(x):
        return jax.image.resize(x, weights.shape, "bilinear")

    def ours(x):
        return upsample(x, 10, 2)

    def gradient(f):
        return jax.grad(lambda x: (weights * f(x)).sum())(x)

    assert ours(x).dtype == dtype
    for found, expected in ((ours(x), resized(x)), (gradient(ours), gradient(resized))):
        np.testing.assert_allclose(
            *(np.asarray(y, np.float32) for y in (found, expected)), atol=tolerance, rtol=tolerance
        )


def test_foreground_mean_is_weighted_by_probability():
    x = jnp.asarray([[1.0, 2.0], [3.0, 40.0]]).reshape(1, 1, 2, 2, 1)
    certain = jnp.asarray([[50.0, 50.0], [-50.0, -50.0]]).reshape(1, 1, 2, 2)
    np.testing.assert_allclose(foreground_mean(x, certain), [[[1.5]]], atol=1e-5)
    np.testing.assert_allclose(foreground_mean(x, jnp.zeros((1, 1, 2, 2))), [[[11.5]]], atol=1e-4)
    nearly_none = 1 / (1 + np.exp(15))  # at each of four positions: 1e-6 in the divisor makes the mean smaller
    expected = nearly_none * 46 / (4 * nearly_none + 1e-6)
    np.testing.assert_allclose(foreground_mean(x, jnp.full((1, 1, 2, 2), -15.0)), [[[expected]]], rtol=1e-5)
    assert foreground_mean(x, jnp.full((1, 1, 2, 2), -200.0)) == 0


def test_one_width_per_vision_map():
    with pytest.raises(ValueError, match="2 decoder widths for 3 vision maps"):
        jax.eval_shape(CASG(widths=(4, 8)).init, jax.random.key(0), *inputs())


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_what_is_float32_by_design_is_computed_in_full_precision_on_accelerators(platform):
    """Their default rounds the factors of float32 products."""
    x, semantics, logits = (jnp.zeros((1, 2, *shape)) for shape in ((4, 4, 8), (5,), (4, 4)))
    programs = (
        (MaskHead(guided=True), (x, semantics)),
        (NoTargetHead(), (semantics, x, logits, logits)),
    )
    for module, inputs in programs:
        params = jax.eval_shape(module.init, jax.random.key(0), *inputs)
        text = jax.jit(module.apply).trace(params, *inputs).lower(lowering_platforms=(platform,)).as_text()
        products = [line for line in text.splitlines() if "dot_general" in line]
        assert len(products) >= 3 and all("precision = [HIGHEST, HIGHEST]" in line for line in products)
