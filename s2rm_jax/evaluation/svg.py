"""Figures as SVG, written by hand: the pieces of which plots are put together.

Colours are CSS variables with a fallback, so that the figures follow the light or dark style of the page they stand in;
`standalone` puts the fallbacks in, for files that go into papers.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from typing import Any

INK, MUTED, LINE = "var(--ink, #181c21)", "var(--muted, #5d6670)", "var(--line, #dfe3e8)"
PAPER, BAR = "var(--card, #ffffff)", "var(--bar, #2f7fc1)"
WIDTH, HEIGHT = 520, 300
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 46, 58  # margins around the axes

Point = tuple[float | int, float | int]


def standalone(figure: str) -> str:
    """Returns the figure with plain colours on a white ground, for a file of its own."""
    ground = f'<rect width="{WIDTH}" height="{HEIGHT}" style="fill:{PAPER}"/>'
    return re.sub(r"var\(--\w+, (#\w+)\)", r"\1", figure.replace("</title>", f"</title>{ground}", 1)) + "\n"


def axes(title: str, x_axis: str, y_axis: str, top: int, body: Sequence[str]) -> str:
    """Sets the axes around a body: gridlines at five levels, the zero line strong."""
    back = [text((WIDTH / 2, 22), title, size=15, weight=600)]
    for tick in range(6):
        value = top * tick / 5
        y = level(value, top)
        colour = MUTED if tick == 0 else LINE
        back.append(f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" style="stroke:{colour};stroke-width:1"/>')
        back.append(text((LEFT - 7, y + 4), f"{value:g}", MUTED, 11, anchor="end"))
    middle = (TOP + HEIGHT - BOTTOM) / 2
    back.append(text((14, middle), y_axis, MUTED, turn=True))
    return svg(title, [*back, *body, text(((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8), x_axis, MUTED)])


def level(value: float, top: int) -> float:
    """Returns the height on the page of a value on the axis from 0 to `top`."""
    return HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) * value / top


def svg(title: str, body: Sequence[str]) -> str:
    """Returns the figure of these parts."""
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img"'
    return f'{head} font-family="system-ui, sans-serif"><title>{escape(title)}</title>{"".join(body)}</svg>'


def box(at: Point, size: Point, colour: str, style: str = "") -> str:
    """Draws a filled box from its upper left corner."""
    place = f'x="{at[0]:.1f}" y="{at[1]:.1f}" width="{size[0]:.1f}" height="{size[1]:.1f}"'
    return f'<rect {place} style="fill:{colour};{style}"/>'


def text(at: Point, words: str, colour: str = INK, size: int = 12, **more: Any) -> str:
    """Writes centred words; `anchor` and `weight` may differ, and `turn` writes them upwards."""
    turned = f' transform="rotate(-90 {at[0]:.1f} {at[1]:.1f})"' if more.get("turn") else ""
    style = f"fill:{colour};font-size:{size}px;font-weight:{more.get('weight', 400)}"
    style += f";text-anchor:{more.get('anchor', 'middle')}"
    return f'<text x="{at[0]:.1f}" y="{at[1]:.1f}"{turned} style="{style}">{escape(words)}</text>'
