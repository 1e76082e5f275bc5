from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from s2rm_jax.errors import UserError
from s2rm_jax.input.encode import unpack_masks
from s2rm_jax.parallel.mesh import make_mesh, put_batch
from s2rm_jax.training.losses import loss_count, no_target_loss, segmentation_loss
from s2rm_jax.training.state import initial_params, plan_state
from s2rm_jax.training.step import check_batch_splits, iou_sum, make_train_step

MESH = make_mesh(devices=jax.devices()[:1])


class Partial(NamedTuple):
    logits: jax.Array
    coarse_logits: tuple[jax.Array, ...]


def take_steps(standin, config, batches, network=None):
    """Trains on `batches` one after the other; returns the last state and the metrics of every step."""
    network = network or standin.StandIn()
    plan = plan_state(network, config, MESH)
    step, state, metrics = make_train_step(network, plan, config, MESH), plan.create(), []
    for batch in batches:
        state, values = step(state, put_batch(batch, MESH))
        metrics.append(jax.device_get(values))
    return state, metrics


def assert_trees_close(a, b, atol):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=atol), a, b)


@pytest.mark.parametrize("kind", ["bce_dice", "weighted_ce"])
def test_accumulation_equals_the_full_batch(standin, kind):
    batch = standin.make_batch(1, 8)  # with 0 there is a gradient of nearly zero, of which Adam takes but the sign
    assert len(set(batch.valid[0::4].sum(1)) | set(batch.valid[1::4].sum(1))) > 1  # unevenly spread valid expressions
    results = [
        take_steps(
            standin,
            # Plain moments instead of Adam's quotient, which blows rounding up where a gradient is nearly zero.
            standin.make_config(batch_size=8, optimizer__accumulate=parts, loss__kind=kind, loss__coarse_weight=0.3),
            [batch],
        )
        for parts in (1, 2, 4)
    ]
    (whole, (whole_metrics,)), *others = results
    for state, (metrics,) in others:
        for name in whole_metrics:
            np.testing.assert_allclose(metrics[name], whole_metrics[name], rtol=1e-6)
        moments, whole_moments = (optax.tree.get(s.opt_state, "mu") for s in (state, whole))
        assert_trees_close(moments, whole_moments, 1e-7)
        assert_trees_close(state.params, whole.params, 1e-6)


def test_metrics_are_those_of_the_whole_batch(standin):
    config, network, batch = standin.make_config(), standin.StandIn(), standin.make_batch(0)
    targets = unpack_masks(batch.targets, standin.SIZE)
    plan = plan_state(network, config, MESH)
    params = plan.create().params
    output = network.apply({"params": params}, batch.images, batch.tokens, batch.token_mask)

    def mean_loss(params):
        out = network.apply({"params": params}, batch.images, batch.tokens, batch.token_mask)
        total = segmentation_loss(out, *map(jnp.asarray, (targets, batch.valid, batch.has_target)), config.loss)
        return total / loss_count(jnp.asarray(targets), jnp.asarray(batch.valid), config.loss)

    loss, gradient = jax.value_and_grad(mean_loss)(params)
    _, (metrics,) = take_steps(standin, config, [batch])
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-6)
    np.testing.assert_allclose(metrics["grad_norm"], optax.tree.norm(gradient), rtol=1e-5)
    np.testing.assert_allclose(metrics["learning_rate"], 0.01, rtol=1e-6)
    assert metrics["expressions"] == batch.valid.sum()
    found = np.asarray(output.logits) > 0
    ious = (found & targets).sum((2, 3)) / np.maximum((found | targets).sum((2, 3)), 1)
    np.testing.assert_allclose(metrics["mean_iou"], 100 * ious[batch.valid].mean(), rtol=1e-5)


def test_iou_of_empty_masks_is_zero_and_padding_counts_nothing():
    logits = jnp.array([[[[1.0, -1.0]], [[-1.0, -1.0]], [[1.0, 1.0]]]])
    targets = jnp.array([[[[True, True]], [[False, False]], [[True, True]]]])
    valid = jnp.array([[True, True, False]])
    assert iou_sum(logits, targets, valid, jnp.array([[True, True, True]])) == 0.5
    # Nothing is to be found, and nothing is; in the other case something is.
    assert iou_sum(logits, targets, valid, jnp.array([[True, False, False]])) == 1.5
    assert iou_sum(-logits, targets, valid, jnp.array([[True, False, False]])) == 0.5


def test_padding_expressions_change_nothing(standin):
    batch = standin.make_batch(0)
    spoilt = batch._replace(targets=np.where(batch.valid[..., None, None], batch.targets, np.uint8(255)))
    (state, _), (spoilt_state, _) = (take_steps(standin, standin.make_config(), [b]) for b in (batch, spoilt))
    jax.tree.map(np.testing.assert_array_equal, state.params, spoilt_state.params)


def test_a_batch_of_nothing_but_padding_gives_no_gradient(standin):
    batch = standin.make_batch(0)
    _, (metrics,) = take_steps(
        standin,
        standin.make_config(),
        [batch._replace(valid=np.zeros_like(batch.valid), targets=np.zeros_like(batch.targets))],
    )
    assert metrics["loss"] == 0 and metrics["grad_norm"] == 0 and metrics["mean_iou"] == 0


