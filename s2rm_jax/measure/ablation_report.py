"""The report of an ablation suite: Markdown tables with intervals over seeds, the numbers as JSON, and SVG plots."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath
from scipy.special import stdtrit

from s2rm_jax.errors import UserError, counted, reason_of
from s2rm_jax.evaluation.plots import standalone
from s2rm_jax.evaluation.tables import NOTHING, Table, as_markdown
from s2rm_jax.io import write_atomically, writing
from s2rm_jax.measure.ablation_plots import curves_plot, differences_plot, gains_plot, scores_plot
from s2rm_jax.measure.ablation_runs import RunResult, by_number
from s2rm_jax.measure.ablation_suites import STEPWISE, Variant

Results = Mapping[str, Sequence[RunResult]]  # by the name of the variant
Grouped = Mapping[str, Mapping[str, Sequence[float]]]  # {variant: {group: values over seeds}}

GROUPINGS = {  # fields of a Score
    "by_kind": "kind of expression",
    "by_objects": "objects in the scene",
    "by_distance": "slices between referent and landmark",
}

_GAINS = "by_distance"  # the grouping of the plot of gains

MARKDOWN_FILE, JSON_FILE, PLOTS = "ablations.md", "ablations.json", "plots"


def write_ablations(folder: Path, suite: str, steps: int, variants: Sequence[Variant], results: Results) -> Path:
    """Write the tables, the same numbers as JSON, and the plots; return the path of the tables.

    Args:
        folder: an existing folder.
        suite: the name of the suite.
        steps: the steps of each run.
        variants: the rows, without those that have no result. The first that has one is the reference.
        results: of the finished runs, at least one.
    """
    shown = [variant for variant in variants if results.get(variant.name)]
    (folder / PLOTS).mkdir(exist_ok=True)
    references = _references(suite, shown)
    figures = _figures(suite, shown, references, results)
    for name, figure in figures.items():
        (folder / PLOTS / f"{name}.svg").write_text(standalone(figure), encoding="utf-8")
    splits = list(results[shown[0].name][0].scores)
    first = splits[0]
    parts = [
        f"# Ablation {suite}: {steps:,} steps",
        as_markdown(_overview(shown, references, results, splits)),
        " ".join(_conclusions(references, results, first)),
        *(
            as_markdown(table)
            for field, title in GROUPINGS.items()
            if (grouped := _grouped(field, shown, results, first))
            for table in (
                _by_group(f"Mean IoU by {title}, {first}", grouped),
                *_differences_by_group(field, f"by {title}, {first}", references, results, first),
            )
        ),
        *(f"![{name.replace('_', ' ')}]({PLOTS}/{name}.svg)" for name in figures),
    ]
    (folder / MARKDOWN_FILE).write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    content = {
        "suite": suite,
        "steps": steps,
        "variants": [
            {
                "name": variant.name,
                "what": variant.what,
                "changes": dict(variant.changes),
                "runs": [asdict(result) for result in results[variant.name]],
            }
            for variant in shown
        ],
    }
    (folder / JSON_FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return folder / MARKDOWN_FILE


def collect(path: Path, benchmark: str, steps: int, results: Results) -> str:
    """Add results to a JSON file, a list with one row per run, and return what was added.

    A row of the same benchmark, steps, variant and seed is replaced.

    Args:
        path: of the file, which need not exist.
        benchmark: the name of the configuration without its ending.
        steps: the steps of each run.
        results: of the finished runs.

    Raises:
        UserError: the file cannot be read or written, or is not one that this function has written.
    """
    rows = _read_collected(path)
    finished = [run for runs in results.values() for run in runs]
    new = [{"benchmark": benchmark, "steps": steps} | _rounded(asdict(run)) for run in finished]
    by_key = {tuple(row[name] for name in _KEY): row for row in (*rows, *new)}
    lines = ",\n".join(f" {json.dumps(by_key[one])}" for one in sorted(by_key))
    with writing(path, "--collect"):
        write_atomically(epath.Path(path), f"[\n{lines}\n]\n")
    return f"{path}: {counted(len(by_key), 'run')}, {len(new)} of them from --out"


_KEY = {"benchmark": str, "steps": int, "variant": str, "seed": int}  # fields that identify a collected run


def _read_collected(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a file that `collect` has written, none if it does not exist."""
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(f"--collect: {path} cannot be read ({reason_of(error)}); give another file") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"--collect: {path} is damaged ({reason_of(error)}); give another file") from error
    valid = isinstance(rows, list) and all(
        isinstance(row, dict) and all(isinstance(row.get(name), kind) for name, kind in _KEY.items()) for row in rows
    )
    if not valid:
        raise UserError(f"--collect: {path} was not written by ablate --collect; give another file")
    if not os.access(path, os.W_OK):  # it would be replaced nevertheless
        raise UserError(f"--collect: {path} is read-only; make it writable, or give another file")
    return rows


