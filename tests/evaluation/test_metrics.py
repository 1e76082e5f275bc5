"""The measures on cases small enough to be worked out by hand."""

import numpy as np
import pytest

from s2rm_jax.evaluation.metrics import ExpressionScore, MaskCounts, by_kind, count_pixels, counts_of, total


def score(intersection, union, kind=""):
    return ExpressionScore("s", "e", kind, "an expression", intersection, union)


def test_pixels_of_two_masks():
    true = np.array([[1, 1, 0], [1, 1, 0]], bool)
    predicted = np.array([[0, 1, 1], [0, 1, 0]], bool)
    assert count_pixels(true, predicted) == (2, 5)
    assert count_pixels(true, np.zeros_like(true)) == (0, 4)


def test_overall_weighs_pixels_and_mean_weighs_expressions():
    # IoUs 9/10, 1/2 and 0/80: overall (9 + 1 + 0) / (10 + 2 + 80) = 10/92, mean (0.9 + 0.5 + 0) / 3 = 1.4/3.
    metrics = total([score(9, 10), score(1, 2), score(0, 80)]).metrics()
    assert metrics["overall_iou"] == pytest.approx(1000 / 92, abs=1e-12)
    assert metrics["mean_iou"] == pytest.approx(140 / 3, abs=1e-12)
    # 0.9 and 0.5 reach 0.5; only 0.9 reaches the rest, 0.9 itself included.
    assert metrics["precision@0.5"] == pytest.approx(200 / 3, abs=1e-12)
    for threshold in ("0.6", "0.7", "0.8", "0.9"):
        assert metrics[f"precision@{threshold}"] == pytest.approx(100 / 3, abs=1e-12)


@pytest.mark.parametrize("tenths", [5, 6, 7, 8, 9])
def test_a_tie_with_the_threshold_counts(tenths):
    name = f"precision@0.{tenths}"
    for parts in range(1, 200):  # tenths/10 in many forms, none of which may fall to rounding
        assert counts_of(score(tenths * parts, 10 * parts)).metrics()[name] == 100
        assert counts_of(score(tenths * parts - 1, 10 * parts)).metrics()[name] == 0


def test_an_empty_union_has_iou_zero_and_no_hits():
    empty = counts_of(score(0, 0))
    assert empty == MaskCounts(expressions=1, averaged=1, precision_total=1, targeted=1, answered=1)
    assert set(empty.metrics().values()) == {0.0}


def test_nothing_counted_is_zero_not_an_error():
    assert set(MaskCounts().metrics().values()) == {0.0}


def test_parts_add_up_to_the_whole():
    rng = np.random.default_rng(0)
    scores = [score(int(i), int(i + d)) for i, d in rng.integers(0, 1000, (50, 2))]
    whole, parts = total(scores), total(scores[:17]) + total(scores[17:])
    assert (parts.expressions, parts.intersection, parts.union, parts.hits) == (
        whole.expressions,
        whole.intersection,
        whole.union,
        whole.hits,
    )
    assert parts.iou_sum == pytest.approx(whole.iou_sum, rel=1e-14)


def test_sums_of_pixels_stay_exact_beyond_float64():
    big = MaskCounts(expressions=1, intersection=2**60, union=2**61)
    assert (big + counts_of(score(1, 3))).intersection == 2**60 + 1


def test_by_kind_groups_and_sorts():
    groups = by_kind([score(1, 2, "relation"), score(1, 1, "attribute"), score(0, 2, "relation")])
    assert list(groups) == ["attribute", "relation"]
    assert groups["relation"].metrics()["mean_iou"] == 25
    assert groups["attribute"].metrics()["overall_iou"] == 100
