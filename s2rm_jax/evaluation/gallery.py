"""Pictures of an evaluation: one PNG per case, and a contact sheet for each section."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from s2rm_jax.evaluation.evaluator import Prediction
from s2rm_jax.evaluation.gallery_page import outcome
from s2rm_jax.evaluation.output_files import remove_earlier, slug
from s2rm_jax.evaluation.overlay import (
    INK,
    MUTED,
    PAPER,
    PREDICTED_COLOUR,
    TRUE_COLOUR,
    Colour,
    draw_lines,
    fit_picture,
    fit_size,
    lay_over,
    line_height,
    mask_layer,
    wrap,
)
from s2rm_jax.input.images import load_image

PANEL = 320  # pixels, the longer side of a picture of its own
SHEET_PANEL = 240
_ON_SHEET = 8
_GAP = 12
_TEXT = 17
_SMALL = 14


def write_gallery(directory: Path, sections: Mapping[str, Sequence[Prediction]]) -> list[Path]:
    """Writes `SECTION_NNN_ID.png` per case and `SECTION.png`, a sheet of the first 8; returns their paths.

    Those that an earlier evaluation left in the same folder are removed.
    """
    directory.mkdir(parents=True, exist_ok=True)
    remove_earlier(directory, r"(random|worst|best)(_\d{3,}_[a-z0-9_]+)?\.png")
    paths = []
    for section, predictions in sections.items():
        for number, prediction in enumerate(predictions, start=1):
            paths.append(directory / f"{section}_{number:03d}_{slug(prediction.score.id)}.png")
            contact_sheet([prediction], columns=1, panel=PANEL).save(paths[-1])
        paths.append(directory / f"{section}.png")
        contact_sheet(predictions[:_ON_SHEET]).save(paths[-1])
    return paths


def contact_sheet(predictions: Sequence[Prediction], columns: int = 2, panel: int = SHEET_PANEL) -> Image.Image:
    """Draws one tile per prediction: the sentence, and below it the true and the predicted mask."""
    tiles = [_tile(load_image(p.example.image), p, panel) for p in predictions]
    sheet = _grid(tiles, min(columns, len(tiles)))
    head = Image.new("RGB", (sheet.width, line_height(_SMALL) + _GAP), PAPER)
    y = _key(head, (2 * _GAP, _GAP), TRUE_COLOUR, "true mask, on the left") - line_height(_SMALL)
    _key(head, (2 * _GAP + panel + _GAP, y), PREDICTED_COLOUR, "predicted mask, on the right")
    whole = Image.new("RGB", (sheet.width, head.height + sheet.height), PAPER)
    whole.paste(head, (0, 0))
    whole.paste(sheet, (0, head.height))
    return whole


def _tile(picture: np.ndarray, prediction: Prediction, panel: int) -> Image.Image:
    """A sentence with its kind and IoU, and below it the true and the predicted mask side by side."""
    example = prediction.example
    size = fit_size(example.height, example.width, panel)
    sentence = wrap(prediction.score.expression, 2 * panel + _GAP, _TEXT)
    top = len(sentence) * line_height(_TEXT) + line_height(_SMALL) + _GAP // 2
    tile = Image.new("RGB", (2 * panel + _GAP, top + size[1]), PAPER)
    y = draw_lines(tile, sentence, (0, 0), _TEXT)
    draw_lines(tile, [outcome(prediction)], (0, y), _SMALL, MUTED)
    shown = fit_picture(picture, size)
    for column, (mask, colour) in enumerate(((prediction.true, TRUE_COLOUR), (prediction.predicted, PREDICTED_COLOUR))):
        tile.paste(lay_over(shown, mask_layer([mask], [colour], size)), (column * (size[0] + _GAP), top))
    return tile


def _grid(tiles: Sequence[Image.Image], columns: int) -> Image.Image:
    """Sets tiles of one width row by row, each row as high as its highest tile."""
    gap = 2 * _GAP
    rows = [tiles[start : start + columns] for start in range(0, len(tiles), columns)]
    heights = [max(tile.height for tile in row) for row in rows]
    width = max(len(row) for row in rows) * (tiles[0].width + gap) + gap
    sheet = Image.new("RGB", (width, sum(heights) + gap * (len(rows) + 1)), PAPER)
    y = gap
    for row, height in zip(rows, heights, strict=True):
        for column, tile in enumerate(row):
            sheet.paste(tile, (gap + column * (tile.width + gap), y))
        y += height + gap
    return sheet


def _key(canvas: Image.Image, at: tuple[int, int], colour: Colour, name: str) -> int:
    """Writes one line of the legend; returns the y below it."""
    x, y = at
    ImageDraw.Draw(canvas).rounded_rectangle((x, y + 2, x + _SMALL, y + 2 + _SMALL), 3, fill=colour)
    return draw_lines(canvas, [name], (x + _SMALL + 8, y), _SMALL, INK)
