"""The training step: a pure function of the state and a batch, the same on any number of devices.

It consists of these functions, each called by the one above it:

    train_step       optimizer step and metrics of a batch (`make_train_step`)
    batch_gradient   of the whole batch, over devices and microbatches (`_jit_gradient`, `_shard_map_gradient`)
    of_microbatch    calls backward with the random key of one microbatch
    backward         sums and gradient of one microbatch: jax.value_and_grad of forward (`_make_backward`)
    forward          network, loss and metrics of one microbatch

`batch_gradient` has two forms with the same result (config.mesh.step). "jit" is written as for one device, and the
compiler inserts the collectives. "shard_map" is written for what one device does, with explicit collectives.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from etils import epy
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float, Int
from ml_collections import ConfigDict

from s2rm_jax.config import choose
from s2rm_jax.errors import UserError, counted
from s2rm_jax.input.encode import unpack_masks
from s2rm_jax.parallel.mesh import (
    BATCH_AXES,
    DATA_AXIS,
    FSDP_AXIS,
    batch_sharding,
    per_device_key,
    replicated,
    sharded_axis,
)
from s2rm_jax.training.losses import MaskLogits, loss_count, no_target_loss, segmentation_loss
from s2rm_jax.training.optimizer import freeze, learning_rate_schedule
from s2rm_jax.training.state import StatePlan, TrainState

with epy.lazy_imports():  # prediction never needs it
    import optax

Metrics = dict[str, jax.Array]
TrainStep = Callable[[TrainState, Any], tuple[TrainState, Metrics]]  # the Any is a Batch on devices


def make_train_step(network: nn.Module, plan: StatePlan, config: ConfigDict, mesh: Mesh) -> TrainStep:
    """Return the jitted training step for batches that are split over the mesh (`parallel.mesh.put_batch`).

    The step takes a state, whose buffers it donates, and a batch; it returns the next state and float32 scalars:

    - `loss`: mean over all valid expressions of the batch
    - `grad_norm`: global norm of the gradient before clipping
    - `learning_rate`: of this step, before the factors of the groups
    - `expressions`: number of valid expressions
    - `mean_iou`: of the predictions in training mode, percent, at the input size of the network
    - `no_target_head_accuracy`: percent of the expressions classified correctly as with or without a referent, if the
      network has a head for it; `loss` includes its loss times config.loss.no_target_weight. (`no_target_accuracy` of
      an evaluation is over the expressions without a referent only.)

    Raises:
        UserError: the batch cannot be split evenly over microbatches and devices, or a field has an unknown value.
        TypeError: when it is traced: the output of the network is not that of `losses.MaskLogits`.
    """
    check_batch_splits(config.batch_size, config.optimizer.accumulate, mesh.size)
    batch_gradient = _make_batch_gradient(network, plan, config, mesh)
    schedule = learning_rate_schedule(config)
    ema_decay = config.optimizer.ema_decay

    def train_step(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        batch = batch._replace(targets=unpack_masks(batch.targets, batch.images.shape[1]))
        step_key = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)
        counts, sums, gradient = batch_gradient(state.params, batch, jax.random.key_data(step_key))
        updates, opt_state = plan.optimizer.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema_params = None
        if ema_decay:
            ema_params = optax.incremental_update(params, state.ema_params, 1 - average_decay(ema_decay, state.step))
        metrics = {
            "loss": sums.loss,
            "grad_norm": optax.tree.norm(gradient),
            "learning_rate": schedule(state.step),
            "expressions": counts.expressions,
            **{name: 100 * total / safe_divisor(counts.expressions) for name, total in sums.metrics.items()},
        }
        return TrainState(state.step + 1, params, opt_state, ema_params, state.rng), metrics

    state_shardings = jax.tree.map(lambda x: x.sharding, plan.abstract)
    return jax.jit(train_step, donate_argnums=0, out_shardings=(state_shardings, replicated(mesh)))


def average_decay(final: float, step: Int[Array, ""]) -> Float[Array, ""]:
    """Return the decay of the averaged parameters in the step with index `step`: (1 + step) / (10 + step), or `final`.

    The smaller one counts, so the average forgets the random initial parameters early in training **[ours]**. A
    constant decay of 0.999 would leave 37 % of them after 1,000 steps.
    """
    return jnp.minimum(final, (1 + step) / (10 + step))


def check_batch_splits(batch_size: int, parts: int, devices: int) -> None:
    """Raise UserError unless a batch splits into `parts` microbatches that each split evenly over all devices."""
    if parts < 1 or batch_size % (parts * devices):
        fewer = ""
        # Some number of devices then divides a microbatch. Several hosts have equal numbers of devices.
        if parts >= 1 and batch_size % parts == 0 and jax.process_count() == 1:
            fitting = max(number for number in range(1, devices) if batch_size % (parts * number) == 0)
            visible = ",".join(map(str, range(fitting)))
            fewer = f"; or use fewer devices, such as {fitting} (CUDA_VISIBLE_DEVICES={visible} selects GPUs)"
        raise UserError(
            f"config.batch_size={batch_size} cannot be split evenly into config.optimizer.accumulate={parts} parts "
            f"on {counted(devices, 'device')}: it must be a multiple of {max(parts, 1) * devices}{fewer}"
        )


class ExpressionCounts(NamedTuple):
    """The divisors of the sums of a whole batch: the number of valid expressions, and `losses.loss_count`."""

    expressions: Float[Array, ""]
    loss: Float[Array, ""]


class Sums(NamedTuple):
    """The sums of a batch or a part of it: its share of the loss of the whole batch, and the sums of the metrics."""

    loss: Float[Array, ""]
    metrics: dict[str, Float[Array, ""]]


# (parameters, batch with unpacked targets, key data) -> (counts, sums, gradient), all of the whole batch
BatchGradient = Callable[[Any, Any, jax.Array], tuple[ExpressionCounts, Sums, Any]]
# (parameters, microbatch, key, counts of the whole batch) -> (sums, gradient) of the microbatch
Backward = Callable[[Any, Any, jax.Array, ExpressionCounts], tuple[Sums, Any]]


def _make_batch_gradient(network: nn.Module, plan: StatePlan, config: ConfigDict, mesh: Mesh) -> BatchGradient:
    """Return `batch_gradient` in the form of config.mesh.step, for use under jit.

    The batch is split over the mesh and processed in config.optimizer.accumulate microbatches. Sums are divided by the
    counts of the whole batch, so the gradient does not depend on how it is split. It is sharded as the parameters are.
    """
    form = choose("mesh.step", config.mesh.step, {"jit": _jit_gradient, "shard_map": _shard_map_gradient})
    return form(_make_backward(network, plan, config), plan, config, mesh)


def _jit_gradient(backward: Backward, plan: StatePlan, config: ConfigDict, mesh: Mesh) -> BatchGradient:
    parts, shardings = config.optimizer.accumulate, jax.tree.map(lambda x: x.sharding, plan.abstract.params)

    def batch_gradient(params: Any, batch: Any, key_data: jax.Array) -> tuple[ExpressionCounts, Sums, Any]:
        counts, key = count(batch, config), jax.random.wrap_key_data(key_data)
        # Parameters and gradients are replicated where they meet activations: their sharding must not propagate to
        # these, which are sharded by images.
        replicated_params = jax.lax.with_sharding_constraint(params, replicated(mesh))

        def of_microbatch(part: Any, index: Any) -> tuple[Sums, Any]:
            sums, partial = backward(replicated_params, part, jax.random.fold_in(key, index), counts)
            summed = jax.lax.with_sharding_constraint(partial, replicated(mesh))
            return sums, jax.lax.with_sharding_constraint(summed, shardings)

        if parts == 1:
            return counts, *of_microbatch(batch, 0)
        microbatches = jax.lax.with_sharding_constraint(interleave(batch, parts), batch_sharding(mesh, axis=1))
        return counts, *_accumulate(of_microbatch, microbatches, parts, params)

    return batch_gradient


def _shard_map_gradient(backward: Backward, plan: StatePlan, config: ConfigDict, mesh: Mesh) -> BatchGradient:
    parts, specs = config.optimizer.accumulate, jax.tree.map(lambda x: x.sharding.spec, plan.abstract.params)

    def batch_gradient(params: Any, batch: Any, key_data: jax.Array) -> tuple[ExpressionCounts, Sums, Any]:
        # Count over all devices before dividing: devices have different numbers of valid expressions, and the mean of
        # their means is not the mean.
        counts = jax.lax.psum(count(batch, config), BATCH_AXES)
        key = per_device_key(jax.random.wrap_key_data(key_data), jax.lax.axis_index(BATCH_AXES))
        gathered = jax.tree.map(_gather, params, specs)

        def of_microbatch(part: Any, index: Any) -> tuple[Sums, Any]:
            return backward(gathered, part, jax.random.fold_in(key, index), counts)

        if parts == 1:
            sums, partial = of_microbatch(batch, 0)
        else:
            sums, partial = _accumulate(of_microbatch, interleave(batch, parts), parts, gathered)
        reduced = jax.tree.map(
            lambda g, p, spec, group: jnp.zeros_like(p) if group.frozen else _reduce(g, spec),
            *(partial, params, specs, plan.groups),
        )
        return counts, jax.lax.psum(sums, BATCH_AXES), reduced

    # With check_vma, JAX verifies that the outputs declared as replicated are equal on all devices.
    same = PartitionSpec()
    in_specs, out_specs = (specs, PartitionSpec(BATCH_AXES), same), (same, same, specs)
    return jax.shard_map(batch_gradient, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=True)


def _gather(x: jax.Array, spec: PartitionSpec) -> jax.Array:
    """Return the full parameter, marked by `pcast` as differentiated on this device only.

    Without `pcast`, JAX treats the parameter as one value shared by all devices and sums its gradient over them, and
    `_reduce` would sum it again: wrong by a factor of the number of devices.
    """
    axis = sharded_axis(spec)
    if axis is None:
        return jax.lax.pcast(x, BATCH_AXES, to="varying")
    return jax.lax.pcast(jax.lax.all_gather(x, FSDP_AXIS, axis=axis, tiled=True), DATA_AXIS, to="varying")


def _reduce(gradient: jax.Array, spec: PartitionSpec) -> jax.Array:
    """Sum a gradient over all devices and return the shard of this device."""
    axis = sharded_axis(spec)
    if axis is None:
        return jax.lax.psum(gradient, BATCH_AXES)
    shard = jax.lax.psum_scatter(gradient, FSDP_AXIS, scatter_dimension=axis, tiled=True)
    return jax.lax.psum(shard, DATA_AXIS)


def _accumulate(
    of_microbatch: Callable[[Any, Any], tuple[Sums, Any]], microbatches: Any, parts: int, like: Any
) -> tuple[Sums, Any]:
    """Add up the sums and gradients of the microbatches; the gradient has the structure and sharding of `like`."""

    def add(so_far: Any, item: tuple[Any, jax.Array]) -> tuple[Any, Sums]:
        sums, partial = of_microbatch(*item)
        return jax.tree.map(jnp.add, so_far, partial), sums

    gradient, sums = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, like), (microbatches, jnp.arange(parts)))
    return jax.tree.map(lambda x: x.sum(0), sums), gradient


def interleave(batch: Any, parts: int) -> Any:
    """Split a batch [b, ...] into [parts, b / parts, ...]: part i has every `parts`-th image, starting with the i-th.

    Devices hold consecutive images, so every part is split over all devices without moving an image. (Consecutive parts
    would leave most devices idle.) Applied to the images of one device, it gives the device's share of each part.
    """
    return jax.tree.map(lambda x: x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1), batch)


def count(batch: Any, config: ConfigDict) -> ExpressionCounts:
    """Count the expressions of a batch, or of the part of it on one device."""
    return ExpressionCounts(batch.valid.sum(dtype=jnp.float32), loss_count(batch.targets, batch.valid, config.loss))


def safe_divisor(number: Float[Array, ""]) -> Float[Array, ""]:
    """Return `number`, or 1 if it is 0, as a divisor: a batch without expressions must give 0, not 0 / 0."""
    return jnp.where(number > 0, number, 1.0)


def _make_backward(network: nn.Module, plan: StatePlan, config: ConfigDict) -> Backward:
    def forward(params: Any, part: Any, key: jax.Array, counts: ExpressionCounts) -> tuple[jax.Array, dict]:
        """Return the share of a microbatch in the loss of the whole batch, and its sums of the metrics."""
        output = network.apply(
            {"params": freeze(params, plan.groups)},
            part.images,
            part.tokens,
            part.token_mask,
            train=True,
            rngs={"dropout": key},
        )
        if not isinstance(output, MaskLogits):
            raise TypeError(
                f"the network returned {type(output).__name__}; it must return models.network.Output, or a class with "
                "logits, coarse_logits and no_target_logits"
            )
        total = segmentation_loss(output, part.targets, part.valid, part.has_target, config.loss)
        loss = total / safe_divisor(counts.loss)
        no_target = output.no_target_logits
        if no_target is None:
            return loss, {"mean_iou": iou_sum(output.logits, part.targets, part.valid, part.has_target)}
        no_target_total = no_target_loss(no_target, part.has_target, part.valid)
        loss += config.loss.no_target_weight * no_target_total / safe_divisor(counts.expressions)
        masks = jnp.where((no_target > 0)[..., None, None], -1.0, output.logits)
        return loss, {
            "mean_iou": iou_sum(masks, part.targets, part.valid, part.has_target),
            "no_target_head_accuracy": (part.valid & ((no_target > 0) != part.has_target)).sum(dtype=jnp.float32),
        }

    forward_and_gradient = jax.value_and_grad(forward, has_aux=True)

    def backward(params: Any, part: Any, key: jax.Array, counts: ExpressionCounts) -> tuple[Sums, Any]:
        (loss, metrics), gradient = forward_and_gradient(params, part, key, counts)
        return Sums(loss, metrics), gradient

    return backward


def iou_sum(
    logits: Float[Array, "b k h w"],
    targets: Bool[Array, "b k h w"],
    valid: Bool[Array, "b k"],
    has_target: Bool[Array, "b k"],
) -> Float[Array, ""]:
    """Return the sum over valid expressions of the IoU of the mask logits > 0.

    The IoU of an empty union is 0, or 1 if the expression refers to nothing.
    """
    found = logits > 0
    intersection = (found & targets).sum((-2, -1), dtype=jnp.float32)
    union = (found | targets).sum((-2, -1), dtype=jnp.float32)
    iou = jnp.where(has_target, intersection / jnp.maximum(union, 1), union == 0)
    return jnp.where(valid, iou, 0.0).sum()
