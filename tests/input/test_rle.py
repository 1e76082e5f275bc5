"""COCO's run-length code against the encoder of pycocotools."""

from __future__ import annotations

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from s2rm_jax.errors import UserError
from s2rm_jax.input.masks import decode_rle


def blobs(height: int, width: int, seed: int) -> np.ndarray:
    """A mask of discs, whose run lengths go up and down and are of one to three characters."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    discs = [
        (rows - rng.uniform(0, height)) ** 2 + (columns - rng.uniform(0, width)) ** 2 < rng.uniform(0, height) ** 2 / 9
        for _ in range(4)
    ]
    return np.any(discs, axis=0)


@pytest.mark.parametrize(
    "mask",
    [
        *(blobs(480, 640, seed) for seed in range(5)),
        *(np.random.default_rng(seed).random((37, 53)) < 0.5 for seed in range(3)),
        np.zeros((5, 7), bool),
        np.ones((5, 7), bool),
        np.ones((2000, 3000), bool),
        np.array([[True]]),
    ],
)
def test_decoding_returns_what_was_encoded(mask):
    rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    np.testing.assert_array_equal(decode_rle(rle, *mask.shape), mask)
    np.testing.assert_array_equal(decode_rle({**rle, "counts": rle["counts"].decode()}, *mask.shape), mask)


def test_run_lengths_go_down_the_columns():
    mask = decode_rle({"size": [3, 2], "counts": [1, 3, 2]}, 3, 2)
    np.testing.assert_array_equal(mask, [[False, True], [True, False], [True, False]])


@pytest.mark.parametrize(
    ("rle", "message"),
    [
        ({"size": [2, 3], "counts": [6]}, r"size \[2, 3\], but its image is 3 x 2"),
        ({"counts": [6]}, r"size \[\]"),
        ({"size": [3, 2], "counts": [1, 3]}, "covers 4 pixels, but the image has 6"),
        ({"size": [3, 2], "counts": [10, -4]}, "not run lengths"),
        ({"size": [3, 2], "counts": [2.5, 3.5]}, "not run lengths"),
        ({"size": [3, 2], "counts": None}, "not run lengths"),
        ({"size": [3, 2], "counts": "66"}, "covers 12 pixels"),
        ({"size": [3, 2], "counts": "6~"}, "not run lengths"),
        ({"size": [3, 2], "counts": b"\xff\x00"}, "not run lengths"),
        ({"size": [3, 2], "counts": "oooo"}, "covers 0 pixels"),
        ({"size": [3, 2], "counts": "ooooooooooooooooooooooo0"}, "not run lengths"),
        ({"size": [3, 2], "counts": "0O"}, "not run lengths"),  # a negative number
        ({"size": [3, 2], "counts": [2**64, 6]}, "not run lengths"),
    ],
)
def test_a_damaged_code_is_refused(rle, message):
    with pytest.raises(UserError, match=message):
        decode_rle(rle, 3, 2)
