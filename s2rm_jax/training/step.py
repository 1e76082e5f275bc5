"""One optimizer step: a pure function of the state and a batch, and the same on any number of devices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float
from ml_collections import ConfigDict

from s2rm_jax.errors import UserError
from s2rm_jax.parallel.mesh import batch_sharding, replicated
from s2rm_jax.training.losses import loss_count, no_target_loss, segmentation_loss
from s2rm_jax.training.optimizer import freeze, learning_rate_schedule
from s2rm_jax.training.state import StatePlan, TrainState

Metrics = dict[str, jax.Array]
TrainStep = Callable[[TrainState, Any], tuple[TrainState, Metrics]]  # the Any is a Batch on devices


def make_train_step(network: nn.Module, plan: StatePlan, config: ConfigDict, mesh: Mesh) -> TrainStep:
    """Compiles the training step for batches that lie split over the mesh (`parallel.mesh.put_batch`).

    The step takes a state, which it consumes, and a batch; it returns the next state and float32 scalars:
        loss           mean over all valid expressions of the batch
        grad_norm      global norm of the gradient before clipping
        learning_rate  of this step, before the factors of the groups
        expressions    number of valid expressions
        mean_iou       of the predictions made while training, percent, at the network's input size
        no_target_accuracy  percent of the expressions for which "refers to nothing" was judged rightly, where the
                            network has a head for it; its loss, times config.loss.no_target_weight, is in `loss`

    The batch is worked through in config.optimizer.accumulate microbatches; as sums are divided by the count of the
    whole batch, the gradient is that of the whole batch.

    Raises:
        UserError: the batch cannot be split evenly over microbatches and devices.
    """
    parts = config.optimizer.accumulate
    check_batch_splits(config.batch_size, parts, mesh.size)
    schedule = learning_rate_schedule(config)
    ema_decay = config.optimizer.ema_decay

    def train_step(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        expressions = batch.valid.sum(dtype=jnp.float32)
        # A batch without any valid expression has a sum of zero: it must give zero, not 0 / 0.
        divisor = _positive(loss_count(batch.targets, batch.valid, config.loss))
        step_key = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)

        def partial_loss(params: Any, part: Any, index: Any) -> tuple[jax.Array, Metrics]:
            output: Any = network.apply(
                {"params": freeze(params, plan.groups)},
                part.images,
                part.tokens,
                part.token_mask,
                train=True,
                rngs={"dropout": jax.random.fold_in(step_key, index)},
            )
            total, _ = segmentation_loss(output, part.targets, part.valid, part.has_target, config.loss)
            loss = total / divisor
            nothing = output.no_target_logits
            if nothing is None:
                return loss, {"mean_iou": iou_sum(output.logits, part.targets, part.valid, part.has_target)}
            judged = no_target_loss(nothing, part.has_target, part.valid)
            loss += config.loss.no_target_weight * judged / _positive(expressions)
            masks = jnp.where((nothing > 0)[..., None, None], -1.0, output.logits)
            sums = {
                "mean_iou": iou_sum(masks, part.targets, part.valid, part.has_target),
                "no_target_accuracy": (part.valid & ((nothing > 0) != part.has_target)).sum(dtype=jnp.float32),
            }
            return loss, sums

        grad = jax.value_and_grad(partial_loss, has_aux=True)
        if parts == 1:
            (loss, sums), gradient = grad(state.params, batch, 0)
        else:

            def add_part(so_far: Any, item: tuple[Any, jax.Array]) -> tuple[Any, None]:
                return jax.tree.map(jnp.add, so_far, grad(state.params, *item)), None

            items = (split_microbatches(batch, parts, mesh), jnp.arange(parts))
            shapes = jax.eval_shape(grad, state.params, *jax.tree.map(lambda x: x[0], items))
            zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
            ((loss, sums), gradient), _ = jax.lax.scan(add_part, zeros, items)

        updates, opt_state = plan.optimizer.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema_params = optax.incremental_update(params, state.ema_params, 1 - ema_decay) if ema_decay else None
        metrics = {
            "loss": loss,
            "grad_norm": optax.tree.norm(gradient),
            "learning_rate": schedule(state.step),
            "expressions": expressions,
            **{name: 100 * total / _positive(expressions) for name, total in sums.items()},
        }
        return TrainState(state.step + 1, params, opt_state, ema_params, state.rng), metrics

    state_shardings = jax.tree.map(lambda x: x.sharding, plan.abstract)
    return jax.jit(train_step, donate_argnums=0, out_shardings=(state_shardings, replicated(mesh)))


def check_batch_splits(batch_size: int, parts: int, devices: int) -> None:
    """Raises UserError unless a batch falls into `parts` microbatches that each fill all devices evenly."""
    if parts < 1 or batch_size % (parts * devices):
        raise UserError(
            f"config.batch_size={batch_size} cannot be split evenly into config.optimizer.accumulate={parts} parts "
            f"on {devices} device{'s' * (devices > 1)}: it must be a multiple of {max(parts, 1) * devices}."
        )


def split_microbatches(batch: Any, parts: int, mesh: Mesh) -> Any:
    """Splits [b, ...] into [parts, b / parts, ...], each part spread over all devices without moving a picture.

    Each device holds consecutive pictures; part i takes every `parts`-th of them, counted from the i-th. (Consecutive
    parts would leave all but a few devices idle.)
    """

    def split(x: jax.Array) -> jax.Array:
        parted = x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1)
        return jax.lax.with_sharding_constraint(parted, batch_sharding(mesh, axis=1))

    return jax.tree.map(split, batch)


def iou_sum(
    logits: Float[Array, "b k h w"],
    targets: Bool[Array, "b k h w"],
    valid: Bool[Array, "b k"],
    has_target: Bool[Array, "b k"],
) -> Float[Array, ""]:
    """Returns the sum over valid expressions of the IoU of the mask logits > 0.

    An empty union counts as 0, but as 1 where the sentence refers to nothing.
    """
    found = logits > 0
    intersection = (found & targets).sum((-2, -1), dtype=jnp.float32)
    union = (found | targets).sum((-2, -1), dtype=jnp.float32)
    iou = jnp.where(has_target, intersection / jnp.maximum(union, 1), union == 0)
    return jnp.where(valid, iou, 0.0).sum()


def _positive(count: Float[Array, ""]) -> Float[Array, ""]:
    return jnp.where(count > 0, count, 1.0)
