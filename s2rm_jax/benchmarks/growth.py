"""How time grows with the number of sentences, their length, the size of the picture, and the batch."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from s2rm_jax.benchmarks.growth_plot import growth_plot
from s2rm_jax.benchmarks.section import Row, Section
from s2rm_jax.benchmarks.subject import Subject
from s2rm_jax.benchmarks.timing import jitted, time_alternately


@dataclass(frozen=True)
class Sizes:
    """What is measured at which sizes; a picture's is its side in pixels, a sentence's its tokens."""

    sentences: Sequence[int] = (1, 2, 4, 8, 16)
    pixels: Sequence[int] = (224, 320, 480, 640)
    tokens: Sequence[int] = (10, 20, 40, 80)
    batch: Sequence[int] = (1, 2, 4)


@dataclass(frozen=True)
class Growth:
    """One thing that grows: what is timed, the exponent that is expected of it, and why."""

    name: str
    axis: str
    expected: int
    reason: str


SENTENCES = Growth("sentences", "sentences on an encoded picture", 1, "each is read, fused and decoded by itself")
PIXELS = Growth("picture", "side of the picture, pixels", 2, "attention stays in windows, so work goes with the area")
TOKENS = Growth("tokens", "tokens of a sentence (BERT)", 1, "dense layers outweigh attention at these lengths")
BATCH = Growth("batch", "pictures of a batch, with a sentence each", 1, "pictures have nothing to do with each other")


def growth(subject: Subject, rounds: int, sizes: Sizes | None = None) -> list[Section]:
    """Measures four growths and fits an exponent to each that has two sizes or more."""
    sizes = sizes or Sizes()
    tokens = [count for count in sizes.tokens if count <= subject.config.text.max_positions]
    measured = {
        SENTENCES: {count: _ground(subject, count) for count in sizes.sentences},
        PIXELS: {side: jitted(*_resized(subject, side).forward(1, 1)) for side in sizes.pixels},
        TOKENS: {count: _text(subject, count) for count in tokens},
        BATCH: {count: jitted(*subject.forward(count, 1)) for count in sizes.batch},
    }
    rows: list[Row] = []
    figures, plots = {}, {}
    for what, actions in measured.items():
        if len(actions) < 2:  # as where the text encoder takes short sentences only
            continue
        seconds = _seconds(actions, rounds)
        exponent = fitted_exponent(list(seconds), list(seconds.values()))
        times = ", ".join(f"{size}: {time:.3g}" for size, time in seconds.items())
        rows.append([what.axis, times, exponent, what.expected, what.reason])
        figures[f"{what.name}: exponent"] = exponent
        plot = growth_plot(f"Time by {what.axis}", what.axis, seconds, what.expected, exponent)
        plots[f"growth_{what.name}.svg"] = plot
    text = (
        "Medians in seconds, and the exponent e of time = a x size^e, fitted to the logarithms. Expected are the "
        "exponents of large sizes; a part that does not grow (what is computed once a picture, padding to whole "
        "windows) makes the measured one smaller."
    )
    head = ["what grows", "size: seconds", "exponent", "expected", "because"]
    return [Section("How time grows", text, head, rows, figures, plots)]


def fitted_exponent(sizes: Sequence[int], seconds: Sequence[float]) -> float:
    """Returns the slope of log seconds over log size, by least squares."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def _seconds(actions: Mapping[int, Callable[[], Any]], rounds: int) -> dict[int, float]:
    timings = time_alternately({str(size): action for size, action in actions.items()}, rounds)
    return {size: timings.median(str(size)) for size in actions}


def _ground(subject: Subject, sentences: int) -> Callable[[], Any]:
    network, params, images = subject.network, subject.on_device(), subject.images(1)
    maps = jax.jit(lambda params, images: network.apply({"params": params}, images, method="encode_image"))(
        params, images
    )

    def ground(params: Any, *inputs: Any) -> Any:
        found = network.apply({"params": params}, *inputs, images.shape[1:3], method="ground")
        return found.logits  # type: ignore[union-attr]

    return jitted(ground, (params, maps, *subject.tokens(1, sentences)))


def _text(subject: Subject, tokens: int) -> Callable[[], Any]:
    longer = _changed(subject, lambda config: config.text.update({"max_tokens": tokens}))
    ids, mask = longer.tokens(1, 1)

    def read(params: Any, *inputs: Any) -> Any:
        return subject.network.text.apply({"params": params}, *inputs)

    return jitted(read, (subject.on_device()["text"], ids[0], mask[0]))


def _resized(subject: Subject, side: int) -> Subject:
    return _changed(subject, lambda config: config.input.update({"image_size": (side, side)}))


def _changed(subject: Subject, change: Callable[[ConfigDict], None]) -> Subject:
    config = copy.deepcopy(subject.config).unlock()
    change(config)
    return dataclasses.replace(subject, config=config)
