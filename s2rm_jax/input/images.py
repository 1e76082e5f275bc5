"""Images: from files, arrays and PIL images to uint8 RGB, and from one size to another.

The fast way for what nearly every image of a dataset is: a plain JPEG file.

Resizing images: bilinear and antialiased, as Pillow does it and torchvision with it.

`resize_image` is the definition, for all that is measured, predicted or exported. `resize_fast` is for training, where
resizing would take longer than decoding: it computes the same with SIMD instructions and rounds differently. A tenth to
a quarter of its values differ by one grey level of 255, hardly any by two (docs/results/input_speed.md).

Images from the web: the bytes behind an address, bounded in size and time.
"""

from __future__ import annotations

import glob
import io
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from itertools import chain
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import simplejpeg
from jaxtyping import UInt8
from PIL import Image, ImageOps

from s2rm_jax.errors import UserError

_BEGIN = b"\xff\xd8"  # of every JPEG file
_PLAIN = ("YCbCr", "Gray")  # what an inverted or four-colour file means, Pillow knows


def decode_plain_jpeg(source: str | Path | bytes, most_pixels: int) -> UInt8[np.ndarray, "height width 3"] | None:
    """Return RGB values as stored, whatever EXIF says; None for all that is not a sound JPEG of a common kind.

    The pixels are those of Pillow, as both use libjpeg-turbo; Pillow takes a fifth longer.

    Args:
      source: a file, or the bytes of one.
      most_pixels: where there are more, nothing is decoded.

    Raises:
      OSError: the file cannot be read.
    """
    data = source if isinstance(source, bytes) else _read_if_jpeg(source)
    if not data.startswith(_BEGIN):
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        if colours not in _PLAIN or height * width > most_pixels:
            return None
        return simplejpeg.decode_jpeg(data)  # strict: a warning of the decoder counts as an error
    except ValueError:
        return None  # what is wrong with it, or whether it can be read all the same, Pillow says


def _read_if_jpeg(path: str | Path) -> bytes:
    """Return the contents of a file, or only its beginning where that is not a JPEG's."""
    with open(path, "rb") as file:
        begin = file.read(len(_BEGIN))
        return begin + file.read() if begin == _BEGIN else begin


MAX_BYTES = 50_000_000
TIMEOUT = 20.0  # seconds, for the whole of it
_CHUNK = 1 << 16


def is_url(source: object) -> bool:
    """Whether `source` is an address on the web and not a file."""
    return isinstance(source, str) and source.lower().startswith(("http://", "https://"))


