"""One figure of how the network came to a mask: words, directions and stages, legible at the width of a page.

A figure of how the network came to its mask, for each case of a gallery.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image, ImageDraw

from s2rm_jax.evaluation.evaluator import Prediction
from s2rm_jax.evaluation.gallery import outcome
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
    wrap,
)
from s2rm_jax.explanation import Explanation
from s2rm_jax.input.images import load_image
from s2rm_jax.io import slug

WIDTH = 1600  # pixels; on a page 165 mm wide, text of 26 pixels is as large as a caption of 7.5 points
_TITLE, _HEADING, _TEXT = 40, 28, 26
_GAP = 16
_LARGE, _SMALL = 4, 8  # panels in a row
_TALLEST = 1.3  # height of a panel by its width, at most
_PAIRS = {
    "language_parses_vision": "Language parses vision",
    "vision_parses_language": "Vision parses language",
}
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
    """Draws what led to the mask of one expression.

    Args:
        image: RGB.
        expression: what was asked.
        outcome: a line on what came of it, such as score or IoU.
        mask: what was found; of any size, it covers the whole image.
        explanation: of the expression, see `Segmenter.segment`.
        true: what was meant, where that is known.
    """
    large, small = (_panel_size(image, count) for count in (_LARGE, _SMALL))
    shown, reduced = fit_image(image, large), fit_image(image, small)
    first = [_Panel(shown, ["image"]), _Panel(_with(shown, mask, PREDICTED_COLOUR), ["found"])]
    if true is not None:
        first.append(_Panel(_with(shown, true, TRUE_COLOUR), ["meant"]))
    words = [
        _Panel(heat_over(reduced, values, span(values)), [*wrap(word, small[0], _TEXT, 1), _range(span(values))])
        for word, values in zip(explanation.words, explanation.word_attention, strict=True)
    ]
    stages = [
        _Panel(heat_over(shown, values, _UNIT), [f"grid of {values.shape[1]} x {values.shape[0]}"])
        for values in explanation.stages
    ]
    parts = [
        _title(expression, outcome),
        _row(first, _LARGE),
        _legend(),
        _heading(
            "Where each word was laid out (attention of the first step; each from its lowest to its highest value)"
        ),
        _rows(words, _SMALL),
    ]
    for pair, maps in explanation.group_maps.items():
        parts += [
            _heading(f"{_PAIRS[pair]}: what each direction parsed (strength), and its weight (0 to 1; mean below)"),
            _row(_directions(explanation, pair, maps, reduced), 2 * len(maps), small[0]),
        ]
    parts += [_heading("The mask from coarse to fine (probability, 0 to 1)"), _rows(stages, _LARGE)]
    return _stack(parts)


def _directions(
    explanation: Explanation, pair: str, maps: Float[np.ndarray, "r h w"], reduced: Image.Image
) -> list[_Panel]:
    weights = explanation.balance_weights[pair]
    panels = [
        _Panel(heat_over(reduced, one, span(maps)), [name])
        for name, one in zip(explanation.directions, maps, strict=True)
    ]
    return panels + [
        _Panel(heat_over(reduced, one, _UNIT), [name, f"{100 * one.mean():.0f} %"])
        for name, one in zip(explanation.directions, weights, strict=True)
    ]


def _panel_size(image: np.ndarray, count: int) -> tuple[int, int]:
    """The (width, height) of a panel of which `count` stand in a row; a tall image is made narrower."""
    width = (WIDTH - (count + 1) * _GAP) // count
    height, across = image.shape[:2]
    scale = min(width / across, _TALLEST * width / height)
    return max(1, round(across * scale)), max(1, round(height * scale))


def _with(image: Image.Image, mask: Bool[np.ndarray, "h w"], colour: tuple[int, int, int]) -> Image.Image:
    return lay_over(image, mask_layer([mask], [colour], image.size, fill=0.3))


def _range(ends: tuple[float, float]) -> str:
    return f"{ends[0]:.2f} to {ends[1]:.2f}"


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
    """What the colours of all maps below mean."""
    part = _blank(line_height(_TEXT))
    draw_lines(part, ["maps below: low"], (_GAP, 0), _TEXT, MUTED)
    part.paste(heat_bar(300, 22), (250, 8))
    draw_lines(part, ["high"], (564, 0), _TEXT, MUTED)
    return part


def _rows(panels: Sequence[_Panel], count: int) -> Image.Image:
    return _stack([_row(panels[start : start + count], count) for start in range(0, len(panels), count)], 0)


def _row(panels: Sequence[_Panel], count: int, width: int | None = None) -> Image.Image:
    """Panels side by side with their captions below, in `count` columns."""
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


def _stack(parts: Sequence[Image.Image], gap: int = _GAP // 2) -> Image.Image:
    whole = _blank(sum(part.height + gap for part in parts) + gap)
    y = gap
    for part in parts:
        whole.paste(part, (0, y))
        y += part.height + gap
    return whole


Explain = Callable[[UInt8[np.ndarray, "height width 3"], str], Explanation]


def write_explained_cases(
    directory: Path, sections: Mapping[str, Sequence[Prediction]], explain: Explain
) -> list[Path]:
    """Writes `SECTION_NNN_ID_how.png` beside the images of a gallery; returns their paths.

    Args:
        directory: the folder of the gallery, which is there.
        sections: the cases of the gallery.
        explain: gives the explanation of an expression in an image.
    """
    paths = []
    for section, predictions in sections.items():
        for number, prediction in enumerate(predictions, start=1):
            image, expression = load_image(prediction.example.image), prediction.score.expression
            figure = explain_figure(
                image,
                expression,
                outcome(prediction),
                prediction.predicted,
                explain(image, expression),
                true=prediction.true,
            )
            paths.append(directory / f"{section}_{number:03d}_{slug(prediction.score.id)}_how.png")
            figure.save(paths[-1])
    return paths
