"""Values over a picture as colours: dark where they are low, bright where they are high. Pillow only."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

# From low to high, evenly spaced: lightness rises all the way, so that it reads in grey and for colour-blind eyes too.
RAMP = ((26, 18, 64), (110, 30, 118), (198, 58, 92), (245, 130, 48), (255, 236, 150))
_LOWEST_OPACITY, _HIGHEST_OPACITY = 0.35, 0.85


def span(values: np.ndarray) -> tuple[float, float]:
    """Returns the lowest and the highest value, to be the ends of a scale."""
    return float(values.min()), float(values.max())


def heat_image(values: Float[np.ndarray, "h w"], scale: tuple[float, float]) -> Image.Image:
    """Returns an RGBA image with a pixel per value; the ends of `scale` are the darkest and the brightest colour.

    It is meant to be enlarged smoothly over a grey picture. Values all alike get the middle of the ramp.
    """
    low, high = scale
    share = np.clip((values - low) / (high - low), 0, 1) if high > low else np.full(values.shape, 0.5)
    opacity = _LOWEST_OPACITY + (_HIGHEST_OPACITY - _LOWEST_OPACITY) * share
    return Image.fromarray(np.dstack([_colours(share), np.rint(255 * opacity).astype(np.uint8)]), "RGBA")


def heat_over(picture: Image.Image, values: Float[np.ndarray, "h w"], scale: tuple[float, float]) -> Image.Image:
    """Returns the picture in grey with the values over the whole of it, enlarged smoothly."""
    layer = heat_image(values, scale).resize(picture.size, Image.Resampling.BILINEAR)
    return Image.alpha_composite(picture.convert("L").convert("RGBA"), layer).convert("RGB")


def heat_bar(width: int, height: int) -> Image.Image:
    """Returns the scale's colours from low to high, for a legend."""
    shares = np.broadcast_to(np.linspace(0, 1, width), (height, width))
    return Image.fromarray(_colours(shares))


def _colours(share: np.ndarray) -> UInt8[np.ndarray, "h w 3"]:
    positions = np.linspace(0, 1, len(RAMP))
    channels = [np.interp(share, positions, channel) for channel in np.transpose(RAMP)]
    return np.rint(np.dstack(channels)).astype(np.uint8)
