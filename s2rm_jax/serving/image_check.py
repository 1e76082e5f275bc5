"""Refuses image files that would keep a decoder busy, or fill the memory, far beyond what their pixels account for.

Decoders are fast for what cameras and programs write. Of a file that was made for the purpose they take minutes:
hundreds of thousands of scans of a JPEG, a million empty chunks of a PNG, EXIF data whose entries all point to the same
megabytes, a run-length encoded BMP, a PPM of text. So visitors may send the kinds that are decoded in C, with no more
parts than real files have.
"""

from __future__ import annotations

from collections.abc import Iterator
from http import HTTPStatus
from io import BytesIO
from itertools import islice

from PIL import Image

from s2rm_jax.input.images import MOST_EXIF
from s2rm_jax.serving.limits import Limits, Refused, check_bytes

KINDS = ("JPEG", "PNG", "WEBP")

_JPEG, _PNG = b"\xff\xd8", b"\x89PNG\r\n\x1a\n"
_SCAN, _EXIF = b"\xff\xda", b"Exif\0\0"
_WITH_LENGTH = {*range(0xC0, 0xD0), *range(0xDB, 0xF0), 0xFE} - {0xC8}  # markers of segments that say how long they are
_MOST_SEGMENTS = 300  # before the first scan of a JPEG; phones that store depth in XMP write about 100
_MOST_SCANS = 100  # a progressive JPEG has about 10
_MOST_CHUNKS = 20_000  # of a PNG: 20 MB in chunks of 1 kB


def check_image(content: bytes, limits: Limits) -> int:
    """Return the number of pixels of an image file, by its header.

    Raises:
        Refused: the file is empty, too large, of another kind, damaged, or has more parts than such files have.
    """
    check_bytes(len(content), limits)
    if content.startswith(_JPEG):
        segments = _at_most(_MOST_SEGMENTS, _segments(content), "segments")
        if sum(map(len, filter(lambda segment: segment.startswith(_EXIF, 4), segments))) > MOST_EXIF:
            raise _refused("the image has too much EXIF data; save it without")
        _at_most(_MOST_SCANS, _scans(content), "scans")
    elif content.startswith(_PNG):
        _at_most(_MOST_CHUNKS, _chunks(content), "chunks")
    try:
        with Image.open(BytesIO(content), formats=KINDS) as image:
            pixels = image.width * image.height
    except Image.UnidentifiedImageError as error:
        raise _refused("not an image that can be read here (JPEG, PNG, WebP); convert it") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        pixels = limits.pixels + 1
    except Exception as error:  # readers raise nearly anything on damaged data
        raise _refused("the image is damaged; get it again or convert it") from error
    if pixels > limits.pixels:
        raise _refused(f"the image has more than {limits.pixels:,} pixels; scale it down")
    return pixels


def _refused(message: str) -> Refused:
    return Refused(message, HTTPStatus.BAD_REQUEST)


def _at_most(most: int, parts: Iterator[bytes], name: str) -> list[bytes]:
    first = list(islice(parts, most + 1))
    if len(first) > most:
        raise _refused(f"the image has more than {most:,} {name}; save it again")
    return first


def _segments(content: bytes) -> Iterator[bytes]:
    """Yield the segments of a JPEG before the first scan, as Pillow finds them; bytes between them are one each."""
    place = len(_JPEG)
    while place + 4 <= len(content) and not content.startswith(_SCAN, place):
        length = 1
        if content[place] == 0xFF and content[place + 1] in _WITH_LENGTH:
            length = 2 + max(2, int.from_bytes(content[place + 2 : place + 4]))
        yield content[place : place + length]
        place += length


def _scans(content: bytes) -> Iterator[bytes]:
    """Yield the beginnings of scans of a JPEG, and of those of the small image within it."""
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
