"""Bootstrap intervals over images (Efron 1979), and the IoU by length of the expression, size and position of the mask.

The expressions of an image are not independent, so images are drawn with replacement, each with all its expressions. An
image that several datasets of a mixture contain is one image. The intervals do not cover the variation between seeds or
training runs.
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
_MAX_DRAWS = 2_000_000  # images drawn at a time, to bound the memory

_LENGTHS = ((1, 1), (2, 2), (3, 3), (4, 4), (5, 5), (6, 7), (8, 10), (11, 15), (16, 10**9))  # words, from - to
_AREAS = (0, 1, 2, 5, 10, 20, 40, 100)  # percent of the image
PLACES = tuple(f"{row} {column}" for row in ("top", "middle", "bottom") for column in ("left", "centre", "right"))
HISTOGRAM_BINS = 20


def intervals(scores: Sequence[ExpressionScore]) -> dict[str, tuple[float, float]]:
    """Return the intervals of `overall_iou` and `mean_iou` over the images of `scores`, in percent."""
    columns = [(s.intersection, s.union, s.iou or 0.0, s.iou is not None) for s in scores]
    sums = resampled_sums(np.array(columns, np.float64), [s.image_identity for s in scores])
    return {
        "overall_iou": interval(sums[:, 0], sums[:, 1]),
        "mean_iou": interval(sums[:, 2], sums[:, 3]),
    }


def resampled_sums(
    values: Shaped[np.ndarray, "expressions columns"], images: Sequence[str]
) -> Float[np.ndarray, "resamples columns"]:
    """Return the column sums of `values` (one row per expression) over each resample of the expressions' `images`."""
    _, image = np.unique(np.asarray(images), return_inverse=True)
    per_image = np.zeros((image.max() + 1, values.shape[1]))
    np.add.at(per_image, image, values)
    return np.concatenate([counts @ per_image for counts in _draw_counts(len(per_image))])


def interval(parts: Float[np.ndarray, " n"], totals: Float[np.ndarray, " n"]) -> tuple[float, float]:
    """Return the central interval of 100 * part / total over resamples, without those whose total is 0."""
    valid = totals > 0
    if not valid.any():
        return 0.0, 0.0
    low, high = np.percentile(100 * parts[valid] / totals[valid], [(100 - LEVEL) / 2, (100 + LEVEL) / 2])
    return float(low), float(high)


def _draw_counts(images: int) -> Iterator[Float[np.ndarray, "some images"]]:
    """Yield how often each image is drawn in each resample, in chunks of rows; RESAMPLES rows in total."""
    rng = np.random.default_rng(_SEED)
    left = RESAMPLES
    while left:
        rows = min(left, max(1, _MAX_DRAWS // images))
        drawn = rng.integers(0, images, (rows, images)) + images * np.arange(rows)[:, None]
        yield np.bincount(drawn.ravel(), minlength=rows * images).reshape(rows, images).astype(np.float64)
        left -= rows


@dataclass(frozen=True)
class ScoreGroup:
    """The expressions of one bar of a plot: their mean IoU in percent and its bootstrap interval over images."""

    label: str
    expressions: int
    mean_iou: float
    interval: tuple[float, float]


def by_length(scores: Sequence[ExpressionScore]) -> list[ScoreGroup]:
    """Group expressions by their number of words (separated by spaces); empty groups are dropped."""
    labels = [str(low) if low == high else f"{low}-{high}" for low, high in _LENGTHS[:-1]] + [f"{_LENGTHS[-1][0]}+"]

    def index_of(score: ExpressionScore) -> int:
        words = max(1, len(score.expression.split()))
        return next(index for index, (low, high) in enumerate(_LENGTHS) if low <= words <= high)

    return [group for group in _grouped(scores, labels, index_of) if group.expressions]


def by_area(scores: Sequence[ExpressionScore]) -> list[ScoreGroup]:
    """Group the expressions that refer to something by the share of the image that the true mask covers."""
    labels = [f"{low}-{high}" for low, high in pairwise(_AREAS)]

    def index_of(score: ExpressionScore) -> int | None:
        if not score.targeted:
            return None
        return max(0, int(np.searchsorted(_AREAS, 100 * score.area, side="left")) - 1)

    return [group for group in _grouped(scores, labels, index_of) if group.expressions]


def by_place(scores: Sequence[ExpressionScore]) -> list[ScoreGroup]:
    """Group the expressions that refer to something by the ninth of the image that contains the mask's centroid.

    Returns nine groups, row by row, as in `PLACES`.
    """

    def index_of(score: ExpressionScore) -> int | None:
        if score.centre is None:
            return None
        column, row = (min(2, int(3 * fraction)) for fraction in score.centre)
        return 3 * row + column

    return _grouped(scores, PLACES, index_of)


def histogram(scores: Sequence[ExpressionScore]) -> list[int]:
    """Count expressions by IoU in HISTOGRAM_BINS equal bins over [0, 1]; an IoU of 1 is in the last bin."""
    ious = [score.iou for score in scores if score.iou is not None]
    return np.histogram(ious, bins=HISTOGRAM_BINS, range=(0, 1))[0].tolist()


def _grouped(
    scores: Sequence[ExpressionScore], labels: Sequence[str], index_of: Callable[[ExpressionScore], int | None]
) -> list[ScoreGroup]:
    """Return one group per label; `index_of` gives the index of an expression's label, or None to leave it out."""
    placed = [(score, index) for score in scores if score.iou is not None and (index := index_of(score)) is not None]
    if not placed:
        return [ScoreGroup(label, 0, 0.0, (0.0, 0.0)) for label in labels]
    values = np.zeros((len(placed), 2, len(labels)))
    for row, (score, index) in enumerate(placed):
        values[row, :, index] = score.iou, 1
    sums, counts = values.sum(0)
    resampled = resampled_sums(values.reshape(len(placed), -1), [score.image_identity for score, _ in placed])
    resampled_ious, resampled_counts = np.split(resampled, 2, axis=1)
    return [
        ScoreGroup(
            label,
            int(counts[i]),
            100 * sums[i] / max(counts[i], 1),
            interval(resampled_ious[:, i], resampled_counts[:, i]),
        )
        for i, label in enumerate(labels)
    ]
