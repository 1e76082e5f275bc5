"""The start of a run: what can be found wrong early, its workdir opened, and what is told of it and of its step."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import jax
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from s2rm_jax.config import check_config
from s2rm_jax.errors import UserError
from s2rm_jax.evaluation.metrics import MaskCounts
from s2rm_jax.evaluation.protocols import protocol_named
from s2rm_jax.input.sampling import EpochSize
from s2rm_jax.interop.pretrained import find_vocabulary
from s2rm_jax.io import on_bucket
from s2rm_jax.parallel import distributed
from s2rm_jax.parallel.devices import GIB, matrix_rate, read_memory
from s2rm_jax.training.checkpoint import Checkpoints, has_checkpoint
from s2rm_jax.training.compile import CompiledStep
from s2rm_jax.training.logging import hours_minutes_seconds
from s2rm_jax.training.optimizer import learning_rate_schedule
from s2rm_jax.training.run import VOCAB_FILE, require_same_config, save_config, tell_of_other_length
from s2rm_jax.training.step import check_batch_splits
from s2rm_jax.training.writers import require_wandb


def check_before_start(config: ConfigDict) -> None:
    """Finds what can be found wrong before data is read and programs are compiled.

    Raises:
        UserError: what is wrong.
    """
    check_config(config)
    require_wandb(config)
    check_batch_splits(config.batch_size, config.optimizer.accumulate, jax.device_count())
    if config.steps:  # else it is checked when they are known
        learning_rate_schedule(config)
    known = MaskCounts().metrics(protocol_named(config.eval.protocol))
    if config.eval.metric not in known:
        raise UserError(f"config.eval.metric is {config.eval.metric!r}; it must be one of: {', '.join(known)}.")


def with_vocabulary(config: ConfigDict, workdir: epath.Path) -> ConfigDict:
    """Returns the configuration with the vocabulary that a run has, or that lies beside its pretrained text.

    A vocabulary that config.text.vocab names goes before both. Without a checkpoint there is no run yet: what lies in
    the workdir then is left over from a start that failed, perhaps because of that very vocabulary.
    """
    if config.text.vocab:
        return config
    found: Any = None
    if has_checkpoint(workdir):
        found = workdir / VOCAB_FILE
    elif config.text.pretrained:
        found = find_vocabulary(config.text.pretrained)
    if found is None or not found.exists():
        return config
    changed = copy.deepcopy(config)
    changed.text.vocab = str(found)
    return changed


def open_workdir(workdir: epath.Path, config: ConfigDict, save_vocab: Callable[[epath.Path], None]) -> Checkpoints:
    """Opens the checkpoints of a new or an old run and leaves config.json and vocab.txt beside them.

    Raises:
        UserError: the workdir cannot be used, or the run in it was begun with another configuration.
    """
    writes = distributed.is_first()
    try:
        if writes:
            workdir.mkdir(parents=True, exist_ok=True)
        shared = "must be one folder that all processes share"
        # On a bucket there are no empty folders, and no other machine can have one of the same name.
        distributed.require_everywhere(lambda: on_bucket(workdir) or workdir.is_dir(), f"--workdir {workdir} {shared}.")
        checkpoints = Checkpoints(workdir, config.checkpoint_every, config.eval.metric)
        step = checkpoints.latest_step
        if distributed.gather(step) != [step] * distributed.process()[1]:
            raise UserError(f"--workdir {workdir} {shared}, but they see different checkpoints there.")
        if step is not None:
            require_same_config(workdir, config)
            tell_of_other_length(workdir, config, step)
        elif writes:  # nothing depends yet on what lies there
            save_vocab(workdir / VOCAB_FILE)
        if writes:
            save_config(workdir, config)
    except OSError as error:
        raise UserError(f"--workdir {workdir} cannot be used: {error}.") from error
    return checkpoints


def describe_devices(mesh: Mesh) -> str:
    """Writes which devices a run has: 8 x TPU v4 of 2 processes."""
    processes = distributed.process()[1]
    several = f" of {processes} processes" if processes > 1 else ""
    return f"{mesh.size} x {mesh.devices.flat[0].device_kind}{several}"


def describe_epoch(config: ConfigDict, epoch: EpochSize | None) -> str:
    """Writes what an epoch shows, where there is one."""
    if epoch is None:
        return ""
    return (
        f"An epoch shows {epoch.expressions:,} expressions in {epoch.rows / config.batch_size:,.1f} steps "
        f"(sampling {config.input.sampling}). "
    )


def describe_compiled(ahead: CompiledStep, mesh: Mesh) -> str:
    """Writes what the compiled step needs of each device and computes, and against what its speed is measured."""
    device = mesh.local_devices[0]
    memory, limit = read_memory(ahead.compiled), (device.memory_stats() or {}).get("bytes_limit")
    needs = ""
    if memory is not None:
        needs = (
            f" A step needs {_bytes(memory.total)}{f' of {_bytes(limit)}' if limit else ''} on each device: state and "
            f"batch {_bytes(memory.arguments)}, temporary {_bytes(memory.temporaries)}"
            f"{f', program {_bytes(memory.code)}' if memory.code else ''}."
        )
    rate = matrix_rate(device.device_kind)
    measured = f"; MFU is the share of {rate / 1e12:,.0f} TFLOP/s a device" if rate else ""
    again = f" ({_flops(ahead.model_flops)} without recomputation)" if ahead.flops > 1.05 * ahead.model_flops else ""
    return (
        f"Compiled in {hours_minutes_seconds(ahead.seconds)}.{needs} "
        f"It computes {_flops(ahead.flops)} in matrix products on all devices together{again}{measured}."
    )


def seconds_at_peak(ahead: CompiledStep, mesh: Mesh) -> float | None:
    """Returns what a step would take if the devices did nothing but matrix products at their published rate.

    None where that rate is not known.
    """
    rate = matrix_rate(mesh.devices.flat[0].device_kind)
    return ahead.model_flops / (rate * mesh.size) if rate else None


def _flops(number: int) -> str:
    return f"{number / 1e12:.2f} TFLOP" if number >= 1e11 else f"{number / 1e9:.3g} GFLOP"


def _bytes(number: int) -> str:
    return f"{number / GIB:.2f} GiB" if number >= GIB / 100 else f"{number / 2**20:.2f} MiB"
