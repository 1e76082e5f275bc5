"""Pictures of an evaluation: one PNG per example, a contact sheet, and one HTML page that shows them all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from s2rm_jax.evaluation.evaluator import Prediction
from s2rm_jax.evaluation.gallery_page import outcome, page
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
from s2rm_jax.evaluation.report import Report
from s2rm_jax.input.images import load_image

PANEL = 320  # pixels, the longer side of a picture in the gallery
SHEET_PANEL = 240
_GAP = 12
_TEXT = 17
_SMALL = 14


class Chosen:
    """Keeps the predictions of `count` examples, spread evenly over those evaluated; an observer for the Evaluator."""

    def __init__(self, examples: int, count: int):
        count = min(examples, count)
        self._positions = {position * examples // count for position in range(count)}
        self._position = -1
        self._last_id: str | None = None
        self.examples: list[list[Prediction]] = []

    def __call__(self, prediction: Prediction) -> None:
        """Takes the next prediction, in the order of the source."""
        if prediction.example.id != self._last_id:
            self._last_id = prediction.example.id
            self._position += 1
            if self._position in self._positions:
                self.examples.append([])
        if self._position in self._positions:
            self.examples[-1].append(prediction)


def write_gallery(directory: Path, examples: Sequence[Sequence[Prediction]], report: Report, title: str) -> list[Path]:
    """Writes `NNN_ID.png` per example, `gallery.png` (a contact sheet) and `index.html`; returns their paths.

    Those that an earlier evaluation left in the same folder are removed.

    `examples` holds the predictions of each example to show; `report` gives the numbers at the top of the page.
    """
    directory.mkdir(parents=True, exist_ok=True)
    remove_earlier(directory, r"\d{3,}_[a-z0-9_]+\.png")
    paths = []
    for number, predictions in enumerate(examples, start=1):
        paths.append(directory / f"{number:03d}_{slug(predictions[0].example.id)}.png")
        example_sheet(predictions).save(paths[-1])
    paths += [directory / "gallery.png", directory / "index.html"]
    contact_sheet(one_of_each(examples)).save(paths[-2])
    paths[-1].write_text(page(examples, report, title), encoding="utf-8")
    return paths


def example_sheet(predictions: Sequence[Prediction]) -> Image.Image:
    """Draws one example: its picture, then for each sentence the true and the predicted mask."""
    example = predictions[0].example
    picture = load_image(example.image)
    shown = fit_picture(picture, fit_size(example.height, example.width, PANEL))
    head = Image.new("RGB", (2 * PANEL + _GAP, shown.height), PAPER)
    head.paste(shown, (0, 0))
    x = shown.width + _GAP
    about = wrap(f"{example.id}, {example.width} x {example.height} pixels", head.width - x, _TEXT)
    y = draw_lines(head, about, (x, 0), _TEXT) + _GAP
    for colour, name in ((TRUE_COLOUR, "true mask, on the left"), (PREDICTED_COLOUR, "predicted mask, on the right")):
        y = _key(head, (x, y), colour, name)
    tiles = [head, *(_tile(picture, prediction, PANEL) for prediction in predictions)]
    return _grid(tiles, columns=1)


def contact_sheet(predictions: Sequence[Prediction], columns: int = 2) -> Image.Image:
    """Draws one tile per prediction: the sentence, and below it the true and the predicted mask."""
    tiles = [_tile(load_image(p.example.image), p, SHEET_PANEL) for p in predictions]
    sheet = _grid(tiles, columns)
    head = Image.new("RGB", (sheet.width, line_height(_SMALL) + _GAP), PAPER)
    y = _key(head, (2 * _GAP, _GAP), TRUE_COLOUR, "true mask, on the left") - line_height(_SMALL)
    _key(head, (2 * _GAP + SHEET_PANEL + _GAP, y), PREDICTED_COLOUR, "predicted mask, on the right")
    whole = Image.new("RGB", (sheet.width, head.height + sheet.height), PAPER)
    whole.paste(head, (0, 0))
    whole.paste(sheet, (0, head.height))
    return whole


def one_of_each(examples: Sequence[Sequence[Prediction]], count: int = 8) -> list[Prediction]:
    """Picks one sentence from each of the first `count` examples, the kinds taking turns.

    The choice looks at kinds and never at scores: what is shown is neither the best nor the worst.
    """
    shown: dict[str, int] = {}
    picked = []
    for predictions in examples[:count]:
        rarest = min(predictions, key=lambda p: shown.get(p.score.kind, 0))
        shown[rarest.score.kind] = shown.get(rarest.score.kind, 0) + 1
        picked.append(rarest)
    return picked


def _tile(picture: np.ndarray, prediction: Prediction, panel: int) -> Image.Image:
    """A sentence with its kind and IoU, and below it the true and the predicted mask side by side."""
    example = prediction.example
    size = fit_size(example.height, example.width, panel)
    sentence = wrap(prediction.score.sentence, 2 * panel + _GAP, _TEXT)
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