def fetch(url: str, *, max_bytes: int = MAX_BYTES, timeout: float = TIMEOUT) -> bytes:
    """Return what lies at an address.

    For addresses that the person at the keyboard gives; a server must not pass on those of its visitors, who could
    reach into its own network by them.

    Args:
        url: begins with http:// or https://; redirections to other places are followed.
        max_bytes: more is not read.
        timeout: seconds until everything must be there.

    Raises:
        UserError: there is nothing at the address, it is too large, or it takes too long.
    """
    deadline = time.monotonic() + timeout
    # Some servers, Wikimedia's among them, refuse programs that do not say who they are.
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "s2rm-jax"})
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            content = bytearray()
            while chunk := answer.read1(_CHUNK):  # what has come so far, so that a slow server cannot hold us up
                content += chunk
                if len(content) > max_bytes:
                    raise UserError(f"{url} is larger than {max_bytes:,} bytes; download it and scale it down")
                if time.monotonic() > deadline:
                    raise TimeoutError
            missing = answer.length or 0
    except urllib.error.HTTPError as error:
        error.close()
        raise UserError(
            f"{url} cannot be had: the server says {error.code} {error.reason}; check the address"
        ) from error
    except TimeoutError as error:
        raise _too_slow(url, timeout) from error
    except urllib.error.URLError as error:
        if isinstance(error.reason, TimeoutError):
            raise _too_slow(url, timeout) from error
        raise UserError(f"{url} cannot be reached ({error.reason}); check the address and the network") from error
    except (HTTPException, OSError, ValueError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{url} cannot be read ({reason}); check the address") from error
    if missing:
        raise UserError(f"{url} broke off after {len(content):,} bytes; try again")
    return bytes(content)


def _too_slow(url: str, timeout: float) -> UserError:
    return UserError(f"{url} did not arrive within {timeout:g} seconds; try again, or download it first")


MAX_PIXELS = 80_000_000  # a small file can unpack to an enormous image; this much takes 240 MB
# What Pillow reads by itself: its other readers are rare, and that of EPS starts an external program.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")

# Pillow imports its readers when the first image is opened. Threads that open their first images together then get
# in each other's way (KeyError: 'MPO'), so they are all imported here; it takes 50 ms.
Image.init()

# The C library of Linux gives idle memory back to the system, which clears it before it can be had again, as soon as
# there is more than twice the largest block that was freed so far (of up to 32 MB). Arrays of images come and go, and
# with small blocks that would be a tenth of the time of a batch; so one large block is freed first.
np.empty(31 << 20, np.uint8)


def load_image(
    source: str | Path | bytes | np.ndarray | Image.Image, *, apply_exif: bool = False, max_pixels: int = MAX_PIXELS
) -> UInt8[np.ndarray, "height width 3"]:
    """Return an image as RGB values 0 ... 255, whatever it is stored as; the array is the caller's own.

    Grey, palette, 1-bit and CMYK images are converted. 16-bit values are scaled to 8 bits (Pillow would clip them).
    Transparent images are laid on white, the page they are made for: what lies under a transparent pixel is
    arbitrary. Of several frames the first counts.

    Args:
      source: a file; an address on the web (http:// or https://); the bytes of a file; an array [H, W], [H, W, 1],
        [H, W, 3] or [H, W, 4] of uint8, uint16 or bool; or a PIL image.
      apply_exif: turn the image the way its EXIF orientation says, as every viewer does. Right for a person's own
        images; wrong for a dataset, whose masks are drawn in the stored coordinates.
      max_pixels: larger images are refused before they are unpacked.

    Raises:
      UserError: the file is missing, damaged, not an image or larger than `max_pixels`; the address gives nothing in
        good time; or the array is of another kind.
    """
    if isinstance(source, np.ndarray):
        return np.array(_to_rgb(_image_of_array(source), "the array"))
    if isinstance(source, Image.Image):
        return np.array(_decode(source, "the image", apply_exif, max_pixels))
    name = "the image" if isinstance(source, bytes) else str(source)
    if isinstance(source, str) and is_url(source):
        source = fetch(source)
    try:
        pixels = None if apply_exif else decode_plain_jpeg(source, max_pixels)
        if pixels is not None:
            return pixels
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS) as image:
            return np.array(_decode(image, name, apply_exif, max_pixels))
    except FileNotFoundError as error:
        raise UserError(f"there is no image at {name}; check the path") from error
    except IsADirectoryError as error:
        raise UserError(f"{name} is a folder; give the path of an image in it") from error
    except Image.UnidentifiedImageError as error:
        raise UserError(f"{name} is not an image that can be read ({', '.join(FORMATS)}); convert it") from error
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


def _decode(image: Image.Image, name: str, apply_exif: bool, max_pixels: int) -> Image.Image:
    if image.width * image.height > max_pixels:
        raise UserError(f"{name} has {image.width} x {image.height} pixels, more than {max_pixels:,}; scale it down")
    try:
        image.load()
        upright = ImageOps.exif_transpose(image) if apply_exif else image
        return _to_rgb(upright, name)
    except UserError:
        raise
    except Exception as error:
        raise _damaged(name, error) from error


def _damaged(name: str, error: Exception) -> UserError:
    """What to say of an image at which a reader failed; on damaged data they raise nearly anything."""
    reason = " ".join(str(error).split()) or type(error).__name__
    return UserError(f"{name} is damaged or of a kind that cannot be read ({reason}); get it again or convert it")


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits, in Pillow's modes of 16 or 32
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65_535:
            raise UserError(f"{name} has 32-bit values; save it with 8 or 16 bits per channel")
        image = Image.fromarray(_eight_bits(values))
    if image.mode == "F":
        raise UserError(f"{name} has floating-point values, whose range is unknown; save it with 8 or 16 bits")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image if image.mode == "RGB" else image.convert("RGB")


def _image_of_array(array: np.ndarray) -> Image.Image:
    single = array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array
    if array.size == 0 or not (single.ndim == 2 or (single.ndim == 3 and single.shape[2] in (3, 4))):
        raise UserError(f"an image must have shape [H, W], [H, W, 1], [H, W, 3] or [H, W, 4], got {list(array.shape)}")
    if single.dtype == bool:
        single = single * np.uint8(255)
    elif single.dtype == np.uint16:
        single = _eight_bits(single)
    elif single.dtype != np.uint8:
        raise UserError(
            f"an image must hold uint8 values 0 ... 255, got {array.dtype}; "
            "values in [0, 1] become so by np.round(255 * image).astype(np.uint8)"
        )
    return Image.fromarray(np.ascontiguousarray(single))


def _eight_bits(values: np.ndarray) -> np.ndarray:
    """65,535 becomes 255 and everything between is scaled and rounded."""
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)


try:
    import cykooz_resizer as fast
