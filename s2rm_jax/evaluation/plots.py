"""The figures of a report: bars, and a grid of nine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from s2rm_jax.evaluation.breakdown import HISTOGRAM_BINS, Group
from s2rm_jax.evaluation.svg import BAR, HEIGHT, INK, LINE, MUTED, PAPER, WIDTH, box, draw, text

_ACROSS, _DOWN = ("left", "centre", "right"), ("top", "middle", "bottom")
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 14, 46, 58  # margins around the axes


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
    step = (WIDTH - _LEFT - _RIGHT) / HISTOGRAM_BINS
    body += [text((_LEFT + i * step, HEIGHT - _BOTTOM + 17), label) for i, label in enumerate(ends) if label]
    return _figure("How well sentences are segmented", "IoU of a sentence, %", "share of sentences, %", top, body)


def groups_plot(title: str, axis: str, groups: Sequence[Group]) -> str:
    """Draws the mean IoU of groups as bars, with their bootstrap intervals and their numbers of sentences."""
    bars = [_Bar(g.mean_iou, g.interval, f"{g.mean_iou:.1f}", (g.label, f"n = {g.sentences:,}")) for g in groups]
    return _figure(title, axis, "mean IoU, %", 100, _bars(bars, 100, gap=0.3))


def places_plot(title: str, groups: Sequence[Group]) -> str:
    """Draws the mean IoU of nine places as a picture of three rows and columns; the darker, the better."""
    left, top, width, height = 120, 58, 280, 210
    body = [text((WIDTH / 2, 22), title, size=15, weight=600)]
    body.append(text((WIDTH / 2, 42), "mean IoU in %, by the ninth of the picture that holds the centroid", MUTED))
    for index, group in enumerate(groups):
        row, column = divmod(index, 3)
        x, y = left + column * width / 3, top + row * height / 3
        opacity = 0.08 + 0.77 * group.mean_iou / 100 if group.sentences else 0
        body.append(box((x, y), (width / 3, height / 3), BAR, f"opacity:{opacity:.2f}"))
        body.append(box((x, y), (width / 3, height / 3), "none", f"stroke:{PAPER};stroke-width:2"))
        middle = x + width / 6, y + height / 6
        if group.sentences:
            body.append(text((middle[0], middle[1] + 1), f"{group.mean_iou:.1f}", size=17, weight=600))
            body.append(text((middle[0], middle[1] + 19), f"n = {group.sentences:,}", size=11))
        else:
            body.append(text(middle, "none", MUTED))
    for i in range(3):
        body.append(text((left + (2 * i + 1) * width / 6, top + height + 18), _ACROSS[i], MUTED))
        body.append(text((left - 10, top + (2 * i + 1) * height / 6 + 4), _DOWN[i], MUTED, anchor="end"))
    return draw(title, body)


def _bars(bars: Sequence[_Bar], top: int, gap: float) -> list[str]:
    step = (WIDTH - _LEFT - _RIGHT) / max(1, len(bars))
    bottom = HEIGHT - _BOTTOM
    parts = []
    for index, bar in enumerate(bars):
        middle, y = _LEFT + (index + 0.5) * step, _level(bar.value, top)
        width = min(56, step * (1 - gap))
        parts.append(box((middle - width / 2, y), (width, bottom - y), BAR))
        highest = y
        if bar.whisker and bar.whisker[1] > bar.whisker[0]:
            low, high = (_level(end, top) for end in bar.whisker)
            highest = min(y, high)
            path = f"M{middle:.1f} {low:.1f}V{high:.1f}M{middle - 4:.1f} {low:.1f}h8M{middle - 4:.1f} {high:.1f}h8"
            parts.append(f'<path d="{path}" style="stroke:{INK};stroke-width:1.2;fill:none"/>')
        if bar.above:
            parts.append(text((middle, highest - 5), bar.above))
        sizes = ((INK, 12), (MUTED, 10))
        parts += [text((middle, bottom + 17 + 14 * line), words, *sizes[line]) for line, words in enumerate(bar.below)]
    return parts


def _figure(title: str, x_axis: str, y_axis: str, top: int, body: Sequence[str]) -> str:
    """Sets the axes around a body of bars: gridlines at five levels, the zero line strong."""
    back = [text((WIDTH / 2, 22), title, size=15, weight=600)]
    for tick in range(6):
        value = top * tick / 5
        y = _level(value, top)
        colour = MUTED if tick == 0 else LINE
        back.append(f'<path d="M{_LEFT} {y:.1f}H{WIDTH - _RIGHT}" style="stroke:{colour};stroke-width:1"/>')
        back.append(text((_LEFT - 7, y + 4), f"{value:g}", MUTED, 11, anchor="end"))
    middle = (_TOP + HEIGHT - _BOTTOM) / 2
    back.append(text((14, middle), y_axis, MUTED, turn=True))
    return draw(title, [*back, *body, text(((_LEFT + WIDTH - _RIGHT) / 2, HEIGHT - 8), x_axis, MUTED)])


def _level(value: float, top: int) -> float:
    return HEIGHT - _BOTTOM - (HEIGHT - _BOTTOM - _TOP) * value / top
