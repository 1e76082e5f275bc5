"""Masks from polygons, RLE and arrays, and their resizing."""

from __future__ import annotations

import re

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from s2rm_jax.errors import UserError
from s2rm_jax.input.masks import has_mask, has_pixels, rasterize, resize_mask, usable_parts

HEIGHT, WIDTH = 20, 30


def box(x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[y0:y1, x0:x1] = True
    return mask


def polygon(x0: int, y0: int, x1: int, y1: int) -> list[float]:
    return [x0, y0, x1, y0, x1, y1, x0, y1]


def compressed(mask: np.ndarray) -> dict:
    return coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))


def uncompressed(mask: np.ndarray) -> dict:
    """Run lengths in column order, beginning with the background's."""
    counts, value = [0], False
    for pixel in mask.ravel(order="F"):
        if pixel != value:
            counts.append(0)
            value = pixel
        counts[-1] += 1
    return {"size": list(mask.shape), "counts": counts}


A, B = (2, 3, 12, 15), (8, 10, 25, 18)  # they overlap in 4 x 5 pixels
UNION = box(*A) | box(*B)


def text_counts(rle: dict) -> dict:
    return {**rle, "counts": rle["counts"].decode()}


@pytest.mark.parametrize(
    "segmentation",
    [
        [polygon(*A), polygon(*B)],
        [polygon(*A), polygon(*B), [1.0, 1.0, 5.0, 5.0]],  # two points enclose nothing
        compressed(UNION),
        text_counts(compressed(UNION)),
        uncompressed(UNION),
        [compressed(box(*A)), text_counts(compressed(box(*B)))],
        [uncompressed(box(*A)), compressed(box(*B))],
        [polygon(*A), compressed(box(*B))],
        UNION,
        UNION.astype(np.uint8) * 255,
    ],
)
def test_every_form_gives_the_union_of_its_parts(segmentation):
    mask = rasterize(segmentation, HEIGHT, WIDTH)
    assert mask.dtype == bool
    np.testing.assert_array_equal(mask, UNION)
    assert has_mask(segmentation)


def test_the_empty_list_is_the_mask_of_nothing():
    mask = rasterize([], HEIGHT, WIDTH)
    assert (mask.shape, mask.dtype, mask.any()) == ((HEIGHT, WIDTH), bool, False)


# Two squares of 20 x 20 pixels that share 10 x 10: 700 pixels in all, of which 600 lie under one square only.
SQUARES = [polygon(0, 0, 20, 20), polygon(10, 10, 30, 30)]
SQUARE_CODES = [
    coco_mask.encode(np.asfortranarray(np.pad(np.ones((20, 20), np.uint8), ((at, 20 - at), (at, 20 - at)))))
    for at in (0, 10)
]


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of pycocotools under NumPy 2
@pytest.mark.parametrize("parts", [SQUARES, SQUARE_CODES], ids=["polygons", "rle"])
def test_pixels_under_two_parts_count_unless_they_are_to_be_covered_once(parts):
    together, once = rasterize(parts, 40, 40), rasterize({"covered_once": parts}, 40, 40)
    assert (together.sum(), once.sum()) == (700, 600)
    both = np.zeros((40, 40), bool)
    both[10:20, 10:20] = True
    np.testing.assert_array_equal(together & ~once, both)
    # What LAVT, CARIS and ReMamber compute: the sum over the parts, of which the pixels that are 1 are kept.
    codes = coco_mask.frPyObjects(parts, 40, 40) if parts is SQUARES else parts
    np.testing.assert_array_equal(once, coco_mask.decode(codes).sum(axis=2) == 1)


def test_what_counts_once_in_one_object_is_joined_with_the_other_objects():
    mask = rasterize([{"covered_once": SQUARES}, polygon(0, 0, 15, 15)], 40, 40)
    assert mask.sum() == 600 + 5 * 5  # the object fills a quarter of the hole


def test_a_polygon_reaching_out_of_the_image_is_cut_at_its_border():
    np.testing.assert_array_equal(rasterize([polygon(-50, 5, 10, 500)], HEIGHT, WIDTH), box(0, 5, 10, HEIGHT))


def test_a_triangle_covers_half_of_its_box():
    mask = rasterize([[0.0, 0.0, 200.0, 0.0, 0.0, 100.0]], 100, 200)
    assert mask.mean() == pytest.approx(0.5, abs=0.01)
    assert mask[5, 5]
    assert not mask[-5, -5]


