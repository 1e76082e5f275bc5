"""The gallery of an evaluation: random, worst and best cases as PNG files and as a part of the HTML page."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from html import escape
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw

from s2rm_jax.evaluation.evaluator import Prediction
from s2rm_jax.evaluation.explain import Explanation, explain_figure
from s2rm_jax.evaluation.overlay import (
    INK,
    MUTED,
    PAPER,
    PREDICTED_COLOUR,
    TRUE_COLOUR,
    Colour,
    data_url,
    draw_lines,
    fit_image,
    fit_size,
    lay_over,
    line_height,
    mask_layer,
    stack,
    wrap,
)
from s2rm_jax.io import remove_earlier, slug

SECTIONS = {"random": "Random cases", "worst": "Worst cases", "best": "Best cases"}  # in the order of the page

PANEL = 320  # pixels, the longer side of an image in the file of a case
SHEET_PANEL = 240  # the same on a sheet
_SHEET_CASES = 8
_EMBEDDED = 400  # the same on the page
_GAP = 12
_TEXT = 17
_SMALL = 14


class Cases:
    """Keep up to `count` predictions for each section, each of a different image; an observer for the Evaluator.

    Best and worst are by IoU, with ties in random order; the best are among expressions that refer to something. The
    random order depends only on the ids of the expressions, so it is the same in every evaluation.
    """

    def __init__(self, count: int):
        self._count = count
        self._kept: dict[str, dict[str, tuple[tuple[float, int], Prediction]]] = {name: {} for name in SECTIONS}

    def __call__(self, prediction: Prediction) -> None:
        """Keep the prediction in each section to which it belongs."""
        score = prediction.score
        # Not a CRC: ids that differ in one digit would have neighbouring values.
        order = int.from_bytes(hashlib.blake2b(score.id.encode(errors="backslashreplace"), digest_size=8).digest())
        self._offer("random", (0.0, order), prediction)
        if score.iou is not None:
            self._offer("worst", (score.iou, order), prediction)
            if score.targeted:
                self._offer("best", (-score.iou, order), prediction)

    def sections(self) -> dict[str, list[Prediction]]:
        """Return the predictions of every section that has any, the most extreme first."""
        return {
            name: [prediction for _, prediction in sorted(kept.values(), key=lambda entry: entry[0])]
            for name, kept in self._kept.items()
            if kept
        }

    @classmethod
    def merge(cls, shares: Sequence[Cases]) -> Cases:
        """Return the cases over all processes, given those that each process kept."""
        merged = cls(shares[0]._count)
        for share in shares:
            for section, kept in share._kept.items():
                for key, prediction in kept.values():
                    merged._offer(section, key, prediction)
        return merged

    def _offer(self, section: str, key: tuple[float, int], prediction: Prediction) -> None:
        """Keep the `count` lowest keys, one per image."""
        kept, image = self._kept[section], prediction.example.id
        if image not in kept or key < kept[image][0]:
            kept[image] = (key, prediction)
        if len(kept) > self._count:
            del kept[max(kept, key=lambda name: kept[name][0])]


def outcome(prediction: Prediction) -> str:
    """Return a line about a prediction: the kind of expression, the IoU, and whether a mask is empty."""
    score = prediction.score
    parts = [score.kind, "no IoU, empty union" if score.iou is None else f"IoU {100 * score.iou:.1f} %"]
    if not score.targeted:
        parts.append("refers to nothing")
    if not score.answered and prediction.predicted.any():
        parts.append("answered with 'nothing'")
    if not prediction.predicted.any():
        parts.append("nothing predicted")
    return ", ".join(part for part in parts if part)


def write_gallery(directory: Path, sections: Mapping[str, Sequence[Prediction]]) -> list[Path]:
    """Write `SECTION_NNN_ID.png` per case and `SECTION.png`, a sheet of the first 8; return their paths.

    The files of an earlier evaluation in the same folder are removed.
    """
    directory.mkdir(parents=True, exist_ok=True)
    remove_earlier(directory, r"(random|worst|best)(_\d{3,}_[a-z0-9_]+)?\.png")
    paths = []
    for section, predictions in sections.items():
        for name, prediction in _named(section, predictions):
            paths.append(directory / f"{name}.png")
            contact_sheet([prediction], columns=1, panel=PANEL).save(paths[-1])
        paths.append(directory / f"{section}.png")
        contact_sheet(predictions[:_SHEET_CASES]).save(paths[-1])
    return paths


Explain = Callable[[UInt8[np.ndarray, "height width 3"], str], Explanation]


def write_explained_cases(
    directory: Path, sections: Mapping[str, Sequence[Prediction]], explain: Explain
) -> list[Path]:
    """Write `SECTION_NNN_ID_how.png`, the figure of the explanation, for each case of a gallery; return the paths."""
    paths = []
    for section, predictions in sections.items():
        for name, case in _named(section, predictions):
            image, expression = case.example.load_image(), case.score.expression
            explanation, line = explain(image, expression), outcome(case)
            figure = explain_figure(image, expression, line, case.predicted, explanation, true=case.true)
            paths.append(directory / f"{name}_how.png")
            figure.save(paths[-1])
    return paths


def _named(section: str, predictions: Sequence[Prediction]) -> Iterator[tuple[str, Prediction]]:
    for number, prediction in enumerate(predictions, start=1):
        yield f"{section}_{number:03d}_{slug(prediction.score.id)}", prediction


def contact_sheet(predictions: Sequence[Prediction], columns: int = 2, panel: int = SHEET_PANEL) -> Image.Image:
    """Return one tile per prediction: the expression, and below it the true and the predicted mask."""
    tiles = [_tile(p.example.load_image(), p, panel) for p in predictions]
    sheet = _grid(tiles, min(columns, len(tiles)))
    head = Image.new("RGB", (sheet.width, line_height(_SMALL) + _GAP), PAPER)
    y = _key(head, (2 * _GAP, _GAP), TRUE_COLOUR, "true mask, on the left") - line_height(_SMALL)
    _key(head, (2 * _GAP + panel + _GAP, y), PREDICTED_COLOUR, "predicted mask, on the right")
    return stack([head, sheet])


def _tile(image: np.ndarray, prediction: Prediction, panel: int) -> Image.Image:
    """Return an expression with its kind and IoU, and below it the true and the predicted mask side by side."""
    example = prediction.example
    size = fit_size(example.height, example.width, panel)
    expression = wrap(prediction.score.expression, 2 * panel + _GAP, _TEXT)
    top = len(expression) * line_height(_TEXT) + line_height(_SMALL) + _GAP // 2
    tile = Image.new("RGB", (2 * panel + _GAP, top + size[1]), PAPER)
    y = draw_lines(tile, expression, (0, 0), _TEXT)
    draw_lines(tile, [outcome(prediction)], (0, y), _SMALL, MUTED)
    shown = fit_image(image, size)
    for column, (mask, colour) in enumerate(((prediction.true, TRUE_COLOUR), (prediction.predicted, PREDICTED_COLOUR))):
        tile.paste(lay_over(shown, mask_layer([mask], [colour], size)), (column * (size[0] + _GAP), top))
    return tile


def _grid(tiles: Sequence[Image.Image], columns: int) -> Image.Image:
    """Arrange tiles of equal width row by row; a row is as high as its highest tile."""
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
    """Draw one line of the legend; return the y below it."""
    x, y = at
    ImageDraw.Draw(canvas).rounded_rectangle((x, y + 2, x + _SMALL, y + 2 + _SMALL), 3, fill=colour)
    return draw_lines(canvas, [name], (x + _SMALL + 8, y), _SMALL, INK)


STYLE = f"""
:root {{ --true: rgb{TRUE_COLOUR}; --predicted: rgb{PREDICTED_COLOUR}; }}
nav {{ position: sticky; top: 0; z-index: 1; display: flex; flex-wrap: wrap; gap: .6rem 1.4rem; align-items: center;
  padding: .8rem 0; background: var(--paper); }}