def _rounded(value: Any) -> Any:
    """Return nested values with all floating-point numbers rounded to four digits after the point."""
    match value:
        case float():
            return round(value, 4)
        case dict():
            return {name: _rounded(one) for name, one in value.items()}
        case list() | tuple():
            return [_rounded(one) for one in value]
        case _:
            return value


def paired_difference(values: Mapping[int, float], reference: Mapping[int, float]) -> tuple[float, float, float] | None:
    """Return the mean difference over the seeds of both sides with its 95 % interval by the paired t-test.

    Runs of one seed share the order of the data and the initial values of parameters of equal path and shape.

    Args:
        values: {seed: value}.
        reference: as `values`.

    Returns:
        (mean, low, high), or None for fewer than two common seeds.
    """
    differences = [values[seed] - reference[seed] for seed in values.keys() & reference.keys()]
    if len(differences) < 2:
        return None
    mean = float(np.mean(differences))
    quantile = float(stdtrit(len(differences) - 1, 0.975))  # of Student's t distribution
    half = quantile * float(np.std(differences, ddof=1)) / math.sqrt(len(differences))
    return mean, mean - half, mean + half


def mean_and_deviation(values: Sequence[float]) -> str:
    """Format a mean and, from two values on, the standard deviation."""
    mean = f"{np.mean(values):.2f}"
    return f"{mean} ± {np.std(values, ddof=1):.2f}" if len(values) > 1 else mean


@dataclass(frozen=True)
class _References:
    """What the variants are compared with: {variant: the name of another}, and what the tables call it."""

    names: Mapping[str, str]
    title: str

    def suffix(self, name: str) -> str:
        """Return what a table adds to a difference where its rows have several references."""
        return f" from {self.names[name]}" if self.title == _SEVERAL and name in self.names else ""


_SEVERAL = "the reference"


def _references(suite: str, variants: Sequence[Variant]) -> _References:
    names = [variant.name for variant in variants]
    if suite in STEPWISE:
        return _References(dict(zip(names[1:], names[:-1], strict=True)), "the row above")
    references = {one.name: one.reference if one.reference in names else names[0] for one in variants[1:]}
    return _References(references, _SEVERAL if len(set(references.values())) > 1 else names[0])


def _overview(variants: Sequence[Variant], references: _References, results: Results, splits: Sequence[str]) -> Table:
    header = ["variant", "change"]
    for split in splits:
        header += [f"mIoU {split}", f"oIoU {split}"]
    header += [f"difference from {references.title}, {splits[0]}", "M parameters", "GFLOPs", "seeds"]
    rows = []
    for variant in variants:
        found = results[variant.name]
        cells = [variant.name, variant.what]
        for split in splits:
            cells += [mean_and_deviation([r.scores[split].mean_iou for r in found])]
            cells += [mean_and_deviation([r.scores[split].overall_iou for r in found])]
        difference = _difference(_compare(variant.name, references, results, _mean_iou(splits[0])))
        cells.append(difference + references.suffix(variant.name))
        cells += [f"{found[0].parameters / 1e6:.2f}", f"{found[0].gflops:.2f}", str(len(found))]
        rows.append(tuple(cells))
    caption = (
        "In percent: mean ± standard deviation over seeds; differences of mean IoU over common seeds, with 95 % "
        "intervals (paired t-test). Parameters of the whole network; GFLOPs of a forward pass of one image with all "
        "its expressions"
    )
    return Table(caption, tuple(header), tuple(rows), text_columns=2)


Difference = tuple[float, float, float] | None  # (mean, low, high), None for fewer than two common seeds


def _compare(name: str, references: _References, results: Results, value: Callable[[RunResult], float]) -> Difference:
    if name not in references.names:
        return None
    sides = (results[one] for one in (name, references.names[name]))
    values, reference = ({run.seed: value(run) for run in runs} for runs in sides)
    return paired_difference(values, reference)


def _mean_iou(split: str) -> Callable[[RunResult], float]:
    return lambda run: run.scores[split].mean_iou


def _group_value(field: str, group: str, split: str) -> Callable[[RunResult], float]:
    return lambda run: float(getattr(run.scores[split], field)[group])


def _difference(compared: Difference) -> str:
    return f"{compared[0]:+.2f} ({compared[1]:+.2f} to {compared[2]:+.2f})" if compared else NOTHING


