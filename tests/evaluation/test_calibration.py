"""Calibrated scores: the fit, the bins of the diagram, and the expected calibration error."""

from dataclasses import astuple

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import expit, logit

from s2rm_jax.errors import UserError
from s2rm_jax.evaluation.calibration import (
    BINS,
    UNCALIBRATED,
    Bin,
    Calibration,
    expected_calibration_error,
    fit,
    reliability,
)
from s2rm_jax.evaluation.plots import reliability_plot


def draw(count, scale, bias):
    """Return masks whose scores, calibrated with scale and bias, are the probabilities that the masks are right."""
    random = np.random.default_rng(0)
    scores = random.uniform(0.5, 0.999, count)
    right = random.random(count) < expit(scale * logit(scores) + bias)
    return list(zip(scores.tolist(), right.tolist(), strict=True))


def error_of(masks):
    return expected_calibration_error(reliability(masks))


def test_the_fit_is_the_maximum_of_the_likelihood_and_near_the_truth():
    masks = draw(20_000, scale=1.7, bias=-3.0)
    found = fit(masks)
    scores, right = map(np.array, zip(*masks, strict=True))
    rate = right.sum()
    targets = np.where(right, (rate + 1) / (rate + 2), 1 / (len(right) - rate + 2))

    def loss(weights):
        return -np.sum(
            targets * np.log(expit(weights[0] * logit(scores) + weights[1]))
            + (1 - targets) * np.log(expit(-weights[0] * logit(scores) - weights[1]))
        )

    np.testing.assert_allclose(found, minimize(loss, [1.0, 0.0], tol=1e-10).x, rtol=1e-4)
    np.testing.assert_allclose(found, (1.7, -3.0), rtol=0.05)
    assert error_of(masks) > 0.2
    assert error_of([(found(score), right) for score, right in masks]) < 0.02


@pytest.mark.parametrize(
    "masks",
    [
        [(0.6, False), (0.7, False), (0.8, True), (0.9, True)],
        [(0.9, True)] * 5,
        [(1.0, True), (1.0, False)],
    ],
)
def test_the_fit_is_finite_if_masks_can_be_separated_or_are_alike(masks):
    calibration = fit(masks)
    assert np.isfinite(calibration).all()
    assert all(0 <= calibration(score) <= 1 for score in (0.5, 0.9, 1.0))


def test_without_masks_or_with_scores_in_the_wrong_order_nothing_can_be_fitted():
    with pytest.raises(UserError, match="predicts no mask"):
        fit([])
    with pytest.raises(UserError, match="do not rank the 3 masks"):
        fit([(0.5, True), (0.99, False), (0.999, False)])
    assert reliability([]) == []


def test_an_uncalibrated_score_and_that_of_an_empty_mask_are_unchanged():
    assert [UNCALIBRATED(score) for score in (0.0, 0.5, 0.93, 1.0)] == [0.0, 0.5, 0.93, 1.0]
    calibration = Calibration(2.0, 1.0)
    assert calibration(0.0) == 0.0
    assert calibration(0.9) == pytest.approx(expit(2 * logit(0.9) + 1))


def test_bins_and_error():
    masks = [(0.05, False), (0.62, True), (0.68, False), (0.99, True), (1.0, True)]
    bins = reliability(masks)
    assert len(bins) == BINS and sum(one.count for one in bins) == 5
    assert bins[0] == Bin(1, 0.05, 0.0) and bins[1] == Bin(0, 0.0, 0.0)
    assert astuple(bins[6]) == pytest.approx((2, 0.65, 0.5))
    assert astuple(bins[9]) == pytest.approx((2, 0.995, 1.0))
    assert expected_calibration_error(bins) == pytest.approx((0.05 + 2 * 0.15 + 2 * 0.005) / 5)
    assert expected_calibration_error([Bin(0, 0.0, 0.0)]) == 0.0


def test_the_plot_shows_the_error_and_the_masks_of_each_bin():
    figure = reliability_plot(reliability([(0.65, True), (0.65, False), (0.95, True)]))
    assert "expected calibration error 11.7 %" in figure and figure.count("<rect") == BINS
    assert ">2</text>" in figure and ">1</text>" in figure
