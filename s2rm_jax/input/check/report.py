"""What the doctor found, as plain data; `screen.py` shows it to a person, `as_json` to a program.

Shows a report to a person.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from itertools import zip_longest
from typing import Any

from s2rm_jax.input.check.files import PUBLISHED, PUBLISHED_EXPRESSIONS, SplitSize

WRONG_COUNTS = "counts that differ from the published ones"


@dataclass(frozen=True)
class Problem:
    """Something that is wrong, each case of it in words, and what to do about it.

    `kind` is a short name for programs too, such as "missing images".
    """

    kind: str
    cases: tuple[str, ...]
    remedy: str


@dataclass
class Diagnosis:
    """What was found in one dataset with one way to split it."""

    dataset: str
    split_by: str
    annotations: str  # the path of the file of referents
    images: str = ""  # their folder, or "" where it was not found
    counts: dict[str, SplitSize] = field(default_factory=dict)  # by split, as the file names it
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    images_checked: int = 0

    @property
    def key(self) -> tuple[str, str]:
        """Dataset and split_by, under which the published figures are found."""
        return self.dataset, self.split_by

    def add(self, kind: str, cases: list[str], remedy: str) -> None:
        """Add a problem, if there are cases of it."""
        if cases:
            self.problems.append(Problem(kind, tuple(cases), remedy))

    def add_wrong_counts(self, remedy: str) -> None:
        """Compare the counts with what is published."""
        published = PUBLISHED.get(self.key, {})
        cases = [
            f"{split}: {got} {what} instead of {wanted}"
            for split, expected in published.items()
            for what, got, wanted in zip(
                SplitSize._fields, self.counts.get(split, SplitSize(0, 0, 0)), expected, strict=True
            )
            if wanted is not None and got != wanted
        ]
        cases += [
            f"{split}: not a split of this dataset" for split in self.counts if published and split not in published
        ]
        total = sum(counts.expressions or 0 for counts in self.counts.values())
        if total != PUBLISHED_EXPRESSIONS.get(self.key, total):
            cases.append(f"all splits: {total} expressions instead of {PUBLISHED_EXPRESSIONS[self.key]}")
        self.add(WRONG_COUNTS, cases, remedy)


@dataclass(frozen=True)
class Report:
    """All that was found under a folder."""

    root: str
    quick: bool
    diagnoses: tuple[Diagnosis, ...]
    absent: tuple[str, ...]  # known datasets that are not there

    @property
    def well(self) -> bool:
        """Whether no problem was found."""
        return not any(diagnosis.problems for diagnosis in self.diagnoses)

    def as_json(self) -> dict[str, Any]:
        """Return everything as what `json.dumps` takes."""
        diagnoses = [
            asdict(diagnosis) | {"counts": {split: counts._asdict() for split, counts in diagnosis.counts.items()}}
            for diagnosis in self.diagnoses
        ]
        return {
            "root": self.root,
            "well": self.well,
            "quick": self.quick,
            "absent": list(self.absent),
            "diagnoses": diagnoses,
        }


_WIDTH = 100
_COLUMN = 20
_SHOWN = 5  # cases of a problem that are listed


def show(report: Report) -> str:
    """Return the report as text: a table of counts for each dataset, its problems, and what is not there."""
    lines = [f"{report.root}: {_number(len(report.diagnoses), 'dataset')}", ""]
    for diagnosis in report.diagnoses:
        lines += [*_diagnosis(diagnosis, report.quick), ""]
    if report.absent:
        names = ", ".join(report.absent)
        lines += [*_wrap(f"{names} (--dataset NAME says where people get them)", "Not here: "), ""]
    total = sum(len(diagnosis.problems) for diagnosis in report.diagnoses)
    sick = sum(bool(diagnosis.problems) for diagnosis in report.diagnoses)
    summary = (
        "all well"
        if report.well
        else f"{_number(total, 'problem')} in {sick} of {_number(len(report.diagnoses), 'dataset')}"
    )
    lines.append(f"{'✓' if report.well else '✗'} {summary}")
    return "\n".join(lines)


def _diagnosis(diagnosis: Diagnosis, quick: bool) -> Iterator[str]:
    mark = "✗" if diagnosis.problems else "✓"
    yield f"{mark} {diagnosis.dataset}, split by {diagnosis.split_by}"
    yield f"    annotations  {diagnosis.annotations}"
    yield f"    images     {diagnosis.images or 'not found'}"
    yield from _counts(diagnosis)
    if diagnosis.images_checked:
        how = "only their headers, as asked (--quick)" if quick else "every one decoded"
        yield f"    {_number(diagnosis.images_checked, 'image')} looked at, {how}"
    for note in diagnosis.notes:
        yield from _wrap(note, "    note: ")
    for problem, after in zip_longest(diagnosis.problems, diagnosis.problems[1:]):
        yield from _cases(problem)
        if after is None or after.remedy != problem.remedy:
            yield from _wrap(problem.remedy, "      → ")


def _counts(diagnosis: Diagnosis) -> Iterator[str]:
    """The table of counts; where a published figure is known, ✓ or the figure stands beside ours."""
    published = PUBLISHED.get(diagnosis.key, {})
    if not diagnosis.counts:
        return
    yield "    " + f"{'split':<10}" + "".join(f"{name:>{_COLUMN}}" for name in SplitSize._fields)
    for split in dict.fromkeys([*diagnosis.counts, *published]):
        got = diagnosis.counts.get(split, SplitSize(0, 0, 0))
        cells = map(_cell, got, published.get(split, SplitSize(None, None, None)))
        yield f"    {split:<10}" + "".join(f"{cell:>{_COLUMN}}" for cell in cells)
    total = sum(counts.expressions or 0 for counts in diagnosis.counts.values())
    cell = _cell(total, PUBLISHED_EXPRESSIONS.get(diagnosis.key))
    yield f"    {'all':<10}" + f"{'':>{2 * _COLUMN}}{cell:>{_COLUMN}}"
    known = "✓ as published, ✗ the published count is the second" if published else "no published counts are known"
    yield f"    ({known})"


def _cell(got: int | None, wanted: int | None) -> str:
    if wanted is None:
        return f"{got:,}"
    return f"{got:,} ✓" if got == wanted else f"{got:,} ✗ {wanted:,}"


def _cases(problem: Problem) -> Iterator[str]:
    yield f"    ✗ {problem.kind}: {len(problem.cases):,}"
    if problem.kind == WRONG_COUNTS:  # the table shows them
        return
    for case in problem.cases[:_SHOWN]:
        yield from _wrap(case, "        ")
    if len(problem.cases) > _SHOWN:
        yield f"        ... and {len(problem.cases) - _SHOWN:,} more (--json FILE lists them all)"


def _wrap(text: str, first: str) -> list[str]:
    return textwrap.wrap(
        text,
        _WIDTH,
        initial_indent=first,
        subsequent_indent=" " * len(first),
        break_long_words=False,
        break_on_hyphens=False,
    )


def _number(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