@pytest.mark.parametrize("segmentation", [None, [], [[]], [[1.0, 2.0, 3.0, 4.0]], {}, {"size": [2, 2], "counts": ""}])
def test_an_annotation_without_a_mask_is_recognized(segmentation):
    assert not has_mask(segmentation)


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ([[1.0, 2.0, 3.0, 4.0]], "has no mask"),
        ([[]], "has no mask"),
        ({}, "has no mask"),
        ({"covered_once": [[1.0, 2.0, 3.0, 4.0]]}, "has no mask"),
        (compressed(np.ones((WIDTH, HEIGHT), bool)), r"size \[30, 20\], but its image is 20 x 30"),
        (np.ones((HEIGHT, WIDTH + 1), bool), r"shape \(20, 31\), but its image is 20 x 30"),
        (np.ones((HEIGHT - 1, WIDTH), bool), r"shape \(19, 30\), but its image is 20 x 30"),
        (np.ones((HEIGHT, WIDTH), np.float32), "array of float32"),
        ([[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]], "pairs of finite pixel coordinates"),
        ([[1.0, 2.0, 3.0, 4.0, 5.0, float("nan")]], "pairs of finite pixel coordinates"),
        ([[1.0, 2.0, 3.0, 4.0, 5.0, 1e12]], "pairs of finite pixel coordinates"),
        ([["a", "b", "c", "d", "e", "f"]], "not a number"),
        ([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], "must be a list of numbers"),
    ],
)
def test_what_cannot_be_a_mask_of_the_image_is_refused(segmentation, message):
    with pytest.raises(UserError, match=message):
        rasterize(segmentation, HEIGHT, WIDTH)


@pytest.mark.parametrize("size", [(7, 9), (20, 30), (40, 90), (13, 62)])
def test_resizing_agrees_with_the_nearest_neighbour_of_pillow(size):
    mask = np.random.default_rng(0).random((HEIGHT, WIDTH)) < 0.3
    expected = Image.fromarray(mask.astype(np.uint8)).resize(size[::-1], Image.Resampling.NEAREST)
    for order in "CF":  # in which the pixels lie in memory
        np.testing.assert_array_equal(resize_mask(np.asarray(mask, order=order), size), np.asarray(expected) != 0)


def test_pixels_under_three_parts_are_not_covered_once():
    third = np.zeros((40, 40), bool)
    third[12:18, 12:18] = True  # within the 10 x 10 pixels that both squares cover
    once = rasterize({"covered_once": [*SQUARES, polygon(12, 12, 18, 18)]}, 40, 40)
    assert once.sum() == 600 and not once[third].any()


# Of the issues of COCO's tools: a box without height, which pycocotools draws as nothing.
SPECK = [29.65, 38.33, 29.65, 38.33, 30.68, 38.33, 30.68, 38.33]
TWICE = [10, 10, 20, 10, 20, 20, 10, 20] * 2  # even-odd filling: what is enclosed twice is outside


@pytest.mark.parametrize(
    ("segmentation", "expected"),
    [
        ([SPECK], False),
        ([TWICE], False),
        ([SPECK, polygon(*A)], True),
        ([[50, 50, 60, 50, 60, 60]], False),  # outside
        (np.zeros((HEIGHT, WIDTH), bool), False),
        (uncompressed(box(*A) & False), False),
        (text_counts(compressed(box(*A) & False)), False),
        ([compressed(box(*A) & False), compressed(box(*A))], True),
        ({"covered_once": [polygon(*A), polygon(*A)]}, False),
        ([], False),
        (uncompressed(box(*A)), True),
    ],
)
def test_whether_a_mask_has_a_pixel_agrees_with_the_decoded_mask(segmentation, expected):
    assert has_pixels(segmentation, HEIGHT, WIDTH) == rasterize(segmentation, HEIGHT, WIDTH).any() == expected


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        ([1.0, 2.0, 3.0, 4.0], "a polygon has 2 corners"),
        ([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0], "odd number of coordinates"),
        ([1.0, 2.0, 3.0, 4.0, 5.0, float("nan")], "invalid pixel coordinate"),
        ({"size": [2, 2], "counts": [4]}, r"has size \[2, 2\]"),
        ({"size": [HEIGHT, WIDTH], "counts": "0"}, "is damaged"),
        ({"size": [HEIGHT, WIDTH], "counts": "~"}, "is damaged"),
        (7, "must be a list"),
    ],
)
def test_a_bad_part_is_left_out_beside_a_good_one(bad, problem):
    good, problems, is_empty, _ = usable_parts([bad, polygon(*A)], HEIGHT, WIDTH)
    assert good == [polygon(*A)] and len(problems) == 1 and not is_empty
    assert re.search(problem, problems[0])
    assert usable_parts([bad], HEIGHT, WIDTH)[0] == []


@pytest.mark.parametrize(
    "polygon",
    [
        [0.1, 0.1, 0.5, 0.1, 0.5, 0.5],
        [-0.04, 0.1, 1.04, 0.1, 0.5, 0.5],
        (0, 0, 1, 0, 1, 1),
        np.float32([0, 0, 0, 1, 1, 1]),
    ],
)
def test_polygons_in_fractions_of_the_image_are_refused(polygon):
    for function in (rasterize, has_pixels):
        with pytest.raises(
            UserError, match=r"its polygons seem to be in fractions of the image.* multiply x by its width"
        ):
            function([polygon, polygon], HEIGHT, WIDTH)
    assert has_pixels([polygon, [5, 5, 9, 5, 9, 9]], HEIGHT, WIDTH)
    assert not has_pixels([[0.0] * 6], HEIGHT, WIDTH)


def test_polygons_without_a_pixel_are_no_mask_and_run_lengths_without_one_are():
    assert usable_parts([SPECK], HEIGHT, WIDTH).is_empty
    assert not usable_parts(uncompressed(box(*A) & False), HEIGHT, WIDTH).is_empty
