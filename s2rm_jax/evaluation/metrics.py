"""The measures of referring segmentation, kept as whole numbers and sums until the last moment."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce
from operator import add

import numpy as np
from jaxtyping import Bool

# Precision is asked at IoU 0.5, 0.6, ... 0.9. In tenths, so that a tie (3 of 5 pixels at 0.6) is decided exactly.
THRESHOLDS_IN_TENTHS = (5, 6, 7, 8, 9)


@dataclass(frozen=True)
class SentenceScore:
    """How one sentence fared: `intersection` and `union` of its true and its predicted mask, in pixels."""

    id: str
    example_id: str
    kind: str
    sentence: str
    intersection: int
    union: int

    @property
    def iou(self) -> float:
        """Intersection over union in [0, 1]; 0 where both masks are empty (as LAVT and ReLA's targets have it)."""
        return self.intersection / self.union if self.union else 0.0


@dataclass(frozen=True)
class Counts:
    """What all measures are made of. Counts of parts of a data set add up (`+`) to the counts of the whole."""

    sentences: int = 0
    intersection: int = 0
    union: int = 0
    iou_sum: float = 0.0
    hits: tuple[int, ...] = (0,) * len(THRESHOLDS_IN_TENTHS)  # sentences at or above each threshold

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.sentences + other.sentences,
            self.intersection + other.intersection,
            self.union + other.union,
            self.iou_sum + other.iou_sum,
            tuple(a + b for a, b in zip(self.hits, other.hits, strict=True)),
        )

    def metrics(self) -> dict[str, float]:
        """Returns overall IoU (sum I / sum U), mean IoU (mean of I / U) and precision (share of sentences with
        IoU >= threshold), all in percent; 0 where nothing was counted."""
        shares = {"overall_iou": (self.intersection, self.union), "mean_iou": (self.iou_sum, self.sentences)}
        shares |= {
            f"precision@0.{tenths}": (hits, self.sentences)
            for tenths, hits in zip(THRESHOLDS_IN_TENTHS, self.hits, strict=True)
        }
        return {name: 100 * part / whole if whole else 0.0 for name, (part, whole) in shares.items()}


def count_pixels(true: Bool[np.ndarray, "h w"], predicted: Bool[np.ndarray, "h w"]) -> tuple[int, int]:
    """Returns (intersection, union) of two masks in pixels."""
    intersection = int(np.count_nonzero(true & predicted))
    return intersection, int(np.count_nonzero(true)) + int(np.count_nonzero(predicted)) - intersection


def counts_of(score: SentenceScore) -> Counts:
    """Returns the counts of a single sentence."""
    hits = tuple(int(score.union > 0 and 10 * score.intersection >= t * score.union) for t in THRESHOLDS_IN_TENTHS)
    return Counts(1, score.intersection, score.union, score.iou, hits)


def total(scores: Iterable[SentenceScore]) -> Counts:
    """Returns the counts of all `scores` together."""
    return reduce(add, map(counts_of, scores), Counts())


def by_kind(scores: Iterable[SentenceScore]) -> dict[str, Counts]:
    """Returns the counts of each kind of expression, in alphabetical order; sentences without a kind under ""."""
    groups: dict[str, list[SentenceScore]] = {}
    for score in scores:
        groups.setdefault(score.kind, []).append(score)
    return {kind: total(groups[kind]) for kind in sorted(groups)}
