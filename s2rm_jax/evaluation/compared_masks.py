"""The two masks that a protocol compares: what a sentence means, and what the network found."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Bool, Float

from s2rm_jax.evaluation.protocols import Protocol
from s2rm_jax.evaluation.resampling import resample
from s2rm_jax.input.example import Segmentation
from s2rm_jax.input.masks import rasterize, resize_mask


def true_mask(
    protocol: Protocol, segmentation: Segmentation, meant: Bool[np.ndarray, "h w"]
) -> Bool[np.ndarray, "new_h new_w"]:
    """Returns the true mask at the size at which `protocol` compares; `meant` is the same at the picture's own size.

    Where the protocol draws polygons anew but the mask is not made of polygons, it is resized by nearest pixel.
    """
    if protocol.size is None or protocol.size == meant.shape:
        return meant
    polygons = isinstance(segmentation, list) and segmentation and not any(isinstance(p, dict) for p in segmentation)
    if not (protocol.redraw_polygons and polygons):
        return resize_mask(meant, protocol.size)
    y_scale, x_scale = (new / old for new, old in zip(protocol.size, meant.shape, strict=True))
    scaled = [(np.asarray(polygon, float).reshape(-1, 2) * (x_scale, y_scale)).ravel() for polygon in segmentation]
    return rasterize(scaled, *protocol.size)


def predicted_mask(
    protocol: Protocol, logits: Float[np.ndarray, "h w"], height: int, width: int
) -> Bool[np.ndarray, "new_h new_w"]:
    """Returns the predicted mask at the size at which `protocol` compares, for a picture of `height` x `width`."""
    values, level = np.asarray(logits, np.float32), math.log(protocol.threshold / (1 - protocol.threshold))
    if protocol.resampled == "probabilities":
        values, level = 0.5 + 0.5 * np.tanh(0.5 * values), protocol.threshold  # a sigmoid that does not overflow
    return resample(values, *(protocol.size or (height, width)), protocol.resampling) > level
