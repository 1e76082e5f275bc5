"""The report on an evaluation: tables, metrics.json, expressions.csv, and one HTML page that needs no other file."""

from __future__ import annotations

import json
import shutil
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from html import escape
from pathlib import Path

from s2rm_jax.errors import UserError
from s2rm_jax.evaluation import bootstrap, gallery, plots
from s2rm_jax.evaluation.calibration import CORRECT_IOU, Bin, expected_calibration_error
from s2rm_jax.evaluation.evaluator import Prediction, Report
from s2rm_jax.evaluation.metrics import SCORE_FILE, MaskCounts, write_scores
from s2rm_jax.evaluation.protocols import PROTOCOLS
from s2rm_jax.evaluation.published import COMBINED, SINGLE, Benchmark, Published, published_on
from s2rm_jax.evaluation.tables import NOTHING, Table, as_html, as_latex, as_markdown, as_text, without
from s2rm_jax.io import read_object, remove_earlier, write_atomically

_SCREEN_WIDTH = 118  # columns
_FILES = ("index.html", "metrics.json", SCORE_FILE, "table.md", "table.tex")  # of every report


def metrics_table(report: Report, caption: str = "") -> Table:
    """Return the protocol's metrics, with one row per kind of expression and one for all expressions."""
    columns, rows = report.protocol.columns, []
    groups = [*((kind or "(no kind)", counts) for kind, counts in report.by_kind.items()), ("all", report.total)]
    for name, counts in groups:
        values = counts.metrics(report.protocol)
        cells = (f"{values[metric]:.2f}" if metric in values else NOTHING for metric in columns)
        rows.append((name, *cells, f"{counts.expressions:,}"))
    last = len(rows) - 1
    rules = (last,) if last else ()
    return Table(caption, ("", *columns.values(), "expressions"), tuple(rows), rules, strong=last)


def comparison(report: Report, benchmark: Benchmark) -> Table:
    """Return the published results on `benchmark`, those with more training data below a rule, and ours at the end."""
    names = report.protocol if benchmark.dataset != "grefcoco" else PROTOCOLS["rela_gref"]
    figures = published_on(benchmark)
    columns = {"overall_iou": names.overall_name or "oIoU", "mean_iou": names.mean_name}
    columns |= {metric: title for metric, title in names.columns.items() if metric in {one.metric for one in figures}}
    rows: list[tuple[str, ...]] = []
    rules: list[int] = []
    for trained in (SINGLE, COMBINED):
        group = [figure for figure in figures if figure.trained == trained]
        rules += [len(rows)] if rows and group else []
        rows += _comparison_rows(group, tuple(columns))
    ours = report.metrics
    values = [f"{ours[metric]:.2f}" if metric in ours else NOTHING for metric in columns]
    rules += [len(rows)] if rows else []
    rows.append(("this run", "see its config.json", report.protocol.name, "measured here", *values))
    return Table(
        f"{benchmark}: published results and this run; only rows with the same protocol are comparable",
        ("method", "trained on", "protocol", "source", *columns.values()),
        tuple(rows),
        tuple(rules),
        strong=len(rows) - 1,
        text_columns=4,
    )


def _comparison_rows(figures: Sequence[Published], metrics: Sequence[str]) -> list[tuple[str, ...]]:
    methods: dict[tuple[str, str, str], list[Published]] = {}
    for figure in figures:
        methods.setdefault((figure.method, figure.trained, figure.protocol), []).append(figure)
    rows = []
    for names, group in methods.items():
        values = {figure.metric: figure.value for figure in group}
        sources = "; ".join(dict.fromkeys(figure.source for figure in group))
        rows.append((*names, sources, *(values.get(metric, NOTHING) for metric in metrics)))
    return rows


