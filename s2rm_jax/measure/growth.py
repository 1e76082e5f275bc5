"""How time grows with the number of expressions, their length, the size of the image, and the batch.

A figure of how time grows: measured points on logarithmic axes, beside the line of the expected exponent.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from s2rm_jax.evaluation.plots import BAR, HEIGHT, INK, LINE, MUTED, WIDTH, standalone, svg, text
from s2rm_jax.measure.section import Row, Section
from s2rm_jax.measure.subject import Subject
from s2rm_jax.measure.timing import jitted, time_alternately

_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 20, 56, 50  # margins around the axes


@dataclass(frozen=True)
class _Axis:
    """Maps values between `low` and `high` to pixels between `start` and `end`, by their logarithms."""

    low: float
    high: float
    start: int
    end: int

    def __call__(self, value: int | float) -> float:
        share = math.log(value / self.low) / math.log(self.high / self.low)
        return self.start + share * (self.end - self.start)


def growth_plot(title: str, axis: str, measured: Mapping[int, float], expected: int, fitted: float) -> str:
    """Draws seconds against sizes; the expected line goes through the geometric middle of the points."""
    sizes, seconds = list(measured), list(measured.values())
    across = _Axis(min(sizes) / 1.15, max(sizes) * 1.15, _LEFT, WIDTH - _RIGHT)
    middle = [math.exp(sum(map(math.log, values)) / len(values)) for values in (sizes, seconds)]
    line = [middle[1] * (end / middle[0]) ** expected for end in (min(sizes), max(sizes))]
    low, high = min(*seconds, *line), max(*seconds, *line)
    up = _Axis(low / 1.3, high * 1.3, HEIGHT - _BOTTOM, _TOP)
    body = [text((WIDTH / 2, 22), title, size=15, weight=600)]
    body.append(text((WIDTH / 2, 42), f"measured exponent {fitted:.2f}, expected {expected:g} (dashed)", MUTED))
    for tick in _ticks(up.low, up.high):
        body.append(f'<path d="M{_LEFT} {up(tick):.1f}H{WIDTH - _RIGHT}" style="stroke:{LINE};stroke-width:1"/>')
        body.append(text((_LEFT - 7, up(tick) + 4), f"{tick:g}", MUTED, 11, anchor="end"))
    body += [text((across(size), HEIGHT - _BOTTOM + 17), f"{size:g}", MUTED, 11) for size in sizes]
    ends = [f"{across(size):.1f} {up(value):.1f}" for size, value in zip((min(sizes), max(sizes)), line, strict=True)]
    body.append(f'<path d="M{ends[0]}L{ends[1]}" style="stroke:{INK};stroke-width:1.2;stroke-dasharray:5 4"/>')
    points = [f"{across(size):.1f} {up(value):.1f}" for size, value in zip(sizes, seconds, strict=True)]
    body.append(f'<path d="M{"L".join(points)}" style="stroke:{BAR};stroke-width:2;fill:none"/>')
    circles = (point.split() for point in points)
    body += [f'<circle cx="{x}" cy="{y}" r="4" style="fill:{BAR}"/>' for x, y in circles]
    body.append(text(((_LEFT + WIDTH - _RIGHT) / 2, HEIGHT - 8), axis, MUTED))
    body.append(text((14, (_TOP + HEIGHT - _BOTTOM) / 2), "seconds", MUTED, turn=True))
    return standalone(svg(title, body))


def _ticks(low: float, high: float) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [step * 10.0**decade for decade in decades for step in (1, 2, 5) if low <= step * 10.0**decade <= high]


@dataclass(frozen=True)
class Sizes:
    """What is measured at which sizes; an image's is its side in pixels, an expression's its tokens."""

    expressions: Sequence[int] = (1, 2, 4, 8, 16)
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


EXPRESSIONS = Growth("expressions", "expressions on an encoded image", 1, "each is read, fused and decoded by itself")
PIXELS = Growth("image", "side of the image, pixels", 2, "attention stays in windows, so work goes with the area")
TOKENS = Growth("tokens", "tokens of an expression (BERT)", 1, "dense layers outweigh attention at these lengths")
BATCH = Growth("batch", "images of a batch, with an expression each", 1, "images have nothing to do with each other")


def growth(subject: Subject, rounds: int, sizes: Sizes | None = None) -> list[Section]:
    """Measures four growths and fits an exponent to each that has two sizes or more."""
    sizes = sizes or Sizes()
    tokens = [count for count in sizes.tokens if count <= subject.config.text.max_positions]
    measured = {
        EXPRESSIONS: {count: _ground(subject, count) for count in sizes.expressions},
        PIXELS: {side: jitted(*_resized(subject, side).forward(1, 1)) for side in sizes.pixels},
        TOKENS: {count: _text(subject, count) for count in tokens},
        BATCH: {count: jitted(*subject.forward(count, 1)) for count in sizes.batch},
    }
    rows: list[Row] = []
    figures, plots = {}, {}
    for what, actions in measured.items():
        if len(actions) < 2:  # as where the text encoder takes short expressions only
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
        "exponents of large sizes; a part that does not grow (what is computed once an image, padding to whole "
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


def _ground(subject: Subject, expressions: int) -> Callable[[], Any]:
    network, params, images = subject.network, subject.on_device(), subject.images(1)
    maps = jax.jit(lambda params, images: network.apply({"params": params}, images, method="encode_image"))(
        params, images
    )

    def ground(params: Any, *inputs: Any) -> Any:
        found = network.apply({"params": params}, *inputs, images.shape[1:3], method="ground")
        return found.logits  # type: ignore[union-attr]

    return jitted(ground, (params, maps, *subject.tokens(1, expressions)))


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
