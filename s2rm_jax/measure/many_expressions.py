"""Many expressions on one image, through the Segmenter as a person uses it, against as many single calls.

How many programs are compiled for a stream of images and expressions of odd sizes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import jax
import numpy as np
from ml_collections import ConfigDict

from s2rm_jax.config import default_config
from s2rm_jax.measure.section import Row, Section
from s2rm_jax.measure.subject import Subject, network_parts
from s2rm_jax.measure.timing import Timings, jitted, time_alternately
from s2rm_jax.segmenter import BUCKETS
from s2rm_jax.training.logging import counted

EXPRESSIONS = 7.2  # of an image of RefCOCO val, in the mean: as if four images of five had 7, and one had 8
_WITH_8 = EXPRESSIONS - 7  # the share of those
_COUNTS = (1, 2, 4, 7, 8)
# LAVT's own code in eager PyTorch, float32, 480 px, Swin-B and BERT-base, and the Swin-B inside it, in a trial on
# another day on 2 CPU cores: only their ratio is used.
LAVT_SECONDS, LAVT_SWIN_SECONDS = 2.65, 1.45


def many_expressions(subject: Subject, rounds: int) -> list[Section]:
    """Measures `encode` once and `segment` for 7.2 expressions against 7.2 calls of `segment` with one each."""
    segmenter, image = subject.segmenter(), subject.image(480, 640)
    height, width = subject.config.input.image_size
    beside_lavt = _sizes(subject.config) == _sizes(default_config())
    street, words = segmenter.encode(image), subject.expressions(max(_COUNTS))
    actions: dict[str, Callable[[], object]] = {
        f"further {count}": partial(segmenter.segment, street, words[:count]) for count in _COUNTS
    }
    actions |= {
        "single": lambda: segmenter.segment(image, words[0]),
        "encode": lambda: segmenter.encode(image),
    }
    if beside_lavt:
        actions["vision"] = jitted(*network_parts(subject, 1, 1)["vision"].forward())
    timings = time_alternately(actions, rounds)
    asked = {count: timings.median(f"further {count}") for count in _COUNTS}
    exact = [count for count in _COUNTS if count in BUCKETS]  # not those that are filled up
    further = float(np.polyfit(exact, [asked[count] for count in exact], 1)[0])
    per_image = _per_image(timings)
    gain = per_image.ratio("single calls", "together").median
    together, single, encode = per_image.median("together"), timings.median("single"), timings.median("encode")
    share = further / single
    rows: list[Row] = [
        ["one call with one expression", single, 1 / single],
        ["encoding alone", encode, ""],
    ]
    rows += [[f"{counted(count, 'sentence')} on an encoded image", asked[count], ""] for count in _COUNTS]
    rows += [
        [f"{EXPRESSIONS} expressions together", together, EXPRESSIONS / together],
        [f"{EXPRESSIONS} single calls", EXPRESSIONS * single, 1 / single],
    ]
    text = (
        f"`Segmenter` on an image of 480 x 640, the network's input {height} x {width}; "
        f"{EXPRESSIONS} expressions are the mean of RefCOCO val, here {1 - _WITH_8:.1f} times 7 and {_WITH_8:.1f} times 8. "
        "Seven are filled up to eight, "
        f"for which a program is kept. **{gain:.2f} times** the expressions a second of single calls (wanted: at least "
        f"4). One more expression costs {further:.3g} s, the slope over 1 to 8 of them: **{100 * share:.1f} %** of the "
        "first (wanted: at most 15 %)."
    )
    head = ["", "seconds", "expressions a second"]
    figures = {
        "together / single, expressions a second": gain,
        "one more / first": share,
        "expressions/s": EXPRESSIONS / together,
    }
    sections = [Section("Many expressions on one image", text, head, rows, figures)]
    return [*sections, _lavt(timings.median("vision"), together)] if beside_lavt else sections


def _per_image(timings: Timings) -> Timings:
    """Sums up, round by round, what an image with that many expressions takes in either way."""
    rounds = zip(*(timings.seconds[name] for name in ("encode", "further 7", "further 8")), strict=True)
    together = tuple(encode + (1 - _WITH_8) * seven + _WITH_8 * eight for encode, seven, eight in rounds)
    return Timings({"together": together, "single calls": tuple(EXPRESSIONS * s for s in timings.seconds["single"])})


def _sizes(config: ConfigDict) -> tuple[int, ...]:
    """What LAVT was timed with, and what its time depends on: Swin, BERT and the image; by default they are alike."""
    vision, text = config.vision, config.text
    encoders = (vision.embed_dim, *vision.depths, vision.window_size, text.hidden_size, text.num_layers)
    return (*encoders, *config.input.image_size)


def _lavt(vision: float, together: float) -> Section:
    ours, theirs = together / EXPRESSIONS, LAVT_SECONDS / LAVT_SWIN_SECONDS * vision
    text = (
        "Expected, not measured here. LAVT runs its encoder again for every expression: in a trial on another day on "
        f"2 CPU cores, its own code, PyTorch eager, it took {LAVT_SECONDS} s each, of which the same Swin-B alone took "
        f"{LAVT_SWIN_SECONDS} s. Scaled by the time that our Swin takes now, which is taken to be as fast as theirs: "
        f"{LAVT_SECONDS} / {LAVT_SWIN_SECONDS} x {vision:.3g} s = {theirs:.3g} s. Ours is {together:.3g} s / "
        f"{EXPRESSIONS} = {ours:.3g} s per expression: **{theirs / ours:.1f} times** as fast (wanted: at least 6)."
    )
    return Section("Expected beside LAVT", text, (), (), {"expected LAVT / ours": theirs / ours})


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
    """Sends `rounds` times six images of odd sizes, with 1 to `most` expressions of many lengths, and counts."""
    segmenter, rng = subject.segmenter(), np.random.default_rng(5)
    seconds: list[float] = []
    with counting() as compilations:
        for _ in range(6 * rounds):
            height, width = rng.integers(100, 1500, 2).tolist()
            words = subject.expressions(int(rng.integers(1, most + 1)))
            began = time.perf_counter()
            segmenter.segment(subject.image(height, width), words)
            seconds.append(time.perf_counter() - began)
    programs, bound = len(compilations.seconds), 1 + sum(size < 2 * most for size in BUCKETS)
    text = (
        f"{len(seconds)} requests with images of 100 to 1,500 pixels a side and 1 to {most} expressions, one after "
        f"another. Expected: one program for images and one for each of the numbers {', '.join(map(str, BUCKETS))} "
        f"up to the first that holds {most}, so at most {bound}."
    )
    rows: list[Row] = [
        ["programs compiled", programs],
        ["seconds of compiling", sum(compilations.seconds)],
        ["median seconds of a request", float(np.median(seconds))],
        ["slowest request, seconds", max(seconds)],
    ]
    return [Section("Programs that a stream of odd sizes needs", text, ["", ""], rows, {"programs": programs})]
