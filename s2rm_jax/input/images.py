"""Images: read from files, arrays and the web as uint8 RGB, checked by their headers, and resized."""

from __future__ import annotations

import functools
import io
import logging
import os
import re
import unicodedata
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import suppress
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import simplejpeg
from jaxtyping import UInt8
from PIL import Image, ImageOps, features
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import BITSPERSAMPLE, IMAGELENGTH, IMAGEWIDTH, TiffImageFile

from s2rm_jax.errors import UserError, explaining, one_line
from s2rm_jax.input.web import fetch, is_url

_LOG = logging.getLogger(__name__)

try:
    import cykooz_resizer as fast
except ImportError:  # no wheel for Linux on ARM
    fast = None

# Bytes, as many as a JPEG has room for. Pillow copies what each of up to 65,535 EXIF entries points to, and all of them
# may point to the same bytes: one megabyte would become 60 GB.
MOST_EXIF = 1 << 16
_EXIF = ("exif", "Raw profile type exif")  # where Pillow keeps EXIF
_XMP = ("xmp", "XML:com.adobe.xmp")  # which may have the orientation too
_ORIENTATION = 0x0112  # the EXIF tag
# Pillow rotates TIFFs by their orientation when it decodes them. These operations undo that.
_UNDO = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
MAX_PIXELS = 80_000_000  # 240 MB; a small file can unpack to an enormous image

# Pillow imports its readers when the first image is opened. Threads that open their first images at the same time
# interfere (KeyError: 'MPO'), so import all readers here; this takes 50 ms.
Image.init()
with suppress(ImportError):  # the extra "heif"
    import pillow_heif

    pillow_heif.register_heif_opener()

# The formats that Pillow decodes itself, and those of phones where a decoder is installed. Pillow's other readers are
# rare, and the one for EPS starts an external program.
FORMATS = (
    *("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM"),
    *(("AVIF",) if features.check("avif") else ()),
    *(("HEIF",) if "HEIF" in Image.OPEN else ()),
)
# Pillow warns of images with more pixels than `load_image` takes. Filters of the user come first.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning, append=True)

# glibc returns idle memory to the system, which must clear it before reuse, as soon as it exceeds twice the largest
# block freed so far (of up to 32 MB). With only small blocks freed, this would take a tenth of the time of a batch of
# images, so free one large block first.
np.empty(31 << 20, np.uint8)


def load_image(
    source: str | Path | bytes | np.ndarray | Image.Image, *, apply_exif: bool = False, max_pixels: int = MAX_PIXELS
) -> UInt8[np.ndarray, "height width 3"]:
    """Return an image as RGB values 0 ... 255 in an array of the caller's own.

    Grey, palette, 1-bit and CMYK images are converted. 16-bit values are scaled to 8 bits (Pillow would clip them).
    Transparent images are blended with white, since the colour of a transparent pixel is arbitrary. Of several frames
    the first is used.

    Args:
        source: a file, where a leading ~ is the home folder; an http:// or https:// address; the bytes of a file; an
            array [H, W], [H, W, 1], [H, W, 3] or [H, W, 4] of uint8, uint16 or bool; or a PIL image.
        apply_exif: rotate the image by its EXIF orientation, as viewers do. Right for a user's own images; wrong for a
            dataset, whose masks are in the stored coordinates.
        max_pixels: larger images are refused before they are decoded.

    Raises:
        UserError: the file is missing, damaged, not an image or larger than `max_pixels`; the download fails; or the
            array or `source` has another shape or type.
    """
    if isinstance(source, np.ndarray):
        return np.array(_to_rgb(_image_from_array(source), "the array"))
    if not isinstance(source, str | os.PathLike | bytes | Image.Image):
        raise UserError(_describe_wrong_type(source))
    if isinstance(source, str | os.PathLike) and str(source).startswith("~"):
        source = os.path.expanduser(str(source))
    name = str(source) if isinstance(source, str | os.PathLike) else "the image"
    if isinstance(source, str) and is_url(source):
        source = fetch(source)
    with explaining(lambda error: _problem(source, name, error, max_pixels)):
        if isinstance(source, Image.Image):
            return np.array(_decode(source, name, apply_exif, max_pixels))
        pixels = None if apply_exif else decode_plain_jpeg(source, max_pixels)
        if pixels is not None:
            return pixels
        with _open(source, name) as image:
            return np.array(_decode(image, name, apply_exif, max_pixels))


