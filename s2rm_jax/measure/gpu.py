"""Measure a GPU within a few minutes, the most valuable measurements first.

Each table has one row per case. A case that fails or runs out of memory is a row that says so, and so is one for which
no time is left. A case that has begun is not interrupted.
"""

from __future__ import annotations

import functools
import itertools
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from s2rm_jax.errors import UserError, counted, reason_of
from s2rm_jax.measure.against_torch import TorchTwin, inference_timings, training_timings
from s2rm_jax.measure.harness import Cell, Cells, Section, Subject, Timings, gradient, jitted, time_alternately
from s2rm_jax.measure.training_speed import STEP_COLUMNS, device_rate, gigabytes, measure_step
from s2rm_jax.models.cost import count_flops
from s2rm_jax.models.swin import attend
from s2rm_jax.parallel.devices import ASSUMED_MFU, read_memory
from s2rm_jax.segmenter import MOST_IMAGES, images_at_once

RECIPE_IMAGES = 53_000 * 32  # of the steps of configs/refcoco.py
Case = Callable[[], Sequence[Cell]]


class CaseTable(NamedTuple):
    """One table: `cases` by the label of their row, and the heads of the other columns.

    `seconds` is a guess of the time that one case needs with the default network, compilation included.
    """

    title: str
    text: str
    head: Sequence[str]
    seconds: int
    cases: Mapping[str, Case]


class Sizes(NamedTuple):
    """What is measured. The first training steps come early, the others last; each is (images, config.remat)."""

    forward: Sequence[int] = (1, 32, 128)
    first_steps: Sequence[tuple[int, str]] = ((32, "dense"), (32, "none"))
    more_steps: Sequence[tuple[int, str]] = ((64, "dense"), (64, "none"), (32, "blocks"), (128, "dense"), (8, "none"))
    attention: int = 8  # images
    torch: Sequence[int] = (1, 8)  # images of a forward pass; the last also of a training step
    expressions: Sequence[int] = (1, 8)
    predicted: int = MOST_IMAGES  # images


def gpu(subject: Subject, rounds: int, minutes: float, sizes: Sizes | None = None) -> Iterator[Section]:
    """Measure the network in bfloat16 while time is left; yield each table as soon as it is measured."""
    end = time.monotonic() + 60 * minutes
    # One expression per image, as in the recipe.
    bfloat16 = subject.changed(dtype="bfloat16", input__expressions_per_image=1)
    for table in _tables(bfloat16, rounds, sizes or Sizes()):
        yield measure_table(table, end)


