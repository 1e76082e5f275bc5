"""Pictures and masks as they travel to the devices, in few bytes, and what the network and the loss make of them there.

A picture is uint8 and a mask has one bit a pixel: that is a fifth of what normalised floats and booleans take, and
workers, host and device copy it several times. What undoes it is written with operators alone, which mean the same for
NumPy's arrays and JAX's.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, UInt8

IMAGENET_MEAN = (0.485, 0.456, 0.406)  # RGB, of values in [0, 1]
IMAGENET_STD = (0.229, 0.224, 0.225)
MEAN_COLOUR = tuple(round(255 * mean) for mean in IMAGENET_MEAN)  # as near to 0 as a normalised picture comes

_SCALE = (1.0 / (255.0 * np.asarray(IMAGENET_STD))).astype(np.float32)
_OFFSET = (-np.asarray(IMAGENET_MEAN) / np.asarray(IMAGENET_STD)).astype(np.float32)
_PLACES = np.arange(7, -1, -1, dtype=np.uint8)  # of the bits of a byte, the uppermost pixel's first


def normalize(images: UInt8[Any, "*batch height width 3"]) -> Float32[Any, "*batch height width 3"]:
    """Scales RGB values to [0, 1], subtracts the ImageNet mean and divides by the ImageNet standard deviation."""
    return images.astype(np.float32) * _SCALE + _OFFSET


def pack_mask(mask: Bool[np.ndarray, "height width"]) -> UInt8[np.ndarray, "width bytes"]:
    """Packs eight neighbours of a column into a byte; what is missing at the end of a column is 0.

    By columns, as masks lie in memory that were made of COCO's run lengths.
    """
    return np.packbits(np.ascontiguousarray(mask.T), axis=-1)


def packed_shape(height: int, width: int) -> tuple[int, int]:
    """Returns the shape of what `pack_mask` makes."""
    return width, -(-height // 8)


def unpack_masks(packed: UInt8[Any, "*batch width bytes"], height: int) -> Bool[Any, "*batch {height} width"]:
    """Undoes `pack_mask` for masks that are `height` pixels high."""
    bits = (packed[..., None] >> _PLACES) & 1
    columns = bits.reshape(*packed.shape[:-1], 8 * packed.shape[-1])
    return columns[..., :height].swapaxes(-1, -2) != 0
