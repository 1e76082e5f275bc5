"""Resizing pictures: bilinear and antialiased, as Pillow does it and torchvision with it.

`resize_image` is the definition, for all that is measured, predicted or exported. `resize_fast` is for training, where
resizing would take longer than decoding: it computes the same with SIMD instructions and rounds differently. A tenth to
a quarter of its values differ by one grey level of 255, hardly any by two (docs/results/input_speed.md).
"""

from __future__ import annotations

import numpy as np
from jaxtyping import UInt8
from PIL import Image

try:
    import cykooz_resizer as fast
except ImportError:  # there is no wheel for Linux on ARM
    fast = None

_OPTIONS = fast and fast.ResizeOptions(fast.ResizeAlg.convolution(fast.FilterType.bilinear))


def resize_image(
    image: UInt8[np.ndarray, "height width 3"], size: tuple[int, int]
) -> UInt8[np.ndarray, "new_height new_width 3"]:
    """Resizes RGB values to (height, width) pixels; the proportions are not kept."""
    return np.array(Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR))


def resize_fast(
    image: UInt8[np.ndarray, "height width 3"], size: tuple[int, int]
) -> UInt8[np.ndarray, "new_height new_width 3"]:
    """Does nearly the same four times as fast, where cykooz.resizer is installed. The result may be read-only."""
    (height, width), (new_height, new_width) = image.shape[:2], size
    if fast is None:
        return resize_image(image, size)
    if (height, width) == (new_height, new_width):
        return image
    source = fast.ImageData(width, height, fast.PixelType.U8x3, image.tobytes())
    result = fast.ImageData(new_width, new_height, fast.PixelType.U8x3)
    fast.Resizer().resize(source, result, _OPTIONS)  # one each, as threads must not share it
    return np.frombuffer(result.get_buffer(), np.uint8).reshape(new_height, new_width, 3)
