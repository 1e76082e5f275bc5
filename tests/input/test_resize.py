"""Resizing of images equals Pillow's to within one grey level."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from s2rm_jax.input import images
from s2rm_jax.input.images import resize_fast, resize_image


def smooth_image(height: int, width: int) -> np.ndarray:
    noise = np.random.default_rng(0).integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC))


@pytest.mark.parametrize("how", [resize_fast, resize_image])
def test_resizing_smooths_and_keeps_flat_areas(how):
    stripes = np.zeros((40, 40, 3), np.uint8)
    stripes[:, ::2] = 255  # without antialiasing, every second column of nothing but white or black would be left
    small = how(stripes, (20, 10))
    assert small.shape == (20, 10, 3) and small.dtype == np.uint8
    assert np.abs(small[:, 1:-1].astype(int) - 127).max() < 20
    assert (how(np.full((5, 7, 3), 77, np.uint8), (11, 3)) == 77).all()


@pytest.mark.parametrize("size", [(480, 640), (640, 427), (200, 320), (960, 1280), (480, 480)])
def test_every_way_gives_what_pillow_gives_to_within_a_grey_level(size):
    image = smooth_image(*size)
    wanted = np.asarray(Image.fromarray(image).resize((480, 480), Image.Resampling.BILINEAR)).astype(int)
    np.testing.assert_array_equal(resize_image(image, (480, 480)), wanted)
    difference = np.abs(resize_fast(image, (480, 480)) - wanted)
    assert difference.max() <= 1 and difference.mean() < 0.3


def test_what_lies_otherwise_in_memory_is_resized_alike():
    image = smooth_image(64, 80)
    for view in (image[:, ::-1], image[3:50, 10:70], image[..., ::-1]):
        np.testing.assert_array_equal(resize_fast(view, (24, 32)), resize_fast(view.copy(), (24, 32)))


def test_without_the_fast_library_pillow_does_it(monkeypatch):
    image = smooth_image(64, 80)
    monkeypatch.setattr(images, "fast", None)
    np.testing.assert_array_equal(resize_fast(image, (24, 32)), resize_image(image, (24, 32)))
