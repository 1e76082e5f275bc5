"""Masks that are pictures of their own: what is not zero belongs to the referent."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import Bool
from PIL import Image

from s2rm_jax.errors import UserError
from s2rm_jax.input.images import FORMATS

# One value a pixel (of a palette the index counts, as in PASCAL VOC), or colours of which any may be other than black.
# Transparency is refused: it cannot be told whether the transparent part or the black one is meant as background.
_MODES = ("1", "L", "P", "I", "I;16", "RGB")


def read_mask(path: str | Path, height: int, width: int) -> Bool[np.ndarray, "height width"]:
    """Reads a mask from a PNG or another file without loss; true where the pixel is not zero.

    Raises:
      UserError: there is no such file, it is damaged, of another size than the picture, or of an unsuitable kind.
    """
    try:
        with Image.open(path, formats=FORMATS) as picture:
            problem = _problem_of(picture, height, width)
            values = None if problem else np.asarray(picture)
    except Exception as error:
        raise UserError(_unreadable(path, error)) from error
    if values is None:
        raise UserError(f"the mask {path} {problem}")
    layers = values.reshape(height, width, -1)
    return (layers != 0).any(axis=-1)


def problem_of_file(path: str | Path, height: int, width: int) -> str:
    """Says what keeps a file from being the mask of a picture of this size, or ""; looks at its header only."""
    try:
        with Image.open(path, formats=FORMATS) as picture:
            problem = _problem_of(picture, height, width)
    except Exception as error:
        return _unreadable(path, error)
    return f"the mask {path} {problem}" if problem else ""


def _problem_of(picture: Image.Image, height: int, width: int) -> str:
    if picture.size != (width, height):
        return f"has {picture.height} x {picture.width} pixels, its picture {height} x {width} (height x width)"
    if picture.format in ("JPEG", "WEBP"):
        return f"is a {picture.format}, which blurs masks; save it as PNG"
    if picture.mode not in _MODES or picture.has_transparency_data:
        return "has transparent pixels or values of an unknown kind; save it with one value from 0 to 255 per pixel"
    return ""


def _unreadable(path: str | Path, error: Exception) -> str:
    """What to say of a file at which a reader failed; on damaged data they raise nearly anything."""
    if isinstance(error, FileNotFoundError):
        return f"there is no mask at {path}; check the path"
    return f"the mask {path} cannot be read ({' '.join(str(error).split())}); write it again"