def notes(report: Report, about: Mapping[str, object] | None = None) -> list[str]:
    """Return what was evaluated, the bootstrap intervals, the protocol's definition, and remarks on the data."""
    evaluated = ", ".join(f"{name} {value}" for name, value in (about or {}).items() if value not in (None, "", []))
    first = [f"Evaluated: {evaluated}."] if evaluated else []
    titles = report.protocol.columns
    parts = (f"{titles[name]} {low:.2f} to {high:.2f}" for name, (low, high) in report.intervals.items())
    drawn = f"images drawn with replacement: {report.images:,}, {bootstrap.RESAMPLES:,} times"
    intervals = f"{bootstrap.LEVEL} % bootstrap intervals ({drawn}): {', '.join(parts)}."
    return [*first, intervals, *report.protocol.definition, *remarks(report)]


def remarks(report: Report) -> list[str]:
    """Return what a reader must know about these numbers beyond the protocol's definition."""
    found = []
    total, protocol = report.total, report.protocol
    if report.left_out:
        found.append(f"Expressions left out because they could not be read (on_bad_example): {report.left_out:,}.")
    excluded = total.expressions - total.averaged
    if excluded:
        found.append(
            f"Expressions with an empty union: {excluded:,}. They are excluded from {protocol.mean_name}, which the "
            "original code prints as NaN if there is one, and count as misses in P@x."
        )
    if total.no_target and protocol.no_target is None:
        found.append(
            f"Expressions that refer to nothing: {total.no_target:,}. {protocol.name} does not support them: an empty "
            "prediction gains nothing; see --protocol rela_gref."
        )
    if not total.no_target and protocol.no_target == "head":
        found.append("Every expression refers to something, so N-acc and T-acc are not defined.")
    return found


