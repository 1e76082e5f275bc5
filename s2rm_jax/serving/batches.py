"""Join waiting requests: a bounded queue that is fair between visitors, and one call of the network for several images.

A call of a small network on a small image is dominated by its fixed costs, and a GPU is mostly idle with one image. So
requests that wait at the same time are processed together if their numbers of expressions share a program.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from http import HTTPStatus
from itertools import islice, zip_longest
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Float, Int32, UInt8

from s2rm_jax.evaluation.protocols import resize_logits
from s2rm_jax.input.images import resize_image
from s2rm_jax.segmenter import BUCKETS, EncodedImage, Result, Segmenter, _score, _sigmoid
from s2rm_jax.serving.limits import RequestError

# The number of images in a call is one of these. With each number of expressions it makes a program, whose compilation
# takes seconds. Five images take two calls: on a CPU, padding them to eight would take longer.
IMAGES = (1, 4)
# Requests with more expressions are not joined. They are rare, and their calls are long enough to use a device well.
EXPRESSIONS = tuple(size for size in BUCKETS if size <= 4)
# Larger images are not joined: their decoding takes longer than the call, and several would take much memory.
_MOST_PIXELS = 2_000_000

Tokens = tuple[Int32[np.ndarray, " l"], Bool[np.ndarray, " l"]]


@dataclass(eq=False)
class Job:
    """A request in the queue.

    Attributes:
        visitor: requests of different visitors are taken in turn.
        content: the bytes of the image file.
        expressions: without leading and trailing whitespace; none if the image is only to be encoded.
        tokens: the tokens of each expression.
        explain: whether explanations are wanted.
        convert: converts the answer to a small result, so that the masks of few requests are in memory at a time.
        group: the padded number of expressions; jobs with the same one can be joined. None if the job runs alone.
        future: receives the result. A job whose future is cancelled before it runs is not computed.
        arrived: when the job was added, in seconds of `time.perf_counter`.
    """

    visitor: str
    content: bytes
    expressions: tuple[str, ...]
    tokens: tuple[Tokens, ...]
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


@jax.jit
def _split(features: Any) -> tuple[Any, ...]:
    count = jax.tree.leaves(features)[0].shape[0]
    return tuple(jax.tree.map(lambda leaf, row=row: leaf[row : row + 1], features) for row in range(count))


@jax.jit
def _join(features: Sequence[Any]) -> Any:
    return jax.tree.map(lambda *leaves: jax.numpy.concatenate(leaves), *features)


def encode_together(segmenter: Segmenter, images: Sequence[UInt8[np.ndarray, "_ _ 3"]]) -> list[EncodedImage]:
    """Encode several images in as few calls of the network as the numbers in `IMAGES` allow."""
    size = tuple(segmenter.config.input.image_size)
    encoded: list[EncodedImage] = []
    while rest := images[len(encoded) :]:
        part = rest[: joined(len(rest))]
        pixels = np.stack([resize_image(image, size) for image in part])
        features = segmenter._encode(segmenter._params, jax.device_put(pixels))
        rows = jax.block_until_ready(_split(features) if len(part) > 1 else (features,))
        encoded += [EncodedImage(image, row) for image, row in zip(part, rows, strict=True)]
    return encoded


# The logits of k masks, and those of "no target", which are None if the network has no such output.
Logits = tuple[Float[np.ndarray, "k h w"], Float[np.ndarray, " k"] | None]


def ground_together(segmenter: Segmenter, images: Sequence[EncodedImage], jobs: Sequence[Job]) -> list[Logits]:
    """Segment the expressions of jobs of one group, each in its own image, in one call of the network."""
    group = jobs[0].group
    assert group is not None
    rows = [(*job.tokens, *job.tokens[:1] * (group - len(job.tokens))) for job in jobs]
    tokens, token_mask = (jax.device_put(np.array([[pair[part] for pair in row] for row in rows])) for part in (0, 1))
    features = _join([image.features for image in images]) if len(images) > 1 else images[0].features
    outputs = segmenter._ground(segmenter._params, features, tokens, token_mask, explain=False)
    logits, no_target, _ = jax.device_get(outputs)
    counts = [len(job.tokens) for job in jobs]
    return [
        (logits[row, :count], None if no_target is None else no_target[row, :count]) for row, count in enumerate(counts)
    ]


def result_of(job: Job, image: EncodedImage, outputs: Logits) -> Result:
    """Return the masks of a job in the size of its image."""
    logits, no_target_logits = outputs
    count, (height, width) = len(logits), image.image.shape[:2]
    masks, scores = np.empty((count, height, width), bool), np.empty(count)
    no_target = None if no_target_logits is None else _sigmoid(no_target_logits)
    for row in range(count):
        resized = resize_logits(logits[row], height, width)
        if no_target is not None and no_target[row] > 0.5:
            resized = np.full_like(resized, -np.inf)
        masks[row] = resized > 0
        scores[row] = _score(resized)
    return Result(job.expressions, masks, scores, no_target)
