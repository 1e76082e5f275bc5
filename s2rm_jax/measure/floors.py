"""What the device can do at best, and each part of the network compared with it.

The floor of a part is the least time that its FLOPs and bytes need at the measured rates of this device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from s2rm_jax.measure.harness import Row, Section, jitted, time_alternately
from s2rm_jax.measure.subject import Subject, network_parts
from s2rm_jax.models.cost import count_flops
from s2rm_jax.training.logging import counted

_MATRIX_SIDE = {"cpu": 2048, "gpu": 8192, "tpu": 8192}
_COPY_MIB = {"cpu": 256, "gpu": 2048, "tpu": 1024}


@dataclass(frozen=True)
class Floor:
    """Measured rates: FLOP/s of matrix products by dtype, and bytes/s of a copy, read plus written."""

    flops: dict[str, float]
    copied: float

    def seconds(self, flops: int | float, read_and_written: int | float, dtype: str) -> float:
        """Return the least time for these FLOPs and bytes: the longer of the two, as if they overlapped perfectly."""
        return max(flops / self.flops[dtype], read_and_written / self.copied)


def measure_floor(rounds: int) -> Floor:
    """Measure a large square matrix product in float32 and bfloat16, and a copy of an array larger than any cache."""
    backend = jax.default_backend()
    side, mebibytes = _MATRIX_SIDE.get(backend, 2048), _COPY_MIB.get(backend, 256)
    key = jax.random.key(0)
    matrices = {dtype: jax.random.normal(key, (side, side), dtype) for dtype in ("float32", "bfloat16")}
    array = jnp.ones((mebibytes * 2**20 // 4,), jnp.float32)
    multiply, copy = jax.jit(jnp.matmul), jax.jit(lambda x: -x)
    actions = {dtype: lambda x=matrix: multiply(x, x) for dtype, matrix in matrices.items()}
    timings = time_alternately({**actions, "copy": lambda: copy(array)}, rounds, warm_up=2)
    # The best round, not the median: a floor is what an undisturbed device can do.
    rates = {dtype: 2 * side**3 / min(timings.seconds[dtype]) for dtype in matrices}
    return Floor(rates, 2 * array.nbytes / min(timings.seconds["copy"]))


def part_floors(subject: Subject, rounds: int, expressions: Sequence[int] = (1, 8)) -> list[Section]:
    """Measure the floor, and every part on one image with each number of expressions."""
    measured = measure_floor(max(rounds, 10))
    rows: list[Row] = []
    figures: dict[str, float] = {}
    for count in expressions:
        parts = network_parts(subject, 1, count)
        calls = {name: part.forward() for name, part in parts.items()}
        timings = time_alternately({name: jitted(*call) for name, call in calls.items()}, rounds)
        for name, (function, arguments) in calls.items():
            flops, read_and_written = count_flops(function, *arguments), _bytes(function, arguments)
            least = measured.seconds(flops, read_and_written, subject.config.dtype)
            seconds = timings.median(name)
            label = f"{name}, {counted(count, 'expression')}"
            rows.append([label, flops / 1e9, read_and_written / 1e6, least, seconds, seconds / least])
            figures[f"{name} {count}: seconds"] = seconds
            figures[f"{name} {count}: seconds / floor"] = seconds / least
    text = (
        "Each part compiled alone, on one image, with the outputs of the parts before it as inputs. The floor is the "
        "longer of FLOPs / matrix rate and bytes / copy rate. Bytes are those of parameters (without word embeddings), "
        "inputs and outputs, each counted once. Expected: 1 to 2 times the floor for parts made of large matrix "
        "products, more for parts made of many small operations."
    )
    head = ["part", "GFLOP", "MB", "floor, s", "measured, s", "measured / floor"]
    return [_floor_section(measured), Section("Parts and their floors", text, head, rows, figures)]


def _floor_section(measured: Floor) -> Section:
    text = (
        "The best of all rounds, under `jax.jit`. The least time of a part is its FLOPs divided by the rate of matrix "
        "products, or its bytes divided by the rate of the copy, whichever is longer."
    )
    rows: list[Row] = [[f"matrix product, {dtype}", rate / 1e9, "GFLOP/s"] for dtype, rate in measured.flops.items()]
    rows.append(["copy, read and written", measured.copied / 1e9, "GB/s"])
    figures = {f"{dtype} FLOP/s": rate for dtype, rate in measured.flops.items()} | {"copied B/s": measured.copied}
    return Section("Floor: what the device can do", text, ["", "rate", ""], rows, figures)


def _bytes(function: Callable[..., Any], arguments: tuple[Any, ...]) -> int:
    outputs = jax.tree.leaves(jax.eval_shape(function, *arguments))
    leaves = jax.tree.leaves_with_path(arguments)
    # An expression reads one row of the word embeddings per token, which is negligible.
    read = [leaf for path, leaf in leaves if "word_embeddings" not in jax.tree_util.keystr(path)]
    return sum(leaf.size * leaf.dtype.itemsize for leaf in (*read, *outputs))