def as_screen_text(
    report: Report, benchmark: Benchmark | None = None, about: Mapping[str, object] | None = None
) -> str:
    """Return the metrics, the notes on them and the published results on `benchmark` as plain text."""
    texts = (textwrap.fill(note, _SCREEN_WIDTH) for note in notes(report, about))
    parts = [as_text(metrics_table(report)), *texts]
    if benchmark:
        table = comparison(report, benchmark)
        parts += ["", table.caption, as_text(without(table, "source")), ""]
    return "\n".join(parts)


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
    tables: Sequence[Table],
    plots: Mapping[str, str],
    notes: Sequence[str],
    sections: Mapping[str, Sequence[Prediction]],
) -> str:
    """Return the HTML page; `plots` are SVG figures by name, and without `sections` there is no gallery."""
    first, *others = tables
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
{"".join(f"<h2>Published results</h2>{as_html(table)}" for table in others)}
<h2>Breakdown</h2>
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
    reliability: Sequence[Bin] = (),
    **about: object,
) -> Path:
    """Write the report into an existing folder and return the path of its page.

    - `index.html`: tables, definitions, plots and gallery on one page that needs no other file
    - `metrics.json`: all metrics with their counts, intervals, breakdowns and the published results
    - `table.md`, `table.tex` and `expressions.csv`
    - `plots/*.svg`: the plots of the page
    - `gallery/*.png`: the cases of `sections`, one by one and as a sheet per section; omitted if there are none

    Args:
        folder: the folder to write into.
        report: the scores.
        sections: the predictions to show, by section; see `gallery.Cases`.
        title: the title of the page.
        benchmark: adds the published results on it.
        reliability: adds the reliability of the scores of masks: the bins of `calibration.reliability`.
        about: what was evaluated (split, checkpoint, ...); part of metrics.json and of all texts.
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
    texts = notes(report, about)
    figures = {
        "iou_histogram": plots.histogram_plot(counts),
        "iou_by_length": plots.groups_plot("By length of the expression", "words in the expression", groups["length"]),
        "iou_by_area": plots.groups_plot("By size of the referent", "share of the image, %", groups["area"]),
        "iou_by_place": plots.places_plot("By position of the referent", groups["place"]),
    }
    scores: dict[str, object] = {}
    if reliability:
        figures["reliability"] = plots.reliability_plot(reliability)
        error = 100 * expected_calibration_error(reliability)
        scores = {"calibration_error": error, "reliability": [asdict(one) for one in reliability]}
        texts.append(
            f"Expected calibration error of the scores, as probabilities of IoU >= {CORRECT_IOU}: {error:.1f} %."
        )
    captioned = [metrics_table(report, title), *tables[1:]]

    by = {name: [asdict(group) for group in members] for name, members in groups.items()}
    content = about | _numbers(report) | {"iou_histogram": counts, "by": by} | scores
    if benchmark:
        content |= {"benchmark": asdict(benchmark), "published": [asdict(figure) for figure in published_on(benchmark)]}
    with _leaving_nothing_partial(folder):
        _write(folder / "metrics.json", json.dumps(content, indent=2))
        write_scores(report.expressions, folder / SCORE_FILE)
        _write(folder / "table.md", "\n\n".join([*map(as_markdown, captioned), *texts]))
        comments = "\n".join(f"% {' '.join(note.split())}" for note in texts)
        _write(folder / "table.tex", "\n\n".join([*map(as_latex, captioned), comments]))
        (folder / "plots").mkdir(exist_ok=True)
        remove_earlier(folder / "plots", r"reliability\.svg")
        for name, figure in figures.items():
            _write(folder / "plots" / f"{name}.svg", plots.standalone(figure))
        if sections or (folder / "gallery").is_dir():  # the cases of an earlier evaluation are removed
            gallery.write_gallery(folder / "gallery", sections)
        _write(folder / "index.html", report_page(title, tables, figures, texts, sections))
    return folder / "index.html"


@contextmanager
def _leaving_nothing_partial(folder: Path) -> Iterator[None]:
    """Remove what the block wrote into a folder without a report if it fails, as on a full disk.

    Files of an earlier report are replaced one by one and stay as they are then.
    """
    before = set(folder.iterdir())
    has_report = any(folder / name in before for name in _FILES)
    try:
        yield
    except OSError:
        if not has_report:
            for path in {*folder.iterdir()} - before:
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)
        raise


def require_own_report(folder: Path, settings: Mapping[str, object]) -> None:
    """Check that a report in `folder` would replace nothing but an earlier report on the same data.

    Args:
        folder: that of the new report; it need not exist.
        settings: which data the new report is on, as `input.sources.describe` returns it.

    Raises:
        UserError: a file of the folder has the name of a file of reports, but metrics.json is missing or of another
            program; or the report is on data with another setting. A metrics.json that cannot be read is replaced.
    """
    earlier = read_object(folder / "metrics.json")
    taken = [name for name in _FILES if (folder / name).exists()]
    damaged = "metrics.json" in taken and not earlier
    if taken and not damaged and "protocol" not in earlier:
        raise UserError(
            f"--out: {folder} has {', '.join(taken)}, but no report of evaluate; remove them, or give another --out"
        )
    for name, value in settings.items():
        if earlier.get(name, value) != value:
            raise UserError(
                f"--out: {folder} has a report on different data ({name} was {earlier[name]!r}, now {value!r}); give "
                "another --out, or delete that report"
            )


def _numbers(report: Report) -> dict[str, object]:
    return {
        "protocol": report.protocol.name,
        "definitions": " ".join(report.protocol.definition),
        "remarks": remarks(report),
        "left_out": report.left_out,
        "all": _summary(report, report.total) | {"interval_95": report.intervals},
        "by_kind": {kind: _summary(report, counts) for kind, counts in report.by_kind.items()},
    }


def _summary(report: Report, counts: MaskCounts) -> dict[str, object]:
    """Return the protocol's metrics (null if undefined) and the counts from which they are computed."""
    values = counts.metrics(report.protocol)
    names = ["expressions", "intersection", "union"]
    if report.protocol.no_target == "head":
        names += ["no_target", "rejected", "targeted", "answered"]
    metrics: dict[str, object] = {name: values.get(name) for name in report.protocol.columns}
    return metrics | {name: getattr(counts, name) for name in names}


def _write(path: Path, text: str) -> None:
    write_atomically(path, text.rstrip("\n") + "\n", errors="backslashreplace")
