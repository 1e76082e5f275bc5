"""Everything that an evaluation leaves behind, in one folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from s2rm_jax.evaluation import breakdown, plots
from s2rm_jax.evaluation.breakdown import Group
from s2rm_jax.evaluation.comparison import comparison
from s2rm_jax.evaluation.evaluator import Prediction
from s2rm_jax.evaluation.gallery import write_gallery
from s2rm_jax.evaluation.metrics import Counts
from s2rm_jax.evaluation.published import Benchmark, published_on
from s2rm_jax.evaluation.report import Report, interval_line, metrics_table, remarks, write_csv
from s2rm_jax.evaluation.report_page import report_page
from s2rm_jax.evaluation.svg import standalone
from s2rm_jax.evaluation.tables import as_latex, as_markdown


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
    table.md, table.tex, sentences.csv
    plots/*.svg    the figures of the page
    gallery/*.png  the cases of `sections`, one by one and as a sheet per section; none where there are none

    `about` says what was evaluated (split, checkpoint, ...) and goes into the JSON as it is.
    """
    tables = [metrics_table(report)]
    if benchmark:
        tables.append(comparison(report, benchmark))
    groups = {
        "length": breakdown.by_length(report.sentences),
        "area": breakdown.by_area(report.sentences),
        "place": breakdown.by_place(report.sentences),
    }
    counts = breakdown.histogram(report.sentences)
    figures = {
        "iou_histogram": plots.histogram_plot(counts),
        "iou_by_length": plots.groups_plot("By length of the sentence", "words in the sentence", groups["length"]),
        "iou_by_area": plots.groups_plot("By size of what is meant", "share of the picture, %", groups["area"]),
        "iou_by_place": plots.places_plot("By position of what is meant", groups["place"]),
    }
    captioned = [metrics_table(report, title), *tables[1:]]
    notes = [interval_line(report), *report.protocol.definition, *remarks(report)]

    write_csv(report, folder / "sentences.csv")
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


def _summary(report: Report, counts: Counts) -> dict[str, object]:
    """The protocol's numbers, null where there is none, and the counts that they are made of."""
    values = counts.metrics(report.protocol)
    kept: dict[str, object] = {
        "sentences": counts.sentences,
        "intersection": counts.intersection,
        "union": counts.union,
    }
    if report.protocol.no_target:
        kept |= {"no_target": counts.no_target, "rejected": counts.rejected}
        kept |= {"targeted": counts.targeted, "answered": counts.answered}
    numbers: dict[str, object] = {name: values.get(name) for name in report.protocol.columns}
    return numbers | kept


def _plain(groups: Mapping[str, Sequence[Group]]) -> dict[str, list[dict[str, object]]]:
    return {name: [asdict(group) for group in some] for name, some in groups.items()}


def _write(path: Path, text: str) -> None:
    path.write_text(text.rstrip("\n") + "\n", encoding="utf-8")
