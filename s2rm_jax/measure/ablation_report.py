"""What the runs of a suite say: tables with the spread over seeds, how far it can be trusted, figures, and JSON.

How variants compare, as figures: one colour a variant, over steps or over groups of expressions.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from scipy import stats

from s2rm_jax.evaluation.plots import BOTTOM, HEIGHT, INK, LEFT, MUTED, TOP, WIDTH, axes, box, level, standalone, text
from s2rm_jax.evaluation.tables import NOTHING, Table, as_markdown
from s2rm_jax.measure.ablation_runs import Result, Score
from s2rm_jax.measure.ablation_suites import Variant

_LEGEND = 170  # pixels at the right
_COLOURS = ("#181c21", "#2f7fc1", "#d55e00", "#009e73", "#cc79a7", "#8a6d00", "#56b4e9", "#7b3fb5")

Points = Sequence[tuple[float, float]]  # (x, mean IoU in percent)


def curves(title: str, axis: str, series: Mapping[str, Points]) -> str:
    """Draws lines over numbers, such as steps; the axis has the numbers of the longest line that fit."""
    longest = max(series.values(), key=len)
    every = -(-len(longest) // 6)
    ticks = {x: f"{x:g}" for x, _ in longest[::-1][::every]}
    return _figure(title, axis, series, ticks, joined=True)


def groups(title: str, axis: str, series: Mapping[str, Mapping[str, float]]) -> str:
    """Draws a mark for each variant above the name of each group."""
    names = list(dict.fromkeys(name for values in series.values() for name in values))
    points = {
        variant: [(float(names.index(name)), value) for name, value in values.items()]
        for variant, values in series.items()
    }
    return _figure(title, axis, points, {float(index): name for index, name in enumerate(names)}, joined=False)


def _figure(title: str, axis: str, series: Mapping[str, Points], ticks: Mapping[float, str], joined: bool) -> str:
    low = min(0.0, *ticks) if joined else -0.5
    high = max(ticks) if joined else len(ticks) - 0.5
    across = WIDTH - LEFT - _LEGEND

    def place(x: float) -> float:
        return LEFT + across * (x - low) / ((high - low) or 1)

    body = [text((place(x), HEIGHT - BOTTOM + 17), label, INK, 11) for x, label in ticks.items()]
    for index, (name, points) in enumerate(series.items()):
        colour = _COLOURS[index % len(_COLOURS)]
        shift = 0 if joined else (index - (len(series) - 1) / 2) * min(9.0, 0.8 * across / len(ticks) / len(series))
        spots = [(place(x) + shift, level(y, 100)) for x, y in points]
        if joined and spots:
            line = "L".join(f"{x:.1f} {y:.1f}" for x, y in spots)
            body.append(f'<path d="M{line}" style="stroke:{colour};stroke-width:1.6;fill:none"/>')
        body += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" style="fill:{colour}"/>' for x, y in spots]
        y = TOP + 16 * index
        body.append(box((WIDTH - _LEGEND + 14, y - 8), (10, 10), colour))
        body.append(text((WIDTH - _LEGEND + 29, y + 1), name, MUTED, 11, anchor="start"))
    return axes(title, axis, "mean IoU, %", 100, body)


Results = Mapping[str, Sequence[Result]]  # by the name of the variant

MARKDOWN_FILE, JSON_FILE, PLOTS = "ablations.md", "ablations.json", "plots"


def write_report(folder: Path, suite: str, steps: int, variants: Sequence[Variant], results: Results) -> Path:
    """Writes the tables, the same numbers for programs, and the figures; returns the path of the tables.

    Args:
        folder: which is there.
        suite: its name.
        steps: the budget.
        variants: the rows, of which the first is what the others are compared with; those without a result are left
            out, and the first must have one.
        results: of the seeds that are finished.
    """
    shown = [variant for variant in variants if results.get(variant.name)]
    (folder / PLOTS).mkdir(exist_ok=True)
    drawn = _figures(shown, results)
    for name, figure in drawn.items():
        (folder / PLOTS / f"{name}.svg").write_text(standalone(figure), encoding="utf-8")
    splits = list(results[shown[0].name][0].scores)
    first = splits[0]
    parts = [
        f"# Ablation {suite}: {steps:,} steps",
        as_markdown(_overview(shown, results, splits)),
        " ".join(_conclusions(shown, results, first)),
        as_markdown(_by_group(f"Mean IoU by kind of expression, {first}", shown, results, _by_kind, first)),
        as_markdown(_by_group(f"Mean IoU by objects in the scene, {first}", shown, results, _by_objects, first)),
        *(f"![{name.replace('_', ' ')}]({PLOTS}/{name}.svg)" for name in drawn),
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


def difference(values: Sequence[float], reference: Sequence[float]) -> tuple[float, float, float] | None:
    """Returns the difference of two means and its 95 % interval by Welch's t; None where a side has no two values."""
    if min(len(values), len(reference)) < 2:
        return None
    mean = float(np.mean(values) - np.mean(reference))
    parts = [float(np.var(side, ddof=1)) / len(side) for side in (values, reference)]
    error = math.sqrt(sum(parts))
    if error == 0:
        return mean, mean, mean
    weights = (part**2 / (len(side) - 1) for part, side in zip(parts, (values, reference), strict=True))
    half = float(stats.t.ppf(0.975, sum(parts) ** 2 / sum(weights))) * error
    return mean, mean - half, mean + half


