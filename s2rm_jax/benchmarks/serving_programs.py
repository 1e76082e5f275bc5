"""How many programs are compiled for a stream of pictures and sentences of odd sizes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import jax
import numpy as np

from s2rm_jax.benchmarks.section import Row, Section
from s2rm_jax.benchmarks.subject import Subject
from s2rm_jax.segmenter import BUCKETS

_COMPILED = "/jax/core/compile/backend_compile_duration"  # JAX tells of it once for each program


class Compilations:
    """The programs that were compiled while `counting`, and the seconds that each took."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def hear(self, event: str, duration_secs: float, **kwargs: str | int) -> None:
        """Is told of everything that JAX measures of itself."""
        del kwargs
        if event == _COMPILED:
            self.seconds.append(duration_secs)


@contextmanager
def counting() -> Iterator[Compilations]:
    """Counts what is compiled inside."""
    compilations = Compilations()
    jax.monitoring.register_event_duration_secs_listener(compilations.hear)
    try:
        yield compilations
    finally:
        jax.monitoring.unregister_event_duration_listener(compilations.hear)


def serving_programs(subject: Subject, rounds: int, most: int = 8) -> list[Section]:
    """Sends `rounds` times six pictures of odd sizes, with 1 to `most` sentences of many lengths, and counts."""
    segmenter, rng = subject.segmenter(), np.random.default_rng(5)
    seconds: list[float] = []
    with counting() as compilations:
        for _ in range(6 * rounds):
            height, width = rng.integers(100, 1500, 2).tolist()
            words = subject.sentences(int(rng.integers(1, most + 1)))
            began = time.perf_counter()
            segmenter.segment(subject.picture(height, width), words)
            seconds.append(time.perf_counter() - began)
    programs, bound = len(compilations.seconds), 1 + sum(size < 2 * most for size in BUCKETS)
    text = (
        f"{len(seconds)} requests with pictures of 100 to 1,500 pixels a side and 1 to {most} sentences, one after "
        f"another. Expected: one program for pictures and one for each of the numbers {', '.join(map(str, BUCKETS))} "
        f"up to the first that holds {most}, so at most {bound}."
    )
    rows: list[Row] = [
        ["programs compiled", programs],
        ["seconds of compiling", sum(compilations.seconds)],
        ["median seconds of a request", float(np.median(seconds))],
        ["slowest request, seconds", max(seconds)],
    ]
    return [Section("Programs that a stream of odd sizes needs", text, ["", ""], rows, {"programs": programs})]
