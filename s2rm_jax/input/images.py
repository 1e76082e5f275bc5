"""Pictures: from files, arrays and PIL images to uint8 RGB, and from one size to another."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from s2rm_jax.errors import UserError
from s2rm_jax.input.jpeg import decode_plain_jpeg
from s2rm_jax.input.web import fetch, is_url

MAX_PIXELS = 80_000_000  # a small file can unpack to an enormous picture; this much takes 240 MB
# What Pillow reads by itself: its other readers are rare, and that of EPS starts an external program.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")

# Pillow imports its readers when the first picture is opened. Threads that open their first pictures together then get
# in each other's way (KeyError: 'MPO'), so they are all imported here; it takes 50 ms.
Image.init()

# The C library of Linux gives idle memory back to the system, which clears it before it can be had again, as soon as
# there is more than twice the largest block that was freed so far (of up to 32 MB). Arrays of pictures come and go, and
# with small blocks that would be a tenth of the time of a batch; so one large block is freed first.
np.empty(31 << 20, np.uint8)


def load_image(
    source: str | Path | bytes | np.ndarray | Image.Image, *, apply_exif: bool = False, max_pixels: int = MAX_PIXELS
) -> UInt8[np.ndarray, "height width 3"]:
    """Returns a picture as RGB values 0 ... 255, whatever it is stored as; the array is the caller's own.

    Grey, palette, 1-bit and CMYK pictures are converted. 16-bit values are scaled to 8 bits (Pillow would clip them).
    Transparent pictures are laid on white, the page they are made for: what lies under a transparent pixel is
    arbitrary. Of several frames the first counts.

    Args:
      source: a file; an address on the web (http:// or https://); the bytes of a file; an array [H, W], [H, W, 1],
        [H, W, 3] or [H, W, 4] of uint8, uint16 or bool; or a PIL image.
      apply_exif: turn the picture the way its EXIF orientation says, as every viewer does. Right for a person's own
        pictures; wrong for a dataset, whose masks are drawn in the stored coordinates.
      max_pixels: larger pictures are refused before they are unpacked.

    Raises:
      UserError: the file is missing, damaged, not a picture or larger than `max_pixels`; the address gives nothing in
        good time; or the array is of another kind.
    """
    if isinstance(source, np.ndarray):
        return np.array(_to_rgb(_picture_of_array(source), "the array"))
    if isinstance(source, Image.Image):
        return np.array(_decode(source, "the picture", apply_exif, max_pixels))
    name = "the picture" if isinstance(source, bytes) else str(source)
    if isinstance(source, str) and is_url(source):
        source = fetch(source)
    try:
        pixels = None if apply_exif else decode_plain_jpeg(source, max_pixels)
        if pixels is not None:
            return pixels
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS) as picture:
            return np.array(_decode(picture, name, apply_exif, max_pixels))
    except FileNotFoundError as error:
        raise UserError(f"there is no picture at {name}; check the path") from error
    except IsADirectoryError as error:
        raise UserError(f"{name} is a folder; give the path of a picture in it") from error
    except Image.UnidentifiedImageError as error:
        raise UserError(f"{name} is not a picture that can be read ({', '.join(FORMATS)}); convert it") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UserError(f"{name} has more than {max_pixels:,} pixels; scale it down first") from error
    except OSError as error:
        if error.errno is None:  # not from the system but from Pillow, of a file that ends within its header
            raise _damaged(name, error) from error
        raise UserError(f"cannot read {name}: {error.strerror}; check the path and its permissions") from error
    except UserError:
        raise
    except Exception as error:
        raise _damaged(name, error) from error


def _decode(picture: Image.Image, name: str, apply_exif: bool, max_pixels: int) -> Image.Image:
    if picture.width * picture.height > max_pixels:
        raise UserError(
            f"{name} has {picture.width} x {picture.height} pixels, more than {max_pixels:,}; scale it down"
        )
    try:
        picture.load()
        upright = ImageOps.exif_transpose(picture) if apply_exif else picture
        return _to_rgb(upright, name)
    except UserError:
        raise
    except Exception as error:
        raise _damaged(name, error) from error


def _damaged(name: str, error: Exception) -> UserError:
    """What to say of a picture at which a reader failed; on damaged data they raise nearly anything."""
    reason = " ".join(str(error).split()) or type(error).__name__
    return UserError(f"{name} is damaged or of a kind that cannot be read ({reason}); get it again or convert it")


def _to_rgb(picture: Image.Image, name: str) -> Image.Image:
    if picture.mode.startswith("I"):  # 16 bits, in Pillow's modes of 16 or 32
        values = np.asarray(picture)
        if values.min() < 0 or values.max() > 65_535:
            raise UserError(f"{name} has 32-bit values; save it with 8 or 16 bits per channel")
        picture = Image.fromarray(_eight_bits(values))
    if picture.mode == "F":
        raise UserError(f"{name} has floating-point values, whose range is unknown; save it with 8 or 16 bits")
    if picture.has_transparency_data:
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture.convert("RGBA"))
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def _picture_of_array(array: np.ndarray) -> Image.Image:
    single = array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array
    if array.size == 0 or not (single.ndim == 2 or (single.ndim == 3 and single.shape[2] in (3, 4))):
        raise UserError(f"a picture must have shape [H, W], [H, W, 1], [H, W, 3] or [H, W, 4], got {list(array.shape)}")
    if single.dtype == bool:
        single = single * np.uint8(255)
    elif single.dtype == np.uint16:
        single = _eight_bits(single)
    elif single.dtype != np.uint8:
        raise UserError(
            f"a picture must hold uint8 values 0 ... 255, got {array.dtype}; "
            "values in [0, 1] become so by np.round(255 * image).astype(np.uint8)"
        )
    return Image.fromarray(np.ascontiguousarray(single))


def _eight_bits(values: np.ndarray) -> np.ndarray:
    """65,535 becomes 255 and everything between is scaled and rounded."""
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
