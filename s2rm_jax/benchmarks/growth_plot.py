"""A figure of how time grows: measured points on logarithmic axes, beside the line of the expected exponent."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from s2rm_jax.evaluation.svg import BAR, HEIGHT, INK, LINE, MUTED, WIDTH, standalone, svg, text

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
