"""The metrics of referring segmentation, kept as integer counts and sums until the end, and the file of the scores."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from functools import reduce
from operator import add
from pathlib import Path

import numpy as np
from jaxtyping import Bool

from s2rm_jax.evaluation.protocols import ARANGE_EPSILON, ARANGE_THRESHOLDS, ORIGINAL, Protocol

# Precision is counted at IoU 0.5, 0.6, ... 0.9; protocols report some of them. Tenths are integers, so that ties
# (3 of 5 pixels at 0.6) are decided exactly.
THRESHOLDS_IN_TENTHS = (5, 6, 7, 8, 9)


@dataclass(frozen=True)
class ExpressionScore:
    """The score of one expression under a protocol.

    Attributes:
        id: the expression, unique within its split
        example_id: its image
        kind: the kind of expression ("relation", ...), or "" if the source has no kinds
        expression: the text
        intersection: in pixels, as the protocol adds them up; see `score_masks`
        union: in pixels, as the protocol adds them up; see `score_masks`
        empty_iou: the IoU if the union is 0; None excludes the expression from the mean
        targeted: whether the expression refers to something
        answered: whether the network predicts that it does
        area: of the true mask, as a fraction of the image
        centre: (x, y) of the true mask's centroid as fractions of width and height, or None if it is empty
        image: the file or the content of the image, which several examples of a mixture may show, if known
    """

    id: str
    example_id: str
    kind: str
    expression: str
    intersection: int
    union: int
    empty_iou: float | None = 0.0
    targeted: bool = True
    answered: bool = True
    area: float = 0.0
    centre: tuple[float, float] | None = None
    image: str = ""

    @property
    def image_identity(self) -> str:
        """What identifies the image among all datasets."""
        return self.image or self.example_id

    @property
    def iou(self) -> float | None:
        """Intersection over union in [0, 1]; `empty_iou` if the union is empty."""
        return self.intersection / self.union if self.union else self.empty_iou


@dataclass(frozen=True)
class MaskCounts:
    """The counts from which all metrics are computed. Counts of parts of a dataset add up with `+`.

    Attributes:
        expressions: all expressions
        intersection: summed over them, in pixels, like `union`
        iou_sum: sum of the IoUs of the expressions that have one; `averaged` is their number
        precision_total: the expressions over which precision is computed
        hits: the number of these that reach each threshold
        no_target: expressions that refer to nothing; for `rejected` of them the network predicts that
        targeted: the other expressions; for `answered` of them the network predicts a mask
    """

    expressions: int = 0
    intersection: int = 0
    union: int = 0
    iou_sum: float = 0.0
    averaged: int = 0
    precision_total: int = 0
    no_target: int = 0
    rejected: int = 0
    targeted: int = 0
    answered: int = 0
    hits: tuple[int, ...] = (0,) * len(THRESHOLDS_IN_TENTHS)

    def __add__(self, other: MaskCounts) -> MaskCounts:
        sums = {name: getattr(self, name) + getattr(other, name) for name in _SUMS}
        return MaskCounts(**sums, hits=tuple(map(add, self.hits, other.hits)))

    def metrics(self, protocol: Protocol = ORIGINAL) -> dict[str, float]:
        """Return the protocol's metrics in percent; 0 if nothing was counted.

        `overall_iou` (sum I / sum U), `mean_iou` (mean of I / U), `precision@0.5` ... (share of expressions that reach
        the threshold), and, if the data have expressions that refer to nothing, `no_target_accuracy` (share of these
        that are rejected) and `target_accuracy` (share of the others that are answered with a mask).
        """
        percent = {name: 100 * part / total if total else 0.0 for name, (part, total) in self.shares(protocol).items()}
        undefined = () if self.no_target else ("no_target_accuracy", "target_accuracy")
        return {name: value for name, value in percent.items() if name not in undefined}

    def shares(self, protocol: Protocol = ORIGINAL) -> dict[str, tuple[int | float, int]]:
        """Return (part, total) of each of the protocol's metrics, in the order of its columns."""
        shares: dict[str, tuple[int | float, int]] = {
            "overall_iou": (self.intersection, self.union),
            "mean_iou": (self.iou_sum, self.averaged),
            "no_target_accuracy": (self.rejected, self.no_target),
            "target_accuracy": (self.answered, self.targeted),
        }
        for tenths, hits in zip(THRESHOLDS_IN_TENTHS, self.hits, strict=True):
            shares[f"precision@0.{tenths}"] = (hits, self.precision_total)
        return {name: shares[name] for name in protocol.columns}


_SUMS = tuple(field.name for field in fields(MaskCounts) if field.name != "hits")


def count_pixels(true: Bool[np.ndarray, "h w"], predicted: Bool[np.ndarray, "h w"]) -> tuple[int, int]:
    """Return (intersection, union) of two masks in pixels."""
    intersection = int(np.count_nonzero(true & predicted))
    return intersection, int(np.count_nonzero(true)) + int(np.count_nonzero(predicted)) - intersection


