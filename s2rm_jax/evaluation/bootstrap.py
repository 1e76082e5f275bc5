"""How far numbers would scatter over other pictures: bootstrap intervals (Efron 1979), resampling whole pictures.

The sentences of a picture stand or fall together, so pictures are drawn with replacement, each with all its sentences.
The interval says nothing about other seeds or other training runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float, Shaped

from s2rm_jax.evaluation.metrics import SentenceScore

RESAMPLES = 1000
LEVEL = 95  # percent
_SEED = 0
_DRAWS_AT_ONCE = 2_000_000  # of pictures, to bound the memory


def intervals(scores: Sequence[SentenceScore]) -> dict[str, tuple[float, float]]:
    """Returns the intervals, in percent, of `overall_iou` and `mean_iou` over the pictures of `scores`."""
    columns = [(s.intersection, s.union, s.iou or 0.0, s.iou is not None) for s in scores]
    sums = resampled_sums(np.array(columns, np.float64), [s.example_id for s in scores])
    return {
        "overall_iou": interval(sums[:, 0], sums[:, 1]),
        "mean_iou": interval(sums[:, 2], sums[:, 3]),
    }


def resampled_sums(
    values: Shaped[np.ndarray, "sentences columns"], pictures: Sequence[str]
) -> Float[np.ndarray, "resamples columns"]:
    """Returns the column sums of `values` (one row per sentence) over each resampling of the sentences' `pictures`."""
    _, picture = np.unique(np.asarray(pictures), return_inverse=True)
    per_picture = np.zeros((picture.max() + 1, values.shape[1]))
    np.add.at(per_picture, picture, values)
    return np.concatenate([times @ per_picture for times in _times_drawn(len(per_picture))])


def interval(parts: Float[np.ndarray, " n"], wholes: Float[np.ndarray, " n"]) -> tuple[float, float]:
    """Returns the central interval of 100 * part / whole over resamplings, leaving out those without any whole."""
    there = wholes > 0
    if not there.any():
        return 0.0, 0.0
    low, high = np.percentile(100 * parts[there] / wholes[there], [(100 - LEVEL) / 2, (100 + LEVEL) / 2])
    return float(low), float(high)


def _times_drawn(pictures: int) -> Iterator[Float[np.ndarray, "some pictures"]]:
    """Yields how often each picture is drawn, in rows that are resamplings, RESAMPLES rows in all."""
    rng = np.random.default_rng(_SEED)
    left = RESAMPLES
    while left:
        rows = min(left, max(1, _DRAWS_AT_ONCE // pictures))
        drawn = rng.integers(0, pictures, (rows, pictures)) + pictures * np.arange(rows)[:, None]
        yield np.bincount(drawn.ravel(), minlength=rows * pictures).reshape(rows, pictures).astype(np.float64)
        left -= rows