def _compare_groups(
    name: str, field: str, references: _References, results: Results, split: str
) -> dict[str, tuple[float, float, float]]:
    """Return the differences of a variant from its reference by group, without groups that have none."""
    groups = sorted(getattr(results[name][0].scores[split], field), key=by_number)
    found = {group: _compare(name, references, results, _group_value(field, group, split)) for group in groups}
    return {group: difference for group, difference in found.items() if difference}


def _differences_by_group(field: str, title: str, references: _References, results: Results, split: str) -> list[Table]:
    """Return a table of the paired differences, or none without two seeds."""
    found = {name: _compare_groups(name, field, references, results, split) for name in references.names}
    found = {name: differences for name, differences in found.items() if differences}
    if not found:
        return []
    groups = list(next(iter(found.values())))
    rows = [
        (name + references.suffix(name), *(_difference(differences.get(group)) for group in groups))
        for name, differences in found.items()
    ]
    caption = f"Difference of mean IoU from {references.title} {title}, with 95 % intervals"
    return [Table(caption, ("variant", *groups), tuple(rows))]


def _conclusions(references: _References, results: Results, split: str) -> list[str]:
    """Return sentences on which differences of the mean IoU are significant."""
    compared = {name: _compare(name, references, results, _mean_iou(split)) for name in references.names}
    intervals = {name: result[1:] for name, result in compared.items() if result}
    conclusions = []
    for label, names in (
        (f"Below {references.title}", [name for name, (_, high) in intervals.items() if high < 0]),
        (f"Above {references.title}", [name for name, (low, _) in intervals.items() if low > 0]),
        ("No significant difference", [name for name, (low, high) in intervals.items() if low <= 0 <= high]),
        ("Fewer than two seeds, no conclusion", [name for name in compared if name not in intervals]),
    ):
        if names:
            conclusions.append(f"{label}: {', '.join(names)}.")
    if intervals:
        conclusions.append(
            f"Intervals are not corrected for multiple comparisons: of {len(intervals)}, "
            f"{0.05 * len(intervals):.1f} are expected to be wrong. The seed changes the initial parameters and the "
            "order of training images, but not the evaluation images."
        )
    return conclusions


def _grouped(field: str, variants: Sequence[Variant], results: Results, split: str) -> Grouped:
    """Return the values of each group, or nothing if a run was not scored by these groups."""
    if not all(getattr(run.scores[split], field) for variant in variants for run in results[variant.name]):
        return {}

    def values(runs: Sequence[RunResult]) -> dict[str, list[float]]:
        groups = [getattr(run.scores[split], field) for run in runs]
        return {name: [group[name] for group in groups] for name in sorted(groups[0], key=by_number)}

    return {variant.name: values(results[variant.name]) for variant in variants}


def _by_group(caption: str, grouped: Grouped) -> Table:
    names = list(next(iter(grouped.values())))
    rows = [(variant, *(mean_and_deviation(groups[name]) for name in names)) for variant, groups in grouped.items()]
    return Table(caption, ("variant", *names), tuple(rows))


def _figures(suite: str, variants: Sequence[Variant], references: _References, results: Results) -> dict[str, str]:
    split = next(iter(results[variants[0].name][0].scores))
    figures = {}
    compared = {name: _compare(name, references, results, _mean_iou(split)) for name in references.names}
    if known := {f"{name}{references.suffix(name)}": one for name, one in compared.items() if one}:
        figures["differences"] = differences_plot(f"Difference from {references.title}, {split}", known)
    for field, title in GROUPINGS.items():
        means = {
            variant: {name: float(np.mean(values)) for name, values in groups.items()}
            for variant, groups in _grouped(field, variants, results, split).items()
        }
        if means:
            figures[field] = scores_plot(f"By {title}, {split}", title, means)
    if suite not in STEPWISE and _grouped(_GAINS, variants, results, split):
        gains = {
            name: {
                group: (-mean, -high, -low)
                for group, (mean, low, high) in _compare_groups(name, _GAINS, references, results, split).items()
            }
            for name in references.names
        }
        gains = {name: one for name, one in gains.items() if one}
        if gains:
            title = f"Gain of {references.title} over each variant, {split}"
            figures["gain_by_distance"] = gains_plot(title, GROUPINGS[_GAINS], gains)
    learning = {variant.name: _mean_curve(results[variant.name]) for variant in variants}
    if all(learning.values()):
        curve_split = results[variants[0].name][0].curve_split
        figures["learning"] = curves_plot(f"Learning, on {curve_split}", "steps", learning)
    return figures


def _mean_curve(runs: Sequence[RunResult]) -> list[tuple[float, float]]:
    """Return the mean over seeds at each step that all of them have."""
    values = [dict(result.curve) for result in runs]
    steps = sorted(set.intersection(*(set(one) for one in values)))
    return [(float(step), float(np.mean([one[step] for one in values]))) for step in steps]
