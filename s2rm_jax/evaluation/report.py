"""A report on one evaluation: the table on the screen, metrics.json and sentences.csv."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from s2rm_jax.evaluation import metrics
from s2rm_jax.evaluation.metrics import Counts, SentenceScore

DEFINITIONS = (
    "Per sentence, in percent, at the picture's original resolution; a pixel is predicted where its logit exceeds 0.",
    "oIoU: sum of intersections / sum of unions. mIoU: mean IoU. P@x: share with IoU >= x. Empty union: IoU 0.",
)
COLUMNS = {"overall_iou": "oIoU", "mean_iou": "mIoU"} | {f"precision@0.{t}": f"P@0.{t}" for t in range(5, 10)}
_CSV_FIELDS = ("id", "example", "kind", "sentence", "intersection", "union", "iou")


@dataclass(frozen=True)
class Report:
    """The scores of all sentences, and what follows from them."""

    sentences: tuple[SentenceScore, ...]

    @cached_property
    def total(self) -> Counts:
        """The counts over all sentences."""
        return metrics.total(self.sentences)

    @cached_property
    def by_kind(self) -> dict[str, Counts]:
        """The counts of each kind of expression; empty where the source knows no kinds."""
        groups = metrics.by_kind(self.sentences)
        return {} if set(groups) <= {""} else groups

    @property
    def metrics(self) -> dict[str, float]:
        """`overall_iou`, `mean_iou`, `precision@0.5` ... `precision@0.9`, in percent."""
        return self.total.metrics()


def named_counts(report: Report) -> list[tuple[str, Counts]]:
    """Returns the rows of a table: each kind by its name, then all sentences together."""
    return [*((kind or "(no kind)", counts) for kind, counts in report.by_kind.items()), ("all", report.total)]


def table(report: Report) -> str:
    """Returns the table for the screen: one row per kind, one for all, and below it what the numbers mean."""
    rows = named_counts(report)
    name_width = max(len(name) for name, _ in rows)
    header = " ".join([f"{'':{name_width}}", *(f"{title:>6}" for title in COLUMNS.values()), f"{'sentences':>10}"])
    lines = [header, "-" * len(header)]
    for name, counts in rows:
        values = counts.metrics()
        lines.append(
            " ".join([f"{name:{name_width}}", *(f"{values[m]:6.2f}" for m in COLUMNS), f"{counts.sentences:>10,}"])
        )
    if len(rows) > 1:
        lines.insert(-1, lines[1])
    return "\n".join([*lines, *DEFINITIONS])


def write_json(report: Report, path: Path, **about: object) -> None:
    """Writes all metrics with their counts, in total and by kind; `about` says what was evaluated (split, step...)."""
    content = about | {
        "all": _summary(report.total),
        "by_kind": {kind: _summary(counts) for kind, counts in report.by_kind.items()},
        "definitions": " ".join(DEFINITIONS),
    }
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def write_csv(report: Report, path: Path) -> None:
    """Writes one line per sentence: id, example, kind, sentence, intersection and union in pixels, IoU in [0, 1]."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(_CSV_FIELDS)
        for s in report.sentences:
            writer.writerow((s.id, s.example_id, s.kind, s.sentence, s.intersection, s.union, f"{s.iou:.6f}"))


def _summary(counts: Counts) -> dict[str, float | int]:
    return {
        **counts.metrics(),
        "sentences": counts.sentences,
        "intersection": counts.intersection,
        "union": counts.union,
    }
