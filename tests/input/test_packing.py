"""Packed masks and uint8 images are decoded equally on the host and on devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from s2rm_jax.input.encode import (
    MEAN_COLOUR,
    pack_mask,
    packed_shape,
    unpack_masks,
)
from s2rm_jax.models.network import IMAGENET_MEAN, IMAGENET_STD, normalize


@pytest.mark.parametrize("compute", [normalize, jax.jit(normalize)])
def test_pixels_are_normalized_by_the_statistics_of_imagenet(compute):
    levels = np.random.default_rng(0).integers(0, 256, (2, 12, 16, 3), dtype=np.uint8)
    found = compute(levels)
    assert found.dtype == np.float32
    expected = (levels / 255.0 - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_STD)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_no_colour_is_nearer_to_the_mean():
    near = np.clip(np.array(MEAN_COLOUR) + np.arange(-2, 3)[:, None], 0, 255).astype(np.uint8)
    assert np.abs(normalize(near[:, None])).argmin(0).tolist() == [[2, 2, 2]]


@pytest.mark.parametrize("size", [(8, 12), (13, 5), (1, 1), (16, 16)])
@pytest.mark.parametrize("order", "CF")
def test_masks_are_packed_and_unpacked(size, order):
    masks = np.random.default_rng(0).random((2, 3, *size)) < 0.5
    packed = np.stack([np.stack([pack_mask(np.asarray(m, order=order)) for m in row]) for row in masks])
    assert packed.shape == (2, 3, *packed_shape(*size)) and packed.dtype == np.uint8
    np.testing.assert_array_equal(unpack_masks(packed, size[0]), masks, strict=True)
    on_device = jax.jit(unpack_masks, static_argnums=1)(jnp.asarray(packed), size[0])
    np.testing.assert_array_equal(on_device, masks)
