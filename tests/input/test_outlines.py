"""Outlines: the polygons are the mask, to the pixel."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from s2rm_jax.input.masks import rasterize
from s2rm_jax.input.outlines import outlines


def mask_of(*rows):
    return np.array([[letter == "#" for letter in row] for row in rows])


def test_a_rectangle_has_four_corners():
    around, holes = outlines(mask_of("....", ".##.", ".##.", ".##."))
    assert sorted(zip(around[0][::2], around[0][1::2], strict=True)) == [(1, 1), (1, 4), (3, 1), (3, 4)]
    assert (len(around), len(around[0]), holes) == (1, 8, [])


def test_holes_are_told_apart():
    around, holes = outlines(mask_of("#####", "#.#.#", "#####"))
    assert (len(around), len(holes)) == (1, 2)
    assert all(len(hole) == 8 for hole in holes)


def test_parts_that_touch_at_a_corner_are_apart():
    around, holes = outlines(mask_of("#.", ".#"))
    assert (len(around), holes) == (2, [])
    around, holes = outlines(mask_of("###", "#.#", "##."))
    assert (len(around), len(holes)) == (1, 1)  # no outline passes the point twice at which the hole meets the outside


def test_nothing():
    assert outlines(np.zeros((3, 4), bool)) == ([], [])


@pytest.mark.parametrize("seed", range(20))
def test_the_pixels_that_an_odd_number_covers_are_the_mask(seed):
    rng = np.random.default_rng(seed)
    height, width = rng.integers(1, 40, 2).tolist()
    if seed % 2:
        mask = rng.random((height, width)) < rng.random()
    else:
        image = Image.new("1", (width, height))
        for _ in range(6):
            x0, x1 = sorted(rng.uniform(-2, width, 2).tolist())
            y0, y1 = sorted(rng.uniform(-2, height, 2).tolist())
            ImageDraw.Draw(image).ellipse((x0, y0, x1, y1), fill=int(rng.integers(2)))
        mask = np.array(image)
    around, holes = outlines(mask)
    covered = np.zeros_like(mask)
    for polygon in (*around, *holes):
        covered ^= rasterize([polygon], height, width)
    np.testing.assert_array_equal(covered, mask)
