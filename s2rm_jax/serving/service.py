"""Share one network between many visitors: requests run one at a time, each with its own image.

No data of a visitor is stored. The most recent encoded images are cached by the hash of their bytes, so that further
expressions on an image are fast for every visitor.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus

from s2rm_jax.input.images import load_image
from s2rm_jax.segmenter import EncodedImage, Result, Segmenter
from s2rm_jax.serving.image_check import check_image
from s2rm_jax.serving.limits import Limits, RequestError, Visitors, check_expressions


@dataclass(frozen=True)
class Encoding:
    """An encoded image; `seconds` is the time of decoding and encoding, 0 if the image `was_cached`."""

    image: EncodedImage
    seconds: float
    was_cached: bool


@dataclass(frozen=True)
class Answer:
    """The result for the expressions, the `seconds` it took, and remarks on the words of each expression."""

    encoding: Encoding
    result: Result
    remarks: tuple[tuple[str, ...], ...]
    seconds: float


class Service:
    """Segments images for any number of threads; the device processes one request at a time."""

    def __init__(
        self,
        segmenter: Segmenter,
        limits: Limits | None = None,
        cached_images: int = 8,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.limits = limits or Limits()
        self.visitors = Visitors(self.limits, clock)
        self.segmenter = segmenter
        self._cached_images = cached_images
        self._cache: OrderedDict[bytes, EncodedImage] = OrderedDict()  # by hash, the most recently used last
        self._device = threading.Lock()
        self._holder: int | None = None  # the thread that holds the device
        self._waiting_lock = threading.Lock()
        self._waiting = 0

    @contextmanager
    def reserve_device(self) -> Iterator[None]:
        """Wait until the device is free and hold it; return at once if the thread holds it already.

        `encode` and `segment` reserve the device themselves. Hold it also while large results are converted to small
        ones, which keeps the large results of only one request in memory.

        Raises:
            RequestError: too many requests are waiting already.
        """
        if self._holder == threading.get_ident():
            yield
            return
        with self._waiting_lock:
            if self._waiting >= self.limits.waiting:
                raise RequestError(
                    "too many requests are waiting; retry in 5 s", HTTPStatus.SERVICE_UNAVAILABLE, wait=5
                )
            self._waiting += 1
        try:
            with self._device:
                self._holder = threading.get_ident()
                try:
                    yield
                finally:
                    self._holder = None
        finally:
            with self._waiting_lock:
                self._waiting -= 1

    def encode(self, content: bytes, *, visitor: str | None = None) -> Encoding:
        """Encode an image from the bytes of its file, or return it from the cache.

        The visitor is charged the work of one expression; without a visitor the work is not limited.

        Raises:
            UserError: the image cannot be read.
            RequestError: the image is too large or of an unsupported format, or a limit of the visitor is exceeded.
        """
        with self.reserve_device():
            self._check(content, visitor, 1)
            return self._encode(content)

    def _encode(self, content: bytes) -> Encoding:
        start = time.perf_counter()
        key = hashlib.sha256(content).digest()
        image = self._cache.pop(key, None)
        was_cached = image is not None
        if image is None:
            image = self.segmenter.encode(load_image(content, apply_exif=True, max_pixels=self.limits.pixels))
        self._cache[key] = image
        if len(self._cache) > self._cached_images:
            self._cache.popitem(last=False)
        return Encoding(image, 0.0 if was_cached else time.perf_counter() - start, was_cached)

    def _check(self, content: bytes, visitor: str | None, expressions: int) -> None:
        pixels = check_image(content, self.limits)
        if visitor is not None:
            self.visitors.charge(visitor, pixels, expressions)

    def segment(
        self, content: bytes, expressions: Sequence[str], *, visitor: str | None = None, explain: bool = False
    ) -> Answer:
        """Segment the referents of expressions in an image, given as the bytes of its file.

        The visitor is charged for the work; without a visitor the work is not limited.

        Raises:
            UserError: the image cannot be read, or an expression has no words.
            RequestError: the image or an expression is too large, or a limit of the visitor is exceeded.
        """
        expressions = check_expressions(expressions, self.limits)
        with self.reserve_device():
            self._check(content, visitor, len(expressions))
            encoding = self._encode(content)
            start = time.perf_counter()
            result = self.segmenter.segment(encoding.image, expressions, explain=explain)
            seconds = time.perf_counter() - start
            remarks = tuple(tuple(self.segmenter.remarks(expression)) for expression in expressions)
        return Answer(encoding, result, remarks, seconds)
