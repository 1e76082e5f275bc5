"""What the doctor found, as plain data; `screen.py` shows it to a person, `as_json` to a program."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from s2rm_jax.input.doctor.published import PUBLISHED, PUBLISHED_SENTENCES, Counts

WRONG_COUNTS = "counts that differ from the published ones"


@dataclass(frozen=True)
class Problem:
    """Something that is wrong, each case of it in words, and what to do about it.

    `kind` is a short name for programs too, such as "missing pictures".
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
    pictures: str = ""  # their folder, or "" where it was not found
    counts: dict[str, Counts] = field(default_factory=dict)  # by split, as the file names it
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    pictures_checked: int = 0

    @property
    def key(self) -> tuple[str, str]:
        """Dataset and split_by, under which the published figures are found."""
        return self.dataset, self.split_by

    def add(self, kind: str, cases: list[str], remedy: str) -> None:
        """Adds a problem, if there are cases of it."""
        if cases:
            self.problems.append(Problem(kind, tuple(cases), remedy))

    def add_wrong_counts(self, remedy: str) -> None:
        """Compares the counts with what is published."""
        published = PUBLISHED.get(self.key, {})
        cases = [
            f"{split}: {got} {what} instead of {wanted}"
            for split, expected in published.items()
            for what, got, wanted in zip(Counts._fields, self.counts.get(split, Counts(0, 0, 0)), expected, strict=True)
            if wanted is not None and got != wanted
        ]
        cases += [
            f"{split}: not a split of this dataset" for split in self.counts if published and split not in published
        ]
        total = sum(counts.sentences or 0 for counts in self.counts.values())
        if total != PUBLISHED_SENTENCES.get(self.key, total):
            cases.append(f"all splits: {total} sentences instead of {PUBLISHED_SENTENCES[self.key]}")
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
        """Returns everything as what `json.dumps` takes."""
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