def file_suffix(content: bytes) -> str:
    """Return the suffix, without its dot, for a file with the bytes of an image."""
    with Image.open(io.BytesIO(content), formats=FORMATS) as image:
        kind = str(image.format).lower()
    return "jpg" if kind in ("jpeg", "mpo") else kind  # an MPO is a JPEG with further images


def _problem(source: object, name: str, error: Exception, max_pixels: int = MAX_PIXELS) -> str:
    """Return why an image cannot be read and what to do; on damaged data decoders raise nearly any exception."""
    if isinstance(error, FileNotFoundError):
        return _describe_missing(name)
    if isinstance(error, IsADirectoryError):
        return f"{name} is a folder; give the path of an image in it"
    if isinstance(error, Image.UnidentifiedImageError) and isinstance(source, str | Path | bytes):
        return f"{name} {describe_unknown(source)}"
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return f"{name} has more than {max_pixels:,} pixels; scale it down first"
    if isinstance(error, OSError) and error.errno is not None:  # Pillow raises OSError without it for damaged files
        return f"cannot read {name}: {error.strerror}; check the path and its permissions"
    what = f"is damaged or of an unsupported kind ({one_line(error)}); download or copy it again, or convert it"
    # Pillow asserts that an image that is not decoded yet has an open file.
    if isinstance(source, Image.Image) and (isinstance(error, AssertionError) or "closed" in str(error)):
        what = "cannot be read: it or its file is closed; give an earlier image.copy(), or the path"
    return f"{name} {what}"


def _describe_missing(name: str) -> str:
    """Return that an image does not exist and what to do; `name` may be a URL that `load_image` does not read."""
    if not name:
        return "the path of the image is empty; give the path of an image"
    scheme = _SCHEME.match(name)
    if scheme is None:
        return f"image {name} not found; {advice_on_missing(name)}"
    advice = {"file": "give the path without file://", "http": "give the address as a string"}
    return f"{name} is not a local path; {advice.get(scheme[1].lower().rstrip('s'), 'download it first')}"


def advice_on_missing(path: str | Path) -> str:
    """Return what to do about a missing file; name the one that differs only in case or Unicode form, if there is one.

    On macOS and Windows such names are the same.
    """
    missing = Path(path).expanduser()
    with suppress(OSError):  # a folder cannot be read
        while not missing.parent.exists():
            missing = missing.parent
        names = _names_in(missing.parent, missing.parent.stat().st_mtime_ns)
        near = names.get(_comparable(missing.name), missing.name)  # a broken link has the name itself
        if near != missing.name:
            is_case = unicodedata.normalize("NFC", near) != unicodedata.normalize("NFC", missing.name)
            how = "case" if is_case else "its Unicode form (NFC or NFD)"
            return f"there is {missing.parent / near}, which differs in {how}; correct the path"
    return "check the path"


