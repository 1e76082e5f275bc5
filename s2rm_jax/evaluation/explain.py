"""Explanations of a mask: the attention to each word, what each direction parsed, the mask from coarse to fine.

`reduce` runs on the device, inside the compiled segmentation, and reduces the network's large outputs; `explanations`
names them on the host; `explain_figure` draws them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image, ImageDraw

from s2rm_jax.evaluation.overlay import (
    INK,
    MUTED,
    PAPER,
    PREDICTED_COLOUR,
    TRUE_COLOUR,
    draw_lines,
    fit_image,
    heat_bar,
    heat_over,
    lay_over,
    line_height,
    mask_layer,
    span,
    stack,
    wrap,
)
from s2rm_jax.input.tokens import Tokenizer

# The direction in which the slices of a rotated map are scanned, seen in the original image.
DIRECTIONS = {0: "downwards", 90: "leftwards", 180: "upwards", 270: "rightwards"}


@dataclass(frozen=True)
class Explanation:
    """The intermediate values behind the mask of one expression; all arrays are float32.

    Attributes:
        words: the words as tokenized, including [CLS] and [SEP]; the pieces of a rare word are joined
        word_attention: [words, h, w], the attention of S2RM's first step, averaged over heads. It sums to 1 over the
            words at every position.
        directions: the direction of each scan
        group_maps: {pair: [r, h, w]}, the strength (root mean square over channels) of the features of each direction
        balance_weights: {pair: [r, h, w]}, the weights with which the directions are combined; they sum to 1 over r
        stages: the masks of CASG as probabilities [h_i, w_i], from the coarsest stage to the finest

    A pair is missing if the network is configured without it. Every grid [h, w] covers the full image; if a side of
    config.input.image_size is not a multiple of the grid's stride, it extends beyond the image at the bottom or at the
    right by less than a cell, and figures shrink it to the image.
    """

    words: tuple[str, ...]
    word_attention: Float[np.ndarray, "words h w"]
    directions: tuple[str, ...]
    group_maps: dict[str, Float[np.ndarray, "r h w"]]
    balance_weights: dict[str, Float[np.ndarray, "r h w"]]
    stages: tuple[Float[np.ndarray, "_ _"], ...]


@flax.struct.dataclass
class Reduced:
    """The network's outputs for explanations, for one image with k expressions of l tokens."""

    attention: Any  # [k, l, h, w]
    group_maps: dict[str, Any]  # {pair: [k, r, h, w]}
    balance_weights: dict[str, Any]  # {pair: [k, r, h, w]}
    stages: tuple[Any, ...]  # of [k, h_i, w_i]


def reduce(output: Any) -> Reduced:
    """Reduce the network's `Output` for one image (b = 1) to the arrays of explanations."""
    attention = output.word_attention[0].mean(1)  # over heads: [k, h, w, l]
    strengths = {
        pair: jnp.moveaxis(jnp.sqrt(jnp.mean(jnp.square(maps[:, 0].astype(jnp.float32)), -1)), 0, 1)
        for pair, maps in output.group_maps.items()
    }
    weights = {
        # [r, b, k, h, w, c]; weights that differ by channel and not by position are averaged
        pair: jnp.broadcast_to(jnp.moveaxis(balance[:, 0].mean(-1), 0, 1), strengths[pair].shape)
        for pair, balance in output.balance_weights.items()
    }
    masks = (*output.coarse_logits, output.logits)
    stages = tuple(jax.nn.sigmoid(mask[0].astype(jnp.float32)) for mask in masks)
    return Reduced(jnp.moveaxis(attention, -1, 1), strengths, weights, stages)


def explanations(
    reduced: Reduced, tokens: Sequence[np.ndarray], tokenizer: Tokenizer, rotations: Sequence[int]
) -> list[Explanation]:
    """Return one explanation per expression, whose `tokens` are ids of the `tokenizer`.

    The arrays of `reduced` are those of NumPy; rows beyond the number of expressions are padding. `rotations` is
    config.fusion.rotations, in degrees.
    """
    directions = tuple(DIRECTIONS[degrees] for degrees in rotations)
    found = []
    for row, ids in enumerate(tokens):
        pieces = tokenizer.words(ids)
        words, starts = _join_pieces(pieces)
        found.append(
            Explanation(
                words,
                np.add.reduceat(reduced.attention[row, : len(pieces)], starts, axis=0),
                directions,
                {pair: maps[row] for pair, maps in reduced.group_maps.items()},
                {pair: weights[row] for pair, weights in reduced.balance_weights.items()},
                tuple(stage[row] for stage in reduced.stages),
            )
        )
    return found


def _join_pieces(pieces: Sequence[str]) -> tuple[tuple[str, ...], list[int]]:
    """Return the words that WordPiece split into pieces, and the index of each word's first piece."""
    words: list[str] = []
    starts: list[int] = []
    for position, piece in enumerate(pieces):
        if piece.startswith("##") and words:
            words[-1] += piece.removeprefix("##")
        else:
            words.append(piece)
            starts.append(position)
    return tuple(words), starts


WIDTH = 1600  # pixels; on a page 165 mm wide, text of 26 pixels is as large as a caption of 7.5 points
_TITLE, _HEADING, _TEXT = 40, 28, 26
_GAP = 16
_LARGE, _SMALL = 4, 8  # panels in a row
_TALLEST = 1.3  # height of a panel by its width, at most
_UNIT = (0.0, 1.0)


