"""Calibration: from the score of a mask to the probability that the mask is correct.

The score of a mask is the mean probability of foreground over its pixels. It ranks masks, but as a probability it can
be too high: the network may be sure of the pixels of a wrong object as well. Platt scaling (Platt, 1999) maps it to

    p = sigmoid(scale * logit(score) + bias)

with the `scale` and `bias` of config.eval, which `evaluate --calibrate` fits on a split. A mask is correct if its IoU
is at least CORRECT_IOU. The error of such probabilities is the expected calibration error (Guo et al., arXiv
1706.04599).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from s2rm_jax.errors import UserError
from s2rm_jax.evaluation.protocols import sigmoid

CORRECT_IOU = 0.5
BINS = 10

Judged = tuple[float, bool]  # the score of a mask, and whether the mask is correct

_LOWEST, _HIGHEST = 1e-7, 1 - 1e-7  # scores are kept between them, so that their logits are finite
_NEWTON_STEPS = 50


class Calibration(NamedTuple):
    """The scale and the bias of Platt scaling; the default changes nothing."""

    scale: float = 1.0
    bias: float = 0.0

    @classmethod
    def of(cls, config: ConfigDict) -> Calibration:
        """Return the calibration of a configuration."""
        return cls(config.eval.score_scale, config.eval.score_bias)

    def fields(self) -> dict[str, float]:
        """Return the fields of config.eval that hold the calibration."""
        return {"score_scale": self.scale, "score_bias": self.bias}

    def __call__(self, score: float) -> float:
        """Return the calibrated score; that of an empty mask stays 0."""
        if self == UNCALIBRATED or score == 0:
            return score
        return float(sigmoid(self.scale * _logit(score) + self.bias))


UNCALIBRATED = Calibration()


@dataclass(frozen=True)
class Bin:
    """The masks whose scores lie in one of BINS equal parts of [0, 1].

    Attributes:
        count: their number
        score: their mean score; 0 if there are none
        correct: the share of them that is correct; 0 if there are none
    """

    count: int
    score: float
    correct: float


def fit(judged: Sequence[Judged]) -> Calibration:
    """Return the calibration with the highest likelihood of masks with uncalibrated scores.

    As in Platt's paper, the targets are (c + 1) / (c + 2) and 1 / (w + 2) for c correct and w wrong masks, so the
    result is finite even if a threshold separates them.

    Raises:
        UserError: there are no masks, or their scores do not rank them.
    """
    if not judged:
        raise UserError("the network predicts no mask on this split, so there is nothing to calibrate")
    scores, correct = map(np.array, zip(*judged, strict=True))
    count = int(correct.sum())
    targets = np.where(correct, (count + 1) / (count + 2), 1 / (len(correct) - count + 2))
    inputs = np.stack([_logit(scores), np.ones(len(scores))], axis=1)

    def loss(weights: np.ndarray) -> float:
        values = inputs @ weights
        return float(np.sum(np.logaddexp(0, values) - targets * values))

    weights = np.array([1.0, 0.0])
    for _ in range(_NEWTON_STEPS):
        predicted = sigmoid(inputs @ weights)
        hessian = (inputs * (predicted * (1 - predicted))[:, None]).T @ inputs + 1e-9 * np.eye(2)
        step = np.linalg.solve(hessian, inputs.T @ (predicted - targets))
        while loss(weights - step) > loss(weights) and np.abs(step).max() > 1e-12:  # too far: the loss is not quadratic
            step /= 2
        weights = weights - step
        if np.abs(step).max() < 1e-9:
            break
    calibration = Calibration(*map(float, weights))
    if calibration.scale <= 0:
        raise UserError(
            f"the scores do not rank the {len(judged):,} masks of this split, so they cannot be calibrated; evaluate "
            "more images, or train the network further"
        )
    return calibration


def reliability(judged: Sequence[Judged]) -> list[Bin]:
    """Return the BINS bins of a reliability diagram, and none if there are no masks."""
    if not judged:
        return []
    groups: list[list[Judged]] = [[] for _ in range(BINS)]
    for one in judged:
        groups[min(int(one[0] * BINS), BINS - 1)].append(one)
    means = [np.mean(group, axis=0).tolist() if group else (0.0, 0.0) for group in groups]
    return [Bin(len(group), score, correct) for group, (score, correct) in zip(groups, means, strict=True)]


def expected_calibration_error(bins: Sequence[Bin]) -> float:
    """Return the mean of |score - correct| over the masks, in [0, 1]."""
    total = sum(one.count for one in bins)
    return sum(one.count * abs(one.score - one.correct) for one in bins) / max(1, total)


def _logit(scores: Any) -> Any:
    kept = np.clip(scores, _LOWEST, _HIGHEST)
    return np.log(kept) - np.log1p(-kept)
