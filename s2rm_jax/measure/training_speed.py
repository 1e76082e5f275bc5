"""The training step by batch size and rematerialization, and the scoring during evaluation, which runs on the host."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from s2rm_jax.config import REMAT_POLICIES
from s2rm_jax.errors import UserError
from s2rm_jax.evaluation.evaluator import score_items
from s2rm_jax.evaluation.protocols import PROTOCOLS, Protocol
from s2rm_jax.input.example import Example, Expression
from s2rm_jax.input.pipeline import EvalItem
from s2rm_jax.measure.harness import Cell, Cells, Section, Subject, jitted, network_parts, time_alternately
from s2rm_jax.measure.parts import measure_floor
from s2rm_jax.parallel.devices import matrix_rate, read_memory
from s2rm_jax.parallel.mesh import build_mesh, put_batch
from s2rm_jax.training.compile import CompiledStep, compile_step, with_fixed_steps
from s2rm_jax.training.state import plan_state


@dataclass(frozen=True)
class TrainingStep:
    """A compiled step; each call of `take` takes one step and returns its metrics."""

    compiled: CompiledStep
    take: Callable[[], Any]


def training_step(subject: Subject) -> TrainingStep:
    """Compile the step of `train` for config.batch_size images, with a state and a batch of random values."""
    config = with_fixed_steps(subject.config)
    mesh = build_mesh(config)
    plan = plan_state(subject.network, config, mesh)
    compiled = compile_step(subject.network, plan, config, mesh)
    batch, state = put_batch(subject.batch(), mesh), plan.create(subject.params)

    def take() -> Any:
        nonlocal state
        state, metrics = compiled.executable(state, batch)
        return metrics

    return TrainingStep(compiled, take)


@dataclass(frozen=True)
class StepMeasurement:
    """Time and memory of a training step; bytes are of one device."""

    seconds: float
    compile_seconds: float
    compiled_bytes: int | None  # as reported by the compiler, if it reports them
    device_bytes: int | None  # peak of the whole process, if this step raised it
    model_flops: int

    def mfu(self, rate: float) -> float:
        """Return the share that the model's FLOPs take of the rate of all devices, each of which has `rate`."""
        return self.model_flops / self.seconds / (rate * jax.device_count())

    def cells(self, images: int, rate: float) -> list[Cell]:
        """Return the row of a table with STEP_COLUMNS, for a step of this number of images."""
        memory = [gigabytes(self.compiled_bytes), gigabytes(self.device_bytes)]
        return [self.seconds, images / self.seconds, 100 * self.mfu(rate), *memory, self.compile_seconds]


STEP_COLUMNS = ("s/step", "images/s", "utilization, %", "compiled, GB", "device peak, GB", "compile, s")


def training_speed(subject: Subject, rounds: int) -> list[Section]:
    """Measure every policy of config.remat."""
    images, dtype = subject.config.batch_size, subject.config.dtype
    rate, rate_name = device_rate(dtype, rounds)
    rows: list[Cells] = []
    figures: dict[str, float] = {}
    for policy in REMAT_POLICIES:
        try:
            step = measure_step(subject.changed(remat=policy), rounds)
        except (jax.errors.JaxRuntimeError, UserError) as error:
            # If the compiler runs out of memory, its error is the cause of the UserError of compile_step.
            if "RESOURCE_EXHAUSTED" not in f"{error} {error.__cause__}":
                raise
            rows.append([images, policy, "out of memory", *[""] * (len(STEP_COLUMNS) - 1)])
            continue
        rows.append([images, policy, *step.cells(images, rate)])
        figures |= {f"{images} {policy}: images/s": images / step.seconds, f"{images} {policy}: MFU": step.mfu(rate)}
    expressions = subject.config.input.expressions_per_image
    text = (
        f"The step as `train` runs it, in {dtype}, with {expressions} expressions per image. Utilization is the FLOPs "
        f"of three forward passes per step (recomputation does not count) divided by {rate_name}. Target: at least "
        "40 % on an H200 in bfloat16 at 480 px, and a batch of 32 within 40 GB."
    )
    return [Section("Training", text, ["images", "remat", *STEP_COLUMNS], rows, figures)]