def measure_table(table: CaseTable, end: float) -> Section:
    """Measure each case that can be expected to be done at `end`, in seconds of time.monotonic."""
    rows: list[Cells] = []
    figures: dict[str, int | float] = {}
    longest: float = table.seconds
    for label, case in table.cases.items():
        start = time.monotonic()
        cells: Sequence[Cell] = ["not measured: no time left"]
        if end - start >= longest:
            try:
                cells = case()
            except Exception as error:  # the next case may work
                cells = [_reason(error)]
            longest = max(longest, time.monotonic() - start)
        rows.append([label, *cells, *[""] * (len(table.head) - len(cells))])
        figures |= {
            f"{label}: {name}": cell for name, cell in zip(table.head, cells, strict=False) if not isinstance(cell, str)
        }
        print(f"  {table.title}: {label}: {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
    return Section(table.title, table.text, ["", *table.head], rows, figures)


def _reason(error: Exception) -> str:
    message = reason_of(error)
    if "RESOURCE_EXHAUSTED" in message or type(error).__name__ == "OutOfMemoryError":
        return "out of memory"
    return message if isinstance(error, UserError) else f"failed: {type(error).__name__}: {message:.150}"


class _Ideal(NamedTuple):
    """What the speed is compared with: the FLOP/s of one device with their name, and the FLOPs of a forward pass."""

    rate: float
    rate_name: str
    image_flops: float


def _tables(subject: Subject, rounds: int, sizes: Sizes) -> Sequence[CaseTable]:
    network, arguments = subject.forward(1, 1)
    ideal = _Ideal(*device_rate("bfloat16", rounds), count_flops(network, *arguments))
    return (
        _forward(subject, rounds, sizes.forward, ideal),
        _steps("Training step", subject, rounds, sizes.first_steps, ideal),
        _attention(subject, rounds, sizes.attention),
        _torch(subject, rounds, sizes.torch),
        _predict(subject, rounds, sizes.expressions, sizes.predicted),
        _steps("Training step, other batches", subject, rounds, sizes.more_steps, ideal),
    )


def _forward(subject: Subject, rounds: int, counts: Sequence[int], ideal: _Ideal) -> CaseTable:
    def case(images: int) -> Sequence[Cell]:
        function, arguments = subject.forward(images, 1)
        start = time.perf_counter()
        compiled = jax.jit(function).lower(*arguments).compile()
        compile_seconds = time.perf_counter() - start
        seconds = time_alternately({"forward": lambda: compiled(*arguments)}, rounds).median("forward")
        utilization = count_flops(function, *arguments) / seconds / ideal.rate
        memory = read_memory(compiled)
        held = gigabytes(memory.total if memory else None)
        return [seconds, images / seconds, 100 * utilization, held, compile_seconds]

    text = (
        f"One expression per image, in bfloat16. Utilization is that of {ideal.rate_name}. "
        f"{ideal.image_flops / 1e9:,.1f} GFLOP per image; expected at {ASSUMED_MFU:.0%}: "
        f"{ASSUMED_MFU * ideal.rate / ideal.image_flops:,.0f} images/s."
    )
    head = ("s", "images/s", "utilization, %", "compiled, GB", "compile, s")
    cases = {counted(one, "image"): functools.partial(case, one) for one in counts}
    return CaseTable("Forward pass", text, head, 45, cases)


def _steps(title: str, subject: Subject, rounds: int, settings: Sequence[tuple[int, str]], ideal: _Ideal) -> CaseTable:
    def hours(images_per_second: float) -> float:
        return RECIPE_IMAGES / images_per_second / 3600

    def case(images: int, remat: str) -> Sequence[Cell]:
        measured = measure_step(subject.changed(batch_size=images, remat=remat), rounds)
        return [*measured.cells(images, ideal.rate), hours(images / measured.seconds)]

    expected = ASSUMED_MFU * ideal.rate * jax.device_count() / (3 * ideal.image_flops)
    text = (
        f"A step as `train` runs it, with one expression per image. Utilization is that of {ideal.rate_name}; "
        f"recomputation does not count. The recipe is configs/refcoco.py: {RECIPE_IMAGES:,} images, without "
        f"evaluation and waiting for data. Expected at {ASSUMED_MFU:.0%}: {expected:,.0f} images/s and "
        f"{hours(expected):.1f} h."
    )
    cases = {f"{images} images, remat {remat}": functools.partial(case, images, remat) for images, remat in settings}
    return CaseTable(title, text, (*STEP_COLUMNS, "recipe, h"), 90, cases)


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


def _attention(subject: Subject, rounds: int, images: int) -> CaseTable:
    def case(backward: bool) -> Sequence[Cell]:
        if jax.default_backend() != "gpu":
            raise UserError("unavailable: cuDNN needs an NVIDIA GPU")
        arguments = draw_windows(subject, images, jnp.bfloat16)
        ways = {"einsum": einsum_attention, "cuDNN": fused_attention("cudnn")}
        calls = {name: gradient(way, (0, 1, 2, 3)) if backward else way for name, way in ways.items()}
        timings = time_alternately({name: jitted(call, arguments) for name, call in calls.items()}, rounds)
        return [*(1e3 * timings.median(name) for name in ways), str(timings.ratio("cuDNN", "einsum"))]

    text = f"Windows of the first stage of {counted(images, 'image')}, bfloat16. Below 1, cuDNN is faster."
    cases = {"forward": lambda: case(backward=False), "forward and backward": lambda: case(backward=True)}
    head = ("einsum, ms", "cuDNN, ms", "cuDNN / einsum")
    return CaseTable("Window attention: einsum and cuDNN", text, head, 15, cases)


def _torch(subject: Subject, rounds: int, counts: Sequence[int]) -> CaseTable:
    training = subject.changed(batch_size=counts[-1])

    @functools.cache
    def twin() -> TorchTwin:
        made = TorchTwin(training)
        if jax.default_backend() == "gpu" and not made.on_gpu:
            raise UserError("unavailable: this PyTorch has no CUDA")
        return made

    def cells(timings: Timings) -> Sequence[Cell]:
        others = [name if name in timings.seconds else None for name in ("eager", "torch.compile")]
        seconds = [timings.median(name) if name else "needs a GPU" for name in ("jax", *others)]
        return [*seconds, *(str(timings.ratio("jax", name)) if name else "" for name in others)]

    cases: dict[str, Case] = {
        f"training step, {counted(counts[-1], 'image')}": lambda: cells(training_timings(training, twin(), rounds))
    }
    for count in counts:
        cases[f"forward, {counted(count, 'image')}"] = lambda count=count: cells(  # type: ignore[misc]
            inference_timings(subject, twin(), count, rounds)
        )
    text = "The same network with the same parameters, in bfloat16 (PyTorch: autocast). Below 1, JAX is faster."
    head = ("JAX, s", "eager, s", "torch.compile, s", "JAX / eager", "JAX / torch.compile")
    return CaseTable("PyTorch and torch.compile", text, head, 90, cases)


def _predict(subject: Subject, rounds: int, counts: Sequence[int], most_images: int) -> CaseTable:
    def case(count: int) -> Sequence[Cell]:
        images = min(most_images, images_at_once(count))
        listed = [subject.image(480, 640)] * images
        segmenter, asked = subject.segmenter(), itertools.count(step=count)

        def segment() -> object:  # with new expressions each time, because the forward pass has those of BERT too
            return segmenter.segment(listed, subject.expressions(count, first=next(asked)))

        forward = jitted(*subject.forward(images, count))
        actions: dict[str, Callable[[], object]] = {"segment": segment, "forward": forward}
        timings = time_alternately(actions, rounds)
        seconds = timings.median("segment") / images
        return [seconds, 1 / seconds, str(timings.ratio("forward", "segment"))]

    text = (
        f"`Segmenter.segment` on up to {most_images} images of 480 x 640, as many as it computes at once, "
        "with masks of their size, compared with the compiled forward pass. Target: at least 0.85 of its throughput."
    )
    cases = {counted(count, "expression"): functools.partial(case, count) for count in counts}
    return CaseTable("Throughput of predict", text, ("s/image", "images/s", "of the forward pass"), 60, cases)
