"""Masks as PNG, RLE and polygons: each format is lossless."""

import io

import numpy as np
import pytest
from PIL import Image

from s2rm_jax.input.masks import encode_rle, rasterize
from s2rm_jax.serving.api import as_png, as_polygons


@pytest.mark.parametrize("density", [0, 0.4, 1])
def test_formats_are_lossless(density):
    mask = np.random.default_rng(0).random((13, 21)) < density
    with Image.open(io.BytesIO(as_png(mask))) as image:
        assert (image.mode, image.size) == ("L", (21, 13))
        np.testing.assert_array_equal(np.asarray(image), mask * 255)
    np.testing.assert_array_equal(rasterize(encode_rle(mask), 13, 21), mask)
    outline = as_polygons(mask)
    assert outline["size"] == [13, 21]
    covered = np.zeros_like(mask)
    for polygon in outline["polygons"] + outline["holes"]:
        covered ^= rasterize([polygon], 13, 21)
    np.testing.assert_array_equal(covered, mask)
