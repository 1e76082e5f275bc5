"""The training step: throughput, memory and utilisation by batch size and rematerialisation; window attention."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from s2rm_jax.config import REMAT_POLICIES
from s2rm_jax.measure.floors import measure_floor
from s2rm_jax.measure.harness import Row, Section, gradient, jitted, time_alternately
from s2rm_jax.measure.subject import Subject
from s2rm_jax.models.network import build_network
from s2rm_jax.models.swin import attend
from s2rm_jax.parallel.devices import matrix_rate, read_memory
from s2rm_jax.parallel.mesh import build_mesh, put_batch
from s2rm_jax.training.compile import CompiledStep, compile_step
from s2rm_jax.training.state import plan_state


@dataclass(frozen=True)
class TrainingStep:
    """A compiled step; each call of `take` takes one step and returns its metrics."""

    compiled: CompiledStep
    take: Callable[[], Any]


def training_step(subject: Subject) -> TrainingStep:
    """Compile the step of `train` for config.batch_size images, with a state and a batch of random values."""
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
    """Return the configuration with a fixed number of steps, since there is no data to derive it from."""
    config = copy.deepcopy(config)
    config.steps = config.steps or config.optimizer.warmup_steps + 1000
    return config


@dataclass(frozen=True)
class StepMeasurement:
    """Time and memory of a training step; bytes are of one device."""

    seconds: float
    compile_seconds: float
    compiled_bytes: int | None  # as reported by the compiler, if it reports them
    device_bytes: int | None  # peak of the whole process, if this step raised it
    model_flops: int


def training_speed(subject: Subject, rounds: int, batches: Sequence[int] | None = None) -> list[Section]:
    """Measure every policy of config.remat: on a GPU in bfloat16 at several batch sizes, else as configured."""
    on_gpu = jax.default_backend() == "gpu"
    batches = batches or ((8, 16, 32) if on_gpu else (subject.config.batch_size,))
    dtype = "bfloat16" if on_gpu else subject.config.dtype
    peak = matrix_rate(jax.devices()[0].device_kind) if dtype == "bfloat16" else None
    rate = jax.device_count() * (peak or measure_floor(max(rounds, 10)).flops[dtype])
    rate_name = f"the published {peak / 1e12:,.0f} TFLOP/s" if peak else "the measured rate of matrix products"
    head = ["images", "remat", "s/step", "images/s", "utilisation, %", "compiled, GB", "device peak, GB", "compile, s"]
    rows: list[Row] = []
    figures: dict[str, float] = {}
    for images in batches:
        for policy in REMAT_POLICIES:
            config = copy.deepcopy(subject.config).unlock()
            config.update({"batch_size": images, "remat": policy, "dtype": dtype})
            try:
                step = measure_step(Subject(config, build_network(config), subject.params), rounds)
            except jax.errors.JaxRuntimeError as error:
                if "RESOURCE_EXHAUSTED" not in str(error):
                    raise
                rows.append([images, policy, "out of memory", *[""] * (len(head) - 3)])
                continue
            utilisation = step.model_flops / step.seconds / rate
            rows.append(
                [
                    *(images, policy, step.seconds, images / step.seconds, 100 * utilisation),
                    *(_gigabytes(step.compiled_bytes), _gigabytes(step.device_bytes), step.compile_seconds),
                ]
            )
            figures |= {f"{images} {policy}: images/s": images / step.seconds, f"{images} {policy}: MFU": utilisation}
    expressions = subject.config.input.expressions_per_image
    text = (
        f"The step as `train` runs it, in {dtype}, with {expressions} expressions per image. Utilisation is the FLOPs "
        f"of three forward passes per step (recomputation does not count) divided by {rate_name}. Target: at least "
        "40 % on an H200 in bfloat16 at 480 px, and a batch of 32 within 40 GB."
    )
    return [Section("Training", text, head, rows, figures), window_attention(subject, rounds)]


def measure_step(subject: Subject, rounds: int) -> StepMeasurement:
    """Compile and time the training step of a subject."""
    before = _peak_bytes()
    step = training_step(subject)
    timings = time_alternately({"step": step.take}, rounds)
    memory, peak = read_memory(step.compiled.compiled), _peak_bytes()
    return StepMeasurement(
        seconds=timings.median("step"),
        compile_seconds=step.compiled.seconds,
        compiled_bytes=memory.total if memory else None,
        device_bytes=peak if peak and peak > (before or 0) else None,
        model_flops=step.compiled.model_flops,
    )


def _peak_bytes() -> int | None:
    return (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")


def _gigabytes(count: int | None) -> float | str:
    return "unknown" if count is None else count / 1e9


def einsum_attention(q: jax.Array, k: jax.Array, v: jax.Array, bias: jax.Array) -> jax.Array:
    """Attend inside windows as models/swin.py does.

    q, k, v: [n, t, heads, d]; bias: [1, heads, t, t]. Returns [n, t, heads, d].
    """
    q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q, k, v))
    return jnp.swapaxes(attend(q, k, v, bias), 1, 2)


def fused_attention(implementation: Any) -> Callable[..., jax.Array]:
    """Return the same function by `jax.nn.dot_product_attention`."""

    def attend(q: jax.Array, k: jax.Array, v: jax.Array, bias: jax.Array) -> jax.Array:
        return jax.nn.dot_product_attention(q, k, v, bias.astype(q.dtype), implementation=implementation)

    return attend


def draw_windows(subject: Subject, images: int, dtype: Any) -> tuple[jax.Array, ...]:
    """Draw queries, keys and values of the windows of the first stage, and a position bias."""
    vision, (height, width) = subject.config.vision, subject.config.input.image_size
    window, heads = vision.window_size, vision.num_heads[0]
    windows = images * -(-height // (4 * window)) * -(-width // (4 * window))
    shape = (windows, window * window, heads, vision.embed_dim // heads)
    keys = jax.random.split(jax.random.key(0), 4)
    q, k, v = (jax.random.normal(key, shape, dtype) for key in keys[:3])
    return q, k, v, jax.random.normal(keys[3], (1, heads, window**2, window**2), jnp.float32)


def window_attention(subject: Subject, rounds: int, images: int = 8) -> Section:
    """Measure both implementations, forward and backward, on a GPU; elsewhere return a section without a table."""
    title = "Window attention: einsum and cuDNN"
    if jax.default_backend() != "gpu":
        return Section(title, "Not measured: cuDNN needs an NVIDIA GPU.", (), ())
    arguments = draw_windows(subject, images, jnp.bfloat16)
    ways = {"einsum": einsum_attention, "cuDNN": fused_attention("cudnn")}
    forward = time_alternately({name: jitted(way, arguments) for name, way in ways.items()}, rounds)
    both = time_alternately(
        {name: jitted(gradient(way, (0, 1, 2, 3)), arguments) for name, way in ways.items()}, rounds
    )
    rows: list[Row] = [
        [label, 1e3 * timings.median("einsum"), 1e3 * timings.median("cuDNN"), str(ratio)]
        for label, timings in (("forward", forward), ("forward and backward", both))
        for ratio in [timings.ratio("cuDNN", "einsum")]
    ]
    text = f"Windows of the first stage of {images} images, bfloat16. Below 1, cuDNN is faster."
    figures = {"cuDNN / einsum": both.ratio("cuDNN", "einsum").median}
    return Section(title, text, ["", "einsum, ms", "cuDNN, ms", "cuDNN / einsum"], rows, figures)
