"""How far numbers would scatter over other images: bootstrap intervals (Efron 1979), resampling whole images.

The expressions of an image stand or fall together, so images are drawn with replacement, each with all its expressions.
The interval says nothing about other seeds or other training runs.

Where a network does well and where it does not: IoU by length of the expression, size and place of what is meant.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Float, Shaped

from s2rm_jax.evaluation.metrics import ExpressionScore

RESAMPLES = 1000
LEVEL = 95  # percent
_SEED = 0
_DRAWS_AT_ONCE = 2_000_000  # of images, to bound the memory


def intervals(scores: Sequence[ExpressionScore]) -> dict[str, tuple[float, float]]:
    """Returns the intervals, in percent, of `overall_iou` and `mean_iou` over the images of `scores`."""
    columns = [(s.intersection, s.union, s.iou or 0.0, s.iou is not None) for s in scores]
    sums = resampled_sums(np.array(columns, np.float64), [s.example_id for s in scores])
    return {
        "overall_iou": interval(sums[:, 0], sums[:, 1]),
        "mean_iou": interval(sums[:, 2], sums[:, 3]),
    }


def resampled_sums(
    values: Shaped[np.ndarray, "expressions columns"], images: Sequence[str]
) -> Float[np.ndarray, "resamples columns"]:
    """Returns the column sums of `values` (one row per expression) over each resampling of the expressions' `images`."""
    _, image = np.unique(np.asarray(images), return_inverse=True)
    per_image = np.zeros((image.max() + 1, values.shape[1]))
    np.add.at(per_image, image, values)
    return np.concatenate([times @ per_image for times in _times_drawn(len(per_image))])


def interval(parts: Float[np.ndarray, " n"], wholes: Float[np.ndarray, " n"]) -> tuple[float, float]:
    """Returns the central interval of 100 * part / whole over resamplings, leaving out those without any whole."""
    there = wholes > 0
    if not there.any():
        return 0.0, 0.0
    low, high = np.percentile(100 * parts[there] / wholes[there], [(100 - LEVEL) / 2, (100 + LEVEL) / 2])
    return float(low), float(high)


def _times_drawn(images: int) -> Iterator[Float[np.ndarray, "some images"]]:
    """Yields how often each image is drawn, in rows that are resamplings, RESAMPLES rows in all."""
    rng = np.random.default_rng(_SEED)
    left = RESAMPLES
    while left:
        rows = min(left, max(1, _DRAWS_AT_ONCE // images))
        drawn = rng.integers(0, images, (rows, images)) + images * np.arange(rows)[:, None]
        yield np.bincount(drawn.ravel(), minlength=rows * images).reshape(rows, images).astype(np.float64)
        left -= rows


_LENGTHS = ((1, 1), (2, 2), (3, 3), (4, 4), (5, 5), (6, 7), (8, 10), (11, 15), (16, 10**9))  # words, from - to
_AREAS = (0, 1, 2, 5, 10, 20, 40, 100)  # percent of the image
PLACES = tuple(f"{row} {column}" for row in ("top", "middle", "bottom") for column in ("left", "centre", "right"))
HISTOGRAM_BINS = 20


@dataclass(frozen=True)
class ScoreGroup:
    """The expressions of one bar: their mean IoU in percent and its bootstrap interval over images."""

    label: str
    expressions: int
    mean_iou: float
    interval: tuple[float, float]


def by_length(scores: Sequence[ExpressionScore]) -> list[ScoreGroup]:
    """Groups expressions by their number of words (as separated by spaces)."""
    labels = [str(low) if low == high else f"{low}-{high}" for low, high in _LENGTHS[:-1]] + [f"{_LENGTHS[-1][0]}+"]

    def place(score: ExpressionScore) -> int:
        words = max(1, len(score.expression.split()))
        return next(index for index, (low, high) in enumerate(_LENGTHS) if low <= words <= high)

    return [group for group in _grouped(scores, labels, place) if group.expressions]


def by_area(scores: Sequence[ExpressionScore]) -> list[ScoreGroup]:
    """Groups the expressions that refer to something by the share of the image that it covers."""
    labels = [f"{low}-{high}" for low, high in pairwise(_AREAS)]

    def place(score: ExpressionScore) -> int | None:
        if not score.targeted:
            return None
        return max(0, int(np.searchsorted(_AREAS, 100 * score.area, side="left")) - 1)

    return [group for group in _grouped(scores, labels, place) if group.expressions]


def by_place(scores: Sequence[ExpressionScore]) -> list[ScoreGroup]:
    """Groups the expressions that refer to something by the ninth of the image that holds its centroid.

    Always nine groups, row by row, as in `PLACES`.
    """

    def place(score: ExpressionScore) -> int | None:
        if score.centre is None:
            return None
        column, row = (min(2, int(3 * share)) for share in score.centre)
        return 3 * row + column

    return _grouped(scores, PLACES, place)


def histogram(scores: Sequence[ExpressionScore]) -> list[int]:
    """Counts expressions by IoU in HISTOGRAM_BINS equal bins over [0, 1]; 1 itself belongs to the last one."""
    ious = [score.iou for score in scores if score.iou is not None]
    return np.histogram(ious, bins=HISTOGRAM_BINS, range=(0, 1))[0].tolist()


def _grouped(
    scores: Sequence[ExpressionScore], labels: Sequence[str], place: Callable[[ExpressionScore], int | None]
) -> list[ScoreGroup]:
    """One group per label; `place` gives the index of an expression's label, or None for none."""
    placed = [(score, index) for score in scores if score.iou is not None and (index := place(score)) is not None]
    values = np.zeros((len(placed), 2, len(labels)))
    for row, (score, index) in enumerate(placed):
        values[row, :, index] = score.iou, 1
    if not placed:
        return [ScoreGroup(label, 0, 0.0, (0.0, 0.0)) for label in labels]
    sums, counts = values.sum(0)
    drawn = resampled_sums(values.reshape(len(placed), -1), [score.example_id for score, _ in placed])
    drawn_sums, drawn_counts = np.split(drawn, 2, axis=1)
    return [
        ScoreGroup(
            label, int(counts[i]), 100 * sums[i] / max(counts[i], 1), interval(drawn_sums[:, i], drawn_counts[:, i])
        )
        for i, label in enumerate(labels)
    ]
