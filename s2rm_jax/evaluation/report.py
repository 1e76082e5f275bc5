"""A report on one evaluation: its numbers, what they mean, the table on the screen and expressions.csv."""

from __future__ import annotations

import csv
import textwrap
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from s2rm_jax.evaluation import bootstrap, metrics
from s2rm_jax.evaluation.metrics import ExpressionScore, MaskCounts
from s2rm_jax.evaluation.protocols import ORIGINAL, Protocol
from s2rm_jax.evaluation.tables import NOTHING, Table, as_text

_SCREEN = 118  # columns
_CSV_FIELDS = (
    *("id", "example", "kind", "sentence", "intersection", "union", "iou"),
    *("targeted", "answered", "area", "centre_x", "centre_y"),
)


@dataclass(frozen=True)
class Report:
    """The scores of all expressions under a protocol, and what follows from them."""

    expressions: tuple[ExpressionScore, ...]
    protocol: Protocol = ORIGINAL

    @cached_property
    def total(self) -> MaskCounts:
        """The counts over all expressions."""
        return metrics.total(self.expressions, self.protocol)

    @cached_property
    def by_kind(self) -> dict[str, MaskCounts]:
        """The counts of each kind of expression; empty where the source knows no kinds."""
        groups = metrics.by_kind(self.expressions, self.protocol)
        return {} if set(groups) <= {""} else groups

    @property
    def metrics(self) -> dict[str, float]:
        """The protocol's numbers in percent by name, see `MaskCounts.metrics`."""
        return self.total.metrics(self.protocol)

    @cached_property
    def intervals(self) -> dict[str, tuple[float, float]]:
        """The bootstrap intervals, in percent, of those of overall and mean IoU that the protocol reports."""
        found = bootstrap.intervals(self.expressions)
        return {name: ends for name, ends in found.items() if name in self.metrics}

    @property
    def images(self) -> int:
        """The number of images."""
        return len({score.example_id for score in self.expressions})


def named_counts(report: Report) -> list[tuple[str, MaskCounts]]:
    """Returns the rows of a table: each kind by its name, then all expressions together."""
    return [*((kind or "(no kind)", counts) for kind, counts in report.by_kind.items()), ("all", report.total)]


def metrics_table(report: Report, caption: str = "") -> Table:
    """Returns one row per kind and one for all, with the protocol's numbers."""
    columns, rows = report.protocol.columns, []
    for name, counts in named_counts(report):
        values = counts.metrics(report.protocol)
        cells = (f"{values[metric]:.2f}" if metric in values else NOTHING for metric in columns)
        rows.append((name, *cells, f"{counts.expressions:,}"))
    last = len(rows) - 1
    rules = (last,) if last else ()
    return Table(caption, ("", *columns.values(), "expressions"), tuple(rows), rules, strong=last)


def interval_line(report: Report) -> str:
    """Returns the bootstrap intervals in one expression."""
    titles = report.protocol.columns
    parts = (f"{titles[name]} {low:.2f} to {high:.2f}" for name, (low, high) in report.intervals.items())
    drawn = f"images drawn with replacement: {report.images:,}, {bootstrap.RESAMPLES:,} times"
    return f"{bootstrap.LEVEL} % bootstrap intervals ({drawn}): {', '.join(parts)}."


def remarks(report: Report) -> list[str]:
    """Returns what a reader must know of these numbers beyond the protocol's definition."""
    found = []
    total, protocol = report.total, report.protocol
    left_out = total.expressions - total.averaged
    if left_out:
        found.append(
            f"Expressions with an empty union: {left_out:,}. They are left out of {protocol.mean_name}, which the "
            "original code prints as NaN as soon as there is one, and count as misses in P@x."
        )
    if total.no_target and protocol.no_target is None:
        found.append(
            f"Expressions that refer to nothing: {total.no_target:,}. {protocol.name} does not know any: nothing is "
            "gained where nothing is predicted for them; see --protocol rela_gref."
        )
    if not total.no_target and protocol.no_target:
        found.append("Every expression refers to something, so there is no N-acc and no T-acc.")
    return found


def table(report: Report) -> str:
    """Returns the table for the screen: one row per kind, one for all, and below it what the numbers mean."""
    notes = [interval_line(report), *report.protocol.definition, *remarks(report)]
    return "\n".join([as_text(metrics_table(report)), *(textwrap.fill(note, _SCREEN) for note in notes)])


def write_csv(report: Report, path: Path) -> None:
    """Writes one line per expression.

    id, example, kind, expression; intersection and union in pixels, and IoU in [0, 1], as the protocol counts them
    (empty: left out); whether the expression refers to something (targeted) and was answered with a mask; the area of
    the true mask and its centroid as shares of the image.
    """
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(_CSV_FIELDS)
        for s in report.expressions:
            iou = "" if s.iou is None else f"{s.iou:.6f}"
            x, y = ("", "") if s.centre is None else (f"{share:.4f}" for share in s.centre)
            row = (s.id, s.example_id, s.kind, s.expression, s.intersection, s.union, iou)
            writer.writerow((*row, int(s.targeted), int(s.answered), f"{s.area:.6f}", x, y))
