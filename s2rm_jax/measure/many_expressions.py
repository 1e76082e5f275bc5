"""Several expressions per image through the Segmenter: their speed, and the programs that requests compile."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import jax
import numpy as np
from ml_collections import ConfigDict

from s2rm_jax.config import default_config
from s2rm_jax.measure.harness import Row, Section, Timings, jitted, time_alternately
from s2rm_jax.measure.subject import Subject, network_parts
from s2rm_jax.segmenter import BUCKETS
from s2rm_jax.training.logging import counted

EXPRESSIONS = 7.2  # mean per image of RefCOCO val, modelled as 7 for four images of five and 8 for the fifth
_SHARE_OF_8 = EXPRESSIONS - 7
_COUNTS = (1, 2, 4, 7, 8)
# Seconds of LAVT's own code in eager PyTorch, float32, 480 px, Swin-B and BERT-base, and of the Swin-B inside it,
# measured on another day on 2 CPU cores: only their ratio is used.
LAVT_SECONDS, LAVT_SWIN_SECONDS = 2.65, 1.45


def many_expressions(subject: Subject, rounds: int) -> list[Section]:
    """Measure one `encode` and one `segment` for 7.2 expressions, and 7.2 calls of `segment` with one each."""
    segmenter, image = subject.segmenter(), subject.image(480, 640)
    height, width = subject.config.input.image_size
    compare_lavt = _sizes(subject.config) == _sizes(default_config())
    encoded, texts = segmenter.encode(image), subject.expressions(max(_COUNTS))
    actions: dict[str, Callable[[], object]] = {
        f"segment {count}": partial(segmenter.segment, encoded, texts[:count]) for count in _COUNTS
    }
    actions |= {
        "single": lambda: segmenter.segment(image, texts[0]),
        "encode": lambda: segmenter.encode(image),
    }
    if compare_lavt:
        actions["vision"] = jitted(*network_parts(subject, 1, 1)["vision"].forward())
    timings = time_alternately(actions, rounds)
    seconds = {count: timings.median(f"segment {count}") for count in _COUNTS}
    unpadded = [count for count in _COUNTS if count in BUCKETS]
    slope = float(np.polyfit(unpadded, [seconds[count] for count in unpadded], 1)[0])
    per_image = _per_image(timings)
    gain = per_image.ratio("single calls", "together").median
    together, single = per_image.median("together"), timings.median("single")
    by_count: list[Row] = [
        [f"{counted(count, 'expression')} on an encoded image", seconds[count], ""] for count in _COUNTS
    ]
    rows: list[Row] = [
        ["one call with one expression", single, 1 / single],
        ["encoding alone", timings.median("encode"), ""],
        *by_count,
        [f"{EXPRESSIONS} expressions together", together, EXPRESSIONS / together],
        [f"{EXPRESSIONS} single calls", EXPRESSIONS * single, 1 / single],
    ]
    text = (
        f"`Segmenter` on an image of 480 x 640, network input {height} x {width}. {EXPRESSIONS} expressions per image "
        f"are the mean of RefCOCO val, modelled as {1 - _SHARE_OF_8:.1f} times 7 and {_SHARE_OF_8:.1f} times 8. Seven "
        "expressions are padded to eight, for which a program is kept. Together they reach "
        f"**{gain:.2f} times** the expressions per second of single calls (target: at least 4). Each further "
        f"expression costs {slope:.3g} s, the slope over 1 to 8 expressions: **{100 * slope / single:.1f} %** of the "
        "first (target: at most 15 %)."
    )
    figures = {
        "together / single, expressions a second": gain,
        "one more / first": slope / single,
        "expressions/s": EXPRESSIONS / together,
    }
    head = ["", "seconds", "expressions per second"]
    sections = [Section("Many expressions on one image", text, head, rows, figures)]
    return [*sections, _lavt(timings.median("vision"), together)] if compare_lavt else sections


def _per_image(timings: Timings) -> Timings:
    """Return the seconds per image with 7.2 expressions in each round, together and by single calls."""
    rounds = zip(*(timings.seconds[name] for name in ("encode", "segment 7", "segment 8")), strict=True)
    together = tuple(encode + (1 - _SHARE_OF_8) * seven + _SHARE_OF_8 * eight for encode, seven, eight in rounds)
    return Timings({"together": together, "single calls": tuple(EXPRESSIONS * s for s in timings.seconds["single"])})


def _sizes(config: ConfigDict) -> tuple[int, ...]:
    """Return the sizes of Swin, BERT and the image; LAVT was timed with those of the default configuration."""
    vision, text = config.vision, config.text
    encoders = (vision.embed_dim, *vision.depths, vision.window_size, text.hidden_size, text.num_layers)
    return (*encoders, *config.input.image_size)


def _lavt(vision: float, together: float) -> Section:
    ours, theirs = together / EXPRESSIONS, LAVT_SECONDS / LAVT_SWIN_SECONDS * vision
    text = (
        "Expected, not measured here. LAVT runs its encoder again for every expression. On another day, on 2 CPU cores "
        f"with its own code in eager PyTorch, one expression took {LAVT_SECONDS} s, of which the same Swin-B alone "
        f"took {LAVT_SWIN_SECONDS} s. Scaled by the time of our Swin here, assuming that both implementations are "
        f"equally fast: {LAVT_SECONDS} / {LAVT_SWIN_SECONDS} x {vision:.3g} s = {theirs:.3g} s. Ours is "
        f"{together:.3g} s / {EXPRESSIONS} = {ours:.3g} s per expression: **{theirs / ours:.1f} times** as fast "
        "(target: at least 6)."
    )
    return Section("Expected ratio to LAVT", text, (), (), {"expected LAVT / ours": theirs / ours})


_COMPILED = "/jax/core/compile/backend_compile_duration"  # one event per program


@contextmanager
def record_compilations() -> Iterator[list[float]]:
    """Record the seconds of each program that is compiled inside."""
    seconds: list[float] = []

    def record(event: str, duration_secs: float, **_: str | int) -> None:
        if event == _COMPILED:
            seconds.append(duration_secs)

    jax.monitoring.register_event_duration_secs_listener(record)
    try:
        yield seconds
    finally:
        jax.monitoring.unregister_event_duration_listener(record)


def serving_programs(subject: Subject, rounds: int, most: int = 8) -> list[Section]:
    """Count the programs compiled for 6 x `rounds` images of random sizes, each with 1 to `most` expressions."""
    segmenter, rng = subject.segmenter(), np.random.default_rng(5)
    seconds: list[float] = []
    with record_compilations() as compilations:
        for _ in range(6 * rounds):
            height, width = rng.integers(100, 1500, 2).tolist()
            texts = subject.expressions(int(rng.integers(1, most + 1)))
            start = time.perf_counter()
            segmenter.segment(subject.image(height, width), texts)
            seconds.append(time.perf_counter() - start)
    programs, bound = len(compilations), 1 + sum(size < 2 * most for size in BUCKETS)
    text = (
        f"{len(seconds)} successive requests with images of 100 to 1,500 pixels per side and 1 to {most} expressions. "
        f"Expected: one program for images, and one for each number of expressions among "
        f"{', '.join(map(str, BUCKETS))} up to the first that is at least {most}; so at most {bound} programs."
    )
    rows: list[Row] = [
        ["programs compiled", programs],
        ["compilation, seconds", sum(compilations)],
        ["median request, seconds", float(np.median(seconds))],
        ["slowest request, seconds", max(seconds)],
    ]
    return [Section("Programs compiled for requests of varying sizes", text, ["", ""], rows, {"programs": programs})]
