"""Our numbers beside published ones, on the splits that papers report."""

from __future__ import annotations

from ml_collections import ConfigDict

from s2rm_jax.evaluation.protocols import PROTOCOLS
from s2rm_jax.evaluation.published import COMBINED, SINGLE, Benchmark, Published, is_benchmark, published_on
from s2rm_jax.evaluation.report import Report
from s2rm_jax.evaluation.tables import NOTHING, Table
from s2rm_jax.input.combined import DATASETS

_REFER = {"dataset": "refcoco", "split_by": "unc"}  # the defaults of the sources "refer" and "tfds"


def benchmark_of(source: ConfigDict, split: str, limit: int = 0) -> Benchmark | None:
    """Returns the published benchmark that a configuration's source and a split are, or None.

    Where several datasets are trained on together, a split "NAME:SPLIT" is that of one of them. A part of a split
    (`limit` pictures, or the source's own `limit_referents`) is no benchmark.
    """
    fields = dict(source)
    name, colon, part_split = split.partition(":")
    if fields.get("name") == "mixture" and colon and name in fields["parts"]:
        return benchmark_of(fields["parts"][name], part_split, limit)
    if fields.get("name") == "combined" and colon:
        split_by = dict(entry.split("/", 1) for entry in fields.get("datasets", DATASETS))
        fields |= {"name": "refer", "dataset": name, "split_by": split_by.get(name, "")}
        split = part_split
    if fields.get("name") not in ("refer", "tfds") or limit or fields.get("limit_referents"):
        return None
    fields = _REFER | fields
    benchmark = Benchmark(str(fields["dataset"]), str(fields["split_by"]), split)
    return benchmark if is_benchmark(benchmark) else None


def comparison(report: Report, benchmark: Benchmark) -> Table:
    """Returns the published figures on `benchmark`, those trained on more data below a line, and ours at the end."""
    names = report.protocol if benchmark.dataset != "grefcoco" else PROTOCOLS["rela_gref"]
    figures = published_on(benchmark)
    columns = {"overall_iou": names.overall_name or "oIoU", "mean_iou": names.mean_name}
    columns |= {metric: names.columns[metric] for metric in names.columns if metric in {one.metric for one in figures}}
    rows: list[tuple[str, ...]] = []
    rules: list[int] = []
    for trained in (SINGLE, COMBINED):
        some = [figure for figure in figures if figure.trained == trained]
        rules += [len(rows)] if rows and some else []
        rows += _rows(some, tuple(columns))
    ours = report.metrics
    values = [f"{ours[metric]:.2f}" if metric in ours else NOTHING for metric in columns]
    rules += [len(rows)] if rows else []
    rows.append(("this run", "see its config.json", report.protocol.name, "measured here", *values))
    where = f"{benchmark.dataset} ({benchmark.split_by}) {benchmark.split}"
    return Table(
        f"{where}: published figures and this run's; only rows of the same protocol are measured alike",
        ("method", "trained on", "protocol", "source", *columns.values()),
        tuple(rows),
        tuple(rules),
        strong=len(rows) - 1,
        texts=4,
    )


def _rows(figures: list[Published], metrics: tuple[str, ...]) -> list[tuple[str, ...]]:
    """One row per method, in which every metric stays in a column of its own."""
    methods: dict[tuple[str, str, str], list[Published]] = {}
    for figure in figures:
        methods.setdefault((figure.method, figure.trained, figure.protocol), []).append(figure)
    rows = []
    for named, group in methods.items():
        values = {figure.metric: figure.value for figure in group}
        sources = "; ".join(dict.fromkeys(figure.source for figure in group))
        rows.append((*named, sources, *(values.get(metric, NOTHING) for metric in metrics)))
    return rows
