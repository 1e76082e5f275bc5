"""The whole report as one HTML page: tables, what they mean, figures, gallery. It needs nothing but itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from s2rm_jax.evaluation import gallery_page
from s2rm_jax.evaluation.evaluator import Prediction
from s2rm_jax.evaluation.report import Report, interval_line, remarks
from s2rm_jax.evaluation.tables import Table, as_html

_STYLE = """
:root { color-scheme: light dark; --ink: #181c21; --muted: #5d6670; --paper: #f4f5f7; --card: #fff; --line: #dfe3e8;
  --bar: #2f7fc1; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8ebef; --muted: #9aa4af; --paper: #121519; --card: #1b2026; --line: #2d343c; --bar: #3f8fd6; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1500px; padding: 2rem 1.5rem 4rem; background: var(--paper); color: var(--ink);
  font: 16px/1.45 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: 0 0 1rem; }
h2 { font-size: 1.15rem; margin: 2rem 0 .8rem; }
.scroll { overflow-x: auto; margin: 0 0 1rem; }
figcaption { color: var(--muted); font-size: .9rem; margin: 0 0 .4rem; }
table { border-collapse: collapse; background: var(--card); font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .8rem; text-align: right; border-bottom: 1px solid var(--line); }
.text { text-align: left; }
tr.rule td { border-top: 2px solid var(--muted); }
tr.strong { font-weight: 600; }
p.note { color: var(--muted); font-size: .85rem; margin: .35rem 0; max-width: 62rem; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 1rem;
  max-width: 70rem; }
.plots svg { width: 100%; height: auto; background: var(--card); border: 1px solid var(--line); border-radius: .6rem; }
"""


def report_page(
    title: str,
    report: Report,
    tables: Sequence[Table],
    plots: Mapping[str, str],
    sections: Mapping[str, Sequence[Prediction]],
) -> str:
    """Returns the page. `plots` are SVG figures by name; `sections` may be empty: then there is no gallery."""
    first, *others = tables
    notes = [interval_line(report), *report.protocol.definition, *remarks(report)]
    gallery = gallery_page.gallery_html(sections) if sections else ""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{_STYLE}{gallery_page.STYLE}</style>
</head>
<body>
<h1>{escape(title)}</h1>
{as_html(first)}
{"".join(f'<p class="note">{escape(note)}</p>' for note in notes)}
{"".join(f"<h2>Beside published figures</h2>{as_html(table)}" for table in others)}
<h2>Where it does well and where it does not</h2>
<div class="plots">{"".join(plots.values())}</div>
{gallery}
<script>{gallery_page.SCRIPT}</script>
</body>
</html>
"""
