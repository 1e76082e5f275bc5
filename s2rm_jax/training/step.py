"""One optimizer step: a pure function of the state and a batch, and the same on any number of devices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from s2rm_jax.errors import UserError
from s2rm_jax.input.compact import unpack_masks
from s2rm_jax.parallel.mesh import replicated
from s2rm_jax.training.gradient import make_gradient, positive
from s2rm_jax.training.optimizer import learning_rate_schedule
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

    config.mesh.step chooses how the devices work out the gradient together (`training.gradient`); the rest is the same.

    Raises:
        UserError: the batch cannot be split evenly over microbatches and devices.
    """
    check_batch_splits(config.batch_size, config.optimizer.accumulate, mesh.size)
    gradient_of = make_gradient(network, plan, config, mesh)
    schedule = learning_rate_schedule(config)
    ema_decay = config.optimizer.ema_decay

    def train_step(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        batch = batch._replace(targets=unpack_masks(batch.targets, batch.images.shape[1]))
        step_key = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)
        counts, sums, gradient = gradient_of(state.params, batch, step_key)
        updates, opt_state = plan.optimizer.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema_params = optax.incremental_update(params, state.ema_params, 1 - ema_decay) if ema_decay else None
        metrics = {
            "loss": sums.loss,
            "grad_norm": optax.tree.norm(gradient),
            "learning_rate": schedule(state.step),
            "expressions": counts.expressions,
            **{name: 100 * total / positive(counts.expressions) for name, total in sums.judged.items()},
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