def spread(values: Sequence[float]) -> str:
    """Writes a mean, and with two values or more their standard deviation."""
    mean = f"{np.mean(values):.2f}"
    return f"{mean} ± {np.std(values, ddof=1):.2f}" if len(values) > 1 else mean


def _overview(variants: Sequence[Variant], results: Results, splits: Sequence[str]) -> Table:
    header = ["variant", "what is different"]
    for split in splits:
        header += [f"mIoU {split}", f"oIoU {split}"]
    header += [f"against {variants[0].name}, {splits[0]}", "M parameters", "GFLOPs", "seeds"]
    rows = []
    for variant in variants:
        found = results[variant.name]
        cells = [variant.name, variant.what]
        for split in splits:
            cells += [spread([r.scores[split].mean_iou for r in found])]
            cells += [spread([r.scores[split].overall_iou for r in found])]
        compared = None if variant is variants[0] else _against(variants[0], variant, results, splits[0])
        cells.append(f"{compared[0]:+.2f} ({compared[1]:+.2f} to {compared[2]:+.2f})" if compared else NOTHING)
        cells += [f"{found[0].parameters / 1e6:.2f}", f"{found[0].gflops:.2f}", str(len(found))]
        rows.append(tuple(cells))
    caption = (
        "In percent: mean ± standard deviation over seeds; differences with 95 % intervals (Welch); parameters of the "
        "whole network, GFLOPs of a forward pass of one image with its expressions"
    )
    return Table(caption, tuple(header), tuple(rows), text_columns=2)


def _against(reference: Variant, variant: Variant, results: Results, split: str) -> tuple[float, float, float] | None:
    sides = [[r.scores[split].mean_iou for r in results[one.name]] for one in (variant, reference)]
    return difference(sides[0], sides[1])


def _conclusions(variants: Sequence[Variant], results: Results, split: str) -> list[str]:
    """Says what the seeds allow to say of the mean IoU, and what they do not."""
    reference, others = variants[0], variants[1:]
    compared = {variant.name: _against(reference, variant, results, split) for variant in others}
    told = {name: ends for name, ends in compared.items() if ends}
    said = []
    for word, names in (
        (f"Below {reference.name}", [name for name, (_, _, high) in told.items() if high < 0]),
        (f"Above {reference.name}", [name for name, (_, low, _) in told.items() if low > 0]),
        ("Not told apart from it by these seeds", [n for n, (_, low, high) in told.items() if low <= 0 <= high]),
        ("With fewer than two seeds, so nothing can be said", [name for name, ends in compared.items() if not ends]),
    ):
        if names:
            said.append(f"{word}: {', '.join(names)}.")
    if told:
        said.append(
            f"Each interval by itself: of {len(told)} comparisons, {0.05 * len(told):.1f} are expected to err. The "
            "seed changes the start and the order of the scenes, not the scenes that are held out."
        )
    return said


def _by_kind(score: Score) -> Mapping[str, float]:
    return score.by_kind


def _by_objects(score: Score) -> Mapping[str, float]:
    return score.by_objects


def _by_group(
    caption: str,
    variants: Sequence[Variant],
    results: Results,
    groups: Callable[[Score], Mapping[str, float]],
    split: str,
) -> Table:
    names = list(groups(results[variants[0].name][0].scores[split]))
    rows = [
        (variant.name, *(spread([groups(r.scores[split])[name] for r in results[variant.name]]) for name in names))
        for variant in variants
    ]
    return Table(caption, ("variant", *names), tuple(rows))


def _figures(variants: Sequence[Variant], results: Results) -> dict[str, str]:
    split = next(iter(results[variants[0].name][0].scores))

    def mean(groups: Callable[[Score], Mapping[str, float]], found: Sequence[Result]) -> dict[str, float]:
        each = [groups(result.scores[split]) for result in found]
        return {name: float(np.mean([one[name] for one in each])) for name in each[0]}

    def grouped(groups: Callable[[Score], Mapping[str, float]]) -> dict[str, dict[str, float]]:
        return {variant.name: mean(groups, results[variant.name]) for variant in variants}

    drawn = {
        "by_kind": groups(f"By kind of expression, {split}", "kind", grouped(_by_kind)),
        "by_objects": groups(f"By objects in the scene, {split}", "objects", grouped(_by_objects)),
    }
    learnt = {v.name: _mean_curve(results[v.name]) for v in variants}
    if all(learnt.values()):
        learnt_on = results[variants[0].name][0].curve_split
        drawn["learning"] = curves(f"Learning, on {learnt_on}", "steps", learnt)
    return drawn


def _mean_curve(found: Sequence[Result]) -> list[tuple[float, float]]:
    """The mean over seeds at each step that all of them have."""
    values = [dict(result.curve) for result in found]
    steps = sorted(set.intersection(*(set(one) for one in values)))
    return [(float(step), float(np.mean([one[step] for one in values]))) for step in steps]
