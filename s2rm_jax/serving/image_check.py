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

from s2rm_jax.input.images import MOST_EXIF
from s2rm_jax.serving.limits import Limits, RequestError, check_bytes

FORMATS = ("JPEG", "PNG", "WEBP")

_JPEG, _PNG = b"\xff\xd8", b"\x89PNG\r\n\x1a\n"
_SCAN, _EXIF = b"\xff\xda", b"Exif\0\0"
# Markers that are followed by the length of their segment. 0xC8 is reserved and has none.
_WITH_LENGTH = {*range(0xC0, 0xC8), *range(0xC9, 0xD0), *range(0xDB, 0xF0), 0xFE}
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
        segments = _take_at_most(_MAX_SEGMENTS, _segments(content), "segments")
        if sum(map(len, filter(lambda segment: segment.startswith(_EXIF, 4), segments))) > MOST_EXIF:
            raise _error("the image has too much EXIF data; remove it")
        _take_at_most(_MAX_SCANS, _scans(content), "scans")
    elif content.startswith(_PNG):
        _take_at_most(_MAX_CHUNKS, _chunks(content), "chunks")
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


def _take_at_most(limit: int, parts: Iterator[bytes], name: str) -> list[bytes]:
    first = list(islice(parts, limit + 1))
    if len(first) > limit:
        raise _error(f"the image has more than {limit:,} {name}; save it again")
    return first


def _segments(content: bytes) -> Iterator[bytes]:
    """Yield the segments of a JPEG before its first scan as Pillow finds them; each byte between them counts as one."""
    place = len(_JPEG)
    while place + 4 <= len(content) and not content.startswith(_SCAN, place):
        length = 1
        if content[place] == 0xFF and content[place + 1] in _WITH_LENGTH:
            length = 2 + max(2, int.from_bytes(content[place + 2 : place + 4]))
        yield content[place : place + length]
        place += length


def _scans(content: bytes) -> Iterator[bytes]:
    """Yield the start marker of each scan of a JPEG, including the scans of an embedded thumbnail."""
    place = content.find(_SCAN)
    while place >= 0:
        yield _SCAN
        place = content.find(_SCAN, place + 1)


def _chunks(content: bytes) -> Iterator[bytes]:
    """Yield the names of the chunks of a PNG."""
    place = len(_PNG)
    while place < len(content):
        yield content[place + 4 : place + 8]
        place += 12 + int.from_bytes(content[place : place + 4])