except ImportError:  # there is no wheel for Linux on ARM
    fast = None

_OPTIONS = fast and fast.ResizeOptions(fast.ResizeAlg.convolution(fast.FilterType.bilinear))


def resize_image(
    image: UInt8[np.ndarray, "height width 3"], size: tuple[int, int]
) -> UInt8[np.ndarray, "new_height new_width 3"]:
    """Resize RGB values to (height, width) pixels; the proportions are not kept."""
    return np.array(Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR))


def resize_fast(
    image: UInt8[np.ndarray, "height width 3"], size: tuple[int, int]
) -> UInt8[np.ndarray, "new_height new_width 3"]:
    """Do nearly the same four times as fast, where cykooz.resizer is installed. The result may be read-only."""
    (height, width), (new_height, new_width) = image.shape[:2], size
    if fast is None:
        return resize_image(image, size)
    if (height, width) == (new_height, new_width):
        return image
    source = fast.ImageData(width, height, fast.PixelType.U8x3, image.tobytes())
    result = fast.ImageData(new_width, new_height, fast.PixelType.U8x3)
    fast.Resizer().resize(source, result, _OPTIONS)  # one each, as threads must not share it
    return np.frombuffer(result.get_buffer(), np.uint8).reshape(new_height, new_width, 3)


def list_images(given: str) -> list[Path]:
    """Return the images of a folder, or the files that fit a pattern such as frames/*.jpg; `**` goes into folders.

    They are in natural order: frame9.jpg comes before frame10.jpg. Of a folder, files count by their suffix. The name
    of a file that is there is no pattern, whatever letters it has.

    Raises:
        UserError: there are none.
    """
    folder = Path(given).expanduser()
    if folder.is_dir():
        suffixes = {suffix for suffix, name in Image.registered_extensions().items() if name in FORMATS}
        paths = [path for path in folder.iterdir() if path.suffix.lower() in suffixes and path.is_file()]
        missing = f"the folder {given} holds no images ({', '.join(FORMATS)}); name another, or a pattern"
    else:
        found = [str(folder)] if folder.is_file() else glob.glob(str(folder), recursive=True)
        paths = [path for path in map(Path, found) if path.is_file()]
        missing = f"no file fits {given}; check the pattern, which is best put into quotes"
    if not paths:
        raise UserError(missing)
    return sorted(set(paths), key=_natural)  # two ** of a pattern find a file more than once


def result_folders(paths: Sequence[Path], taken: str) -> list[Path]:
    """Return a relative path for the results of each image: its place below the folder that all share.

    The suffixes are left out if all paths still differ, and none is the file `taken`.
    """
    absolute = [path.absolute() for path in paths]
    common = os.path.commonpath([path.parent for path in absolute])
    places = [path.relative_to(common) for path in absolute]
    bare = [place.with_suffix("") for place in places]
    return bare if len({*bare, Path(taken)}) == len(bare) + 1 else places


def _natural(path: Path) -> tuple[list[tuple[int, str]], str]:
    parts = re.split(r"(\d+)", str(path).lower())
    numbered = [(int(part), "") if place % 2 else (-1, part) for place, part in enumerate(parts)]
    return numbered, str(path)


_THREADS = 8  # for the waiting on disks and networks; the reading itself takes 0.1 ms a file
_RUN = 64  # files that a thread takes at a time; handing them over one by one takes as long as reading them
_ORIENTATION = 0x0112  # the EXIF tag
_Key = TypeVar("_Key")
_Value = TypeVar("_Value")


class Header(NamedTuple):
    """Height and width in pixels as stored; whether EXIF asks viewers to turn the image; or else what is wrong."""

    height: int = 0
    width: int = 0
    is_turned: bool = False
    problem: str = ""


def read_header(path: Path) -> Header:
    """Read the header of one file; a problem is returned and not raised, so that all can be told together."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            turned = "exif" in image.info and image.getexif().get(_ORIENTATION, 1) != 1
            return Header(image.height, image.width, turned)
    except FileNotFoundError:
        return Header(problem=f"there is no image at {path}")
    except Exception as error:  # readers raise nearly anything on damaged data
        return Header(problem=f"{path} cannot be read as an image ({' '.join(str(error).split())})")


def for_each(function: Callable[[_Key], _Value], keys: Iterable[_Key]) -> dict[_Key, _Value]:
    """Call a function that waits for files, once for each different key and several at a time."""
    different = list(dict.fromkeys(keys))
    runs = [different[first : first + _RUN] for first in range(0, len(different), _RUN)]
    with ThreadPoolExecutor(_THREADS) as pool:
        values = pool.map(lambda run: [function(key) for key in run], runs)
        return dict(zip(different, chain.from_iterable(values), strict=True))
