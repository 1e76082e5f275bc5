"""The report of the data check: counts, problems found, and their presentation as text and JSON."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from itertools import zip_longest
from typing import Any

from s2rm_jax.errors import counted
from s2rm_jax.input.split_sizes import SPLIT_SIZES, SplitSize

KNOWN = ("refcoco", "refcoco+", "refcocog", "refclef", "grefcoco")

# A note and not a problem: the files were renumbered in August 2023.
NOTES = {
    ("grefcoco", "unc"): (
        "its authors report 278,232 expressions over 19,994 images, of which their file has 259,859: "
        "https://github.com/henghuiding/gRefCOCO/issues/6"
    ),
}

# The server of REFER, which is often down, and when the Internet Archive copied the annotations from it.
UNC = "https://bvisionweb1.cs.unc.edu/licheng/referit/data"
STAMPS = {
    "refcoco": "20220413011718",
    "refcoco+": "20220413011656",
    "refcocog": "20220413012904",
    "refclef": "20220413011817",
}
_WORKING = "reported working in December 2025 in https://github.com/lichengunc/refer/issues/26"

WRONG_COUNTS = "counts that differ from the published ones"
MISSING_IMAGES = "missing images"


def where_annotations(dataset: str) -> str:
    """Return where others have found the annotations of a dataset. None of these sites is ours."""
    if dataset == "grefcoco":
        return "grefs(unc).json and instances.json: https://github.com/henghuiding/gRefCOCO"
    if dataset in STAMPS:
        archive = f"https://web.archive.org/web/{STAMPS[dataset]}/{UNC}/{dataset}.zip"
        return f"{dataset}.zip: {archive} ({_WORKING})"
    return f"the files of {dataset} from their original source; it is not one of the published datasets"


def where_images(dataset: str) -> str:
    """Return where others have found the images of a dataset."""
    if dataset == "refclef":
        archive = "https://web.archive.org/web/20220515000000/http://bvisionweb1.cs.unc.edu/licheng/referit/data/images"
        return f"saiapr_tc-12.zip: {archive}/saiapr_tc-12.zip ({_WORKING})"
    return (
        "train2014.zip (13 GB) from https://cocodataset.org/#download; train2017.zip has the same images, and more, "
        "under bare names"
    )


@dataclass(frozen=True)
class DataProblem:
    """A kind of problem, such as "missing images", with a description of each case and what to do about it."""

    kind: str
    cases: tuple[str, ...]
    remedy: str


@dataclass
class DatasetReport:
    """The result of the check for one dataset and one set of splits."""

    dataset: str
    split_by: str
    annotations: str  # path of the file of referents
    images: str = ""  # the folder of the images, "" if not found
    counts: dict[str, SplitSize] = field(default_factory=dict)  # by split, as the file names it
    problems: list[DataProblem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    images_checked: int = 0
    images_read: int = 0  # of which the header, or unless quick all pixels, could be read

    @property
    def key(self) -> tuple[str, str]:
        """The key of the published figures: dataset and split_by."""
        return self.dataset, self.split_by

    @property
    def published(self) -> dict[str, SplitSize]:
        """The published sizes by split; empty if none are known."""
        return SPLIT_SIZES.get(self.key, {})

    def add(self, kind: str, cases: list[str], remedy: str) -> None:
        """Add a problem if it has any cases."""
        if cases:
            self.problems.append(DataProblem(kind, tuple(cases), remedy))

    def add_wrong_counts(self, remedy: str) -> None:
        """Compare the counts with the published ones and add a problem if they differ."""
        published = self.published
        cases = [
            f"{split}: {got} {what} instead of {expected}"
            for split, size in published.items()
            for what, got, expected in zip(
                SplitSize._fields, self.counts.get(split, SplitSize(0, 0, 0)), size, strict=True
            )
            if expected is not None and got != expected
        ]
        cases += [
            f"{split}: not a split of this dataset" for split in self.counts if published and split not in published
        ]
        self.add(WRONG_COUNTS, cases, remedy)

    @property
    def expressions(self) -> int:
        """The number of expressions in all splits."""
        return sum(size.expressions or 0 for size in self.counts.values())


@dataclass(frozen=True)
class CheckReport:
    """The result of the check for all datasets under a folder."""

    root: str
    quick: bool
    datasets: tuple[DatasetReport, ...]
    absent: tuple[str, ...]  # published datasets that are not under the folder

    @property
    def ok(self) -> bool:
        """Whether no problem was found."""
        return not any(dataset.problems for dataset in self.datasets)

    def as_json(self) -> dict[str, Any]:
        """Return the report as values that `json.dumps` accepts."""
        datasets = [
            asdict(dataset) | {"counts": {split: size._asdict() for split, size in dataset.counts.items()}}
            for dataset in self.datasets
        ]
        return {
            "root": self.root,
            "ok": self.ok,
            "quick": self.quick,
            "absent": list(self.absent),
            "datasets": datasets,
        }


_WIDTH = 100
_COLUMN = 20
_SHOWN = 5  # cases listed for each problem


def format_report(report: CheckReport) -> str:
    """Return the report as text: for each dataset a table of counts and its problems, then the absent datasets."""
    lines = [f"{report.root}: {counted(len(report.datasets), 'dataset')}", ""]
    for dataset in report.datasets:
        lines += [*_format_dataset(dataset, report.quick), ""]
    if report.absent:
        names = ", ".join(report.absent)
        lines += [*_wrap(f"{names} (get them with: s2rm download NAME --root {report.root})", "Not found: "), ""]
    problems = [len(dataset.problems) for dataset in report.datasets if dataset.problems]
    found = f"{counted(sum(problems), 'problem')} in {len(problems)} of {counted(len(report.datasets), 'dataset')}"
    return "\n".join([*lines, "✓ no problems found" if report.ok else f"✗ {found}"])


def _format_dataset(report: DatasetReport, quick: bool) -> Iterator[str]:
    mark = "✗" if report.problems else "✓"
    yield f"{mark} {report.dataset}, split by {report.split_by}"
    yield f"    annotations  {report.annotations}"
    yield f"    images       {report.images or 'not found'}"
    yield from _format_counts(report)
    if report.images_checked:
        read = "all" if report.images_read == report.images_checked else f"{report.images_read:,} of them"
        how = f"{read} by their headers only (--quick)" if quick else f"{read} decoded"
        yield f"    {counted(report.images_checked, 'image')} checked, {how}"
    for note in report.notes:
        yield from _wrap(note, "    note: ")
    for problem, following in zip_longest(report.problems, report.problems[1:]):
        yield from _format_problem(problem)
        if following is None or following.remedy != problem.remedy:
            yield from _wrap(problem.remedy, "      → ")


def _format_counts(report: DatasetReport) -> Iterator[str]:
    """Yield the table of counts, each marked as equal to the published one or followed by it."""
    published = report.published
    if not report.counts:
        return
    yield "    " + f"{'split':<10}" + "".join(f"{name:>{_COLUMN}}" for name in SplitSize._fields)
    for split in dict.fromkeys([*report.counts, *published]):
        got = report.counts.get(split, SplitSize(0, 0, 0))
        cells = map(_cell, got, published.get(split, SplitSize(None, None, None)))
        yield f"    {split:<10}" + "".join(f"{cell:>{_COLUMN}}" for cell in cells)
    yield f"    {'all':<10}" + f"{'':>{2 * _COLUMN}}{report.expressions:>{_COLUMN},}"
    legend = "✓ as published; ✗ followed by the published count" if published else "no published counts are known"
    yield f"    ({legend})"


def _cell(got: int | None, expected: int | None) -> str:
    if expected is None:
        return f"{got:,}"
    return f"{got:,} ✓" if got == expected else f"{got:,} ✗ {expected:,}"


def _format_problem(problem: DataProblem) -> Iterator[str]:
    yield f"    ✗ {problem.kind}: {len(problem.cases):,}"
    if problem.kind == WRONG_COUNTS:  # the table shows them
        return
    for case in problem.cases[:_SHOWN]:
        yield from _wrap(case, "        ")
    if len(problem.cases) > _SHOWN:
        how = "in Python, s2rm_jax.input.check.examine.examine(ROOT).as_json() lists them all"
        yield f"        ... and {len(problem.cases) - _SHOWN:,} more ({how})"


def _wrap(text: str, first: str) -> list[str]:
    wrapper = textwrap.TextWrapper(_WIDTH, first, " " * len(first), break_long_words=False, break_on_hyphens=False)
    return wrapper.wrap(text)