def _comparable(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


@functools.lru_cache(maxsize=8)  # many files of a folder may be missing
def _names_in(folder: Path, changed: int) -> dict[str, str]:
    """Return the names in a folder that was changed at this time, by their comparable form."""
    return {_comparable(name): name for name in sorted(os.listdir(folder))}


def _describe_wrong_type(source: object) -> str:
    """Return what an image can be, and how to get that from an object of another type."""
    advice = "give one of these"
    if hasattr(source, "read"):
        advice = "give what its read() returns"
    elif isinstance(source, bytearray | memoryview):
        advice = "convert it by bytes(...)"
    elif hasattr(source, "__array__"):  # as tensors have
        advice = "convert it by np.asarray(...)"
    elif isinstance(source, list):
        advice = "give one image, or a flat list to Segmenter.segment"
    elif isinstance(source, Sequence | Iterator):
        advice = "give several images to Segmenter.segment as one list"
    return (
        "an image must be a path, a web address, the bytes of a file, an array of uint8 or a PIL image, "
        f"got {type(source).__name__}; {advice}"
    )


def describe_unknown(source: str | Path | bytes) -> str:
    """Return what the file or the bytes are in which Pillow found no image of FORMATS, and what to do."""
    with io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb") as file:
        start = file.read(256)
    if not start:
        return "is empty (0 bytes); download or copy it again"
    if re.match(rb"(\xef\xbb\xbf)?\s*<(!doctype html|html|head|body)\b", start, re.IGNORECASE):
        return "is a web page (HTML) and not an image; give the address of the image itself"
    kind = next((kind for kind, signature in _SIGNATURES.items() if signature.match(start)), "")
    if kind == "HEIF" and kind not in FORMATS:
        return "is a HEIC image; install its decoder (pip install pillow-heif) or convert it to JPEG"
    if kind in FORMATS:
        return f"is damaged or of an unsupported kind (it begins as {kind}); download or copy it again, or convert it"
    return f"is not an image in a supported format ({', '.join(FORMATS)}); convert it"


_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/")  # of a URL; a single letter is a drive of Windows
# How files begin. Other formats begin with two letters, as text may.
_SIGNATURES = {
    "JPEG": re.compile(rb"\xff\xd8\xff"),
    "PNG": re.compile(rb"\x89PNG\r\n\x1a\n"),
    "WEBP": re.compile(rb"RIFF....WEBP", re.DOTALL),
    "GIF": re.compile(rb"GIF8[79]a"),
    "TIFF": re.compile(rb"II[*+]\0|MM\0[*+]"),
    "AVIF": re.compile(rb"....ftypavi[fs]", re.DOTALL),
    "HEIF": re.compile(rb"....ftyp(hei[cxms]|hev[cxms]|mif1|msf1)", re.DOTALL),
}
_JPEG_START = b"\xff\xd8"
JPEG_SCAN, _JPEG_EXIF = b"\xff\xda", b"Exif\0\0"
# Markers that are followed by the length of their segment. 0xC8 is reserved and has none.
_WITH_LENGTH = {*range(0xC0, 0xC8), *range(0xC9, 0xD0), *range(0xDB, 0xF0), 0xFE}
_JPEG_COLOURS = ("YCbCr", "Gray")  # Pillow interprets inverted and four-colour files


def decode_plain_jpeg(source: str | Path | bytes, max_pixels: int) -> UInt8[np.ndarray, "height width 3"] | None:
    """Decode an intact JPEG of a common kind to RGB as stored, without EXIF orientation; return None for other files.

    The pixels equal Pillow's, as both use libjpeg-turbo; Pillow takes a fifth longer. Images with more than
    `max_pixels` are not decoded.

    Raises:
        OSError: the file cannot be read.
    """
    data = source if isinstance(source, bytes) else _read_if_jpeg(source)
    if not data.startswith(_JPEG_START):
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        if colours not in _JPEG_COLOURS or height * width > max_pixels:
            return None
        return simplejpeg.decode_jpeg(data)  # strict: a warning of the decoder is an error
    except ValueError:
        return None  # Pillow reports the error, or can read the file


def _open(source: str | Path | bytes, name: str) -> Image.Image:
    if problem := slow_jpeg_problem(source if isinstance(source, bytes) else _read_if_jpeg(source)):
        raise UserError(f"{name} has {problem}")
    return Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS)


def slow_jpeg_problem(content: bytes, most_segments: int = 10_000) -> str:
    """Return why Pillow would take minutes to open a JPEG, and what to do; "" if it would not."""
    segments = list(islice(_jpeg_segments(content), most_segments + 1)) if content.startswith(_JPEG_START) else []
    if len(segments) > most_segments:
        return f"too many JPEG segments (more than {most_segments:,}); save it again as a new JPEG"
    exif = sum(len(segment) for segment in segments if segment.startswith(_JPEG_EXIF, 4))
    return "too much EXIF data; save it without EXIF" if exif > MOST_EXIF else ""


def _jpeg_segments(content: bytes) -> Iterator[bytes]:
    """Yield the segments of a JPEG before its first scan as Pillow finds them; each byte between them counts as one."""
    place = len(_JPEG_START)
    while place + 4 <= len(content) and not content.startswith(JPEG_SCAN, place):
        length = 1
        if content[place] == 0xFF and content[place + 1] in _WITH_LENGTH:
            length = 2 + max(2, int.from_bytes(content[place + 2 : place + 4]))
        yield content[place : place + length]
        place += length


def _read_if_jpeg(path: str | Path) -> bytes:
    """Return the contents of a JPEG file, or the first bytes of another file."""
    with open(path, "rb") as file:
        start = file.read(len(_JPEG_START))
        return start + file.read() if start == _JPEG_START else start


