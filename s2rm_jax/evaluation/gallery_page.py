"""The gallery as a part of an HTML page that needs nothing but itself: the pictures are inside."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape

from PIL import Image

from s2rm_jax.evaluation.evaluator import Prediction
from s2rm_jax.evaluation.overlay import PREDICTED_COLOUR, TRUE_COLOUR, fit_picture, fit_size, mask_layer
from s2rm_jax.input.images import load_image

_PICTURE = 400  # pixels, the longer side of an embedded picture
_TITLES = {"random": "Cases at random", "worst": "Worst cases", "best": "Best cases"}

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
.picture {{ background-size: 100% 100%; border-radius: .3rem; overflow: hidden; print-color-adjust: exact; }}
.picture img {{ display: block; width: 100%; height: 100%; }}
.picture:hover img {{ opacity: 0; }}
"""

SCRIPT = """
const kind = document.getElementById("kind");
if (kind) kind.onchange = () => {
  for (const card of document.querySelectorAll("article"))
    card.hidden = kind.value !== "*" && card.dataset.kind !== kind.value;
};
"""


def gallery_html(sections: Mapping[str, Sequence[Prediction]]) -> str:
    """Returns a bar with the key and a choice of kinds, then each section's cases; STYLE and SCRIPT belong to it."""
    shown = [prediction for predictions in sections.values() for prediction in predictions]
    pictures = {id: number for number, id in enumerate(dict.fromkeys(p.example.id for p in shown))}
    rules = {p.example.id: _picture_rule(pictures[p.example.id], p) for p in shown}
    kinds = sorted({p.score.kind for p in shown})
    options = "".join(f'<option value="{escape(kind)}">{escape(kind or "(no kind)")}</option>' for kind in kinds)
    chooser = f'<label>Kind <select id="kind"><option value="*">all</option>{options}</select></label>'
    parts = [
        f"<style>{''.join(rules.values())}</style>",
        f"<nav>{chooser if any(kinds) else ''}",
        '<span class="key" style="--c:var(--true)">true mask</span>',
        '<span class="key" style="--c:var(--predicted)">predicted mask</span>',
        "<span>Point at a picture to see it bare.</span></nav>",
    ]
    for name, predictions in sections.items():
        cards = "".join(_card(pictures[p.example.id], p) for p in predictions)
        parts.append(f'<h2 id="{name}">{_TITLES[name]}</h2><div class="cases">{cards}</div>')
    return "\n".join(parts)


def outcome(prediction: Prediction) -> str:
    """Returns the line below a sentence: its kind, its IoU, and what was not meant or not predicted."""
    score = prediction.score
    parts = [score.kind, "no IoU, empty union" if score.iou is None else f"IoU {100 * score.iou:.1f} %"]
    if not score.targeted:
        parts.append("refers to nothing")
    if not score.answered and prediction.predicted.any():
        parts.append("answered with 'nothing'")
    if not prediction.predicted.any():
        parts.append("nothing predicted")
    return ", ".join(part for part in parts if part)


def _picture_rule(number: int, prediction: Prediction) -> str:
    """The CSS rule that holds the picture of an example, so that its sentences share one copy."""
    example = prediction.example
    size = fit_size(example.height, example.width, _PICTURE)
    picture = fit_picture(load_image(example.image), size)
    url = _data_url(picture, "JPEG", quality=88)
    ratio = f"{example.width}/{example.height}"
    return f".p{number}{{aspect-ratio:{ratio};width:min(100%,26rem*{ratio});background-image:url({url})}}\n"


def _card(picture: int, prediction: Prediction) -> str:
    score, example = prediction.score, prediction.example
    size = fit_size(example.height, example.width, _PICTURE)
    percent = 100 * (score.iou or 0)
    panels = []
    for name, mask, colour in (
        ("true", prediction.true, TRUE_COLOUR),
        ("predicted", prediction.predicted, PREDICTED_COLOUR),
    ):
        url = _data_url(mask_layer([mask], [colour], size), "PNG", optimize=True)
        panels.append(f'<div class="picture p{picture}"><img src="{url}" alt="{name} mask"></div>')
    return f"""<article data-iou="{percent / 100:.6f}" data-kind="{escape(score.kind)}">
<h3>{escape(score.expression)}</h3>
<div class="about">
<span>{escape(outcome(prediction))}</span><span>{escape(example.id)}</span>
</div>
<div class="level"><i style="width:{percent:.1f}%"></i></div>
<div class="pair">{"".join(panels)}</div>
</article>
"""


def _data_url(picture: Image.Image, form: str, **options: int | bool) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, form, **options)
    return f"data:image/{form.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"
