"""The viewer of the page: self-contained HTML with the image, its masks as layers, scores and explanations.

Masks, attention maps and downloads are embedded, so viewing them sends no request. The page loads `STYLE` and `SCRIPT`
once.
"""

from __future__ import annotations

import base64
import json
from html import escape

import numpy as np
from PIL import Image

from s2rm_jax.errors import counted
from s2rm_jax.evaluation.explain import Explanation
from s2rm_jax.evaluation.overlay import (
    DISTINCT_COLOURS,
    data_url,
    fit_image,
    fit_size,
    heat_image,
    mask_layer,
    span,
)
from s2rm_jax.input.masks import encode_rle
from s2rm_jax.io import slug
from s2rm_jax.serving.api import as_png, as_polygons
from s2rm_jax.serving.service import Answer, Encoding

_MAX_SIZE = 960  # pixels, the longer side of the displayed image
_MIN_MAP_SIZE = 120  # pixels, the longer side of an overlaid map
_ARROWS = {"downwards": "↓", "leftwards": "←", "upwards": "↑", "rightwards": "→"}


def image_html(encoding: Encoding) -> str:
    """Return the image alone, with the time its encoding took."""
    return f'<div class="s2rm">{_stage(encoding, [])}{_times(encoding)}</div>'


def answer_html(answer: Answer) -> str:
    """Return the image with masks, scores, downloads, and an explanation of each mask."""
    masks = answer.result.masks
    height, width = masks.shape[1:]
    size = _shown_size(height, width)
    layers, cards = [], []
    for row, mask in enumerate(masks):
        colour = DISTINCT_COLOURS[row % len(DISTINCT_COLOURS)]
        layer = mask_layer([mask], [colour], size, fill=0.3, shade=0.0)
        layers.append(f'<img class="mask" data-mask="{row}" alt="" src="{data_url(layer)}">')
        cards.append(_card(answer, row, colour))
    summary = f"{counted(len(masks), 'expression')} segmented in {_seconds(answer.seconds)}"
    return (
        f'<div class="s2rm">{_stage(answer.encoding, layers)}{_times(answer.encoding, summary)}'
        f'<ol class="found">{"".join(cards)}</ol></div>'
    )


def _stage(encoding: Encoding, layers: list[str]) -> str:
    height, width = encoding.image.image.shape[:2]
    shown = fit_image(encoding.image.image, _shown_size(height, width))
    return (
        f'<div class="stage" style="aspect-ratio:{width}/{height};max-width:calc(70vh*{width / height:.4f})">'
        f'<img class="photo" alt="the image" src="{data_url(shown, "JPEG", quality=90)}">{"".join(layers)}'
        '<img class="heat" alt="" hidden></div><p class="legend" hidden></p>'
    )


def _times(encoding: Encoding, summary: str = "") -> str:
    height, width = encoding.image.image.shape[:2]
    encoded = "Image already encoded" if encoding.was_cached else f"Image encoded in {_seconds(encoding.seconds)}"
    parts = [f"{width} × {height} pixels", encoded, summary]
    return f'<p class="times">{" · ".join(part for part in parts if part)}</p>'


def _card(answer: Answer, row: int, colour: tuple[int, int, int]) -> str:
    result = answer.result
    expression, mask, score = result.expressions[row], result.masks[row], result.scores[row]
    found = f"score {score:.2f}" if mask.any() else "nothing found"
    if result.no_target is not None:
        found += f", no target: {100 * result.no_target[row]:.0f} %"
    remarks = "".join(f'<p class="remark">{escape(remark)}</p>' for remark in answer.remarks[row])
    explanation = _explanation(result.explanations[row]) if result.explanations else ""
    return (
        f'<li style="--c:rgb{colour}"><label class="name"><input type="checkbox" checked data-shows="{row}">'
        f"<b>{escape(expression)}</b></label>"
        f'<span class="score">{found}</span>'
        f"{_downloads(mask, f'mask_{row + 1}_{slug(expression)}')}{remarks}{explanation}</li>"
    )


