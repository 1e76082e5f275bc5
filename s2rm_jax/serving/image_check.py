"""Reject image files whose decoding takes far more time or memory than their number of pixels suggests.

Files from cameras and image editors decode fast. A crafted file can take minutes: a JPEG with hundreds of thousands of
scans, a PNG with a million empty chunks, EXIF data whose entries all point to the same megabytes, a run-length encoded
BMP, a plain-text PPM. Therefore only formats that are decoded in C are accepted, with at most as many parts as real
files have.
"""

from __future__ import annotations

from collections.abc import Iterator
from http import HTTPStatus
from io import BytesIO
from itertools import islice

from PIL import Image

from s2rm_jax.input.images import JPEG_SCAN, slow_jpeg
from s2rm_jax.serving.limits import Limits, RequestError, check_bytes

FORMATS = ("JPEG", "PNG", "WEBP")

_JPEG, _PNG = b"\xff\xd8", b"\x89PNG\r\n\x1a\n"
_MAX_SEGMENTS = 300  # before the first scan of a JPEG; phones that store depth in XMP write about 100
_MAX_SCANS = 100  # a progressive JPEG has about 10
_MAX_CHUNKS = 20_000  # of a PNG: 20 MB in chunks of 1 kB


def check_image(content: bytes, limits: Limits) -> int:
    """Check an image file and return its number of pixels, read from its header.

    Raises:
        RequestError: the file is empty, too large, damaged, of an unsupported format, or has too many parts.
    """
    check_bytes(len(content), limits)
    if content.startswith(_JPEG):
        if problem := slow_jpeg(content, _MAX_SEGMENTS):
            raise _error(f"the image has {problem}; save it again without")
        _require_at_most(_MAX_SCANS, _scans(content), "scans")
    elif content.startswith(_PNG):
        _require_at_most(_MAX_CHUNKS, _chunks(content), "chunks")
    try:
        with Image.open(BytesIO(content), formats=FORMATS) as image:
            pixels = image.width * image.height
    except Image.UnidentifiedImageError as error:
        raise _error("the file is not a readable JPEG, PNG or WebP image; convert it") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        pixels = limits.pixels + 1
    except Exception as error:  # Pillow raises many kinds of errors on damaged data
        raise _error("the image is damaged; save or convert it again") from error
    if pixels > limits.pixels:
        raise _error(f"the image has more than {limits.pixels:,} pixels; scale it down")
    return pixels


def _error(message: str) -> RequestError:
    return RequestError(message, HTTPStatus.BAD_REQUEST)


def _require_at_most(limit: int, parts: Iterator[bytes], name: str) -> None:
    if len(list(islice(parts, limit + 1))) > limit:
        raise _error(f"the image has more than {limit:,} {name}; save it again")


def _scans(content: bytes) -> Iterator[bytes]:
    """Yield the start marker of each scan of a JPEG, including the scans of an embedded thumbnail."""
    place = content.find(JPEG_SCAN)
    while place >= 0:
        yield JPEG_SCAN
        place = content.find(JPEG_SCAN, place + 1)


def _chunks(content: bytes) -> Iterator[bytes]:
    """Yield the names of the chunks of a PNG."""
    place = len(_PNG)
    while place < len(content):
        yield content[place + 4 : place + 8]
        place += 12 + int.from_bytes(content[place : place + 4])
