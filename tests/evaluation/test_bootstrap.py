"""Bootstrap intervals in cases whose intervals are known in advance."""

import numpy as np
import pytest

from s2rm_jax.evaluation import bootstrap
from s2rm_jax.evaluation.bootstrap import interval, intervals, resampled_sums
from s2rm_jax.evaluation.metrics import ExpressionScore


def score(example, intersection, union, **more):
    return ExpressionScore("s", example, "", "w", intersection, union, **more)


def test_one_image_never_scatters():
    # Resampling one image gives that image: overall (1 + 9) / (2 + 10), mean (0.5 + 0.9) / 2.
    found = intervals([score("a", 1, 2), score("a", 9, 10)])
    assert found["overall_iou"] == pytest.approx((1000 / 12, 1000 / 12))
    assert found["mean_iou"] == pytest.approx((70, 70))


def test_expressions_of_an_image_stay_together():
    # Two images of 100 expressions each, all right in one and all wrong in the other: a resampling holds the one twice,
    # one of each, or the other twice: mean IoU 100, 50 or 0 with the chances 1/4, 1/2, 1/4, so the interval is all.
    # Expressions drawn one by one would scatter by 1.96 * 50 / sqrt(200) = 7 around 50.
    scores = [score(image, right, 1) for image, right in (("a", 1), ("b", 0)) for _ in range(100)]
    assert intervals(scores)["mean_iou"] == (0, 100)


def test_an_image_of_several_datasets_is_drawn_as_one():
    # As above, but the examples of an image come from three datasets.
    scores = [
        score(f"{dataset}/{image}", right, 1, image=f"{image}.jpg")
        for image, right in (("a", 1), ("b", 0))
        for dataset in ("refcoco", "refcoco+", "refcocog")
    ]
    assert intervals(scores)["mean_iou"] == (0, 100)
    [group] = [group for group in bootstrap.by_length(scores) if group.expressions]
    assert group.interval == (0, 100)


def test_width_for_many_images():
    # 400 images of one expression with IoU 0 or 1, half and half: standard error 0.5 / sqrt(400) = 2.5 %.
    found = intervals([score(f"p{i}", i % 2, 1) for i in range(400)])
    for low, high in found.values():
        assert low == pytest.approx(50 - 1.96 * 2.5, abs=0.6)
        assert high == pytest.approx(50 + 1.96 * 2.5, abs=0.6)


def test_expressions_without_an_iou_are_excluded():
    scores = [score("a", 1, 2), score("b", 0, 0, empty_iou=None), score("c", 2, 4)]
    assert intervals(scores)["mean_iou"] == (50, 50)


def test_every_resample_draws_as_many_images_as_there_are(monkeypatch):
    values, images = np.ones((30, 1)), [f"p{i // 2}" for i in range(30)]
    at_once = resampled_sums(values, images)
    assert at_once.shape == (bootstrap.RESAMPLES, 1)
    assert (at_once == 30).all()  # 15 images of two expressions each, whichever they are
    different = resampled_sums(np.sqrt(np.arange(30.0))[:, None], images)
    assert len(np.unique(different)) > 0.99 * bootstrap.RESAMPLES
    monkeypatch.setattr(bootstrap, "_MAX_DRAWS", 100)
    assert resampled_sums(values, images).shape == (bootstrap.RESAMPLES, 1)


def test_the_same_every_time():
    scores = [score(f"p{i}", i % 7, 7) for i in range(50)]
    assert intervals(scores) == intervals(scores)


def test_resamples_with_a_total_of_zero_are_excluded():
    assert interval(np.array([1.0, 0, 3]), np.array([2.0, 0, 6])) == (50, 50)
    assert interval(np.zeros(3), np.zeros(3)) == (0, 0)
