"""The training step compiled before there is a state, a batch, or even a device to run it on."""

from __future__ import annotations

import copy
import re
import time
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from s2rm_jax.cost import jaxpr_flops
from s2rm_jax.errors import UserError
from s2rm_jax.input.compact import packed_shape
from s2rm_jax.input.example import Batch
from s2rm_jax.models.network import build_network
from s2rm_jax.parallel.mesh import batch_sharding
from s2rm_jax.training.state import plan_state
from s2rm_jax.training.step import make_train_step


@dataclass(frozen=True)
class CompiledAhead:
    """A compiled step, the FLOPs of its matrix products over all devices, and how long compiling took.

    `model_flops` are those without what config.remat computes a second time.
    """

    compiled: Any
    flops: int
    model_flops: int
    seconds: float


def compile_training_step(config: ConfigDict, mesh: Mesh) -> CompiledAhead:
    """Compiles the step that `train` would run with `config` on the devices of `mesh`, which need not be there.

    config.steps may be 0, to be computed from the data: the number of steps is but a constant of the schedule.

    Raises:
        UserError: the batch cannot be split over the devices, or the step needs more memory than they have.
    """
    config = copy.deepcopy(config)
    if config.steps == 0:
        config.steps = config.optimizer.warmup_steps + 1
    traced = _trace(config, mesh)
    flops = model_flops = jaxpr_flops(traced.jaxpr.jaxpr)
    if config.remat != "none":
        plain = copy.deepcopy(config)
        plain.remat = "none"
        model_flops = jaxpr_flops(_trace(plain, mesh).jaxpr.jaxpr)
    lowered = traced.lower()
    start = time.monotonic()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" in str(error):
            raise UserError(_does_not_fit(config, mesh, str(error))) from error
        raise
    return CompiledAhead(compiled, flops, model_flops, time.monotonic() - start)


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


def _trace(config: ConfigDict, mesh: Mesh) -> Any:
    network = build_network(config)
    plan = plan_state(network, config, mesh)
    step: Any = make_train_step(network, plan, config, mesh)
    return step.trace(plan.abstract, abstract_batch(config, mesh))


def _does_not_fit(config: ConfigDict, mesh: Mesh, message: str) -> str:
    used = re.search(r"Used (\S+) of (\S+) hbm", message)
    needs = f"it needs {used.group(1)} of {used.group(2)}" if used else "see above"
    return (
        f"the step does not fit into the memory of a device: {needs} with config.batch_size={config.batch_size} on "
        f"{mesh.size} devices and config.remat={config.remat!r}; use more devices, fewer pictures, "
        "config.optimizer.accumulate, or --config.remat=dense or blocks."
    )
