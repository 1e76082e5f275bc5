"""The plots of an ablation suite, as SVG: learning curves, scores by group, and paired differences with intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from s2rm_jax.evaluation.plots import (
    BAR,
    BOTTOM,
    HEIGHT,
    INK,
    LEFT,
    LINE,
    MUTED,
    PAPER,
    TOP,
    WIDTH,
    axes,
    box,
    level,
    svg,
    text,
)

_LEGEND = 170  # pixels at the right edge
_NAMES = 190  # pixels at the left edge, at least
_LETTER = 6.4  # pixels of a letter of a name, about
_COLOURS = ("#181c21", "#2f7fc1", "#d55e00", "#009e73", "#cc79a7", "#8a6d00", "#56b4e9", "#7b3fb5")

Points = Sequence[tuple[float, float]]  # (x, mean IoU in percent)


def curves_plot(title: str, axis: str, series: Mapping[str, Points]) -> str:
    """Draw a line per variant over numbers such as steps; the ticks are x values of the longest line."""
    longest = max(series.values(), key=len)
    every = -(-len(longest) // 6)
    ticks = {x: f"{x:g}" for x, _ in longest[::-1][::every]}
    return _figure(title, axis, series, ticks, joined=True)


def scores_plot(title: str, axis: str, series: Mapping[str, Mapping[str, float]]) -> str:
    """Draw a mark per variant above the name of each group."""
    return _figure(title, axis, *_by_name(series), joined=False)


def gains_plot(title: str, axis: str, gains: Mapping[str, Mapping[str, tuple[float, float, float]]]) -> str:
    """Draw the gain over each variant above the name of each group.

    The axis shows all means, and intervals up to 20 points; a longer one ends at the border of the plot.

    Args:
        title: of the figure.
        axis: the title of the x axis.
        gains: {variant: {group: (mean, low, high) in points of mean IoU}}.
    """
    triples = [triple for of_variant in gains.values() for triple in of_variant.values()]
    step, below, _ = _steps_of_axis(triples)
    scale = ("gain in mean IoU", -step * below, step * (5 - below))
    return _figure(title, axis, *_by_name(gains), joined=False, scale=scale)


def differences_plot(title: str, differences: Mapping[str, tuple[float, float, float]]) -> str:
    """Draw a row per variant: the difference of its mean IoU with its interval; filled if the interval excludes 0.

    The axis shows all means, and intervals up to 20 points; a longer one ends at the border of the plot.

    Args:
        title: of the figure.
        differences: {variant: (mean, low, high) in points of mean IoU}.
    """
    left, right = max(_NAMES, 20 + _LETTER * max(map(len, differences))), WIDTH - 60
    step, below, above = _steps_of_axis(list(differences.values()))

    def place(value: float) -> float:
        steps = min(max(value / step, -below), above)
        return left + (right - left) * (steps + below) / (below + above)

    body = [text((WIDTH / 2, 22), title, size=15, weight=600)]
    for tick in range(-step * below, step * above + 1, step):
        x = place(float(tick))
        path = f"M{x:.1f} {TOP}V{HEIGHT - BOTTOM}"
        body.append(f'<path d="{path}" style="stroke:{LINE if tick else MUTED};stroke-width:1"/>')
        body.append(text((x, HEIGHT - BOTTOM + 17), str(tick), MUTED, 11))
    row = (HEIGHT - BOTTOM - TOP) / len(differences)
    for index, (name, (mean, low, high)) in enumerate(differences.items()):
        y = TOP + (index + 0.5) * row
        fill = BAR if low > 0 or high < 0 else PAPER
        path = f"M{place(low):.1f} {y:.1f}H{place(high):.1f}"
        body.append(f'<path d="{path}" style="stroke:{BAR};stroke-width:1.2;fill:none"/>')
        body.append(f'<circle cx="{place(mean):.1f}" cy="{y:.1f}" r="3.5" style="fill:{fill};stroke:{BAR}"/>')
        body.append(text((left - 10, y + 4), name, INK, 11, anchor="end"))
        body.append(text((WIDTH - 12, y + 4), f"{mean:+.1f}", INK, 11, anchor="end"))
    axis = "difference of mean IoU in points, with 95 % interval"
    return svg(title, [*body, text(((left + right) / 2, HEIGHT - 12), axis, MUTED)])


def _steps_of_axis(triples: Sequence[tuple[float, float, float]]) -> tuple[int, int, int]:
    """Return the axis that shows 0, all (mean, low, high), and intervals of up to 20 points, with at most five steps.

    Returns:
        The size of a step, and the numbers of steps below and above 0.
    """
    shown = np.array([(mean, max(low, -20.0), min(high, 20.0)) for mean, low, high in triples])
    for step in (1, 2, 5, 10, 20, 40, 80):
        below, above = max(1, math.ceil(-shown.min() / step)), max(0, math.ceil(shown.max() / step))
        if below + above <= 5:
            break
    return step, below, above


def _by_name(series: Mapping[str, Mapping[str, Any]]) -> tuple[dict[str, list[tuple[float, Any]]], dict[float, str]]:
    """Return the points (number of the group, value) of each series, and the names of the groups by their numbers."""
    names = list(dict.fromkeys(name for values in series.values() for name in values))
    points = {
        variant: [(float(names.index(name)), value) for name, value in values.items()]
        for variant, values in series.items()
    }
    return points, {float(index): name for index, name in enumerate(names)}


_IOU_AXIS = ("mean IoU, %", 0, 100)


def _figure(
    title: str,
    axis: str,
    series: Mapping[str, Sequence[tuple[float, Any]]],
    ticks: Mapping[float, str],
    *,
    joined: bool,
    scale: tuple[str, int, int] = _IOU_AXIS,
) -> str:
    """Draw series of (x, y); y is a number or (mean, low, high); `scale` is (title, bottom, top) of the y axis."""
    low = min(0.0, *ticks) if joined else -0.5
    high = max(ticks) if joined else len(ticks) - 0.5
    across = WIDTH - LEFT - _LEGEND

    def place(x: float) -> float:
        return LEFT + across * (x - low) / ((high - low) or 1)

    y_axis, bottom, top = scale

    def height(y: float) -> float:
        return level(float(min(max(y, bottom), top)), top, bottom)

    body = [text((place(x), HEIGHT - BOTTOM + 17), label, INK, 11) for x, label in ticks.items()]
    for index, (name, points) in enumerate(series.items()):
        colour = _COLOURS[index % len(_COLOURS)]
        # The second round of colours has hollow marks and dashed lines.
        fill, dashes = (PAPER, "5 3") if index // len(_COLOURS) % 2 else (colour, "none")
        shift = 0 if joined else (index - (len(series) - 1) / 2) * min(9.0, 0.8 * across / len(ticks) / len(series))
        spans = [(place(x) + shift, [height(one) for one in np.atleast_1d(y)]) for x, y in points]
        centres = [(x, levels[0]) for x, levels in spans]
        for x, (_, *ends) in spans:
            if ends:
                line = f"M{x:.1f} {ends[0]:.1f}V{ends[1]:.1f}"
                body.append(f'<path d="{line}" style="stroke:{colour};stroke-width:1.2;fill:none"/>')
        if joined and centres:
            line = "L".join(f"{x:.1f} {y:.1f}" for x, y in centres)
            style = f"stroke:{colour};stroke-width:1.6;stroke-dasharray:{dashes};fill:none"
            body.append(f'<path d="M{line}" style="{style}"/>')
        mark = f"fill:{fill};stroke:{colour}"
        body += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" style="{mark}"/>' for x, y in centres]
        y = TOP + 16 * index
        body.append(box((WIDTH - _LEGEND + 14, y - 8), (10, 10), fill, f"stroke:{colour}"))
        body.append(text((WIDTH - _LEGEND + 29, y + 1), name, MUTED, 11, anchor="start"))
    return axes(title, axis, y_axis, top, body, bottom=bottom)
