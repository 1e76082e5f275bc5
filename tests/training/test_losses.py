from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from s2rm_jax import config as configuration
from s2rm_jax.errors import UserError
from s2rm_jax.models.swin import Swin
from s2rm_jax.training import losses
from s2rm_jax.training.losses import area_resize, coarse_targets, loss_count, no_target_loss, segmentation_loss

B, K, H, W = 3, 2, 6, 8


def loss_config(kind="bce_dice", coarse_weight=0.0):
    return ConfigDict({"kind": kind, "coarse_weight": coarse_weight})


def output(logits, *coarse):
    return SimpleNamespace(
        logits=jnp.asarray(logits), coarse_logits=tuple(map(jnp.asarray, coarse)), no_target_logits=None
    )


def random_case(seed=0, scale=3.0):
    rng = np.random.default_rng(seed)
    logits = (scale * rng.standard_normal((B, K, H, W))).astype(np.float32)
    valid = np.array([[True, True], [True, False], [False, True]])
    return logits, jnp.asarray(rng.random((B, K, H, W)) < 0.3), jnp.asarray(valid)


def mean_loss(out, targets, valid, config):
    return segmentation_loss(out, targets, valid, valid, config) / loss_count(targets, valid, config)


def reference_bce_dice(logits, truth):
    """In float64, straight from the definitions; one mask."""
    p = 1 / (1 + np.exp(-logits.astype(np.float64)))
    bce = -(truth * np.log(p) + (1 - truth) * np.log(1 - p)).mean()
    return bce + 1 - (2 * (p * truth).sum() + 1) / (p.sum() + truth.sum() + 1)


def test_bce_dice_is_the_mean_over_valid_expressions():
    logits, targets, valid = random_case()
    expected = [reference_bce_dice(m, np.asarray(t, float)) for m, t in zip(logits[valid], targets[valid], strict=True)]
    assert loss_count(targets, valid, loss_config()) == 4
    np.testing.assert_allclose(mean_loss(output(logits), targets, valid, loss_config()), np.mean(expected), rtol=1e-6)


def test_weighted_ce_is_the_two_class_cross_entropy_of_pytorch():
    """sum of weight x cross-entropy over all pixels of all valid masks / sum of the weights; logits (0, m)."""
    logits, targets, valid = random_case(1)
    m, t = logits[valid].astype(np.float64), np.asarray(targets)[valid]
    two = np.stack([np.zeros_like(m), m])
    log_probabilities = two - np.log(np.exp(two).sum(0))
    weights = np.where(t, 1.1, 0.9)
    expected = -(weights * np.where(t, log_probabilities[1], log_probabilities[0])).sum() / weights.sum()
    np.testing.assert_allclose(
        mean_loss(output(logits), targets, valid, loss_config("weighted_ce")), expected, rtol=1e-6
    )


def test_every_kind_of_the_configuration_is_a_loss_and_others_are_refused():
    assert tuple(losses._LOSSES) == configuration.LOSSES
    logits, targets, valid = random_case()
    message = r"config\.loss\.kind is 'focal'; it must be one of: bce_dice, weighted_ce"
    with pytest.raises(UserError, match=message):
        segmentation_loss(output(logits), targets, valid, valid, loss_config("focal"))
    with pytest.raises(UserError, match=message):
        loss_count(targets, valid, loss_config("focal"))


def test_targets_that_are_not_masks_of_the_size_of_the_logits_are_refused(unchecked):
    logits, targets, valid = random_case()
    with pytest.raises(ValueError, match=r"targets must be bool \[b, k, h, w\], got float32 .*unpack_masks"):
        segmentation_loss(output(logits), 255.0 * targets, valid, valid, loss_config())
    with pytest.raises(ValueError, match=r"targets must be bool .*, got uint8"):
        loss_count(targets.astype(jnp.uint8), valid, loss_config("weighted_ce"))
    with pytest.raises(ValueError, match=r"targets \(3, 2, 6, 1\) and logits \(3, 2, 6, 8\) must have the same shape"):
        segmentation_loss(output(logits), targets[..., :1], valid, valid, loss_config())


