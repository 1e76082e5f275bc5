"""What a visitor may ask for, and what is said when it is too much."""

from __future__ import annotations

import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http import HTTPStatus

from s2rm_jax.errors import UserError

_MOST_VISITORS = 10_000  # whose latest requests are remembered
# What an expression costs beside the resizing, scoring and packing of its mask: the network and, on the page, the maps
# of its words and directions take as long as a mask of this size.
_LEAST_MEGAPIXELS = 4.0


@dataclass(frozen=True)
class Limits:
    """How much one request may ask for, and how many of them there may be."""

    bytes: int = 20_000_000  # of an image's file
    pixels: int = 25_000_000
    expressions: int = 16
    characters: int = 500  # of an expression
    per_minute: int = 240  # requests of one visitor
    work_per_minute: int = 800  # of one visitor: megapixels of the image, or 4 if it has fewer, times expressions
    waiting: int = 100  # requests that wait for the device together


class Refused(UserError):
    """A request that is not answered; `status` is what HTTP calls the reason, `wait` the seconds until another try."""

    def __init__(self, message: str, status: HTTPStatus, wait: int | None = None):
        super().__init__(message)
        self.status = status
        self.wait = wait

    @property
    def headers(self) -> dict[str, str]:
        """Headers of the answer."""
        return {} if self.wait is None else {"Retry-After": str(self.wait)}


def check_expressions(expressions: Sequence[str], limits: Limits) -> tuple[str, ...]:
    """Returns the expressions without the space around them.

    Raises:
        Refused: there are none or too many, or one is empty or too long.
    """
    kept = tuple(expression.strip() for expression in expressions)
    if not kept or not all(kept):
        raise Refused("an expression is missing; say what is to be found in the image", HTTPStatus.UNPROCESSABLE_ENTITY)
    if len(kept) > limits.expressions:
        raise Refused(
            f"{len(kept)} expressions are more than the {limits.expressions} of one request; ask in several steps",
            HTTPStatus.UNPROCESSABLE_ENTITY,
        )
    longest = max(map(len, kept))
    if longest > limits.characters:
        raise Refused(
            f"an expression has {longest:,} characters, more than {limits.characters:,}; say it in fewer words",
            HTTPStatus.UNPROCESSABLE_ENTITY,
        )
    return kept


def check_bytes(count: int, limits: Limits) -> None:
    """Raises Refused where an image's file is too large, or empty."""
    if count == 0:
        raise Refused("the image is empty; send a JPEG, PNG or WebP", HTTPStatus.BAD_REQUEST)
    if count > limits.bytes:
        raise Refused(
            f"the image has {count:,} bytes, more than {limits.bytes:,}; save it smaller or more compressed",
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        )


class Visitors:
    """Counts what each visitor asks for, on the page and over HTTP together.

    A visitor may ask for `per_minute` requests at once, and for as many again over a minute; likewise for work.
    """

    def __init__(self, limits: Limits, clock: Callable[[], float] = time.monotonic):
        self._limits = limits
        self._requests = _Buckets(limits.per_minute, clock)
        self._work = _Buckets(limits.work_per_minute, clock)

    def count(self, visitor: str) -> None:
        """Count a request; raise Refused if there were too many."""
        wait = self._requests.take(visitor, 1.0)
        if wait:
            raise Refused(
                f"more than {self._limits.per_minute} requests in a minute; ask again in {wait} s",
                HTTPStatus.TOO_MANY_REQUESTS,
                wait,
            )

    def charge(self, visitor: str, pixels: int, expressions: int) -> None:
        """Count the work for expressions on an image; raise Refused if it is too much, or too much for now."""
        most = self._limits.work_per_minute
        work = expressions * max(pixels / 1e6, _LEAST_MEGAPIXELS)
        some = "1 expression" if expressions == 1 else f"{expressions} expressions"
        asked = f"{some} on {pixels / 1e6:.1f} megapixels"
        if work > most:
            raise Refused(
                f"{asked} is more work than is allowed in a minute; ask for fewer at once, or send a smaller image",
                HTTPStatus.UNPROCESSABLE_ENTITY,
            )
        wait = self._work.take(visitor, work)
        if wait:
            raise Refused(
                f"too much work in a minute; ask for {asked} again in {wait} s, or sooner for fewer or a smaller image",
                HTTPStatus.TOO_MANY_REQUESTS,
                wait,
            )


class _Buckets:
    """A token bucket for each visitor: full at first, and filled with `per_minute` over a minute, never above that."""

    def __init__(self, per_minute: int, clock: Callable[[], float]):
        self._per_minute, self._clock = per_minute, clock
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()  # visitor: what was left, and when
        self._lock = threading.Lock()

    def take(self, visitor: str, amount: float) -> int:
        """Take an amount if it is there and return 0; return the seconds until it will be there otherwise."""
        with self._lock:
            now = self._clock()
            left, then = self._left.pop(visitor, (float(self._per_minute), now))
            left = min(float(self._per_minute), left + (now - then) * self._per_minute / 60)
            missing = max(0.0, amount - left)
            self._left[visitor] = (left if missing else left - amount, now)
            if len(self._left) > _MOST_VISITORS:
                self._left.popitem(last=False)
        return math.ceil(missing * 60 / self._per_minute)