def _decode(image: Image.Image, name: str, apply_exif: bool, max_pixels: int) -> Image.Image:
    if problem := image_problem(image, max_pixels):
        raise UserError(f"{name} {problem}")
    turn = _UNDO.get(orientation_of(image)) if isinstance(image, TiffImageFile) and not apply_exif else None
    image.load()
    if turn is not None:
        image = image.transpose(turn)
    if apply_exif:
        if any(len(image.info.get(key, "")) > MOST_EXIF for key in _EXIF):
            raise UserError(f"{name} has too much EXIF data; save it without EXIF")
        image = ImageOps.exif_transpose(image)
    return _to_rgb(image, name)


def image_problem(image: Image.Image, max_pixels: int = MAX_PIXELS) -> str:
    """Return why `load_image` refuses an image, by its header, and what to do; "" if it does not."""
    if image.width * image.height > max_pixels:
        return f"has {image.width} x {image.height} pixels, more than {max_pixels:,}; scale it down"
    if image.mode == "F":
        return "has floating-point values of unknown range; save it with 8 or 16 bits per channel"
    if image.mode == "I" and isinstance(image, TiffImageFile) and image.tag_v2.get(BITSPERSAMPLE) != (16,):
        return "has 32-bit values of unknown range; save it with 8 or 16 bits per channel"
    return ""


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits, in Pillow's modes of 16 or 32
        values, transparent = np.asarray(image), image.info.get("transparency")
        if values.min() < 0 or values.max() > 65_535:
            raise UserError(f"{name} has values that are not from 0 to 65,535; save it with 8 or 16 bits per channel")
        image = Image.fromarray(np.where(values == transparent, 255, _to_eight_bits(values)).astype(np.uint8))
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image if image.mode == "RGB" else image.convert("RGB")


def _image_from_array(array: np.ndarray) -> Image.Image:
    single = array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array
    if array.size == 0 or not (single.ndim == 2 or (single.ndim == 3 and single.shape[2] in (3, 4))):
        what = f"an image must have shape [H, W], [H, W, 1], [H, W, 3] or [H, W, 4], got {list(array.shape)}"
        if array.ndim == 3 and array.shape[0] in (1, 3, 4):
            what += "; move the channels to the end: image.transpose(1, 2, 0)"
        elif array.ndim == 4:
            what += "; give one image of them: images[0]"
        raise UserError(what)
    if single.dtype == bool:
        single = single * np.uint8(255)
    elif single.dtype.newbyteorder("=") == np.uint16:  # in either byte order
        single = _to_eight_bits(single)
    elif single.dtype != np.uint8:
        advice = "convert values in [0, 1] by np.round(255 * image).astype(np.uint8)"
        if np.issubdtype(array.dtype, np.integer):
            advice = "if the values are 0 ... 255, use image.astype(np.uint8)"
        raise UserError(f"an image must hold uint8 values 0 ... 255, got {array.dtype}; {advice}")
    return Image.fromarray(np.ascontiguousarray(single))


def _to_eight_bits(values: np.ndarray) -> np.ndarray:
    """Scale 0 ... 65,535 to 0 ... 255 and round."""
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)


def resize_image(
    image: UInt8[np.ndarray, "height width 3"], size: tuple[int, int]
) -> UInt8[np.ndarray, "new_height new_width 3"]:
    """Resize to (height, width) pixels: bilinear and antialiased, as Pillow and torchvision do, ignoring proportions.

    Everything that is evaluated, predicted or exported uses this function.
    """
    return np.array(Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR))


_OPTIONS = fast and fast.ResizeOptions(fast.ResizeAlg.convolution(fast.FilterType.bilinear))


def resize_fast(
    image: UInt8[np.ndarray, "height width 3"], size: tuple[int, int]
) -> UInt8[np.ndarray, "new_height new_width 3"]:
    """Resize as `resize_image`, four times as fast, if cykooz.resizer is installed. The result may be read-only.

    For training, where Pillow's resizing would take longer than decoding. The SIMD instructions round differently: a
    tenth to a quarter of the values differ by one grey level of 255, hardly any by two (docs/results/input_speed.md).
    """
    (height, width), (new_height, new_width) = image.shape[:2], size
    if fast is None:
        return resize_image(image, size)
    if (height, width) == (new_height, new_width):
        return image
    source = fast.ImageData(width, height, fast.PixelType.U8x3, image.tobytes())
    result = fast.ImageData(new_width, new_height, fast.PixelType.U8x3)
    fast.Resizer().resize(source, result, _OPTIONS)  # a new one each time; threads must not share it
    return np.frombuffer(result.get_buffer(), np.uint8).reshape(new_height, new_width, 3)