def score_masks(
    protocol: Protocol, intersection: int, union: int, targeted: bool, answered: bool
) -> tuple[int, int, float | None]:
    """Return (intersection, union, IoU of an empty union) of an expression as the protocol counts it.

    Only ReLA's rules change the result of `count_pixels`. They have four cases:

    - no target, rejected: IoU 1, nothing is added to the sums
    - no target, answered with a mask: IoU 0, the mask is added to the unions
    - target, rejected: the intersection is 0, but the union still includes the mask that the network predicted
    - target, answered with a mask: unchanged
    """
    if protocol.no_target != "head":
        return intersection, union, protocol.empty_union
    if not targeted and not answered:
        return 0, 0, 1.0
    return intersection if answered else 0, union, protocol.empty_union


def counts_of(score: ExpressionScore, protocol: Protocol = ORIGINAL) -> MaskCounts:
    """Return the counts of a single expression."""
    precise = score.targeted or protocol.no_target is None
    return MaskCounts(
        expressions=1,
        intersection=score.intersection,
        union=score.union,
        iou_sum=score.iou or 0.0,
        averaged=int(score.iou is not None),
        precision_total=int(precise),
        no_target=int(not score.targeted),
        rejected=int(not score.targeted and not score.answered),
        targeted=int(score.targeted),
        answered=int(score.targeted and score.answered),
        hits=tuple(int(precise and _reaches(score, tenths, protocol)) for tenths in THRESHOLDS_IN_TENTHS),
    )


def total(scores: Iterable[ExpressionScore], protocol: Protocol = ORIGINAL) -> MaskCounts:
    """Return the counts over all `scores`."""
    return reduce(add, (counts_of(score, protocol) for score in scores), MaskCounts())


def by_kind(scores: Iterable[ExpressionScore], protocol: Protocol = ORIGINAL) -> dict[str, MaskCounts]:
    """Return the counts of each kind of expression, sorted by kind; expressions without a kind are under ""."""
    groups: dict[str, list[ExpressionScore]] = {}
    for score in scores:
        groups.setdefault(score.kind, []).append(score)
    return {kind: total(groups[kind], protocol) for kind in sorted(groups)}


def _reaches(score: ExpressionScore, tenths: int, protocol: Protocol) -> bool:
    if protocol.reaches == "> arange":
        return score.intersection / (score.union + ARANGE_EPSILON) > ARANGE_THRESHOLDS[tenths]
    return score.union > 0 and 10 * score.intersection >= tenths * score.union


SCORE_FILE = "expressions.csv"
_COLUMNS = (
    *("id", "example", "kind", "expression", "intersection", "union", "iou"),
    *("targeted", "answered", "area", "centre_x", "centre_y", "image"),
)


def write_scores(scores: Sequence[ExpressionScore], path: Path) -> None:
    """Write one line per expression.

    The columns are id, example, kind and expression; intersection and union in pixels, and IoU in [0, 1], as the
    protocol counts them (empty: excluded); whether the expression refers to something (targeted) and was answered with
    a mask; the area of the true mask and its centroid as fractions of the image; and the number of the image in the
    file, which is the same for all examples of a mixture that show this image. A text that begins like a formula of a
    spreadsheet (= + - @) has an apostrophe before it, with which spreadsheets show it as text.
    """
    numbers: dict[str, int] = {}
    with path.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:  # ids may be names of files
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(_COLUMNS)
        for s in scores:
            iou = "" if s.iou is None else f"{s.iou:.6f}"
            centre = ("", "") if s.centre is None else (f"{fraction:.4f}" for fraction in s.centre)
            texts = map(_as_text, (s.id, s.example_id, s.kind, s.expression))
            pixels, answer = (s.intersection, s.union, iou), (int(s.targeted), int(s.answered))
            image = numbers.setdefault(s.image_identity, len(numbers))
            writer.writerow((*texts, *pixels, *answer, f"{s.area:.6f}", *centre, image))


def read_scores(path: Path) -> list[ExpressionScore]:
    """Return the scores in a file that `write_scores` wrote.

    Texts, fractions and the number of the image are as in the file; intersections, unions and so IoUs are exact.

    Raises:
        ValueError: the file has other columns, or a value that `write_scores` does not write.
    """
    with path.open(encoding="utf-8", newline="") as file:
        lines = csv.reader(file)
        if tuple(next(lines, ())) != _COLUMNS:
            raise ValueError("its columns are not those of this version")
        return [_read_score(dict(zip(_COLUMNS, line, strict=True))) for line in lines]


def _read_score(row: dict[str, str]) -> ExpressionScore:
    return ExpressionScore(
        row["id"],
        row["example"],
        row["kind"],
        row["expression"],
        int(row["intersection"]),
        int(row["union"]),
        empty_iou=float(row["iou"]) if row["iou"] else None,
        targeted=bool(int(row["targeted"])),
        answered=bool(int(row["answered"])),
        area=float(row["area"]),
        centre=(float(row["centre_x"]), float(row["centre_y"])) if row["centre_x"] else None,
        image=row["image"],
    )


def _as_text(cell: str) -> str:
    return f"'{cell}" if cell.lstrip().startswith(("=", "+", "-", "@", "＝", "＋", "－", "＠")) else cell