def no_target_batch(standin, batch_size=8):
    """Of the expressions with an odd first word, none refers to anything."""
    batch = standin.make_batch(0, batch_size)
    has_target = batch.valid & (batch.tokens[..., 0] % 2 == 0)
    assert 0 < has_target.sum() < batch.valid.sum()
    return batch._replace(has_target=has_target, targets=batch.targets * has_target[..., None, None])


def test_the_loss_of_no_target_is_the_mean_over_valid_expressions_however_split(standin):
    batch, network = no_target_batch(standin), standin.StandIn(judges=True)
    results = [
        take_steps(
            standin,
            standin.make_config(
                batch_size=8, optimizer__accumulate=parts, loss__no_target_weight=weight, loss__kind="weighted_ce"
            ),
            [batch],
            network,
        )
        for parts, weight in ((1, 0.5), (4, 0.5), (1, 0.0))
    ]
    (whole, (metrics,)), (split, (split_metrics,)), (_, (without,)) = results
    for name in metrics:
        np.testing.assert_allclose(split_metrics[name], metrics[name], rtol=1e-6)
    assert_trees_close(split.params, whole.params, 1e-6)

    params = plan_state(network, standin.make_config(batch_size=8), MESH).create().params
    output = network.apply({"params": params}, batch.images, batch.tokens, batch.token_mask)
    judged = no_target_loss(output.no_target_logits, jnp.asarray(batch.has_target), jnp.asarray(batch.valid))
    np.testing.assert_allclose(metrics["loss"] - without["loss"], 0.5 * judged / batch.valid.sum(), rtol=1e-4)
    right = (np.asarray(output.no_target_logits) > 0) != batch.has_target
    np.testing.assert_allclose(metrics["no_target_head_accuracy"], 100 * right[batch.valid].mean(), rtol=1e-6)


def test_the_mask_of_an_expression_that_the_head_rejects_is_empty(standin):
    """Its IoU is 0, or 1 if the expression refers to nothing."""
    network, config = standin.StandIn(judges=True), standin.make_config(batch_size=8, loss__kind="weighted_ce")
    params = plan_state(network, config, MESH).create().params
    batch = standin.make_batch(0, 8)
    output = network.apply({"params": params}, batch.images, batch.tokens, batch.token_mask)
    rejected = np.asarray(output.no_target_logits) > 0
    has_target = np.arange(rejected.size).reshape(rejected.shape) % 2 == 0
    assert (rejected & has_target).any() and (rejected & ~has_target).any()
    targets = np.broadcast_to(np.arange(standin.SIZE) < 5, output.logits.shape) & has_target[..., None, None]
    batch = batch._replace(targets=standin.pack(targets), valid=np.ones_like(has_target), has_target=has_target)
    found = (np.asarray(output.logits) > 0) & ~rejected[..., None, None]
    unions = (found | targets).sum((2, 3))
    ious = np.where(has_target, (found & targets).sum((2, 3)) / np.maximum(unions, 1), unions == 0)
    _, (metrics,) = take_steps(standin, config, [batch], network)
    np.testing.assert_allclose(metrics["mean_iou"], 100 * ious.mean(), rtol=1e-5)


def test_the_average_follows_its_recurrence(standin):
    config = standin.make_config(optimizer__ema_decay=0.19)
    batches = [standin.make_batch(i) for i in range(3)]
    expected = plan_state(standin.StandIn(), config, MESH).create().params
    for count, decay in ((1, 1 / 10), (2, 2 / 11), (3, 0.19)):  # 3 / 12 exceeds the final decay
        params = take_steps(standin, config, batches[:count])[0].params
        expected = jax.tree.map(lambda e, p, decay=decay: decay * e + (1 - decay) * p, expected, params)
    state, _ = take_steps(standin, config, batches)
    assert_trees_close(state.ema_params, expected, 1e-7)
    assert state.eval_params is state.ema_params


def test_without_an_average_nothing_is_kept_for_it(standin):
    state, _ = take_steps(standin, standin.make_config(), [standin.make_batch(0)])
    assert state.ema_params is None and state.eval_params is state.params


def test_frozen_parts_stay_bitwise_and_add_nothing_to_the_norm(standin):
    config = standin.make_config(optimizer__frozen=("^vision", "^text"), optimizer__weight_decay=0.5)
    begin = jax.device_get(plan_state(standin.StandIn(), config, MESH).create().params)
    state, (metrics, _) = take_steps(standin, config, [standin.make_batch(0), standin.make_batch(1)])
    for part in ("vision", "text"):
        jax.tree.map(np.testing.assert_array_equal, state.params[part], begin[part])
    assert not np.array_equal(state.params["head"]["kernel"], begin["head"]["kernel"])
    _, (whole, _) = take_steps(standin, standin.make_config(), [standin.make_batch(0), standin.make_batch(1)])
    assert 0 < metrics["grad_norm"] < whole["grad_norm"]


