"""expressions.csv: the scores of the expressions of an evaluation, one line each."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from s2rm_jax.evaluation.metrics import ExpressionScore

SCORE_FILE = "expressions.csv"
_FIELDS = (
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
        writer.writerow(_FIELDS)
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
        if tuple(next(lines, ())) != _FIELDS:
            raise ValueError("its columns are not those of this version")
        return [_score(dict(zip(_FIELDS, line, strict=True))) for line in lines]


def _score(row: dict[str, str]) -> ExpressionScore:
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
