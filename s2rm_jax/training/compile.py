"""Compiling the training step ahead of time."""

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

from s2rm_jax.errors import LESS_MEMORY, UserError, counted
from s2rm_jax.input.encode import packed_shape
from s2rm_jax.input.example import Batch
from s2rm_jax.models.cost import count_flops, jaxpr_flops
from s2rm_jax.models.network import build_network
from s2rm_jax.parallel.devices import GIB, matrix_rate, read_memory
from s2rm_jax.parallel.mesh import batch_sharding
from s2rm_jax.training.logging import hours_minutes_seconds
from s2rm_jax.training.state import StatePlan, plan_state
from s2rm_jax.training.step import make_train_step


@dataclass(frozen=True)
class CompiledStep:
    """A compiled training step."""

    executable: Any  # called with a state and a batch
    flops: int  # of its matrix products, over all devices
    model_flops: int  # of three forward passes: without what config.remat computes again, as MFU is usually defined
    seconds: float  # that compiling took

    def seconds_at_peak(self, mesh: Mesh) -> float | None:
        """Return the duration of a step of nothing but matrix products at the devices' published rate, if known."""
        rate = matrix_rate(mesh.devices.flat[0].device_kind)
        return self.model_flops / (rate * mesh.size) if rate else None

    def describe(self, mesh: Mesh) -> str:
        """Return the memory that the step needs on each device and its FLOPs, for the log."""
        device = mesh.local_devices[0]
        memory, limit = read_memory(self.executable), (device.memory_stats() or {}).get("bytes_limit")
        needs = ""
        if memory is not None:
            needs = (
                f" A step needs {_bytes(memory.total)}{f' of {_bytes(limit)}' if limit else ''} on each device: state "
                f"and batch {_bytes(memory.arguments)}, temporary {_bytes(memory.temporaries)}"
                f"{f', program {_bytes(memory.code)}' if memory.code else ''}."
            )
        rate = matrix_rate(device.device_kind)
        mfu = f"; MFU is the share of {rate / 1e12:,.0f} TFLOP/s a device" if rate else ""
        model = f" ({_flops(self.model_flops)} without recomputation)" if self.flops > 1.05 * self.model_flops else ""
        return (
            f"Compiled in {hours_minutes_seconds(self.seconds)}.{needs} "
            f"It computes {_flops(self.flops)} in matrix products on all devices together{model}{mfu}."
        )


def compile_training_step(config: ConfigDict, mesh: Mesh) -> CompiledStep:
    """Compile the step that training with `config` runs on the devices of `mesh`, which need not be present.

    Raises:
        UserError: as `compile_step`.
    """
    config, network = with_fixed_steps(config), build_network(config)
    return compile_step(network, plan_state(network, config, mesh), config, mesh)


def with_fixed_steps(config: ConfigDict) -> ConfigDict:
    """Return the configuration with an arbitrary number of steps if config.steps is 0; speed does not depend on it."""
    config = copy.deepcopy(config)
    config.steps = config.steps or config.optimizer.warmup_steps + 1000
    return config


def compile_step(network: nn.Module, plan: StatePlan, config: ConfigDict, mesh: Mesh) -> CompiledStep:
    """Compile the training step of `network` for the states of `plan` and the batches that `config` describes.

    Raises:
        UserError: the batch cannot be split over the devices, or the step needs more memory than they have.
    """
    start = time.monotonic()
    batch = abstract_batch(config, mesh)
    step: Any = make_train_step(network, plan, config, mesh)
    traced = step.trace(plan.abstract, batch)
    inputs = batch.images, batch.tokens, batch.token_mask
    forward = count_flops(network.apply, {"params": plan.abstract.params}, *inputs)
    try:
        compiled = traced.lower().compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        used = re.search(r"Used (\S+) of (\S+) hbm", str(error))
        needs = f"it needs {used.group(1)} of {used.group(2)}" if used else "see above"
        raise UserError(
            f"the step does not fit into the memory of a device: {needs} with config.batch_size={config.batch_size} on "
            f"{counted(mesh.size, 'device')} and config.remat={config.remat!r}: {LESS_MEMORY}"
        ) from error
    return CompiledStep(compiled, jaxpr_flops(traced.jaxpr.jaxpr), 3 * forward, time.monotonic() - start)


def abstract_batch(config: ConfigDict, mesh: Mesh) -> Batch:
    """Return the batch that `config` describes as ShapeDtypeStructs, split over `mesh`."""
    (height, width), tokens = config.input.image_size, config.text.max_tokens
    images, expressions = config.batch_size, config.input.expressions_per_image
    sharding = batch_sharding(mesh)

    def array(dtype: Any, *shape: int) -> Any:
        return jax.ShapeDtypeStruct((images, *shape), dtype, sharding=sharding)

    return Batch(
        images=array(jnp.uint8, height, width, 3),
        tokens=array(jnp.int32, expressions, tokens),
        token_mask=array(jnp.bool, expressions, tokens),
        targets=array(jnp.uint8, expressions, *packed_shape(height, width)),
        valid=array(jnp.bool, expressions),
        has_target=array(jnp.bool, expressions),
    )


def _flops(number: int) -> str:
    return f"{number / 1e12:.2f} TFLOP" if number >= 1e11 else f"{number / 1e9:.3g} GFLOP"


def _bytes(number: int) -> str:
    return f"{number / GIB:.2f} GiB" if number >= GIB / 100 else f"{number / 2**20:.2f} MiB"
