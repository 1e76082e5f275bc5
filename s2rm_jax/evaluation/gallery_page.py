"""The gallery as one HTML page that needs nothing but itself: style, script and pictures are all inside."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape

from PIL import Image

from s2rm_jax.evaluation.evaluator import Prediction
from s2rm_jax.evaluation.overlay import PREDICTED_COLOUR, TRUE_COLOUR, fit_picture, fit_size, mask_layer
from s2rm_jax.evaluation.report import COLUMNS, DEFINITIONS, Report, named_counts
from s2rm_jax.input.images import load_image

_PICTURE = 400  # pixels, the longer side of an embedded picture

_STYLE = """
:root { color-scheme: light dark; --ink: #181c21; --muted: #5d6670; --paper: #f4f5f7; --card: #fff; --line: #dfe3e8; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8ebef; --muted: #9aa4af; --paper: #121519; --card: #1b2026; --line: #2d343c; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1500px; padding: 2rem 1.5rem 4rem; background: var(--paper); color: var(--ink);
  font: 16px/1.45 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: 0 0 1rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; background: var(--card); font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .8rem; text-align: right; border: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; }
tr.all { font-weight: 600; }
p.note { color: var(--muted); font-size: .85rem; margin: .5rem 0; max-width: 62rem; }
nav { position: sticky; top: 0; z-index: 1; display: flex; flex-wrap: wrap; gap: .6rem 1.4rem; align-items: center;
  padding: .8rem 0; background: var(--paper); }
select { font: inherit; padding: .2rem .4rem; }
.key::before { content: ""; display: inline-block; width: .8rem; height: .8rem; margin-right: .4rem;
  border-radius: .2rem; background: var(--c); }
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 27rem), 1fr)); gap: 1rem;
  align-items: start; }
article { padding: .9rem; background: var(--card); border: 1px solid var(--line); border-radius: .6rem; }
h2 { font-size: 1rem; font-weight: 600; margin: 0 0 .3rem; overflow-wrap: anywhere; }
.about { display: flex; justify-content: space-between; gap: 1rem; color: var(--muted); font-size: .85rem; }
.bar { height: .3rem; margin: .35rem 0 .7rem; border-radius: .2rem; background: var(--line); }
.bar i { display: block; height: 100%; border-radius: inherit; background: var(--predicted); }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: .5rem; }
.picture { background-size: 100% 100%; border-radius: .3rem; overflow: hidden; print-color-adjust: exact; }
.picture img { display: block; width: 100%; height: 100%; }
.picture:hover img { opacity: 0; }
"""

_SCRIPT = """
const cards = [...document.querySelectorAll("article")];
const kind = document.getElementById("kind"), order = document.getElementById("order");
const comparisons = {
  given: (a, b) => a.dataset.number - b.dataset.number,
  worst: (a, b) => a.dataset.iou - b.dataset.iou,
  best: (a, b) => b.dataset.iou - a.dataset.iou,
};
function show() {
  cards.sort(comparisons[order.value]);
  for (const card of cards) card.hidden = kind.value !== "*" && card.dataset.kind !== kind.value;
  document.querySelector("main").append(...cards);
  document.getElementById("count").textContent = cards.filter(card => !card.hidden).length + " sentences shown";
}
kind.onchange = order.onchange = show;
show();
"""


def page(examples: Sequence[Sequence[Prediction]], report: Report, title: str) -> str:
    """Returns the HTML page that shows `examples` (the predictions of each) below the metrics of the whole `report`."""
    rules: list[str] = []
    cards: list[str] = []
    for number, predictions in enumerate(examples):
        rules.append(_picture_rule(number, predictions[0]))
        cards += [_card(number, len(cards) + offset, p) for offset, p in enumerate(predictions)]
    kinds = sorted({p.score.kind for predictions in examples for p in predictions})
    options = "".join(f'<option value="{escape(kind)}">{escape(kind or "(no kind)")}</option>' for kind in kinds)
    notes = "".join(f'<p class="note">{escape(line)}</p>' for line in DEFINITIONS)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>:root {{ --true: rgb{TRUE_COLOUR}; --predicted: rgb{PREDICTED_COLOUR}; }}{_STYLE}{"".join(rules)}</style>
</head>
<body>
<h1>{escape(title)}</h1>
{_metrics_table(report)}
{notes}
<nav>
<label{"" if any(kinds) else " hidden"}>Kind <select id="kind"><option value="*">all</option>{options}</select></label>
<label>Order <select id="order">
<option value="given">of the data</option>
<option value="worst">lowest IoU first</option>
<option value="best">highest IoU first</option>
</select></label>
<span class="key" style="--c:var(--true)">true mask</span>
<span class="key" style="--c:var(--predicted)">predicted mask</span>
<span id="count"></span>
<span>Point at a picture to see it bare.</span>
</nav>
<main>
{"".join(cards)}
</main>
<script>{_SCRIPT}</script>
</body>
</html>
"""


def outcome(prediction: Prediction) -> str:
    """Returns the line below a sentence: its kind, its IoU, and whether nothing at all was predicted."""
    parts = [prediction.score.kind, f"IoU {100 * prediction.score.iou:.1f} %"]
    if not prediction.predicted.any():
        parts.append("nothing predicted")
    return ", ".join(part for part in parts if part)


def _metrics_table(report: Report) -> str:
    head = "".join(f"<th>{escape(title)}</th>" for title in ("", *COLUMNS.values(), "sentences"))
    rows = []
    for name, counts in named_counts(report):
        values = counts.metrics()
        cells = "".join(f"<td>{values[metric]:.2f}</td>" for metric in COLUMNS)
        mark = ' class="all"' if counts is report.total else ""
        rows.append(f"<tr{mark}><td>{escape(name)}</td>{cells}<td>{counts.sentences:,}</td></tr>")
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def _picture_rule(number: int, prediction: Prediction) -> str:
    """The CSS rule that holds the picture of an example, so that its sentences share one copy."""
    example = prediction.example
    size = fit_size(example.height, example.width, _PICTURE)
    picture = fit_picture(load_image(example.image), size)
    url = _data_url(picture, "JPEG", quality=88)
    ratio = f"{example.width}/{example.height}"
    return f".p{number}{{aspect-ratio:{ratio};width:min(100%,26rem*{ratio});background-image:url({url})}}\n"


def _card(picture: int, number: int, prediction: Prediction) -> str:
    score, example = prediction.score, prediction.example
    size = fit_size(example.height, example.width, _PICTURE)
    percent = 100 * score.iou
    panels = []
    for name, mask, colour in (
        ("true", prediction.true, TRUE_COLOUR),
        ("predicted", prediction.predicted, PREDICTED_COLOUR),
    ):
        url = _data_url(mask_layer([mask], [colour], size), "PNG", optimize=True)
        panels.append(f'<div class="picture p{picture}"><img src="{url}" alt="{name} mask"></div>')
    return f"""<article data-number="{number}" data-iou="{score.iou:.6f}" data-kind="{escape(score.kind)}">
<h2>{escape(score.sentence)}</h2>
<div class="about">
<span>{escape(outcome(prediction))}</span><span>{escape(example.id)}</span>
</div>
<div class="bar"><i style="width:{percent:.1f}%"></i></div>
<div class="pair">{"".join(panels)}</div>
</article>
"""


def _data_url(picture: Image.Image, form: str, **options: int | bool) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, form, **options)
    return f"data:image/{form.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"