@pytest.mark.parametrize("kind", ["bce_dice", "weighted_ce"])
def test_sums_and_counts_of_parts_add_up(kind):
    logits, targets, valid = random_case(2)
    coarse = logits[..., ::2, ::4]
    config = loss_config(kind, coarse_weight=0.5)

    def sum_and_count(i):
        total = segmentation_loss(output(logits[i], coarse[i]), targets[i], valid[i], valid[i], config)
        return total, loss_count(targets[i], valid[i], config)

    parts = [sum_and_count(slice(j, j + 1)) for j in range(B)]
    np.testing.assert_allclose(np.sum(parts, axis=0), sum_and_count(slice(None)), rtol=1e-6)


@pytest.mark.parametrize("kind", ["bce_dice", "weighted_ce"])
@pytest.mark.parametrize("rubbish", [np.nan, np.inf, -np.inf, 1e30])
def test_invalid_expressions_weigh_exactly_nothing(kind, rubbish):
    logits, targets, valid = random_case(3)
    spoilt = np.where(np.asarray(valid)[..., None, None], logits, np.float32(rubbish))
    config = loss_config(kind, coarse_weight=1.0)

    def loss(x):
        return mean_loss(output(x, x[..., ::2, ::2]), targets, valid, config)

    value, gradient = jax.value_and_grad(loss)(jnp.asarray(logits))
    spoilt_value, spoilt_gradient = jax.value_and_grad(loss)(jnp.asarray(spoilt))
    assert value == spoilt_value
    np.testing.assert_array_equal(gradient, spoilt_gradient)
    assert not np.asarray(spoilt_gradient)[~np.asarray(valid)].any()


@pytest.mark.parametrize("kind", ["bce_dice", "weighted_ce"])
def test_stable_for_huge_logits(kind):
    logits, targets, valid = random_case(4)
    value, gradient = jax.value_and_grad(lambda x: mean_loss(output(x), targets, valid, loss_config(kind)))(
        jnp.asarray(1e4 * logits)
    )
    assert np.isfinite(value) and np.isfinite(gradient).all()


def test_float32_whatever_the_logits_are():
    logits, targets, valid = random_case(5)
    logits = jnp.asarray(logits, jnp.bfloat16)
    total = segmentation_loss(output(logits), targets, valid, valid, loss_config())
    exact = segmentation_loss(output(logits.astype(jnp.float32)), targets, valid, valid, loss_config())
    assert total.dtype == jnp.float32 and total == exact


def test_coarse_masks_see_targets_averaged_over_their_cells():
    logits, targets, valid = random_case(6)
    coarse = logits[..., ::2, ::4]
    soft = np.asarray(targets, float).reshape(B, K, 3, 2, 2, 4).mean((3, 5))
    expected = np.mean([reference_bce_dice(m, t) for m, t in zip(coarse[valid], soft[valid], strict=True)])
    plain = mean_loss(output(logits, coarse), targets, valid, loss_config())
    both = mean_loss(output(logits, coarse), targets, valid, loss_config(coarse_weight=0.25))
    np.testing.assert_allclose(both - plain, 0.25 * expected, rtol=1e-5)


@pytest.mark.parametrize("size", [(3, 4), (4, 5), (1, 1), (6, 8)])
def test_area_resize_averages_exactly_also_where_sizes_do_not_divide(size):
    masks = np.random.default_rng(0).random((2, H, W)).astype(np.float32)
    h, w = size
    # Blown up to a common multiple, every cell and every pixel is made of whole small squares.
    fine = masks.repeat(h, axis=1).repeat(w, axis=2)
    expected = fine.reshape(2, h, H, w, W).mean((2, 4))
    np.testing.assert_allclose(area_resize(jnp.asarray(masks), size), expected, atol=1e-6)