def device_rate(dtype: str, rounds: int) -> tuple[float, str]:
    """Return the FLOP/s of matrix products of one device, published for bfloat16 or else measured, and its name."""
    peak = matrix_rate(jax.devices()[0].device_kind) if dtype == "bfloat16" else None
    if peak:
        return peak, f"the published {peak / 1e12:,.0f} TFLOP/s"
    return measure_floor(max(rounds, 10)).flops[dtype], "the measured rate of matrix products"


def measure_step(subject: Subject, rounds: int) -> StepMeasurement:
    """Compile and time the training step of a subject."""
    before = _peak_bytes()
    step = training_step(subject)
    timings = time_alternately({"step": step.take}, rounds)
    memory, peak = read_memory(step.compiled.executable), _peak_bytes()
    return StepMeasurement(
        seconds=timings.median("step"),
        compile_seconds=step.compiled.seconds,
        compiled_bytes=memory.total if memory else None,
        device_bytes=peak if peak and peak > (before or 0) else None,
        model_flops=step.compiled.model_flops,
    )


def _peak_bytes() -> int | None:
    return (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")


def gigabytes(count: int | None) -> float | str:
    """Return a number of bytes in GB as a cell of a table."""
    return "unknown" if count is None else count / 1e9


_SCORED_EXPRESSIONS = 3  # per image
_SCORED_IMAGES = 32


def scoring(subject: Subject, rounds: int) -> list[Section]:
    """Measure what the host does for each image of an evaluation, compared with the vision encoder's forward pass."""
    height, width = subject.config.input.image_size
    items, logits = _scored_batch(_SCORED_IMAGES, height, width)
    vision = network_parts(subject, 1, 1)["vision"]
    timings = time_alternately({"vision": jitted(*vision.forward())}, rounds)
    rows: list[Cells] = []
    figures: dict[str, float] = {}
    for name, protocol in PROTOCOLS.items():
        processor, wall = _time_scoring(protocol, items, logits, rounds)
        share = wall / timings.median("vision")
        rows.append([name, 1000 * processor, 1 / wall, 100 * share])
        figures |= {f"{name}: images/s": 1 / wall, f"{name}: share of vision": share}
    text = (
        f"Scoring as `evaluate` does it in threads: {_SCORED_IMAGES} images of 480 x 640 with {_SCORED_EXPRESSIONS} "
        f"expressions each, polygons of 40 corners, logits of {height} x {width}. Processor time is the least of "
        f"{rounds} rounds, images per second are by the median. The vision encoder takes "
        f"{timings.median('vision'):.3g} s per image (target: scoring at most 25 % of it on a CPU)."
    )
    head = ["protocol", "processor time, ms/image", "images/s", "of the vision encoder, %"]
    return [Section("Scoring", text, head, rows, figures)]


def _time_scoring(protocol: Protocol, items: list[EvalItem], logits: np.ndarray, rounds: int) -> tuple[float, float]:
    """Return the least processor time and the median time of scoring an image, in seconds."""
    seconds, processor = [], []
    for _ in range(rounds + 1):  # the first fills caches
        start = time.perf_counter(), time.process_time()
        for _ in score_items(protocol, items, logits):
            pass
        seconds.append((time.perf_counter() - start[0]) / len(items))
        processor.append((time.process_time() - start[1]) / len(items))
    return min(processor[1:]), float(np.median(seconds[1:]))


def _scored_batch(images: int, height: int, width: int) -> tuple[list[EvalItem], np.ndarray]:
    """Return images with star-shaped referents, and logits of the network's input size for discs in their places."""
    rng = np.random.default_rng(6)
    angles = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    y, x = np.mgrid[:height, :width] * np.array([480 / height, 640 / width]).reshape(2, 1, 1)
    items, logits = [], np.empty((images, _SCORED_EXPRESSIONS, height, width), np.float32)
    for image in range(images):
        expressions = []
        for number in range(_SCORED_EXPRESSIONS):
            centre, radius = rng.uniform((150, 120), (490, 360)), rng.uniform(40, 110)
            radii = radius * (1 + 0.2 * np.sin(5 * angles))
            polygon = np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=-1) + centre
            expressions.append(Expression("thing", [polygon.ravel().tolist()], "", f"{image}-{number}"))
            logits[image, number] = (radius - np.hypot(x - centre[0], y - centre[1])) / 8
        example = Example(str(image), np.zeros((480, 640, 3), np.uint8), 480, 640, tuple(expressions))
        items.append(EvalItem(example, list(range(_SCORED_EXPRESSIONS))))
    return items, logits
