"""Bootstrap intervals over images (Efron 1979), and the IoU by length of the expression, size and position of the mask.

The expressions of an image are not independent, so images are drawn with replacement, each with all its expressions. An
image that several datasets of a mixture contain is one image. The intervals do not cover the variation between seeds or
training runs.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Float, Shaped

from s2rm_jax.evaluation.metrics import ExpressionScore

RESAMPLES = 1000
LEVEL = 95  # percent
_SEED = 0
_MAX_DRAWS = 2_000_000  # images drawn at a time, to bound the memory

_LENGTHS = (1, 2, 3, 4, 5, 6, 8, 11, 16)  # the smallest number of words in each group
_AREAS = (0, 1, 2, 5, 10, 20, 40, 100)  # limits of the groups, in percent of the image
PLACES = tuple(f"{row} {column}" for row in ("top", "middle", "bottom") for column in ("left", "centre", "right"))
HISTOGRAM_BINS = 20


def intervals(scores: Sequence[ExpressionScore]) -> dict[str, tuple[float, float]]:
    """Return the intervals of `overall_iou` and `mean_iou` over the images of `scores`, in percent."""
    columns = [(s.intersection, s.union, s.iou or 0.0, s.iou is not None) for s in scores]
    sums = resampled_sums(np.array(columns, np.float64), [s.image_identity for s in scores])
    return {"overall_iou": interval(sums[:, 0], sums[:, 1]), "mean_iou": interval(sums[:, 2], sums[:, 3])}


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


def difference_interval(a: Float[np.ndarray, "n 2"], b: Float[np.ndarray, "n 2"]) -> tuple[float, float]:
    """Return the interval of the difference b - a of two shares over the same resamples; columns: part, total."""
    return interval(b[:, 0] * a[:, 1] - a[:, 0] * b[:, 1], a[:, 1] * b[:, 1])


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
    labels = [str(low) if low + 1 == end else f"{low}-{end - 1}" for low, end in pairwise(_LENGTHS)]
    words = [max(1, len(score.expression.split())) for score in scores]
    indices = [bisect_right(_LENGTHS, count) - 1 for count in words]
    return [group for group in _grouped(scores, [*labels, f"{_LENGTHS[-1]}+"], indices) if group.expressions]


def by_area(scores: Sequence[ExpressionScore]) -> list[ScoreGroup]:
    """Group the expressions that refer to something by the share of the image that the true mask covers."""
    labels = [f"{low}-{high}" for low, high in pairwise(_AREAS)]
    indices = [max(0, bisect_left(_AREAS, 100 * one.area) - 1) if one.targeted else None for one in scores]
    return [group for group in _grouped(scores, labels, indices) if group.expressions]


def by_place(scores: Sequence[ExpressionScore]) -> list[ScoreGroup]:
    """Group the expressions that refer to something by the ninth of the image that contains the mask's centroid.

    Returns nine groups, row by row, as in `PLACES`.
    """
    indices = []
    for score in scores:
        column, row = (min(2, int(3 * fraction)) for fraction in score.centre or (0, 0))
        indices.append(3 * row + column if score.centre else None)
    return _grouped(scores, PLACES, indices)


def histogram(scores: Sequence[ExpressionScore]) -> list[int]:
    """Count expressions by IoU in HISTOGRAM_BINS equal bins over [0, 1]; an IoU of 1 is in the last bin."""
    ious = [score.iou for score in scores if score.iou is not None]
    return np.histogram(ious, bins=HISTOGRAM_BINS, range=(0, 1))[0].tolist()


def _grouped(
    scores: Sequence[ExpressionScore], labels: Sequence[str], indices: Sequence[int | None]
) -> list[ScoreGroup]:
    """Return one group per label; `indices` has the index of each expression's label, or None to leave it out."""
    both = zip(scores, indices, strict=True)
    placed = [(score, index) for score, index in both if score.iou is not None and index is not None]
    if not placed:
        return [ScoreGroup(label, 0, 0.0, (0.0, 0.0)) for label in labels]
    values = np.zeros((len(placed), 2, len(labels)))
    for row, (score, index) in enumerate(placed):
        values[row, :, index] = score.iou, 1
    sums, counts = values.sum(0)
    resampled = resampled_sums(values.reshape(len(placed), -1), [score.image_identity for score, _ in placed])
    resampled_ious, resampled_counts = np.split(resampled, 2, axis=1)
    return [
        ScoreGroup(label, int(count), 100 * total / max(count, 1), interval(ious, drawn))
        for label, total, count, ious, drawn in zip(
            labels, sums, counts, resampled_ious.T, resampled_counts.T, strict=True
        )
    ]