@pytest.mark.parametrize("image", [(64, 96), (48, 80), (100, 33), (20, 31)])
def test_coarse_targets_are_those_of_the_cells_that_the_network_sees(image):
    """Swin pads sides that are no multiple of its stride at the bottom and at the right, down to each coarser grid."""
    masks = np.random.default_rng(0).random((2, *image)).astype(np.float32)
    vision = Swin(embed_dim=8, depths=(1, 1, 1, 1), num_heads=(1, 1, 1, 1), window_size=2)
    maps, _ = jax.eval_shape(
        lambda x: vision.init_with_output(jax.random.key(0), x), jax.ShapeDtypeStruct((1, *image, 3), jnp.float32)
    )
    for stage, size in enumerate(each.shape[1:3] for each in maps):
        stride = 4 * 2**stage
        expected = [
            [masks[:, y : y + stride, x : x + stride].mean((1, 2)) for x in range(0, image[1], stride)]
            for y in range(0, image[0], stride)
        ]
        np.testing.assert_allclose(coarse_targets(jnp.asarray(masks), size), np.moveaxis(expected, 2, 0), rtol=1e-5)


def test_coarse_targets_of_multiples_of_the_stride_are_plain_averages():
    masks = jnp.asarray(np.random.default_rng(0).random((2, 96, 480)), jnp.float32)
    for stride in (8, 16, 32):
        size = (96 // stride, 480 // stride)
        np.testing.assert_array_equal(coarse_targets(masks, size), area_resize(masks, size))


def test_a_batch_without_valid_expressions_counts_nothing():
    logits, targets, valid = random_case()
    for kind in ("bce_dice", "weighted_ce"):
        nothing = jnp.zeros_like(valid)
        assert segmentation_loss(output(logits), targets, nothing, nothing, loss_config(kind)) == 0
        assert loss_count(targets, nothing, loss_config(kind)) == 0


def test_an_expression_that_refers_to_nothing_has_cross_entropy_and_no_dice():
    logits, targets, valid = random_case(7)
    has_target = valid.at[0, 1].set(False)
    targets = targets.at[0, 1].set(False)
    with_dice = segmentation_loss(output(logits), targets, valid, valid, loss_config())
    without = segmentation_loss(output(logits), targets, valid, has_target, loss_config())
    probability = 1 / (1 + np.exp(-logits[0, 1].astype(np.float64)))
    np.testing.assert_allclose(with_dice - without, 1 - 1 / (probability.sum() + 1), rtol=1e-5)
    # The cross-entropy of the family has no Dice to leave out.
    same = [
        segmentation_loss(output(logits), targets, valid, h, loss_config("weighted_ce")) for h in (valid, has_target)
    ]
    assert same[0] == same[1]


def test_coarse_masks_of_an_expression_that_refers_to_nothing_have_no_dice():
    logits, targets, valid = random_case(8)
    has_target = valid.at[0, 1].set(False)
    targets = targets.at[0, 1].set(False)
    coarse = logits[..., ::2, ::4]
    plain = segmentation_loss(output(logits, coarse), targets, valid, has_target, loss_config())
    both = segmentation_loss(output(logits, coarse), targets, valid, has_target, loss_config(coarse_weight=0.25))
    soft = np.asarray(targets, float).reshape(B, K, 3, 2, 2, 4).mean((3, 5))
    expected = sum(reference_bce_dice(coarse[i], soft[i]) for i in zip(*np.nonzero(has_target), strict=True))
    expected += np.log1p(np.exp(coarse[0, 1].astype(np.float64))).mean()  # cross-entropy towards nothing
    np.testing.assert_allclose(both - plain, 0.25 * expected, rtol=1e-5)


def test_the_loss_of_no_target_is_the_cross_entropy_of_valid_expressions():
    logits = jnp.array([[2.0, -1.0], [0.5, jnp.nan], [jnp.inf, 3.0]])
    valid = jnp.array([[True, True], [True, False], [False, True]])
    has_target = jnp.array([[True, False], [False, False], [False, True]])
    p = 1 / (1 + np.exp(-np.array([2.0, -1.0, 0.5, 3.0])))
    expected = -np.log([1 - p[0], p[1], p[2], 1 - p[3]]).sum()
    value, gradient = jax.value_and_grad(no_target_loss)(logits, has_target, valid)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    assert np.isfinite(gradient).all() and not gradient[~valid].any()
    assert no_target_loss(logits.astype(jnp.bfloat16), has_target, valid).dtype == jnp.float32
