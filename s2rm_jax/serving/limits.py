"""What a visitor may ask for, and what is said when it is too much."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http import HTTPStatus

from s2rm_jax.errors import UserError

_MOST_VISITORS = 10_000  # whose latest requests are remembered


@dataclass(frozen=True)
class Limits:
    """How much one request may ask for, and how many of them there may be."""

    bytes: int = 20_000_000  # of an image's file
    pixels: int = 25_000_000
    expressions: int = 16
    characters: int = 500  # of an expression
    per_minute: int = 240  # requests of one visitor
    waiting: int = 100  # requests that wait for the device together


class Refused(UserError):
    """A request that is not answered; `status` is what HTTP calls the reason."""

    def __init__(self, message: str, status: HTTPStatus):
        super().__init__(message)
        self.status = status


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


class Rate:
    """Counts the requests of each visitor: `per_minute` at once, and as many again over a minute (a token bucket)."""

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic):
        self._per_minute, self._clock = per_minute, clock
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()  # visitor: what was left, and when
        self._lock = threading.Lock()

    def __call__(self, visitor: str) -> None:
        """Counts a request; raises Refused where the visitor has asked too often."""
        with self._lock:
            now = self._clock()
            left, then = self._left.pop(visitor, (float(self._per_minute), now))
            left = min(self._per_minute, left + (now - then) * self._per_minute / 60)
            self._left[visitor] = (max(left - 1, 0) if left >= 1 else left, now)
            if len(self._left) > _MOST_VISITORS:
                self._left.popitem(last=False)
        if left < 1:
            raise Refused(
                f"more than {self._per_minute} requests in a minute; wait a little and ask again",
                HTTPStatus.TOO_MANY_REQUESTS,
            )
