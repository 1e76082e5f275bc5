"""The training step compiled before there is a state, a batch, or even a device to run it on."""

from __future__ import annotations

import copy
import re
import time
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from s2rm_jax.cost import count_flops, jaxpr_flops
from s2rm_jax.errors import UserError
from s2rm_jax.input.compact import packed_shape
from s2rm_jax.input.example import Batch
from s2rm_jax.models.network import build_network
from s2rm_jax.parallel.mesh import batch_sharding
from s2rm_jax.training.state import StatePlan, plan_state
from s2rm_jax.training.step import make_train_step


@dataclass(frozen=True)
class CompiledAhead:
    """A compiled step, the FLOPs of its matrix products over all devices, and how long compiling took.

    `flops` are those that it computes; `model_flops` those of a forward pass times three, as is usual where a step is
    measured against what a device can do: without what config.remat computes a second time.
    """

    compiled: Any
    flops: int
    model_flops: int
    seconds: float


def compile_training_step(config: ConfigDict, mesh: Mesh) -> CompiledAhead:
    """Compiles the step that `train` would run with `config` on the devices of `mesh`, which need not be there.

    Where config.steps is 0 (they follow from the data), any number will do: it is a constant of the schedule.

    Raises:
        UserError: as `compile_step`.
    """
    config = copy.deepcopy(config)
    if config.steps == 0:
        config.steps = config.optimizer.warmup_steps + 1
    network = build_network(config)
    return compile_step(network, plan_state(network, config, mesh), config, mesh)


def compile_step(network: nn.Module, plan: StatePlan, config: ConfigDict, mesh: Mesh) -> CompiledAhead:
    """Compiles the step of training `network` for the states that `plan` makes and the batches that `config` describes.

    Raises:
        UserError: the batch cannot be split over the devices, or the step needs more memory than they have.
    """
    start = time.monotonic()
    batch = abstract_batch(config, mesh)
    step: Any = make_train_step(network, plan, config, mesh)
    traced = step.trace(plan.abstract, batch)
    images = jax.ShapeDtypeStruct(batch.images.shape, jnp.float32)  # normalised, as the network takes them
    forward = count_flops(network.apply, {"params": plan.abstract.params}, images, batch.tokens, batch.token_mask)
    try:
        compiled = traced.lower().compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" in str(error):
            raise UserError(_does_not_fit(config, mesh, str(error))) from error
        raise
    return CompiledAhead(compiled, jaxpr_flops(traced.jaxpr.jaxpr), 3 * forward, time.monotonic() - start)


def abstract_batch(config: ConfigDict, mesh: Mesh) -> Batch:
    """Returns the batch that `config` describes as ShapeDtypeStructs, spread over `mesh`."""
    (height, width), tokens = config.input.image_size, config.text.max_tokens
    pictures, expressions = config.batch_size, config.input.expressions_per_image
    sharding = batch_sharding(mesh)

    def array(dtype: Any, *shape: int) -> Any:
        return jax.ShapeDtypeStruct((pictures, *shape), dtype, sharding=sharding)

    return Batch(
        images=array(jnp.uint8, height, width, 3),
        tokens=array(jnp.int32, expressions, tokens),
        token_mask=array(jnp.bool, expressions, tokens),
        targets=array(jnp.uint8, expressions, *packed_shape(height, width)),
        valid=array(jnp.bool, expressions),
        has_target=array(jnp.bool, expressions),
    )


def _does_not_fit(config: ConfigDict, mesh: Mesh, message: str) -> str:
    used = re.search(r"Used (\S+) of (\S+) hbm", message)
    needs = f"it needs {used.group(1)} of {used.group(2)}" if used else "see above"
    return (
        f"the step does not fit into the memory of a device: {needs} with config.batch_size={config.batch_size} on "
        f"{mesh.size} devices and config.remat={config.remat!r}; use more devices, fewer pictures, "
        "config.optimizer.accumulate, or --config.remat=dense or blocks."
    )
