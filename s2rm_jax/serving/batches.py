"""Join waiting requests: which can be processed together, and a bounded queue that is fair between visitors.

A call of a small network on a small image is dominated by its fixed costs, and a GPU is mostly idle with one image. So
requests that wait at the same time are processed together if their numbers of expressions share a program.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from http import HTTPStatus
from itertools import islice, zip_longest
from typing import Any

from s2rm_jax.segmenter import BUCKETS
from s2rm_jax.serving.limits import RequestError

# The number of images in a call is one of these. With each number of expressions it makes a program, whose compilation
# takes seconds. Five images take two calls: on a CPU, padding them to eight would take longer.
IMAGES = (1, 4)
# Requests with more expressions are not joined. They are rare, and their calls are long enough to use a device well.
EXPRESSIONS = tuple(size for size in BUCKETS if size <= 4)
# Larger images are not joined: their decoding takes longer than the call, and several would take much memory.
_MOST_PIXELS = 2_000_000


@dataclass(eq=False)
class Job:
    """A request in the queue.

    Attributes:
        visitor: requests of different visitors are taken in turn.
        content: the bytes of the image file.
        expressions: without leading and trailing whitespace; none if the image is only to be encoded.
        remarks: on the words of each expression.
        explain: whether explanations are wanted.
        convert: converts the answer to a small result, so that the masks of few requests are in memory at a time.
        group: the padded number of expressions; jobs with the same one can be joined. None if the job runs alone.
        future: receives the result. A job whose future is cancelled before it runs is not computed.
        arrived: when the job was added, in seconds of `time.perf_counter`.
    """

    visitor: str
    content: bytes
    expressions: tuple[str, ...]
    remarks: tuple[tuple[str, ...], ...]
    explain: bool
    convert: Callable[[Any], Any]
    group: int | None
    future: Future[Any] = field(default_factory=Future)
    arrived: float = field(default_factory=time.perf_counter)


def group_of(pixels: int, expressions: int, explain: bool) -> int | None:
    """Return the group of a request: the padded number of its expressions, or None if it runs alone."""
    if explain or pixels > _MOST_PIXELS or not 0 < expressions <= EXPRESSIONS[-1]:
        return None
    return next(size for size in EXPRESSIONS if size >= expressions)


def joined(count: int) -> int:
    """Return how many of `count` images one call takes."""
    return max((size for size in IMAGES if size <= count), default=0)


class FairQueue:
    """The waiting jobs, at most `limit`; visitors are served in turn, each in the order of its jobs."""

    def __init__(self, limit: int):
        self._limit = limit
        self._waiting: dict[str, deque[Job]] = {}  # by visitor; the first is next
        self._count = 0
        self._changed = threading.Condition()

    def __len__(self) -> int:
        return self._count

    def add(self, job: Job, retry_after: int) -> None:
        """Add a job; if the queue is full, refuse the last job of the visitor with the most waiting jobs.

        Raises:
            RequestError: the queue is full, and no visitor has more waiting jobs than the visitor of `job`.
        """
        full = RequestError(
            f"too many requests are waiting; retry in {retry_after} s", HTTPStatus.TOO_MANY_REQUESTS, retry_after
        )
        with self._changed:
            refused = None
            if self._count >= self._limit:
                longest = max(self._waiting.values(), key=len)
                if len(longest) <= len(self._waiting.get(job.visitor, ())) + 1:
                    raise full
                refused = longest[-1]
                self._remove(refused)
            self._waiting.setdefault(job.visitor, deque()).append(job)
            self._count += 1
            self._changed.notify_all()
        if refused is not None and refused.future.set_running_or_notify_cancel():
            refused.future.set_exception(full)

    def discard(self, job: Job) -> None:
        """Remove a job whose client has left, if it still waits."""
        with self._changed:
            if job in self._waiting.get(job.visitor, ()):
                self._remove(job)

    def take(self, most: Callable[[int], int], patience: float, running: Callable[[], int]) -> list[Job]:
        """Remove and return the next job and those that can be joined to it; none if no job waits.

        Args:
            most: returns how many jobs of a group can be joined.
            patience: how long to wait for more jobs, in seconds.
            running: returns the number of jobs that run. Their clients may soon send the next; if there are too few of
                them to make up the most that can be joined, there is no wait.
        """
        until = time.monotonic() + patience
        with self._changed:
            while jobs := self._next(most):
                missing = 0 if jobs[0].group is None else most(jobs[0].group) - len(jobs)
                left = until - time.monotonic()
                if missing == 0 or missing > running() or left <= 0:
                    break
                self._changed.wait(left)
            jobs = jobs[: joined(len(jobs))]
            for job in jobs:
                self._remove(job)
                if job.visitor in self._waiting:  # its turn is over
                    self._waiting[job.visitor] = self._waiting.pop(job.visitor)
        return jobs

    def _next(self, most: Callable[[int], int]) -> list[Job]:
        in_turn = (job for turn in zip_longest(*self._waiting.values()) for job in turn if job is not None)
        first = next(in_turn, None)
        if first is None or first.group is None:
            return [first] if first else []
        others = (job for job in in_turn if job.group == first.group)
        return [first, *islice(others, most(first.group) - 1)]

    def _remove(self, job: Job) -> None:
        jobs = self._waiting[job.visitor]
        jobs.remove(job)
        if not jobs:
            del self._waiting[job.visitor]
        self._count -= 1
