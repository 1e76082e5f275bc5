"""The figures of a report as SVG, written by hand: bars and a grid of nine need no plotting library.

Colours are CSS variables with a fallback, so that the figures follow the light or dark style of the page they stand in;
`standalone` puts the fallbacks in, for files that go into papers.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from typing import Any, NamedTuple

from s2rm_jax.evaluation.breakdown import HISTOGRAM_BINS, Group

_INK, _MUTED, _LINE = "var(--ink, #181c21)", "var(--muted, #5d6670)", "var(--line, #dfe3e8)"
_PAPER, _BAR = "var(--card, #ffffff)", "var(--bar, #2f7fc1)"
_ACROSS, _DOWN = ("left", "centre", "right"), ("top", "middle", "bottom")
_WIDTH, _HEIGHT = 520, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 14, 46, 58  # margins around the axes


_Point = tuple[float | int, float | int]


class _Bar(NamedTuple):
    """A bar in the units of the axis; `whisker` is (low, high); `above` and `below` are written there."""

    value: float
    whisker: tuple[float, float] | None = None
    above: str = ""
    below: Sequence[str] = ()


def histogram_plot(counts: Sequence[int]) -> str:
    """Draws how many sentences have which IoU; `counts` are those of `breakdown.histogram`."""
    total = max(1, sum(counts))
    shares = [100 * count / total for count in counts]
    top = next(top for top in (10, 25, 50, 75, 100) if top >= max(shares))
    ends = [f"{100 * i // HISTOGRAM_BINS}" if i % 4 == 0 else "" for i in range(HISTOGRAM_BINS + 1)]
    body = _bars([_Bar(share) for share in shares], top, gap=0.08)
    step = (_WIDTH - _LEFT - _RIGHT) / HISTOGRAM_BINS
    body += [_text((_LEFT + i * step, _HEIGHT - _BOTTOM + 17), label) for i, label in enumerate(ends) if label]
    return _figure("How well sentences are segmented", "IoU of a sentence, %", "share of sentences, %", top, body)


def groups_plot(title: str, axis: str, groups: Sequence[Group]) -> str:
    """Draws the mean IoU of groups as bars, with their bootstrap intervals and their numbers of sentences."""
    bars = [_Bar(g.mean_iou, g.interval, f"{g.mean_iou:.1f}", (g.label, f"n = {g.sentences:,}")) for g in groups]
    return _figure(title, axis, "mean IoU, %", 100, _bars(bars, 100, gap=0.3))


def places_plot(title: str, groups: Sequence[Group]) -> str:
    """Draws the mean IoU of nine places as a picture of three rows and columns; the darker, the better."""
    left, top, width, height = 120, 58, 280, 210
    body = [_text((_WIDTH / 2, 22), title, size=15, weight=600)]
    body.append(_text((_WIDTH / 2, 42), "mean IoU in %, by the ninth of the picture that holds the centroid", _MUTED))
    for index, group in enumerate(groups):
        row, column = divmod(index, 3)
        x, y = left + column * width / 3, top + row * height / 3
        opacity = 0.08 + 0.77 * group.mean_iou / 100 if group.sentences else 0
        body.append(_box((x, y), (width / 3, height / 3), _BAR, f"opacity:{opacity:.2f}"))
        body.append(_box((x, y), (width / 3, height / 3), "none", f"stroke:{_PAPER};stroke-width:2"))
        middle = x + width / 6, y + height / 6
        if group.sentences:
            body.append(_text((middle[0], middle[1] + 1), f"{group.mean_iou:.1f}", size=17, weight=600))
            body.append(_text((middle[0], middle[1] + 19), f"n = {group.sentences:,}", size=11))
        else:
            body.append(_text(middle, "none", _MUTED))
    for i in range(3):
        body.append(_text((left + (2 * i + 1) * width / 6, top + height + 18), _ACROSS[i], _MUTED))
        body.append(_text((left - 10, top + (2 * i + 1) * height / 6 + 4), _DOWN[i], _MUTED, anchor="end"))
    return _svg(title, body)


def standalone(svg: str) -> str:
    """Returns the figure with plain colours on a white ground, for a file of its own."""
    ground = f'<rect width="{_WIDTH}" height="{_HEIGHT}" style="fill:{_PAPER}"/>'
    return re.sub(r"var\(--\w+, (#\w+)\)", r"\1", svg.replace("</title>", f"</title>{ground}", 1)) + "\n"


def _bars(bars: Sequence[_Bar], top: int, gap: float) -> list[str]:
    step = (_WIDTH - _LEFT - _RIGHT) / max(1, len(bars))
    bottom = _HEIGHT - _BOTTOM
    parts = []
    for index, bar in enumerate(bars):
        middle, y = _LEFT + (index + 0.5) * step, _level(bar.value, top)
        width = min(56, step * (1 - gap))
        parts.append(_box((middle - width / 2, y), (width, bottom - y), _BAR))
        highest = y
        if bar.whisker and bar.whisker[1] > bar.whisker[0]:
            low, high = (_level(end, top) for end in bar.whisker)
            highest = min(y, high)
            path = f"M{middle:.1f} {low:.1f}V{high:.1f}M{middle - 4:.1f} {low:.1f}h8M{middle - 4:.1f} {high:.1f}h8"
            parts.append(f'<path d="{path}" style="stroke:{_INK};stroke-width:1.2;fill:none"/>')
        if bar.above:
            parts.append(_text((middle, highest - 5), bar.above))
        sizes = ((_INK, 12), (_MUTED, 10))
        parts += [_text((middle, bottom + 17 + 14 * line), words, *sizes[line]) for line, words in enumerate(bar.below)]
    return parts


def _figure(title: str, x_axis: str, y_axis: str, top: int, body: Sequence[str]) -> str:
    """Sets the axes around a body of bars: gridlines at five levels, the zero line strong."""
    back = [_text((_WIDTH / 2, 22), title, size=15, weight=600)]
    for tick in range(6):
        value = top * tick / 5
        y = _level(value, top)
        colour = _MUTED if tick == 0 else _LINE
        back.append(f'<path d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}" style="stroke:{colour};stroke-width:1"/>')
        back.append(_text((_LEFT - 7, y + 4), f"{value:g}", _MUTED, 11, anchor="end"))
    middle = (_TOP + _HEIGHT - _BOTTOM) / 2
    back.append(_text((14, middle), y_axis, _MUTED, turn=True))
    return _svg(title, [*back, *body, _text(((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 8), x_axis, _MUTED)])


def _level(value: float, top: int) -> float:
    return _HEIGHT - _BOTTOM - (_HEIGHT - _BOTTOM - _TOP) * value / top


def _svg(title: str, body: Sequence[str]) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img"'
    return f'{head} font-family="system-ui, sans-serif"><title>{escape(title)}</title>{"".join(body)}</svg>'


def _box(at: _Point, size: _Point, colour: str, style: str = "") -> str:
    place = f'x="{at[0]:.1f}" y="{at[1]:.1f}" width="{size[0]:.1f}" height="{size[1]:.1f}"'
    return f'<rect {place} style="fill:{colour};{style}"/>'


def _text(at: _Point, words: str, colour: str = _INK, size: int = 12, **more: Any) -> str:
    """Writes centred words; `anchor` and `weight` may differ, and `turn` writes them upwards."""
    turned = f' transform="rotate(-90 {at[0]:.1f} {at[1]:.1f})"' if more.get("turn") else ""
    style = f"fill:{colour};font-size:{size}px;font-weight:{more.get('weight', 400)}"
    style += f";text-anchor:{more.get('anchor', 'middle')}"
    return f'<text x="{at[0]:.1f}" y="{at[1]:.1f}"{turned} style="{style}">{escape(words)}</text>'
