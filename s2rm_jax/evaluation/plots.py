"""The plots of a report, as SVG.

The SVG is written by hand: a plotting library would be a dependency for bars and a grid of nine cells, and the page of
a report must need no other file.

Colours are CSS variables with a fallback, so that plots follow the light or dark style of their page; `standalone`
replaces them by the fallbacks, for files that go into papers.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from typing import Any, NamedTuple

from s2rm_jax.evaluation.bootstrap import HISTOGRAM_BINS, ScoreGroup
from s2rm_jax.evaluation.calibration import Bin, expected_calibration_error

INK, MUTED, LINE = "var(--ink, #181c21)", "var(--muted, #5d6670)", "var(--line, #dfe3e8)"
PAPER, BAR = "var(--card, #ffffff)", "var(--bar, #2f7fc1)"
WIDTH, HEIGHT = 520, 300
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 46, 58  # margins around the axes

_COLUMNS, _ROWS = ("left", "centre", "right"), ("top", "middle", "bottom")

Point = tuple[float | int, float | int]


class _Bar(NamedTuple):
    """A bar in the units of the axis; `whisker` is (low, high); `above` and `below` are its labels."""

    value: float
    whisker: tuple[float, float] | None = None
    above: str = ""
    below: Sequence[str] = ()


def standalone(figure: str) -> str:
    """Return the figure with fixed colours on a white background, as the content of an SVG file."""
    ground = f'<rect width="{WIDTH}" height="{HEIGHT}" style="fill:{PAPER}"/>'
    return re.sub(r"var\(--\w+, (#\w+)\)", r"\1", figure.replace("</title>", f"</title>{ground}", 1)) + "\n"


def axes(title: str, x_axis: str, y_axis: str, top: int, body: Sequence[str], *, bottom: int = 0) -> str:
    """Return a figure with axes around `body`: the y axis goes from `bottom` to `top` and has five gridlines."""
    back = [text((WIDTH / 2, 22), title, size=15, weight=600)]
    for tick in range(6):
        value = bottom + (top - bottom) * tick / 5
        y = level(value, top, bottom)
        colour = MUTED if value == 0 else LINE
        back.append(f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" style="stroke:{colour};stroke-width:1"/>')
        back.append(text((LEFT - 7, y + 4), f"{value:g}", MUTED, 11, anchor="end"))
    middle = (TOP + HEIGHT - BOTTOM) / 2
    back.append(text((14, middle), y_axis, MUTED, turn=True))
    return svg(title, [*back, *body, text(((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8), x_axis, MUTED)])


def level(value: float, top: int, bottom: int = 0) -> float:
    """Return the y coordinate of a value on the axis from `bottom` to `top`."""
    return HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) * (value - bottom) / (top - bottom)


def svg(title: str, body: Sequence[str]) -> str:
    """Return a figure made of these elements."""
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img"'
    return f'{head} font-family="system-ui, sans-serif"><title>{escape(title)}</title>{"".join(body)}</svg>'


def box(at: Point, size: Point, colour: str, style: str = "") -> str:
    """Return a filled box, given by its upper left corner and its size."""
    place = f'x="{at[0]:.1f}" y="{at[1]:.1f}" width="{size[0]:.1f}" height="{size[1]:.1f}"'
    return f'<rect {place} style="fill:{colour};{style}"/>'


def text(at: Point, content: str, colour: str = INK, size: int = 12, **more: Any) -> str:
    """Return a line of text; options are `anchor` (default middle), `weight` (400) and `turn` (written upwards)."""
    turned = f' transform="rotate(-90 {at[0]:.1f} {at[1]:.1f})"' if more.get("turn") else ""
    style = f"fill:{colour};font-size:{size}px;font-weight:{more.get('weight', 400)}"
    style += f";text-anchor:{more.get('anchor', 'middle')}"
    return f'<text x="{at[0]:.1f}" y="{at[1]:.1f}"{turned} style="{style}">{escape(content)}</text>'


def histogram_plot(counts: Sequence[int]) -> str:
    """Plot the distribution of the IoU; `counts` are those of `bootstrap.histogram`."""
    total = max(1, sum(counts))
    shares = [100 * count / total for count in counts]
    top = next(top for top in (10, 25, 50, 75, 100) if top >= max(shares))
    labels = [f"{100 * i // HISTOGRAM_BINS}" if i % 4 == 0 else "" for i in range(HISTOGRAM_BINS + 1)]
    body = _bars([_Bar(share) for share in shares], top, gap=0.08)
    step = (WIDTH - LEFT - RIGHT) / HISTOGRAM_BINS
    body += [text((LEFT + i * step, HEIGHT - BOTTOM + 17), label) for i, label in enumerate(labels) if label]
    return axes("IoU of the expressions", "IoU of an expression, %", "share of expressions, %", top, body)


def reliability_plot(bins: Sequence[Bin]) -> str:
    """Plot the share of correct masks by score, with a line where the two are equal; `bins` divide [0, 1]."""
    bars = [_Bar(100 * one.correct, above=f"{one.count:,}" if one.count else "") for one in bins]
    body = _bars(bars, 100, gap=0.08)
    body.append(
        f'<path d="M{LEFT} {HEIGHT - BOTTOM}L{WIDTH - RIGHT} {TOP}" style="stroke:{INK};stroke-dasharray:5 4"/>'
    )
    step = (WIDTH - LEFT - RIGHT) / len(bins)
    labels = range(0, len(bins) + 1, 2)
    body += [text((LEFT + i * step, HEIGHT - BOTTOM + 17), f"{100 * i / len(bins):g}") for i in labels]
    title = f"Reliability: expected calibration error {100 * expected_calibration_error(bins):.1f} %"
    return axes(title, "score of a mask, %, with the number of masks", "correct masks, %", 100, body)


def groups_plot(title: str, axis: str, groups: Sequence[ScoreGroup]) -> str:
    """Plot the mean IoU of groups as bars, with bootstrap intervals and numbers of expressions."""
    bars = [_Bar(g.mean_iou, g.interval, f"{g.mean_iou:.1f}", (g.label, f"n = {g.expressions:,}")) for g in groups]
    return axes(title, axis, "mean IoU, %", 100, _bars(bars, 100, gap=0.3))


def places_plot(title: str, groups: Sequence[ScoreGroup]) -> str:
    """Plot the mean IoU of nine places as a grid; a darker cell has a higher IoU."""
    left, top, width, height = 120, 58, 280, 210
    body = [text((WIDTH / 2, 22), title, size=15, weight=600)]
    body.append(text((WIDTH / 2, 42), "mean IoU in %, by the ninth of the image that contains the centroid", MUTED))
    for index, group in enumerate(groups):
        row, column = divmod(index, 3)
        x, y = left + column * width / 3, top + row * height / 3
        opacity = 0.08 + 0.77 * group.mean_iou / 100 if group.expressions else 0
        body.append(box((x, y), (width / 3, height / 3), BAR, f"opacity:{opacity:.2f}"))
        body.append(box((x, y), (width / 3, height / 3), "none", f"stroke:{PAPER};stroke-width:2"))
        middle = x + width / 6, y + height / 6
        if group.expressions:
            body.append(text((middle[0], middle[1] + 1), f"{group.mean_iou:.1f}", size=17, weight=600))
            body.append(text((middle[0], middle[1] + 19), f"n = {group.expressions:,}", size=11))
        else:
            body.append(text(middle, "none", MUTED))
    for i in range(3):
        body.append(text((left + (2 * i + 1) * width / 6, top + height + 18), _COLUMNS[i], MUTED))
        body.append(text((left - 10, top + (2 * i + 1) * height / 6 + 4), _ROWS[i], MUTED, anchor="end"))
    return svg(title, body)


def _bars(bars: Sequence[_Bar], top: int, gap: float) -> list[str]:
    step = (WIDTH - LEFT - RIGHT) / max(1, len(bars))
    bottom = HEIGHT - BOTTOM
    parts = []
    for index, bar in enumerate(bars):
        middle, y = LEFT + (index + 0.5) * step, level(bar.value, top)
        width = min(56, step * (1 - gap))
        parts.append(box((middle - width / 2, y), (width, bottom - y), BAR))
        highest = y
        if bar.whisker and bar.whisker[1] > bar.whisker[0]:
            low, high = (level(end, top) for end in bar.whisker)
            highest = min(y, high)
            path = f"M{middle:.1f} {low:.1f}V{high:.1f}M{middle - 4:.1f} {low:.1f}h8M{middle - 4:.1f} {high:.1f}h8"
            parts.append(f'<path d="{path}" style="stroke:{INK};stroke-width:1.2;fill:none"/>')
        if bar.above:
            parts.append(text((middle, highest - 5), bar.above))
        sizes = ((INK, 12), (MUTED, 10))
        parts += [text((middle, bottom + 17 + 14 * line), label, *sizes[line]) for line, label in enumerate(bar.below)]
    return parts
