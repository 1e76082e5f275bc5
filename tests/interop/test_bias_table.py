"""Bias tables are resized as by PyTorch's bicubic interpolation."""

from __future__ import annotations

import numpy as np
import pytest

from s2rm_jax.interop.parameter_names import resize_bias_table


def rows(window):
    return (2 * window - 1) ** 2


def table(window, heads=3):
    return np.random.default_rng(window).standard_normal((rows(window), heads), np.float32)


@pytest.mark.parametrize(("window", "new_window"), [(7, 12), (12, 7), (7, 8), (16, 12), (12, 24), (7, 2)])
def test_resizing_matches_pytorch(window, new_window):
    torch = pytest.importorskip("torch")
    plane = torch.from_numpy(table(window)).double().T.reshape(1, 3, 2 * window - 1, 2 * window - 1)
    size = (2 * new_window - 1, 2 * new_window - 1)
    expected = torch.nn.functional.interpolate(plane, size=size, mode="bicubic", align_corners=False)
    resized = resize_bias_table(table(window), rows(new_window))
    assert resized.shape == (rows(new_window), 3)
    np.testing.assert_allclose(resized, expected.reshape(3, -1).T.numpy(), atol=1e-6, rtol=0)


def test_rows_and_columns_keep_their_places():
    """A table that grows along the rows alone still does after resizing."""
    across, along = np.meshgrid(np.arange(13.0), np.arange(13.0))
    ramps = np.stack([along, across], -1).reshape(-1, 2).astype(np.float32)
    resized = resize_bias_table(ramps, rows(12)).reshape(23, 23, 2)
    assert (np.diff(resized[..., 0], axis=0)[2:-2] > 0.4).all() and np.ptp(resized[..., 0], axis=1).max() < 1e-5
    assert (np.diff(resized[..., 1], axis=1)[:, 2:-2] > 0.4).all() and np.ptp(resized[..., 1], axis=0).max() < 1e-5