def test_bfloat16_computes_narrow_and_keeps_wide(standin):
    network = standin.StandIn(dtype=jnp.bfloat16)
    batch = standin.make_batch(0)
    state, (metrics,) = take_steps(standin, standin.make_config(optimizer__ema_decay=0.5), [batch], network)
    for leaf in jax.tree.leaves([state.params, state.ema_params, optax.tree.get(state.opt_state, "mu")]):
        assert leaf.dtype == jnp.float32
    _, (wide,) = take_steps(standin, standin.make_config(), [batch])
    assert metrics["loss"].dtype == np.float32
    assert metrics["loss"] != wide["loss"] and abs(metrics["loss"] - wide["loss"]) < 0.05


def test_dropout_differs_from_step_to_step_and_part_to_part_but_repeats_with_the_seed(standin):
    network = standin.StandIn(dropout_rate=0.5)
    frozen_rate = standin.make_config(optimizer__learning_rate=0.0)
    batch = standin.make_batch(0)
    _, metrics = take_steps(standin, frozen_rate, [batch, batch], network)
    assert metrics[0]["loss"] != metrics[1]["loss"]
    _, again = take_steps(standin, frozen_rate, [batch, batch], network)
    assert [m["loss"] for m in again] == [m["loss"] for m in metrics]

    twice = standin.make_batch(0, 2)
    twice = jax.tree.map(lambda x: np.concatenate([x, x]), twice)  # part 0 sees images 0 and 2, part 1 sees 1 and 3
    paired = jax.tree.map(lambda x: x[[0, 0, 1, 1]], twice)  # now both parts see the same images
    config = standin.make_config(optimizer__learning_rate=0.0, optimizer__accumulate=2)
    _, (both,) = take_steps(standin, config, [paired], network)
    _, (single,) = take_steps(
        standin,
        standin.make_config(optimizer__learning_rate=0.0, batch_size=2),
        [jax.tree.map(lambda x: x[::2], paired)],
        network,
    )
    assert both["loss"] != single["loss"]  # with the same mask in both parts they would be equal


def test_an_unknown_form_of_the_step_is_refused(standin):
    config, network = standin.make_config(mesh__step="pmap"), standin.StandIn()
    with pytest.raises(UserError, match=r"config\.mesh\.step is 'pmap'; it must be one of: jit, shard_map"):
        make_train_step(network, plan_state(network, config, MESH), config, MESH)


@pytest.mark.parametrize("returned", ["array", "output without no_target_logits"])
def test_a_network_that_does_not_return_what_the_step_reads_is_refused(standin, returned):
    class Own(standin.StandIn):
        def __call__(self, images, tokens, token_mask, train=False):
            output = super().__call__(images, tokens, token_mask, train)
            return output.logits if returned == "array" else Partial(output.logits, output.coarse_logits)

    with pytest.raises(
        TypeError, match=r"the network returned \w+; it must return models\.network\.Output, or a class"
    ):
        take_steps(standin, standin.make_config(), [standin.make_batch(0)], Own())


@pytest.mark.parametrize(
    ("batch_size", "parts", "devices", "fewer"),
    [
        (4, 3, 1, ""),
        (4, 0, 1, ""),
        (4, 1, 8, r"; or use fewer devices, such as 4 \(CUDA_VISIBLE_DEVICES=0,1,2,3 selects GPUs\)"),
        (12, 2, 8, r"; or use fewer devices, such as 6 \(CUDA_VISIBLE_DEVICES=0,1,2,3,4,5 selects GPUs\)"),
    ],
)
def test_batches_that_cannot_be_split_are_refused(batch_size, parts, devices, fewer):
    message = rf"^config\.batch_size={batch_size} cannot be split .* must be a multiple of \d+{fewer}$"
    with pytest.raises(UserError, match=message):
        check_batch_splits(batch_size, parts, devices)


def test_state_is_planned_without_computing_and_made_with_its_shardings(standin):
    config = standin.make_config(optimizer__ema_decay=0.5)
    plan = plan_state(standin.StandIn(), config, MESH)
    assert all(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(plan.abstract))
    state = plan.create()
    for made, planned in zip(jax.tree.leaves(state), jax.tree.leaves(plan.abstract), strict=True):
        assert (made.shape, made.dtype, made.sharding) == (planned.shape, planned.dtype, planned.sharding)
    jax.tree.map(np.testing.assert_array_equal, state.params, state.ema_params)


def test_the_seed_decides_the_parameters(standin):
    first, same, other = (
        plan_state(standin.StandIn(), standin.make_config(seed=seed), MESH).create() for seed in (1, 1, 2)
    )
    jax.tree.map(np.testing.assert_array_equal, first.params, same.params)
    assert not np.array_equal(first.params["head"]["kernel"], other.params["head"]["kernel"])
    assert not np.array_equal(first.rng, other.rng)


def test_the_key_of_the_run_is_not_the_one_that_draws_the_parameters(standin):
    config = standin.make_config()
    state = plan_state(standin.StandIn(), config, MESH).create()
    drawn = initial_params(standin.StandIn(), config, jax.random.wrap_key_data(state.rng))
    assert not np.array_equal(drawn["head"]["kernel"], state.params["head"]["kernel"])
