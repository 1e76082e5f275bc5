"""The training step: throughput, memory and use of the device, by batch, precision and what is computed twice.

The training step as `train` runs it, ready to be timed.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
from ml_collections import ConfigDict

from s2rm_jax.config import REMAT_POLICIES
from s2rm_jax.measure.chips import matrix_rate
from s2rm_jax.measure.compiled_report import read_memory
from s2rm_jax.measure.floors import Floor, measure_floor
from s2rm_jax.measure.section import Row, Section
from s2rm_jax.measure.subject import Subject
from s2rm_jax.measure.timing import time_alternately
from s2rm_jax.measure.window_attention import window_attention
from s2rm_jax.models.network import build_network
from s2rm_jax.parallel.mesh import build_mesh, put_batch
from s2rm_jax.training.compile import CompiledStep, compile_step
from s2rm_jax.training.state import plan_state


@dataclass(frozen=True)
class TrainingStep:
    """A compiled step; `take` takes one each time that it is called, and returns its metrics."""

    compiled: CompiledStep
    take: Callable[[], Any]


def training_step(subject: Subject) -> TrainingStep:
    """Compiles the step for config.batch_size images and makes a state and a batch for it."""
    config = with_steps(subject.config)
    mesh = build_mesh(config)
    plan = plan_state(subject.network, config, mesh)
    compiled = compile_step(subject.network, plan, config, mesh)
    batch, state = put_batch(subject.batch(), mesh), plan.create(subject.params)

    def take() -> Any:
        nonlocal state
        state, metrics = compiled.compiled(state, batch)
        return metrics

    return TrainingStep(compiled, take)


def with_steps(config: ConfigDict) -> ConfigDict:
    """Returns a configuration whose steps are not to be counted from data, of which there is none."""
    config = copy.deepcopy(config)
    config.steps = config.steps or config.optimizer.warmup_steps + 1000
    return config


_ON_GPU = (8, 16, 32)  # images of a batch


@dataclass(frozen=True)
class Trained:
    """A training step that was compiled and timed; bytes are of one device."""

    seconds: float
    compile_seconds: float
    compiled_bytes: int | None  # by the compiler, which may not tell
    device_bytes: int | None  # of all that ran so far in this process, where it rose; devices tell no less
    model_flops: int


def training_speed(subject: Subject, rounds: int, batches: Sequence[int] | None = None) -> list[Section]:
    """Measures every policy of config.remat: on a GPU in bfloat16 at several batches, elsewhere as configured."""
    on_gpu = jax.default_backend() == "gpu"
    batches = batches or (_ON_GPU if on_gpu else (subject.config.batch_size,))
    dtype = "bfloat16" if on_gpu else subject.config.dtype
    measured = measure_floor(max(rounds, 10))
    head = [
        "images",
        "remat",
        "s a step",
        "images/s",
        "use, %",
        "compiled, GB",
        "peak of the device, GB",
        "compile, s",
    ]
    rows: list[Row] = []
    figures: dict[str, float] = {}
    for images in batches:
        for policy in REMAT_POLICIES:
            config = copy.deepcopy(subject.config).unlock()
            config.update({"batch_size": images, "remat": policy, "dtype": dtype})
            try:
                step = measure(Subject(config, build_network(config), subject.params), rounds)
            except jax.errors.JaxRuntimeError as error:
                if "RESOURCE_EXHAUSTED" not in str(error):
                    raise
                rows.append([images, policy, "out of memory", *[""] * (len(head) - 3)])
                continue
            use = step.model_flops / step.seconds / _rate(measured, dtype)
            rows.append(
                [
                    *(images, policy, step.seconds, images / step.seconds, 100 * use),
                    *(_gigabytes(step.compiled_bytes), _gigabytes(step.device_bytes), step.compile_seconds),
                ]
            )
            figures |= {f"{images} {policy}: images/s": images / step.seconds, f"{images} {policy}: MFU": use}
    expressions = subject.config.input.expressions_per_image
    text = (
        f"The step as `train` runs it, in {dtype}, {expressions} expressions an image. The use of the device is three "
        f"forward passes' FLOPs a step (what is computed twice does not count) over {_rate_name(dtype)}. Wanted: at "
        "least 40 % on an H200 in bfloat16 at 480 px, and a batch of 32 within 40 GB."
    )
    return [Section("Training", text, head, rows, figures), window_attention(subject, rounds)]


def measure(subject: Subject, rounds: int) -> Trained:
    """Compiles and times the step of training a subject."""
    before = _peak()
    step = training_step(subject)
    timings = time_alternately({"step": step.take}, rounds)
    memory, peak = read_memory(step.compiled.compiled), _peak()
    return Trained(
        seconds=timings.median("step"),
        compile_seconds=step.compiled.seconds,
        compiled_bytes=memory.total if memory else None,
        device_bytes=peak if peak and peak > (before or 0) else None,
        model_flops=step.compiled.model_flops,
    )


def _peak() -> int | None:
    return (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")


def _published(dtype: str) -> float | None:
    return matrix_rate(jax.devices()[0].device_kind) if dtype == "bfloat16" else None


def _rate(measured: Floor, dtype: str) -> float:
    published = _published(dtype)
    return jax.device_count() * (published or measured.flops[dtype])


def _rate_name(dtype: str) -> str:
    published = _published(dtype)
    return f"the published {published / 1e12:,.0f} TFLOP/s" if published else "the measured rate of matrix products"


def _gigabytes(count: int | None) -> float | str:
    return "not told" if count is None else count / 1e9
