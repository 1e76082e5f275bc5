"""One network for many visitors: their questions are answered one after another, each with its own image.

Nothing is kept of a visitor. Images are known by their bytes, and the latest stay encoded for a while, so that
further expressions about one are quick, whoever asks.
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
from s2rm_jax.serving.limits import Limits, Refused, Visitors, check_expressions


@dataclass(frozen=True)
class Encoding:
    """An encoded image; `seconds` is what decoding and encoding took now, 0 where it `was_known` from before."""

    image: EncodedImage
    seconds: float
    was_known: bool


@dataclass(frozen=True)
class Answer:
    """What was found for the expressions, in `seconds`, with what a person should know of how each was read."""

    encoding: Encoding
    result: Result
    remarks: tuple[tuple[str, ...], ...]
    seconds: float


class Service:
    """Answers from any number of threads; the device has one question at a time."""

    def __init__(
        self,
        segmenter: Segmenter,
        limits: Limits | None = None,
        kept_images: int = 8,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.limits = limits or Limits()
        self.visitors = Visitors(self.limits, clock)
        self.segmenter = segmenter
        self._kept_images = kept_images
        self._known: OrderedDict[bytes, EncodedImage] = OrderedDict()  # by hash, the latest asked for last
        self._device = threading.Lock()
        self._holder: int | None = None  # the thread that has it
        self._counting = threading.Lock()
        self._waiting = 0

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Waits until the device is free, and holds it; a thread that holds it already goes on at once.

        `encode` and `ask` do so by themselves; hold it around them while large results are turned into small ones, so
        that the memory for large ones is needed once.

        Raises:
            Refused: too many wait already.
        """
        if self._holder == threading.get_ident():
            yield
            return
        with self._counting:
            if self._waiting >= self.limits.waiting:
                raise Refused("too many requests are waiting; ask again in 5 s", HTTPStatus.SERVICE_UNAVAILABLE, wait=5)
            self._waiting += 1
        try:
            with self._device:
                self._holder = threading.get_ident()
                try:
                    yield
                finally:
                    self._holder = None
        finally:
            with self._counting:
                self._waiting -= 1

    def encode(self, content: bytes, *, visitor: str | None = None) -> Encoding:
        """Encodes the image in a file's bytes, unless it is known.

        The work is charged to the visitor, as much as one expression; without a visitor it is not limited.

        Raises:
            UserError: it cannot be read or is too large; `Refused` among them.
        """
        with self.turn():
            self._check(content, visitor, 1)
            return self._encode(content)

    def _encode(self, content: bytes) -> Encoding:
        start = time.perf_counter()
        key = hashlib.sha256(content).digest()
        image = self._known.pop(key, None)
        was_known = image is not None
        if image is None:
            image = self.segmenter.encode(load_image(content, apply_exif=True, max_pixels=self.limits.pixels))
        self._known[key] = image
        if len(self._known) > self._kept_images:
            self._known.popitem(last=False)
        return Encoding(image, 0.0 if was_known else time.perf_counter() - start, was_known)

    def _check(self, content: bytes, visitor: str | None, expressions: int) -> None:
        pixels = check_image(content, self.limits)
        if visitor is not None:
            self.visitors.charge(visitor, pixels, expressions)

    def ask(
        self, content: bytes, expressions: Sequence[str], *, visitor: str | None = None, explain: bool = False
    ) -> Answer:
        """Segments what the expressions mean in the image of a file's bytes.

        The work is charged to the visitor; without one it is not limited.

        Raises:
            UserError: the image cannot be read, or an expression has no words; `Refused` where something is too large.
        """
        asked = check_expressions(expressions, self.limits)
        with self.turn():
            self._check(content, visitor, len(asked))
            encoding = self._encode(content)
            start = time.perf_counter()
            result = self.segmenter.segment(encoding.image, asked, explain=explain)
            seconds = time.perf_counter() - start
            remarks = tuple(tuple(self.segmenter.remarks(expression)) for expression in asked)
        return Answer(encoding, result, remarks, seconds)
