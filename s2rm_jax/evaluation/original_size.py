"""From the network's grid of logits back to the picture's own pixels."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from PIL import Image


def resize_logits(logits: Float[np.ndarray, "h w"], height: int, width: int) -> Float[np.ndarray, "height width"]:
    """Resizes logits bilinearly (half-pixel centres) to `height` x `width` pixels; the mask is where they exceed 0.

    Resizing logits rather than masks keeps the outline smooth. Where the picture is smaller than the network's grid,
    the filter widens accordingly, so that no pixel is left out.
    """
    resized = Image.fromarray(np.asarray(logits, np.float32)).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(resized)
