"""How variants compare, as figures: one colour a variant, over steps or over groups of sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from s2rm_jax.evaluation.svg import BOTTOM, HEIGHT, INK, LEFT, MUTED, TOP, WIDTH, axes, box, level, text

_LEGEND = 170  # pixels at the right
_COLOURS = ("#181c21", "#2f7fc1", "#d55e00", "#009e73", "#cc79a7", "#8a6d00", "#56b4e9", "#7b3fb5")

Points = Sequence[tuple[float, float]]  # (x, mean IoU in percent)


def curves(title: str, axis: str, series: Mapping[str, Points]) -> str:
    """Draws lines over numbers, such as steps; the axis has the numbers of the longest line that fit."""
    longest = max(series.values(), key=len)
    every = -(-len(longest) // 6)
    ticks = {x: f"{x:g}" for x, _ in longest[::-1][::every]}
    return _figure(title, axis, series, ticks, joined=True)


def groups(title: str, axis: str, series: Mapping[str, Mapping[str, float]]) -> str:
    """Draws a mark for each variant above the name of each group."""
    names = list(dict.fromkeys(name for values in series.values() for name in values))
    points = {
        variant: [(float(names.index(name)), value) for name, value in values.items()]
        for variant, values in series.items()
    }
    return _figure(title, axis, points, {float(index): name for index, name in enumerate(names)}, joined=False)


def _figure(title: str, axis: str, series: Mapping[str, Points], ticks: Mapping[float, str], joined: bool) -> str:
    low = min(0.0, *ticks) if joined else -0.5
    high = max(ticks) if joined else len(ticks) - 0.5
    across = WIDTH - LEFT - _LEGEND

    def place(x: float) -> float:
        return LEFT + across * (x - low) / ((high - low) or 1)

    body = [text((place(x), HEIGHT - BOTTOM + 17), label, INK, 11) for x, label in ticks.items()]
    for index, (name, points) in enumerate(series.items()):
        colour = _COLOURS[index % len(_COLOURS)]
        shift = 0 if joined else (index - (len(series) - 1) / 2) * min(9.0, 0.8 * across / len(ticks) / len(series))
        spots = [(place(x) + shift, level(y, 100)) for x, y in points]
        if joined and spots:
            line = "L".join(f"{x:.1f} {y:.1f}" for x, y in spots)
            body.append(f'<path d="M{line}" style="stroke:{colour};stroke-width:1.6;fill:none"/>')
        body += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" style="fill:{colour}"/>' for x, y in spots]
        y = TOP + 16 * index
        body.append(box((WIDTH - _LEGEND + 14, y - 8), (10, 10), colour))
        body.append(text((WIDTH - _LEGEND + 29, y + 1), name, MUTED, 11, anchor="start"))
    return axes(title, axis, "mean IoU, %", 100, body)
