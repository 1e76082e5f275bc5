"""The measures of referring segmentation, kept as whole numbers and sums until the last moment."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from functools import reduce
from operator import add

import numpy as np
from jaxtyping import Bool

from s2rm_jax.evaluation.protocols import ORIGINAL, Protocol

# Precision is counted at IoU 0.5, 0.6, ... 0.9, of which protocols report some. In tenths, so that a tie (3 of 5 pixels
# at 0.6) is decided exactly.
THRESHOLDS_IN_TENTHS = (5, 6, 7, 8, 9)


@dataclass(frozen=True)
class ExpressionScore:
    """How one expression fared under a protocol.

    intersection, union  in pixels, as the protocol adds them up: not always those of the masks, see `score_masks`
    empty_iou            the IoU where the union is 0; None: the expression is left out of the mean
    targeted             whether the expression refers to something
    answered             whether the network says that it does
    area                 of the true mask, as a share of the image
    centre               (x, y) of the true mask's centroid as shares of the image's width and height, if it has one
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

    @property
    def iou(self) -> float | None:
        """Intersection over union in [0, 1]; `empty_iou` where the union is empty."""
        return self.intersection / self.union if self.union else self.empty_iou


@dataclass(frozen=True)
class MaskCounts:
    """What all measures are made of. MaskCounts of parts of a data set add up (`+`) to the counts of the whole.

    averaged    expressions that have an IoU
    asked       expressions of which precision is asked
    hits        of these, the expressions that reach each threshold
    no_target   expressions that refer to nothing; `rejected` of them were answered with "nothing"
    targeted    the others; `answered` of them were answered with a mask
    """

    expressions: int = 0
    intersection: int = 0
    union: int = 0
    iou_sum: float = 0.0
    averaged: int = 0
    asked: int = 0
    no_target: int = 0
    rejected: int = 0
    targeted: int = 0
    answered: int = 0
    hits: tuple[int, ...] = (0,) * len(THRESHOLDS_IN_TENTHS)

    def __add__(self, other: MaskCounts) -> MaskCounts:
        both = {name: (getattr(self, name), getattr(other, name)) for name in _SUMS}
        hits = tuple(a + b for a, b in zip(self.hits, other.hits, strict=True))
        return MaskCounts(**{name: a + b for name, (a, b) in both.items()}, hits=hits)

    def metrics(self, protocol: Protocol = ORIGINAL) -> dict[str, float]:
        """Returns the protocol's numbers in percent; 0 where nothing was counted.

        `overall_iou` (sum I / sum U), `mean_iou` (mean of I / U), `precision@0.5` ... (share of expressions that reach
        the threshold), and, where the data hold expressions that refer to nothing, `no_target_accuracy` (share of them
        answered with "nothing") and `target_accuracy` (share of the others answered with a mask).
        """
        shares = {"overall_iou": (self.intersection, self.union), "mean_iou": (self.iou_sum, self.averaged)}
        shares |= {
            f"precision@0.{tenths}": (hits, self.asked)
            for tenths, hits in zip(THRESHOLDS_IN_TENTHS, self.hits, strict=True)
        }
        if self.no_target:
            shares["no_target_accuracy"] = (self.rejected, self.no_target)
            shares["target_accuracy"] = (self.answered, self.targeted)
        percent = {name: 100 * part / whole if whole else 0.0 for name, (part, whole) in shares.items()}
        return {name: percent[name] for name in protocol.columns if name in percent}


_SUMS = tuple(field.name for field in fields(MaskCounts) if field.name != "hits")


def count_pixels(true: Bool[np.ndarray, "h w"], predicted: Bool[np.ndarray, "h w"]) -> tuple[int, int]:
    """Returns (intersection, union) of two masks in pixels."""
    intersection = int(np.count_nonzero(true & predicted))
    return intersection, int(np.count_nonzero(true)) + int(np.count_nonzero(predicted)) - intersection


def score_masks(
    protocol: Protocol, intersection: int, union: int, targeted: bool, answered: bool
) -> tuple[int, int, float | None]:
    """Returns (intersection, union, IoU of an empty union) of an expression as the protocol counts it.

    Only ReLA's rules change what `count_pixels` found. Its four cases: nothing meant and "nothing" answered, IoU 1 with
    empty sums; nothing meant and a mask answered, IoU 0 and the mask joins the unions; something meant and "nothing"
    answered, the intersection is lost but the mask that was not meant to be shown still joins the union; the rest as
    it is.
    """
    if protocol.no_target != "head":
        return intersection, union, protocol.empty_union
    if not targeted and not answered:
        return 0, 0, 1.0
    return intersection if answered else 0, union, protocol.empty_union


def counts_of(score: ExpressionScore, protocol: Protocol = ORIGINAL) -> MaskCounts:
    """Returns the counts of a single expression."""
    asked = score.targeted or protocol.no_target is None
    return MaskCounts(
        expressions=1,
        intersection=score.intersection,
        union=score.union,
        iou_sum=score.iou or 0.0,
        averaged=int(score.iou is not None),
        asked=int(asked),
        no_target=int(not score.targeted),
        rejected=int(not score.targeted and not score.answered),
        targeted=int(score.targeted),
        answered=int(score.targeted and score.answered),
        hits=tuple(int(asked and _reaches(score, tenths, protocol)) for tenths in THRESHOLDS_IN_TENTHS),
    )


def total(scores: Iterable[ExpressionScore], protocol: Protocol = ORIGINAL) -> MaskCounts:
    """Returns the counts of all `scores` together."""
    return reduce(add, (counts_of(score, protocol) for score in scores), MaskCounts())


def by_kind(scores: Iterable[ExpressionScore], protocol: Protocol = ORIGINAL) -> dict[str, MaskCounts]:
    """Returns the counts of each kind of expression, in alphabetical order; expressions without a kind under ""."""
    groups: dict[str, list[ExpressionScore]] = {}
    for score in scores:
        groups.setdefault(score.kind, []).append(score)
    return {kind: total(groups[kind], protocol) for kind in sorted(groups)}


def _reaches(score: ExpressionScore, tenths: int, protocol: Protocol) -> bool:
    margin = 10 * score.intersection - tenths * score.union
    return score.union > 0 and (margin > 0 or (margin == 0 and protocol.ties_count))