def _downloads(mask: np.ndarray, name: str) -> str:
    files = (
        ("PNG", f"{name}.png", "image/png", as_png(mask)),
        ("polygons", f"{name}_polygons.json", "application/json", json.dumps(as_polygons(mask)).encode()),
        ("COCO RLE", f"{name}_rle.json", "application/json", json.dumps(encode_rle(mask)).encode()),
    )
    links = "".join(
        f'<a download="{file}" href="data:{kind};base64,{base64.b64encode(content).decode()}">{label}</a>'
        for label, file, kind, content in files
    )
    return f'<span class="downloads">Download {links}</span>'


def _explanation(explanation: Explanation) -> str:
    words = zip(explanation.words, explanation.word_attention, strict=True)
    buttons = "".join(_layer(word, values, span(values)) for word, values in words)
    rows = []
    for pair, weights in explanation.balance_weights.items():
        bars = []
        for name, values in zip(explanation.directions, weights, strict=True):
            share = float(values.mean())
            label = f'<span class="arrow">{_ARROWS[name]}</span> {name} <i style="--share:{share:.3f}"></i>'
            bars.append(_layer(label, values, (0.0, 1.0), f"weight of the direction {name}", f" {100 * share:.0f} %"))
        rows.append(_row(f"Weights of the directions, {pair.replace('_', ' ')}", "".join(bars), "bars"))
    stages = [
        _layer(f"{stage.shape[1]} × {stage.shape[0]}", stage, (0.0, 1.0), "mask at this stage")
        for stage in explanation.stages
    ]
    rows.append(_row("Masks from coarse to fine, by the grid size of the stage", "".join(stages)))
    return (
        _row("Click a word to see its attention over the image", buttons, "words")
        + f"<details><summary>Explanation</summary>{''.join(rows)}</details>"
    )


def _row(title: str, content: str, kind: str = "") -> str:
    return f'<div class="row {kind}"><span class="title">{title}</span><div>{content}</div></div>'


def _layer(
    label: str, values: np.ndarray, scale: tuple[float, float], description: str | None = None, suffix: str = ""
) -> str:
    """Return a button that overlays a map on the image; `description` is given if the label is not a word."""
    text = escape(label) if description is None else label
    special = " special" if label in ("[CLS]", "[SEP]") else ""
    shown = escape(description or f"attention to “{label}”")
    legend = f"{shown}, from {scale[0]:.2f} (dark) to {scale[1]:.2f} (bright)"
    return (
        f'<button type="button" class="layer{special}" aria-pressed="false" data-legend="{legend}" '
        f'data-heat="{data_url(_enlarged(heat_image(values, scale)))}">{text}{suffix}</button>'
    )


