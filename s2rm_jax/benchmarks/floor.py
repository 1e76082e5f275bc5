"""What the device can do at best: how fast it multiplies matrices, and how fast it copies memory."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from s2rm_jax.benchmarks.section import Row, Section
from s2rm_jax.benchmarks.subject import Subject
from s2rm_jax.benchmarks.timing import time_alternately

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
