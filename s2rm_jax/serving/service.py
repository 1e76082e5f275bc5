"""Share one network between many visitors: waiting requests are taken in turn, and joined where they can be.

No data of a visitor is written to disk. The most recent encoded images are cached by the hash of their bytes, so that
further expressions on an image are fast for every visitor, and the Segmenter keeps the most recent encoded expressions.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from itertools import islice, zip_longest
from typing import Any, TypeVar

import numpy as np
from jaxtyping import UInt8

from s2rm_jax.errors import one_line
from s2rm_jax.input.images import load_image
from s2rm_jax.segmenter import BUCKETS, EncodedImage, RecentlyUsed, Result, Segmenter, padded_count
from s2rm_jax.serving.limits import Limits, RequestError, Visitors, check_expressions, check_image
from s2rm_jax.serving.observe import Metrics

T = TypeVar("T")

_LOG = logging.getLogger(__name__)

# Two threads process requests: while one waits for the device, the other decodes images and encodes masks.
_LANES = 2
_PATIENCE = 0.003  # seconds that a request waits for others to join it, if others are in progress
# The number of images in a call is one of these. With each number of expressions it makes a program, whose compilation
# takes seconds. Five images take two calls: on a CPU, padding them to eight would take longer.
IMAGES = (1, 4)
# Requests with more expressions are not joined. They are rare, and their calls are long enough to use a device well.
EXPRESSIONS = tuple(size for size in BUCKETS if size <= 4)
# Larger images are not joined: their decoding takes longer than the call, and several would take much memory.
_MOST_PIXELS = 2_000_000

Program = tuple[int, bool]  # segments one image: the padded number of its expressions, and whether it explains


@dataclass(eq=False)
class Job:
    """A request in the queue; `Service.submit` describes its first fields.

    A job whose future is cancelled before it runs is not computed.
    """

    visitor: str
    content: bytes
    expressions: tuple[str, ...]  # none if the image is only to be encoded
    remarks: tuple[tuple[str, ...], ...]  # on the words of each expression
    explain: bool
    convert: Callable[[Any], Any]
    group: int | None  # see `group_of`; jobs of one group can be joined
    future: Future[Any] = field(default_factory=Future)
    arrived: float = field(default_factory=time.perf_counter)

    @property
    def program(self) -> Program:
        """The program that the job needs; of no expressions if the image is only to be encoded."""
        count = len(self.expressions)
        return padded_count(count) if count else 0, self.explain


def group_of(pixels: int, expressions: int, explain: bool) -> int | None:
    """Return the group of a request: the padded number of its expressions, or None if it runs alone."""
    if explain or pixels > _MOST_PIXELS or not 0 < expressions <= EXPRESSIONS[-1]:
        return None
    return padded_count(expressions)


def joined(count: int) -> int:
    """Return how many of `count` images one call takes."""
    return max((size for size in IMAGES if size <= count), default=0)


def calls(items: Sequence[T]) -> Iterator[Sequence[T]]:
    """Split items, one per image, into as few calls as the numbers in `IMAGES` allow."""
    while items:
        count = joined(len(items))
        yield items[:count]
        items = items[count:]


class FairQueue:
    """The waiting jobs, at most `limit`; visitors are served in turn, each in the order of its jobs.

    Jobs that need one of the `uncompiled` programs are passed over.
    """

    def __init__(self, limit: int):
        self.uncompiled: frozenset[Program] = frozenset()
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
            running: returns the number of jobs that run, whose clients may soon send their next. If these could not
                complete the group either, there is no wait.
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
        jobs = (job for turn in zip_longest(*self._waiting.values()) for job in turn if job is not None)
        in_turn = (job for job in jobs if job.program not in self.uncompiled)
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


@dataclass(frozen=True)
class Encoding:
    """An encoded image; `seconds` is the time of decoding and encoding, 0 if the image `was_cached`.

    Images of joined requests are encoded together and have the time of all.
    """

    image: EncodedImage
    seconds: float
    was_cached: bool


@dataclass(frozen=True)
class Answer:
    """The result for the expressions, the `seconds` it took, and remarks on the words of each expression.

    Joined requests have the time of all. `waited` is the time in the queue, and `joined` the number of requests that
    were processed together.
    """

    encoding: Encoding
    result: Result
    remarks: tuple[tuple[str, ...], ...]
    seconds: float
    waited: float
    joined: int


class Service:
    """Segments images for any number of threads and asyncio tasks."""

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
        self.is_ready = False  # whether the common programs are compiled
        self._is_closing = False
        self._joinable: set[int] = set()  # the groups whose programs for several images are compiled
        self._cache: RecentlyUsed[EncodedImage] = RecentlyUsed(cached_images)  # by the hash of the file
        self._queue = FairQueue(self.limits.waiting)
        self._lanes = ThreadPoolExecutor(_LANES, "lane")
        self._running: dict[int, int] = {}  # how many requests each thread processes
        self._pace = 0.0  # seconds per request
        self.metrics = Metrics(lambda: len(self._queue), IMAGES)

    def submit(
        self,
        content: bytes,
        expressions: Sequence[str] | None,
        convert: Callable[[Answer], T],
        *,
        visitor: str | None = None,
        explain: bool = False,
    ) -> Future[T]:
        """Check a request and add it to the queue; return the future of its converted answer.

        Args:
            content: the bytes of an image file.
            expressions: what to segment; None if the image is only to be encoded.
            convert: converts the answer to a small result, in the thread that processes the request. Only the masks of
                the requests that are processed at the moment are in memory.
            visitor: who is charged for the work, which is that of one expression if the image is only encoded; without
                a visitor the work is not limited.
            explain: whether to explain the masks.

        Raises:
            UserError: an expression has no words.
            RequestError: the image or an expression is too large, the format of the image is not supported, a limit of
                the visitor is exceeded, or too many requests are waiting.
        """
        checked = () if expressions is None else check_expressions(expressions, self.limits)
        remarks = tuple(tuple(self.segmenter.remarks(expression)) for expression in checked)
        pixels = check_image(content, self.limits)
        if visitor is not None:
            self.visitors.charge(visitor, pixels, max(1, len(checked)))
        group = group_of(pixels, len(checked), explain)
        job = Job(visitor or "", content, checked, remarks, explain, convert, group)
        self._queue.add(job, max(1, math.ceil(len(self._queue) * self._pace)))
        job.future.add_done_callback(lambda _: self._queue.discard(job))
        self._lanes.submit(self._work)
        return job.future

    def warm_up(self, opened: Callable[[], None] = lambda: None) -> None:
        """Compile the programs of common requests, become ready, and compile those of requests with more expressions.

        Requests are answered in the meantime; those whose program is missing wait for it in the queue, where they
        occupy no thread. `opened` is called when the programs of single common requests are compiled, before those of
        joined requests; requests are joined as soon as these are compiled.
        """
        sizes = [size for size in BUCKETS if size <= padded_count(self.limits.expressions)]
        common, larger = (
            [(size, explain) for size in some for explain in (True, False)]
            for some in (EXPRESSIONS, sizes[len(EXPRESSIONS) :])
        )
        self._queue.uncompiled = frozenset(common + larger)
        try:
            self._compile(common)
            if not self._is_closing:
                opened()
            for count in EXPRESSIONS:
                if not self._is_closing:
                    self.segmenter.compile(IMAGES[-1], count)
                    self._joinable.add(count)
            self.is_ready = not self._is_closing
            self._compile_larger(larger)
        finally:
            self._release(self._queue.uncompiled)

    def _compile_larger(self, programs: Sequence[Program]) -> None:
        """Compile programs that only some requests need; if one fails, log it, and such requests fail alone."""
        try:
            self._compile(programs)
        except Exception as error:
            _LOG.warning(
                "programs for more than %d expressions cannot be compiled (%s); requests that need them may fail",
                *(EXPRESSIONS[-1], one_line(error)[:200]),
            )

    def _compile(self, programs: Sequence[Program]) -> None:
        for expressions, explain in programs:
            if not self._is_closing:
                self.segmenter.compile(1, expressions, explain)
                self._release([(expressions, explain)])

    def _release(self, programs: Collection[Program]) -> None:
        """Let the jobs run that waited for these programs, which were passed over when their turn came."""
        self._queue.uncompiled = self._queue.uncompiled.difference(programs)
        for _ in range(len(self._queue)):
            self._lanes.submit(self._work)

    def close(self) -> None:
        """Stop the warm-up after the program that it is compiling, and be no longer ready."""
        self._is_closing, self.is_ready = True, False

    def _work(self) -> None:
        """Process the next requests; finds none if they were joined to others or if their program is missing.

        This runs once for each request, and again for those that wait when a program is compiled.
        """
        jobs = self._queue.take(
            lambda group: IMAGES[-1] if group in self._joinable else 1,
            _PATIENCE,
            lambda: sum(self._running.copy().values()),
        )
        jobs = [job for job in jobs if job.future.set_running_or_notify_cancel()]
        if not jobs:
            return
        start = time.perf_counter()
        self.metrics.batch.observe(len(jobs))
        self._running[threading.get_ident()] = len(jobs)
        try:
            self._process(jobs, start)
        except BaseException as error:
            for job in jobs:
                if not job.future.done():
                    job.future.set_exception(error)
        finally:
            del self._running[threading.get_ident()]
        self._pace += 0.1 * ((time.perf_counter() - start) / len(jobs) - self._pace)

    def _process(self, jobs: Sequence[Job], start: float) -> None:
        encodings = self._encode(jobs)
        for part in calls([job for job in jobs if job in encodings]):
            begin = time.perf_counter()
            for job, result in self._results(part, [encodings[job].image for job in part]):
                seconds = time.perf_counter() - begin
                self.metrics.queue_seconds.observe(start - job.arrived)
                answer = Answer(encodings[job], result, job.remarks, seconds, start - job.arrived, len(jobs))
                with _failure_to(job):
                    job.future.set_result(job.convert(answer))

    def _encode(self, jobs: Sequence[Job]) -> dict[Job, Encoding]:
        """Encode the images of jobs that are not cached, together; jobs whose image cannot be read fail."""
        start = time.perf_counter()
        keys = {job: hashlib.sha256(job.content).digest() for job in jobs}
        known = self._cache.known(keys.values())
        new: dict[bytes, UInt8[np.ndarray, "_ _ 3"]] = {}
        for job, key in keys.items():
            if key not in known and key not in new:
                with _failure_to(job):
                    new[key] = load_image(job.content, apply_exif=True, max_pixels=self.limits.pixels)
        with self._timed("encode"):
            images = [image for part in calls(list(new.values())) for image in self.segmenter.encode(list(part))]
        encoded = dict(zip(new, images, strict=True))
        seconds = time.perf_counter() - start
        encodings = {}
        for job, key in keys.items():
            if (image := encoded.get(key) or known.get(key)) is not None:
                was_cached = key not in encoded
                self.metrics.images.labels(was_cached).inc()
                self._cache.keep({key: image})
                encodings[job] = Encoding(image, 0.0 if was_cached else seconds, was_cached)
        return encodings

    def _results(self, jobs: Sequence[Job], images: list[EncodedImage]) -> Iterator[tuple[Job, Result]]:
        """Yield the result of each job; those of a group are segmented in one call of the network."""
        if jobs[0].expressions:
            with self._timed("segment"):
                asked = [job.expressions for job in jobs]
                results = self.segmenter.segment(images, asked, explain=jobs[0].explain)
        else:
            results = [Result((), np.empty((0, *images[0].image.shape[:2]), bool), np.empty(0))]
        yield from zip(jobs, results, strict=True)

    @contextmanager
    def _timed(self, call: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.metrics.device_seconds.labels(call).inc(time.perf_counter() - start)


@contextmanager
def _failure_to(job: Job) -> Iterator[None]:
    """Make an error inside that of a job, so that others joined to it do not fail."""
    try:
        yield
    except Exception as error:
        job.future.set_exception(error)


class ClientLeft(Exception):
    """The client has closed its connection before the answer."""


async def answer_of(future: Future[T], seconds: float, leaves: Awaitable[object] | None = None) -> T:
    """Return the result of a submitted request; after an error, a request that still waits is not computed.

    Raises:
        RequestError: the answer takes longer than `seconds`.
        ClientLeft: the client has left, which ends `leaves`.
    """
    waiting: set[asyncio.Future[Any]] = {answer := asyncio.wrap_future(future)}
    if leaves is not None:
        waiting.add(asyncio.ensure_future(leaves))
    try:
        done, _ = await asyncio.wait(waiting, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if answer in done:
            return answer.result()
    finally:
        for each in waiting:
            each.cancel()
    if done:
        raise ClientLeft
    raise RequestError(
        f"the answer takes longer than {seconds:g} s; retry later", HTTPStatus.SERVICE_UNAVAILABLE, wait=10
    )