def _enlarged(layer: Image.Image) -> Image.Image:
    """Enlarge a layer so that a browser scales it smoothly."""
    factor = -(-_MIN_MAP_SIZE // max(layer.size))
    return layer.resize((factor * layer.width, factor * layer.height), Image.Resampling.BICUBIC)


def _shown_size(height: int, width: int) -> tuple[int, int]:
    return (width, height) if max(height, width) <= _MAX_SIZE else fit_size(height, width, _MAX_SIZE)


def _seconds(seconds: float) -> str:
    return f"{1000 * seconds:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


STYLE = """
.s2rm { --ink: var(--body-text-color); --muted: #586170; --line: var(--border-color-primary); }
.dark .s2rm { --muted: #a9b1bd; }
.s2rm .stage { position: relative; width: 100%; margin: 0 auto; overflow: hidden; border-radius: .5rem; }
.s2rm .stage img { position: absolute; inset: 0; width: 100%; height: 100%; max-width: none; margin: 0; }
.s2rm .stage img[hidden] { display: none; }
.s2rm .stage.hot .photo { filter: grayscale(1); }
.s2rm .stage.hot .mask { display: none; }
.s2rm .legend, .s2rm .times { margin: .5rem 0; font-size: .85rem; color: var(--muted); text-align: center; }
.s2rm .found { list-style: none; margin: .8rem 0 0; padding: 0; display: grid; gap: .7rem; }
.s2rm .found li { display: flex; flex-wrap: wrap; gap: .3rem 1rem; align-items: center; padding: .7rem .9rem;
  margin: 0; border-left: .35rem solid var(--c); border-radius: .5rem; background: var(--background-fill-secondary); }
.s2rm .name { display: flex; align-items: center; gap: .5rem; flex: 1 1 12rem; cursor: pointer; min-width: 0; }
.s2rm .name b { overflow-wrap: anywhere; font-weight: 600; }
.s2rm .name input { width: 1.05rem; height: 1.05rem; }
.s2rm .name input:checked { background-color: var(--c); border-color: var(--c); }
.s2rm .score { font-variant-numeric: tabular-nums; color: var(--muted); }
.s2rm .downloads { font-size: .85rem; color: var(--muted); }
.s2rm .downloads a { margin-left: .5rem; text-decoration: underline; color: var(--ink); }
.s2rm .remark { flex-basis: 100%; margin: 0; font-size: .85rem; color: #a15c00; }
.s2rm details { flex-basis: 100%; }
.s2rm summary { cursor: pointer; font-size: .9rem; color: var(--muted); }
.s2rm .row { margin: .6rem 0 .2rem; }
.s2rm .row .title { display: block; font-size: .8rem; color: var(--muted); margin-bottom: .25rem; }
.s2rm .row > div { display: flex; flex-wrap: wrap; align-items: center; gap: .35rem; }
.s2rm .words { flex-basis: 100%; margin: .1rem 0; }
.s2rm .layer { margin: 0 !important; font: inherit; font-size: .9rem; padding: .2rem .6rem;
  border: 1px solid var(--line); border-radius: 1rem; background: transparent; color: var(--ink); cursor: pointer;
  font-variant-numeric: tabular-nums; }
.s2rm .layer:hover { border-color: var(--c); }
.s2rm .layer.special { color: var(--muted); font-size: .8rem; }
.s2rm .layer[aria-pressed="true"] { background: var(--c); border-color: var(--c); color: #fff; }
.s2rm .bars .layer { border-radius: .4rem; display: inline-flex; align-items: center; gap: .4rem; }
.s2rm .bars i { display: inline-block; width: 3.5rem; height: .5rem; border-radius: .25rem;
  background: linear-gradient(var(--c), var(--c)) 0 0 / calc(100% * var(--share)) 100% no-repeat, var(--line); }
.s2rm .layer[aria-pressed="true"] i { filter: brightness(1.6) saturate(.4); }
.s2rm-problem { margin: 0; padding: .7rem .9rem; border-radius: .5rem; border: 1px solid #d9534f; color: #b02a25;
  background: #fdf1f0; overflow-wrap: anywhere; }
.dark .s2rm-problem { background: #3a1a19; color: #ffb4b0; }
.dark .s2rm .remark { color: #f0b35e; }
#examples, #examples .grid-wrap { height: auto !important; min-height: 0 !important; max-height: none !important; }
"""

# The listeners are on the document, because every result replaces the viewer.
SCRIPT = """<script>
(() => {
  const overlay = (view, button) => {
    const heat = view.querySelector(".heat"), legend = view.querySelector(".legend");
    for (const other of view.querySelectorAll(".layer")) other.setAttribute("aria-pressed", String(other === button));
    heat.hidden = legend.hidden = !button;
    view.querySelector(".stage").classList.toggle("hot", Boolean(button));
    if (button) { heat.src = button.dataset.heat; legend.textContent = button.dataset.legend; }
  };
  document.addEventListener("change", (event) => {
    const row = event.target.dataset.shows, view = event.target.closest(".s2rm");
    if (row === undefined || !view) return;
    view.querySelector(`.mask[data-mask="${row}"]`).hidden = !event.target.checked;
    overlay(view, null);
  });
  document.addEventListener("click", (event) => {
    const button = event.target.closest(".s2rm .layer");
    if (button) overlay(button.closest(".s2rm"), button.getAttribute("aria-pressed") === "true" ? null : button);
  });
})();
</script>"""