class _Panel(NamedTuple):
    image: Image.Image
    caption: Sequence[str]


def explain_figure(
    image: UInt8[np.ndarray, "height width 3"],
    expression: str,
    outcome: str,
    mask: Bool[np.ndarray, "_ _"],
    explanation: Explanation,
    *,
    true: Bool[np.ndarray, "_ _"] | None = None,
) -> Image.Image:
    """Draw the explanation of the mask of one expression, legible at the width of a page.

    The expression is the title; `outcome` is a line below it, such as the score or the IoU. The predicted mask and, if
    known, the true one may have any size; they cover the full image.
    """
    large, small = (_panel_size(image, count) for count in (_LARGE, _SMALL))
    shown, reduced = fit_image(image, large), fit_image(image, small)
    first = [_Panel(shown, ["image"]), _Panel(_with(shown, mask, PREDICTED_COLOUR), ["predicted"])]
    if true is not None:
        first.append(_Panel(_with(shown, true, TRUE_COLOUR), ["true"]))
    words = []
    for word, values in zip(explanation.words, explanation.word_attention, strict=True):
        low, high = span(values)
        caption = [*wrap(word, small[0], _TEXT, 1), f"{low:.2f} to {high:.2f}"]
        words.append(_Panel(heat_over(reduced, values, (low, high)), caption))
    stages = [
        _Panel(heat_over(shown, values, _UNIT), [f"grid of {values.shape[1]} x {values.shape[0]}"])
        for values in explanation.stages
    ]
    parts = [
        _title(expression, outcome),
        _row(first, _LARGE),
        _legend(),
        _heading("Attention to each word (each map from its lowest to its highest value)"),
        _rows(words, _SMALL),
    ]
    for pair in explanation.group_maps:
        name = pair.replace("_", " ").capitalize()
        parts += [
            _heading(f"{name}: what each direction parsed (strength), and its weight (0 to 1; mean below)"),
            _row(_directions(explanation, pair, reduced), 2 * len(explanation.directions)),
        ]
    parts += [_heading("The mask from coarse to fine (probability, 0 to 1)"), _rows(stages, _LARGE)]
    return stack(parts, _GAP // 2)


def _directions(explanation: Explanation, pair: str, reduced: Image.Image) -> list[_Panel]:
    names, maps, weights = explanation.directions, explanation.group_maps[pair], explanation.balance_weights[pair]
    panels = [_Panel(heat_over(reduced, one, span(maps)), [name]) for name, one in zip(names, maps, strict=True)]
    for name, one in zip(names, weights, strict=True):
        panels.append(_Panel(heat_over(reduced, one, _UNIT), [name, f"{100 * one.mean():.0f} %"]))
    return panels


def _panel_size(image: np.ndarray, count: int) -> tuple[int, int]:
    """Return the (width, height) of a panel if a row has `count` of them; a tall image is made narrower."""
    width = (WIDTH - (count + 1) * _GAP) // count
    height, image_width = image.shape[:2]
    scale = min(width / image_width, _TALLEST * width / height)
    return max(1, round(image_width * scale)), max(1, round(height * scale))


def _with(image: Image.Image, mask: Bool[np.ndarray, "h w"], colour: tuple[int, int, int]) -> Image.Image:
    return lay_over(image, mask_layer([mask], [colour], image.size, fill=0.3))


def _title(expression: str, outcome: str) -> Image.Image:
    lines = wrap(expression, WIDTH - 2 * _GAP, _TITLE, 2)
    part = _blank(len(lines) * line_height(_TITLE) + line_height(_TEXT))
    y = draw_lines(part, lines, (_GAP, 0), _TITLE)
    draw_lines(part, wrap(outcome, WIDTH - 2 * _GAP, _TEXT, 1), (_GAP, y), _TEXT, MUTED)
    return part


def _heading(text: str) -> Image.Image:
    part = _blank(_GAP // 2 + line_height(_HEADING))
    ImageDraw.Draw(part).line((_GAP, 0, WIDTH - _GAP, 0), fill=(214, 218, 223), width=2)
    draw_lines(part, [text], (_GAP, _GAP // 2), _HEADING)
    return part


def _legend() -> Image.Image:
    """Return the scale of colours of all maps below."""
    part = _blank(line_height(_TEXT))
    draw_lines(part, ["maps below: low"], (_GAP, 0), _TEXT, MUTED)
    part.paste(heat_bar(300, 22), (250, 8))
    draw_lines(part, ["high"], (564, 0), _TEXT, MUTED)
    return part


def _rows(panels: Sequence[_Panel], count: int) -> Image.Image:
    return stack([_row(panels[start : start + count], count) for start in range(0, len(panels), count)])


def _row(panels: Sequence[_Panel], count: int) -> Image.Image:
    """Return panels side by side with their captions below, in `count` columns."""
    step = (WIDTH - _GAP) // count
    lines = max(len(panel.caption) for panel in panels)
    height = max(panel.image.height for panel in panels)
    part = _blank(height + lines * line_height(_TEXT) + _GAP // 2)
    for column, panel in enumerate(panels):
        x = _GAP + column * step
        part.paste(panel.image, (x, 0))
        draw_lines(part, panel.caption, (x, height + 2), _TEXT, INK)
    return part


def _blank(height: int) -> Image.Image:
    return Image.new("RGB", (WIDTH, height), PAPER)
