"""Everything that an evaluation leaves behind, in one folder.

The whole report as one HTML page: tables, what they mean, figures, gallery. It needs nothing but itself.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from html import escape
from pathlib import Path

from s2rm_jax.evaluation import bootstrap, gallery, plots
from s2rm_jax.evaluation.bootstrap import ScoreGroup
from s2rm_jax.evaluation.evaluator import Prediction
from s2rm_jax.evaluation.gallery import write_gallery
from s2rm_jax.evaluation.metrics import MaskCounts
from s2rm_jax.evaluation.plots import standalone
from s2rm_jax.evaluation.published import Benchmark, comparison, published_on
from s2rm_jax.evaluation.report import Report, interval_line, metrics_table, remarks, write_csv
from s2rm_jax.evaluation.tables import Table, as_html, as_latex, as_markdown

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
    cases = gallery.gallery_html(sections) if sections else ""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{_STYLE}{gallery.STYLE}</style>
</head>
<body>
<h1>{escape(title)}</h1>
{as_html(first)}
{"".join(f'<p class="note">{escape(note)}</p>' for note in notes)}
{"".join(f"<h2>Beside published figures</h2>{as_html(table)}" for table in others)}
<h2>Where it does well and where it does not</h2>
<div class="plots">{"".join(plots.values())}</div>
{cases}
<script>{gallery.SCRIPT}</script>
</body>
</html>
"""


def write_report(
    folder: Path,
    report: Report,
    sections: Mapping[str, Sequence[Prediction]],
    *,
    title: str,
    benchmark: Benchmark | None = None,
    **about: object,
) -> Path:
    """Writes the report into `folder`, which is there, and returns the path of its page.

    index.html     tables, definitions, figures and gallery on one page that needs nothing but itself
    metrics.json   all numbers with their counts, intervals, breakdowns and the published figures
    table.md, table.tex, expressions.csv
    plots/*.svg    the figures of the page
    gallery/*.png  the cases of `sections`, one by one and as a sheet per section; none where there are none

    `about` says what was evaluated (split, checkpoint, ...) and goes into the JSON as it is.
    """
    tables = [metrics_table(report)]
    if benchmark:
        tables.append(comparison(report, benchmark))
    groups = {
        "length": bootstrap.by_length(report.expressions),
        "area": bootstrap.by_area(report.expressions),
        "place": bootstrap.by_place(report.expressions),
    }
    counts = bootstrap.histogram(report.expressions)
    figures = {
        "iou_histogram": plots.histogram_plot(counts),
        "iou_by_length": plots.groups_plot("By length of the expression", "words in the expression", groups["length"]),
        "iou_by_area": plots.groups_plot("By size of what is meant", "share of the image, %", groups["area"]),
        "iou_by_place": plots.places_plot("By position of what is meant", groups["place"]),
    }
    captioned = [metrics_table(report, title), *tables[1:]]
    notes = [interval_line(report), *report.protocol.definition, *remarks(report)]

    write_csv(report, folder / "expressions.csv")
    content = about | _numbers(report) | {"iou_histogram": counts, "by": _plain(groups)}
    if benchmark:
        content |= {"benchmark": asdict(benchmark), "published": [asdict(figure) for figure in published_on(benchmark)]}
    _write(folder / "metrics.json", json.dumps(content, indent=2))
    _write(folder / "table.md", "\n\n".join([*map(as_markdown, captioned), *notes]))
    comments = "\n".join(f"% {note}" for note in notes)
    _write(folder / "table.tex", "\n\n".join([*map(as_latex, captioned), comments]))
    (folder / "plots").mkdir(exist_ok=True)
    for name, figure in figures.items():
        _write(folder / "plots" / f"{name}.svg", standalone(figure))
    if sections:
        write_gallery(folder / "gallery", sections)
    _write(folder / "index.html", report_page(title, report, tables, figures, sections))
    return folder / "index.html"


def _numbers(report: Report) -> dict[str, object]:
    return {
        "protocol": report.protocol.name,
        "definitions": " ".join(report.protocol.definition),
        "remarks": remarks(report),
        "all": _summary(report, report.total) | {"interval_95": report.intervals},
        "by_kind": {kind: _summary(report, counts) for kind, counts in report.by_kind.items()},
    }


def _summary(report: Report, counts: MaskCounts) -> dict[str, object]:
    """The protocol's numbers, null where there is none, and the counts that they are made of."""
    values = counts.metrics(report.protocol)
    kept: dict[str, object] = {
        "expressions": counts.expressions,
        "intersection": counts.intersection,
        "union": counts.union,
    }
    if report.protocol.no_target:
        kept |= {"no_target": counts.no_target, "rejected": counts.rejected}
        kept |= {"targeted": counts.targeted, "answered": counts.answered}
    numbers: dict[str, object] = {name: values.get(name) for name in report.protocol.columns}
    return numbers | kept


def _plain(groups: Mapping[str, Sequence[ScoreGroup]]) -> dict[str, list[dict[str, object]]]:
    return {name: [asdict(group) for group in some] for name, some in groups.items()}


def _write(path: Path, text: str) -> None:
    path.write_text(text.rstrip("\n") + "\n", encoding="utf-8")