_THREADS = 8  # to wait for disks and networks; reading itself takes 0.1 ms per file
_RUN = 64  # files per task of a thread; one by one, the overhead would equal the reading time
_Key = TypeVar("_Key")
_Value = TypeVar("_Value")


class Header(NamedTuple):
    """The stored height and width in pixels and the EXIF orientation (1: upright); or the problem of the file."""

    height: int = 0
    width: int = 0
    orientation: int = 1
    problem: str = ""

    def upright(self) -> Header:
        """Return the header of the image as viewers show it, rotated by its orientation."""
        height, width = (self.width, self.height) if self.orientation >= 5 else (self.height, self.width)
        return Header(height, width, 1, self.problem)


def read_header(path: Path) -> Header:
    """Read the header of an image file. A problem is returned, not raised, so that all can be reported together."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            if problem := image_problem(image):
                return Header(problem=f"{path} {problem}")
            width, height = stored_size(image)
            return Header(height, width, orientation_of(image))
    except Exception as error:
        return Header(problem=_problem(path, str(path), error))


def orientation_of(image: Image.Image) -> int:
    """Return the EXIF orientation of an opened image that is not decoded yet, 1 (upright) if it has none."""
    exif = Image.Exif()
    if isinstance(image, TiffImageFile) or {*_EXIF, *_XMP} & image.info.keys():
        exif = Image.Image.getexif(image)  # not image.getexif(), which decodes a PNG
    elif isinstance(image, PngImageFile):
        with suppress(SyntaxError):  # damaged; decoding ignores it too
            exif.load(_exif_behind_pixels(image))
    orientation = exif.get(_ORIENTATION, 1)
    return orientation if orientation in range(2, 9) else 1


def _exif_behind_pixels(image: PngImageFile) -> bytes:
    """Return the EXIF data behind the pixels of a PNG, which Pillow reads only when it decodes them; b"" if none."""
    file, found = image.fp, b""
    assert file is not None  # of an image that is not decoded yet
    position = file.tell()
    file.seek(8)  # behind the signature; chunks have a length, a type, their content and a checksum
    while len(head := file.read(8)) == 8 and not found and head[4:] != b"IEND":
        size = int.from_bytes(head[:4])
        if head[4:] == b"eXIf" and size <= MOST_EXIF:
            found = file.read(size)
        file.seek(size + 4, io.SEEK_CUR)
    file.seek(position)
    return found


def stored_size(image: Image.Image) -> tuple[int, int]:
    """Return (width, height) of an opened image as stored; Pillow gives the upright size of some TIFFs."""
    if isinstance(image, TiffImageFile):
        return image.tag_v2[IMAGEWIDTH], image.tag_v2[IMAGELENGTH]
    return image.size


def path_in(folder: Path, name: str) -> Path:
    """Return the path of a file that an annotation names, absolutely or relative to `folder`.

    Annotations from Windows may separate folders by a backslash, which elsewhere is an ordinary character.
    """
    path = folder / name
    return folder / name.replace("\\", "/") if "\\" in name and not path.exists() else path


def read_size(image: bytes, name: str) -> tuple[int, int]:
    """Return (width, height) from the header of an image file, which `name` names in the UserError if it is damaged."""
    with explaining(lambda error: _problem(image, name, error)):
        return stored_size(Image.open(io.BytesIO(image), formats=FORMATS))


def map_files(function: Callable[[_Key], _Value], keys: Iterable[_Key]) -> dict[_Key, _Value]:
    """Call a function that reads files for each different key, in several threads."""
    different = list(dict.fromkeys(keys))
    runs = [different[first : first + _RUN] for first in range(0, len(different), _RUN)]
    with ThreadPoolExecutor(_THREADS) as pool:
        values = pool.map(lambda run: [function(key) for key in run], runs)
        return dict(zip(different, chain.from_iterable(values), strict=True))


def map_ahead(
    pool: Executor, function: Callable[[_Key], _Value], items: Iterable[_Key], count: int
) -> Iterator[_Value]:
    """Yield the value of each item, in order, computed by a pool at most `count` items ahead.

    From Python 3.14 on, this is Executor.map with the argument `buffersize`.
    """
    waiting: deque[Future[_Value]] = deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) > count:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