select {{ font: inherit; padding: .2rem .4rem; }}
.key::before {{ content: ""; display: inline-block; width: .8rem; height: .8rem; margin-right: .4rem;
  border-radius: .2rem; background: var(--c); }}
.cases {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 27rem), 1fr)); gap: 1rem;
  align-items: start; }}
article {{ padding: .9rem; background: var(--card); border: 1px solid var(--line); border-radius: .6rem; }}
h3 {{ font-size: 1rem; font-weight: 600; margin: 0 0 .3rem; overflow-wrap: anywhere; }}
.about {{ display: flex; justify-content: space-between; gap: 1rem; color: var(--muted); font-size: .85rem; }}
.level {{ height: .3rem; margin: .35rem 0 .7rem; border-radius: .2rem; background: var(--line); }}
.level i {{ display: block; height: 100%; border-radius: inherit; background: var(--predicted); }}
.pair {{ display: grid; grid-template-columns: 1fr 1fr; gap: .5rem; }}
.image {{ background-size: 100% 100%; border-radius: .3rem; overflow: hidden; print-color-adjust: exact; }}
.image img {{ display: block; width: 100%; height: 100%; }}
.image:hover img {{ opacity: 0; }}
"""

SCRIPT = """
const kind = document.getElementById("kind");
if (kind) kind.onchange = () => {
  for (const card of document.querySelectorAll("article"))
    card.hidden = kind.value !== "*" && card.dataset.kind !== kind.value;
};
"""


def gallery_html(sections: Mapping[str, Sequence[Prediction]]) -> str:
    """Return the gallery as HTML with embedded images; the page must include STYLE and SCRIPT."""
    shown = [prediction for predictions in sections.values() for prediction in predictions]
    numbers = {id: number for number, id in enumerate(dict.fromkeys(p.example.id for p in shown))}
    rules = {p.example.id: _image_rule(numbers[p.example.id], p) for p in shown}
    kinds = sorted({p.score.kind for p in shown})
    options = "".join(f'<option value="{escape(kind)}">{escape(kind or "(no kind)")}</option>' for kind in kinds)
    chooser = f'<label>Kind <select id="kind"><option value="*">all</option>{options}</select></label>'
    parts = [
        f"<style>{''.join(rules.values())}</style>",
        f"<nav>{chooser if any(kinds) else ''}",
        '<span class="key" style="--c:var(--true)">true mask</span>',
        '<span class="key" style="--c:var(--predicted)">predicted mask</span>',
        "<span>Hover over an image to hide its mask.</span></nav>",
    ]
    for name, predictions in sections.items():
        cards = "".join(_card(numbers[p.example.id], p) for p in predictions)
        parts.append(f'<h2 id="{name}">{SECTIONS[name]}</h2><div class="cases">{cards}</div>')
    return "\n".join(parts)


def _image_rule(number: int, prediction: Prediction) -> str:
    """Return the CSS rule with the image of an example, so that its expressions share one copy."""
    example = prediction.example
    size = fit_size(example.height, example.width, _EMBEDDED)
    url = data_url(fit_image(example.load_image(), size), "JPEG", quality=88)
    ratio = f"{example.width}/{example.height}"
    return f".p{number}{{aspect-ratio:{ratio};width:min(100%,26rem*{ratio});background-image:url({url})}}\n"


def _card(number: int, prediction: Prediction) -> str:
    score, example = prediction.score, prediction.example
    size = fit_size(example.height, example.width, _EMBEDDED)
    percent = 100 * (score.iou or 0)
    panels = []
    masks = {"true": (prediction.true, TRUE_COLOUR), "predicted": (prediction.predicted, PREDICTED_COLOUR)}
    for name, (mask, colour) in masks.items():
        url = data_url(mask_layer([mask], [colour], size), optimize=True)
        panels.append(f'<div class="image p{number}"><img src="{url}" alt="{name} mask"></div>')
    return f"""<article data-iou="{percent / 100:.6f}" data-kind="{escape(score.kind)}">
<h3>{escape(score.expression)}</h3>
<div class="about">
<span>{escape(outcome(prediction))}</span><span>{escape(example.id)}</span>
</div>
<div class="level"><i style="width:{percent:.1f}%"></i></div>
<div class="pair">{"".join(panels)}</div>
</article>
"""
