"""Limits on the requests of a visitor and on image files, and the errors for requests that exceed them."""

from __future__ import annotations

import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from io import BytesIO

from PIL import Image

from s2rm_jax.errors import UserError, counted
from s2rm_jax.input.images import JPEG_SCAN, slow_jpeg_problem

_MAX_VISITORS = 10_000  # whose recent requests are counted; the least recent visitor is dropped
# The cost of an expression apart from resizing, scoring and encoding its mask. The network and, on the page, the maps
# of words and directions take as long as a mask of this size.
_MIN_MEGAPIXELS = 4.0


@dataclass(frozen=True)
class Limits:
    """The limits of one request and of the number of requests."""

    bytes: int = 20_000_000  # of an image file
    pixels: int = 25_000_000  # of an image
    expressions: int = 16  # per request
    characters: int = 500  # per expression
    per_minute: int = 240  # requests per visitor
    work_per_minute: int = 800  # per visitor: megapixels of the image (at least 4) times expressions
    waiting: int = 100  # requests of all visitors in the queue
    seconds: float = 60.0  # from a complete request to its answer
    connections: int = 200  # of all visitors; further ones get status 503 at once
    connections_per_visitor: int = 100  # further ones are closed


class RequestError(UserError):
    """A rejected request; `status` is the HTTP status, `wait` the seconds until the request can be retried."""

    def __init__(self, message: str, status: HTTPStatus, wait: int | None = None):
        super().__init__(message)
        self.status = status
        self.wait = wait

    @property
    def headers(self) -> dict[str, str]:
        """The headers of the HTTP response."""
        return {} if self.wait is None else {"Retry-After": str(self.wait)}


def check_expressions(expressions: Sequence[str], limits: Limits) -> tuple[str, ...]:
    """Return the expressions without leading and trailing whitespace.

    Raises:
        RequestError: there are no expressions or too many, or one is empty or too long.
    """
    stripped = tuple(expression.strip() for expression in expressions)
    if not stripped or not all(stripped):
        raise RequestError(
            "an expression is missing; describe what to find in the image", HTTPStatus.UNPROCESSABLE_ENTITY
        )
    if len(stripped) > limits.expressions:
        raise RequestError(
            f"{len(stripped)} expressions exceed the limit of {limits.expressions} per request; send several requests",
            HTTPStatus.UNPROCESSABLE_ENTITY,
        )
    longest = max(map(len, stripped))
    if longest > limits.characters:
        raise RequestError(
            f"an expression has {longest:,} characters, more than the limit of {limits.characters:,}; shorten it",
            HTTPStatus.UNPROCESSABLE_ENTITY,
        )
    return stripped


def check_bytes(count: int, limits: Limits) -> None:
    """Raise RequestError if an image file of `count` bytes is empty or too large."""
    if count == 0:
        raise RequestError("the image file is empty; send a JPEG, PNG or WebP file", HTTPStatus.BAD_REQUEST)
    if count > limits.bytes:
        raise RequestError(
            f"the image file has {count:,} bytes, more than the limit of {limits.bytes:,}; reduce its size",
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        )


class Visitors:
    """Counts the requests and the work of each visitor, on the page and over HTTP together.

    A visitor may send `per_minute` requests at once and as many again over the next minute; the same holds for work.
    """

    def __init__(self, limits: Limits, clock: Callable[[], float] = time.monotonic):
        self._limits = limits
        self._requests = _Buckets(limits.per_minute, clock)
        self._work = _Buckets(limits.work_per_minute, clock)

    def count(self, visitor: str) -> None:
        """Count a request; raise RequestError if the visitor has sent too many."""
        wait = self._requests.take(visitor, 1.0)
        if wait:
            raise RequestError(
                f"more than {self._limits.per_minute} requests in a minute; retry in {wait} s",
                HTTPStatus.TOO_MANY_REQUESTS,
                wait,
            )

    def charge(self, visitor: str, pixels: int, expressions: int) -> None:
        """Count the work of segmenting expressions; raise RequestError if the visitor exceeds the limit."""
        limit = self._limits.work_per_minute
        work = expressions * max(pixels / 1e6, _MIN_MEGAPIXELS)
        request = f"{counted(expressions, 'expression')} on {pixels / 1e6:.1f} megapixels"
        if work > limit:
            raise RequestError(
                f"the work for {request} exceeds the limit per minute; send fewer expressions or a smaller image",
                HTTPStatus.UNPROCESSABLE_ENTITY,
            )
        wait = self._work.take(visitor, work)
        if wait:
            raise RequestError(
                f"too much work in a minute; retry in {wait} s ({request}), or send fewer expressions or a smaller "
                "image now",
                HTTPStatus.TOO_MANY_REQUESTS,
                wait,
            )


class _Buckets:
    """A token bucket per visitor: it starts full, holds at most `per_minute` and refills at `per_minute` per minute."""

    def __init__(self, per_minute: int, clock: Callable[[], float]):
        self._per_minute, self._clock = per_minute, clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # visitor: (tokens left, time)
        self._lock = threading.Lock()

    def take(self, visitor: str, amount: float) -> int:
        """Take an amount and return 0, or return the seconds until the bucket holds that amount."""
        with self._lock:
            now = self._clock()
            left, then = self._buckets.pop(visitor, (float(self._per_minute), now))
            left = min(float(self._per_minute), left + (now - then) * self._per_minute / 60)
            missing = max(0.0, amount - left)
            self._buckets[visitor] = (left if missing else left - amount, now)
            if len(self._buckets) > _MAX_VISITORS:
                self._buckets.popitem(last=False)
        return math.ceil(missing * 60 / self._per_minute)


# Files from cameras and image editors decode fast. A crafted file can take minutes: a JPEG with hundreds of thousands
# of scans, a PNG with a million empty chunks, EXIF data whose entries all point to the same megabytes, a run-length
# encoded BMP, a plain-text PPM. Therefore only formats that are decoded in C are accepted, with at most as many parts
# as real files have.
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
        if problem := slow_jpeg_problem(content, _MAX_SEGMENTS):
            raise _error(f"the image has {problem}")
        _require_at_most(_MAX_SCANS, content.count(JPEG_SCAN), "scans")  # also those of an embedded thumbnail
    elif content.startswith(_PNG):
        _require_at_most(_MAX_CHUNKS, _count_chunks(content), "chunks")
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


def _require_at_most(limit: int, count: int, name: str) -> None:
    if count > limit:
        raise _error(f"the image has more than {limit:,} {name}; save it again")


def _count_chunks(content: bytes) -> int:
    """Return the number of chunks of a PNG, or a larger number than is allowed if they are too many."""
    place, count = len(_PNG), 0
    while place < len(content) and count <= _MAX_CHUNKS:
        place += 12 + int.from_bytes(content[place : place + 4])
        count += 1
    return count
