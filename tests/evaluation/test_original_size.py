"""Logits at the size of the image."""

import numpy as np

from s2rm_jax.evaluation.protocols import resize_logits


def test_same_size_changes_nothing():
    logits = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32)
    np.testing.assert_array_equal(resize_logits(logits, 5, 7), logits)


def test_height_and_width_are_not_swapped_and_halves_stay_halves():
    logits = np.full((8, 8), -1, np.float32)
    logits[:4] = 1  # the upper half
    mask = resize_logits(logits, 6, 20) > 0
    assert mask.shape == (6, 20)
    assert mask[:3].all()
    assert not mask[3:].any()


def test_interpolation_between_pixel_centres():
    # Doubling a row [0, 4] with half-pixel centres: 0, 1, 3, 4.
    np.testing.assert_allclose(resize_logits(np.array([[0, 4]], np.float32), 1, 4), [[0, 1, 3, 4]], atol=1e-6)


def test_a_reduced_image_sees_every_logit():
    logits = np.full((4, 4), -1, np.float32)
    logits[1, 1] = 30
    assert resize_logits(logits, 1, 1).item() > 0  # plain point sampling at the centre would not see it alone
