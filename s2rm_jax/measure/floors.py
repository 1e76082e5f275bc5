"""What the device can do at best: how fast it multiplies matrices, and how fast it copies memory.

Each part of the network beside the least time that its FLOPs and bytes need on this device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from s2rm_jax.measure.section import Row, Section
from s2rm_jax.measure.subject import Subject, network_parts
from s2rm_jax.measure.timing import jitted, time_alternately
from s2rm_jax.models.cost import count_flops
from s2rm_jax.training.logging import counted

_SIDE = {"cpu": 2048, "gpu": 8192, "tpu": 8192}  # of the matrices
_COPIED = {"cpu": 256, "gpu": 2048, "tpu": 1024}  # MiB


@dataclass(frozen=True)
class Floor:
    """Measured rates: FLOPs a second of matrix products by dtype, and bytes a second read plus written."""

    flops: dict[str, float]
    copied: float

    def seconds(self, flops: int | float, read_and_written: int | float, dtype: str) -> float:
        """The least time for so many FLOPs and bytes: the longer of the two, as if each hid the other perfectly."""
        return max(flops / self.flops[dtype], read_and_written / self.copied)


def measure_floor(rounds: int) -> Floor:
    """Measures one large square product in float32 and bfloat16, and one copy of an array that no cache holds."""
    backend = jax.default_backend()
    side, mebibytes = _SIDE.get(backend, 2048), _COPIED.get(backend, 256)
    key = jax.random.key(0)
    matrices = {dtype: jax.random.normal(key, (side, side), dtype) for dtype in ("float32", "bfloat16")}
    array = jnp.ones((mebibytes * 2**20 // 4,), jnp.float32)
    multiply, copy = jax.jit(jnp.matmul), jax.jit(lambda x: -x)
    actions = {dtype: lambda x=matrix: multiply(x, x) for dtype, matrix in matrices.items()}
    timings = time_alternately({**actions, "copy": lambda: copy(array)}, rounds, warm_up=2)
    # The best round and not the median: a floor is what nothing disturbed.
    rates = {dtype: 2 * side**3 / min(timings.seconds[dtype]) for dtype in matrices}
    return Floor(rates, 2 * array.nbytes / min(timings.seconds["copy"]))


def floor(subject: Subject, rounds: int) -> list[Section]:
    """Measures what the device can do at best."""
    del subject
    return [as_section(measure_floor(rounds))]


def as_section(measured: Floor) -> Section:
    """Writes measured rates as a table."""
    text = (
        "The best of all rounds, through `jax.jit`. What a part needs at least is its FLOPs by the first or its bytes "
        "by the last, whichever takes longer."
    )
    rows: list[Row] = [[f"matrix product, {dtype}", rate / 1e9, "GFLOP/s"] for dtype, rate in measured.flops.items()]
    rows.append(["copy, read and written", measured.copied / 1e9, "GB/s"])
    figures = {f"{dtype} FLOP/s": rate for dtype, rate in measured.flops.items()} | {"copied B/s": measured.copied}
    return Section("Floor: what the device can do", text, ["", "rate", ""], rows, figures)


def part_floors(subject: Subject, rounds: int, expressions: Sequence[int] = (1, 8)) -> list[Section]:
    """Measures the floor, and every part on one image with each number of expressions."""
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
            label = f"{name}, {counted(count, 'sentence')}"
            rows.append([label, flops / 1e9, read_and_written / 1e6, least, seconds, seconds / least])
            figures[f"{name} {count}: seconds"] = seconds
            figures[f"{name} {count}: seconds / floor"] = seconds / least
    text = (
        "Each part alone, compiled, on one image and on what the parts before really give it. The least time is the "
        "longer of FLOPs / matrix rate and bytes / copy rate, bytes being parameters (without the table of words), "
        "inputs and outputs, each once; expected of a part made of large products is 1 to 2 times that, of one that is "
        "mostly small steps more."
    )
    head = ["part", "GFLOP", "MB", "least, s", "measured, s", "measured / least"]
    return [as_section(measured), Section("Parts beside the floor", text, head, rows, figures)]


def _bytes(function: Callable[..., Any], arguments: tuple[Any, ...]) -> int:
    outputs = jax.tree.leaves(jax.eval_shape(function, *arguments))
    leaves = jax.tree.leaves_with_path(arguments)
    # Of the table of words an expression reads a row a word, which is nothing beside the rest.
    read = [leaf for path, leaf in leaves if "word_embeddings" not in jax.tree_util.keystr(path)]
    return sum(leaf.size * leaf.dtype.itemsize for leaf in (*read, *outputs))
