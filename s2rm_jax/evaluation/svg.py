"""Figures as SVG, written by hand: bars, points and lines need no plotting library.

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

Point = tuple[float | int, float | int]


def standalone(svg: str) -> str:
    """Returns the figure with plain colours on a white ground, for a file of its own."""
    ground = f'<rect width="{WIDTH}" height="{HEIGHT}" style="fill:{PAPER}"/>'
    return re.sub(r"var\(--\w+, (#\w+)\)", r"\1", svg.replace("</title>", f"</title>{ground}", 1)) + "\n"


def draw(title: str, body: Sequence[str]) -> str:
    """Returns a figure of WIDTH x HEIGHT with a title for those who cannot see it."""
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img"'
    return f'{head} font-family="system-ui, sans-serif"><title>{escape(title)}</title>{"".join(body)}</svg>'


def box(at: Point, size: Point, colour: str, style: str = "") -> str:
    """Returns a filled rectangle."""
    place = f'x="{at[0]:.1f}" y="{at[1]:.1f}" width="{size[0]:.1f}" height="{size[1]:.1f}"'
    return f'<rect {place} style="fill:{colour};{style}"/>'


def text(at: Point, words: str, colour: str = INK, size: int = 12, **more: Any) -> str:
    """Writes centred words; `anchor` and `weight` may differ, and `turn` writes them upwards."""
    turned = f' transform="rotate(-90 {at[0]:.1f} {at[1]:.1f})"' if more.get("turn") else ""
    style = f"fill:{colour};font-size:{size}px;font-weight:{more.get('weight', 400)}"
    style += f";text-anchor:{more.get('anchor', 'middle')}"
    return f'<text x="{at[0]:.1f}" y="{at[1]:.1f}"{turned} style="{style}">{escape(words)}</text>'
