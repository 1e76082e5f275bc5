"""Draw the figures of docs/network.md from the code of the network, so that they cannot differ from it.

    python -m docs.draw_network

Writes docs/images/scan_orders.svg, windows.svg and coarse_to_fine.svg.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from s2rm_jax.config import default_config
from s2rm_jax.evaluation.explain import DIRECTIONS
from s2rm_jax.models.casg import ConvBlock
from s2rm_jax.models.network import build_network
from s2rm_jax.models.s2rm import to_slices
from s2rm_jax.models.swin import window_regions

IMAGES = Path(__file__).parent / "images"
INK, MUTED, LINE, PAPER = "#181c21", "#5d6670", "#c9d0d8", "#ffffff"
BLUE, ORANGE, GREEN, PURPLE = "#2f7fc1", "#e07b2a", "#3a9a5b", "#8a5fb0"
SOFT = ("#cfe3f5", "#fbdcc2", "#d3ecd9", "#e6d8f1", "#f9eebc", "#d5eef0")
_Box = tuple[float, float, float, float]  # left, top, width, height
STEPS = ((224, 238, 250), (20, 72, 122))  # from the first slice to the last


def main() -> None:
    """Write the figures."""
    for name, figure in {
        "scan_orders": scan_orders(4, 6),
        "windows": windows(grid=30, window=12),
        "coarse_to_fine": coarse_to_fine(),
    }.items():
        (IMAGES / f"{name}.svg").write_text(figure, encoding="utf-8")


def slice_numbers(height: int, width: int, degrees: int) -> np.ndarray:
    """Return int [height, width]: the number, from 1, of the slice that contains each position."""
    cells = 1 + np.arange(height * width).reshape(1, 1, 1, height, width, 1)  # 0 is padding
    slices = np.asarray(to_slices(jnp.asarray(cells, jnp.float32), (degrees,)))[0, 0, 0, ..., 0].astype(int)
    numbers = np.zeros(height * width, int)
    for number, cells_of_slice in enumerate(slices, start=1):
        numbers[cells_of_slice[cells_of_slice > 0] - 1] = number
    return numbers.reshape(height, width)


def scan_orders(height: int, width: int) -> str:
    """Draw a grid for each direction; each cell has the number of its slice."""
    cell, gap = 34, 46
    panel = width * cell
    body = []
    for column, (degrees, name) in enumerate(DIRECTIONS.items()):
        left, top = 30 + column * (panel + gap), 74
        numbers = slice_numbers(height, width, degrees)
        body.append(_text(left + panel / 2, 34, name, size=17, bold=True))
        subtitle = f"rotated by {degrees}°: {numbers.max()} slices of {numbers.size // numbers.max()}"
        body.append(_text(left + panel / 2, 56, subtitle, MUTED, 13))
        for (row, place), number in np.ndenumerate(numbers):
            share = (number - 1) / max(1, numbers.max() - 1)
            fill = "#" + "".join(f"{round(a + (b - a) * share):02x}" for a, b in zip(*STEPS, strict=True))
            x, y = left + place * cell, top + row * cell
            body.append(_box((x, y, cell, cell), fill, PAPER, 2))
            body.append(_text(x + cell / 2, y + cell / 2 + 5, str(number), PAPER if share > 0.45 else INK, 14))
        body.append(_scan_arrow(numbers, left, top, cell))
    below = 74 + height * cell + 48
    width_of_all = 60 + 4 * panel + 3 * gap
    caption = "Slice 1 is scanned first. The state of slice i depends on slices 1 to i of that direction."
    body.append(_text(width_of_all / 2, below, caption, MUTED, 14))
    return _figure(width_of_all, below + 22, "Four scan orders of one grid", body)


def _scan_arrow(numbers: np.ndarray, left: float, top: float, cell: int) -> str:
    """Draw an arrow in the order of the slices, beside or below a grid."""
    height, width = numbers.shape
    if numbers[0, 0] == numbers[0, -1]:  # slices are rows
        ends = [(left - 14, top + 4), (left - 14, top + height * cell - 4)]
        backwards = numbers[0, 0] > numbers[-1, 0]
    else:
        ends = [(left + 4, top + height * cell + 16), (left + width * cell - 4, top + height * cell + 16)]
        backwards = numbers[0, 0] > numbers[0, -1]
    return _arrow(*(reversed(ends) if backwards else ends), colour=BLUE)


def attention_groups(grid: int, window: int, shift: int) -> np.ndarray:
    """Return int [padded, padded] of the image: positions with the same number attend to each other; -1 is padding."""
    padded = -(-grid // window) * window
    side = padded // window
    regions = window_regions(grid, grid, window, shift, mask_padding=True)
    regions = np.zeros((side * side, window * window), int) if regions is None else regions
    groups = np.where(regions < 0, -1, regions + 9 * np.arange(side * side)[:, None])  # at most 9 regions a window
    rolled = groups.reshape(side, side, window, window).transpose(0, 2, 1, 3).reshape(padded, padded)
    return np.roll(rolled, (shift, shift), axis=(0, 1))


def windows(grid: int, window: int) -> str:
    """Draw the groups of positions that attend to each other, without a shift and shifted by half a window."""
    cell, gap = 11, 60
    padded = -(-grid // window) * window
    panel = padded * cell
    body = []
    for column, shift in enumerate((0, window // 2)):
        left, top = 34 + column * (panel + gap), 76
        groups = attention_groups(grid, window, shift)
        real = [number for number in np.unique(groups) if number >= 0]
        title = f"Blocks 2, 4, ...: shifted by {shift}" if shift else "Blocks 1, 3, ...: not shifted"
        body.append(_text(left + panel / 2, 34, title, size=17, bold=True))
        body.append(
            _text(left + panel / 2, 56, f"{len(real)} groups of positions that attend to each other", MUTED, 13)
        )
        for number in np.unique(groups):
            for y, x, tall, wide in _rectangles(groups == number):
                at = (left + x * cell, top + y * cell, wide * cell, tall * cell)
                if number < 0:
                    body.append(_box(at, "url(#padding)", "none"))
                    continue
                body.append(_box(at, SOFT[real.index(number) % len(SOFT)], "none"))
                if min(tall, wide) > 2:
                    middle = (at[0] + at[2] / 2, at[1] + at[3] / 2 + 5)
                    body.append(_text(*middle, f"{wide} x {tall}", INK, 13))
        body += _borders(groups, left, top, cell)
        body.append(_box((left, top, grid * cell, grid * cell), "none", INK, 2.5))
    width = 68 + 2 * panel + gap
    below = 76 + panel + 30
    caption = (
        f"A grid of {grid} x {grid} (stage 3 at 480 pixels) in windows of {window} x {window}. "
        f"Hatched: padding to {padded} x {padded}, which is masked out."
    )
    body.append(_text(width / 2, below, caption, MUTED, 14))
    return _figure(width, below + 20, "Windows of Swin and their shift", body)


def _rectangles(mask: np.ndarray) -> list[tuple[int, int, int, int]]:
    """Split a mask into rectangles (top, left, height, width), greedily by equal rows."""
    rectangles: list[tuple[int, int, int, int]] = []
    left = mask.copy()
    while left.any():
        y, x = np.argwhere(left)[0]
        row = left[y, x:]
        wide = len(row) if row.all() else int(row.argmin())
        tall = 1
        while y + tall < len(left) and left[y + tall, x : x + wide].all():
            tall += 1
        left[y : y + tall, x : x + wide] = False
        rectangles.append((int(y), int(x), tall, wide))
    return rectangles


def _borders(groups: np.ndarray, left: float, top: float, cell: int) -> list[str]:
    """Draw lines between positions of different groups."""
    lines = []
    for axis in (0, 1):
        differ = np.diff(groups, axis=axis) != 0
        for y, x, tall, wide in _rectangles(differ):
            if axis == 0:
                spots = [(x, y + 1 + step, x + wide, y + 1 + step) for step in range(tall)]
            else:
                spots = [(x + 1 + step, y, x + 1 + step, y + tall) for step in range(wide)]
            lines += [
                f'<path d="M{left + a * cell:g} {top + b * cell:g}L{left + c * cell:g} {top + d * cell:g}" '
                f'stroke="{BLUE}" stroke-width="1.6"/>'
                for a, b, c, d in spots
            ]
    return lines


@cache
def shapes() -> dict[str, tuple[int, ...]]:
    """Return the shapes [h, w, c] of the features and masks of the default network, for one image and expression."""
    config = default_config()
    network = build_network(config)
    height, width = config.input.image_size
    inputs = (
        jax.ShapeDtypeStruct((1, height, width, 3), jnp.float32),
        jax.ShapeDtypeStruct((1, 1, config.text.max_tokens), jnp.int32),
        jax.ShapeDtypeStruct((1, 1, config.text.max_tokens), jnp.bool),
    )
    variables = jax.eval_shape(network.init, jax.random.key(0), *inputs)

    def keep(module: nn.Module, _: str) -> bool:
        name = module.name or ""
        return isinstance(module, ConvBlock) or name in ("fusion", "text") or name.endswith("_norm")

    def apply(*given: Any) -> Any:
        return network.apply(*given, capture_intermediates=keep, mutable=["intermediates"])

    output, kept = jax.eval_shape(apply, variables, *inputs)
    inner = kept["intermediates"]
    sizes = {"words": inner["text"]["__call__"][0].shape[1:]}
    for stage in range(1, 1 + len(config.vision.depths)):
        sizes[f"V{stage}"] = inner["vision"][f"stage{stage}_norm"]["__call__"][0].shape[1:]
        sizes[f"D{stage}"] = inner["decoder"][f"stage{stage}_block"]["__call__"][0].shape[2:]
        coarser = len(config.vision.depths) - stage
        if stage > 1:
            sizes[f"m{stage}"] = output.coarse_logits[coarser].shape[2:]
    sizes["F"] = inner["fusion"]["__call__"][0].features.shape[2:]
    sizes["mask"] = output.logits.shape[2:]
    sizes["m1"] = sizes["D1"][:2]
    return sizes


def coarse_to_fine() -> str:
    """Draw the data flow from an image and an expression to a mask, with the sizes of the default network."""
    sizes = shapes()
    stages = sorted(int(name[1:]) for name in sizes if name.startswith("V"))
    column, row, left, top = 176, 112, 30, 46
    places = {stage: left + 190 + (stages[-1] - stage) * (column + 26) for stage in stages}  # coarse on the left
    wide, tall = column, 58
    rows = {"V": top + row, "D": top + 2 * row + 18, "m": top + 3 * row + 18}
    image = _by(default_config().input.image_size)
    body = [
        _card((places[1], top - 20, wide, tall), "image", f"{image} x 3", LINE),
        _card((left, rows["V"], 150, tall), "expression (BERT)", _by(sizes["words"]) + " words", GREEN),
        _card((left, rows["D"], 150, tall), "S2RM: F", _by(sizes["F"]), PURPLE),
        _arrow((left + 75, rows["V"] + tall), (left + 75, rows["D"]), colour=GREEN),
        _arrow((left + 150, rows["D"] + tall / 2), (places[stages[-1]], rows["D"] + tall / 2), colour=PURPLE),
        _arrow((places[stages[-1]] + wide / 2, rows["V"] + tall), (left + 118, rows["D"]), colour=BLUE),
        _arrow((places[1] + wide / 2, top - 20 + tall), (places[1] + wide / 2, rows["V"]), colour=INK),
    ]
    for stage in stages:
        x = places[stage]
        middle = x + wide / 2
        body.append(_card((x, rows["V"], wide, tall), f"Swin, stage {stage}: V{stage}", _by(sizes[f"V{stage}"]), BLUE))
        body.append(_card((x, rows["D"], wide, tall), f"CASG: X{stage}", _by(sizes[f"D{stage}"]), ORANGE))
        body.append(_card((x, rows["m"], wide, tall), f"mask logits m{stage}", _by(sizes[f"m{stage}"]), ORANGE))
        body.append(_arrow((middle, rows["D"] + tall), (middle, rows["m"]), colour=ORANGE))
        if stage < stages[-1]:
            body.append(_arrow((middle, rows["V"] + tall), (middle, rows["D"]), colour=BLUE))
            body.append(_arrow((x - 26, rows["D"] + tall / 2), (x, rows["D"] + tall / 2), colour=ORANGE))
            body.append(_arrow((x - 26, rows["m"] + tall / 2), (x, rows["m"] + tall / 2), colour=ORANGE))
            body.append(_arrow((x, rows["V"] + tall / 2), (x - 26, rows["V"] + tall / 2), colour=BLUE))
    end = rows["m"] + row - 8
    body.append(_card((places[1], end, wide, tall), "mask", _by(sizes["mask"]), INK))
    body.append(_arrow((places[1] + wide / 2, rows["m"] + tall), (places[1] + wide / 2, end), colour=ORANGE))
    caption = (
        "The image is encoded once for all its expressions (blue); everything else is computed per expression.",
        "The expression and the output of the coarser stages guide every stage of CASG.",
        "Each mask is the previous one, upsampled by two, plus the output of its stage.",
    )
    for line, text in enumerate(caption):
        body.append(_text(left, end + 24 + 22 * line, text, MUTED, 14, anchor="start"))
    return _figure(places[1] + wide + left, end + tall + 30, "From coarse to fine", body)


def _by(size: Sequence[int]) -> str:
    return " x ".join(map(str, size))


def _card(at: _Box, title: str, size: str, colour: str) -> str:
    x, y, wide, _ = at
    return (
        _box(at, PAPER, colour, 2, 8)
        + _text(x + wide / 2, y + 24, title, INK, 14, bold=True)
        + _text(x + wide / 2, y + 45, size, MUTED, 14)
    )


def _arrow(*points: tuple[float, float], colour: str) -> str:
    """Draw a line through the points with an arrowhead at the last."""
    line = "L".join(f"{x:g} {y:g}" for x, y in points)
    (x0, y0), (x1, y1) = points[-2:]
    along = np.array([x1 - x0, y1 - y0]) / np.hypot(x1 - x0, y1 - y0)
    across = np.array([-along[1], along[0]])
    tip = np.array([x1, y1])
    corners = [tip, tip - 9 * along + 5 * across, tip - 9 * along - 5 * across]
    head = " ".join(f"{x:.1f},{y:.1f}" for x, y in corners)
    return (
        f'<path d="M{line}" fill="none" stroke="{colour}" stroke-width="2"/><polygon points="{head}" fill="{colour}"/>'
    )


def _box(at: _Box, fill: str, line: str, thick: float = 0, round_by: float = 0) -> str:
    x, y, wide, tall = at
    return (
        f'<rect x="{x:g}" y="{y:g}" width="{wide:g}" height="{tall:g}" rx="{round_by:g}" fill="{fill}" '
        f'stroke="{line}" stroke-width="{thick:g}"/>'
    )


def _text(
    x: float, y: float, words: str, colour: str = INK, size: int = 14, *, bold: bool = False, anchor: str = "middle"
) -> str:
    weight = ' font-weight="600"' if bold else ""
    return (
        f'<text x="{x:g}" y="{y:g}" font-size="{size}" fill="{colour}" text-anchor="{anchor}"{weight}>'
        f"{escape(words)}</text>"
    )


def _figure(width: float, height: float, title: str, body: Sequence[str]) -> str:
    """Return the SVG on a white page, which is legible in a dark style too."""
    hatch = (
        '<defs><pattern id="padding" width="7" height="7" patternTransform="rotate(45)" patternUnits="userSpaceOnUse">'
        f'<rect width="7" height="7" fill="#f3f4f6"/><path d="M0 0V7" stroke="{LINE}" stroke-width="3"/></pattern>'
        "</defs>"
    )
    start = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" role="img"'
    font = 'font-family="system-ui, Segoe UI, Helvetica, Arial, sans-serif"'
    page = _box((1, 1, width - 2, height - 2), PAPER, LINE, 1, 10)
    return "\n".join([f"{start} {font}>", f"<title>{escape(title)}</title>", hatch, page, *body, "</svg>\n"])


if __name__ == "__main__":
    main()
