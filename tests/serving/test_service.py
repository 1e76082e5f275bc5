"""The service: cached images, joined requests, turns, and limits."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from s2rm_jax.errors import UserError
from s2rm_jax.serving.limits import Limits, RequestError, Visitors
from s2rm_jax.serving.service import FairQueue, Job, answer_of
from tests.serving.standin import WaitingService


def red_columns(answer):
    return np.count_nonzero(answer.result.masks[0, 0])


def test_an_image_is_encoded_once(service, striped_file):
    first, second = (service.segment(striped_file(), [expression]) for expression in ("red", "blue"))
    assert (first.encoding.was_cached, second.encoding.was_cached) == (False, True)
    assert first.encoding.seconds > second.encoding.seconds == 0
    assert second.encoding.image is first.encoding.image
    assert (red_columns(first), red_columns(second)) == (3, 5)


def test_only_the_latest_images_are_cached(segmenter, striped_file):
    service = WaitingService(segmenter, cached_images=2)
    cached = [service.encode(striped_file(red)).was_cached for red in (1, 2, 1, 3, 1, 2)]
    assert cached == [False, False, True, False, True, False]


def test_remarks_on_unknown_words(service, striped_file):
    assert service.segment(striped_file(), ["red", "zebra"]).remarks[0] == ()
    assert "zebra" in service.segment(striped_file(), ["red", "zebra"]).remarks[1][0]


def test_fifty_threads_get_their_own_results(service, striped_file):
    service.segment(striped_file(), ["red"])  # compiled
    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(lambda i: service.segment(striped_file(i % 7 + 1), ["red"]), range(50)))
    assert [red_columns(answer) for answer in answers] == [i % 7 + 1 for i in range(50)]


@pytest.fixture
def ready(explaining_segmenter):
    """A service that joins requests."""
    service = WaitingService(explaining_segmenter)
    service.warm_up()
    assert service.is_ready
    return service


@pytest.fixture
def hold(striped_file):
    """A function that occupies both threads of a service until the event that it returns is set."""
    leave = threading.Event()

    def occupy(service):
        inside = threading.Barrier(3)

        def stay(_):
            inside.wait(10)
            leave.wait(10)

        for _ in range(2):
            service.submit(striped_file(), ["red"] * 5, stay)  # too many expressions to be joined
        inside.wait(10)
        return leave

    yield occupy
    leave.set()


def test_waiting_requests_are_joined_and_equal_single_ones(ready, hold, striped_file):
    leave = hold(ready)
    images = [striped_file(red, 40 + red, 64) for red in (8, 16, 24, 32)]
    together = [ready.submit(image, ["red", "the blue part"], lambda answer: answer) for image in images]
    leave.set()
    for red, image, future in zip((8, 16, 24, 32), images, together, strict=True):
        answer, alone = future.result(10), ready.segment(image, ["red", "the blue part"])
        assert (answer.joined, alone.joined, red_columns(answer)) == (4, 1, red)
        np.testing.assert_array_equal(answer.result.masks, alone.result.masks)
        np.testing.assert_allclose(answer.result.scores, alone.result.scores, rtol=1e-5)


def test_requests_of_another_kind_are_not_joined(ready, hold, striped_file):
    """Only small images with as many expressions are joined, where three count as four."""
    leave = hold(ready)
    large = striped_file(3, 2000, 1001)
    kinds = [(striped_file(), 1), (striped_file(), 3), (large, 1), (striped_file(), 5)]
    waiting = [
        ready.submit(image, ["red"] * count, lambda answer: answer.joined) for image, count in kinds for _ in range(2)
    ]
    waiting += [ready.submit(striped_file(), ["red"] * 4, lambda answer: answer.joined) for _ in range(2)]
    leave.set()
    assert [future.result(10) for future in waiting] == [1, 1, 4, 4, 1, 1, 1, 1, 4, 4]


def test_a_damaged_image_fails_alone(ready, hold, striped_file):
    leave = hold(ready)
    damaged = striped_file(3, 400, 400)[:-40]
    futures = [ready.submit(image, ["red"], red_columns) for image in (damaged, *map(striped_file, (1, 2, 3)))]
    leave.set()
    with pytest.raises(UserError, match="damaged"):
        futures[0].result(10)
    assert [future.result(10) for future in futures[1:]] == [1, 2, 3]


def test_an_answer_that_cannot_be_converted_fails_alone(ready, hold, striped_file):
    leave = hold(ready)
    futures = [ready.submit(striped_file(), ["red"], convert) for convert in (lambda _: 1 / 0, *[red_columns] * 3)]
    leave.set()
    with pytest.raises(ZeroDivisionError):
        futures[0].result(10)
    assert [future.result(10) for future in futures[1:]] == [3, 3, 3]


def test_equal_images_that_are_joined_are_encoded_once(ready, hold, striped_file, monkeypatch):
    leave = hold(ready)
    encoded, encode = [], ready.segmenter.encode
    monkeypatch.setattr(ready.segmenter, "encode", lambda images: encoded.append(len(images)) or encode(images))
    futures = [ready.submit(striped_file(7), ["red"], red_columns) for _ in range(4)]
    leave.set()
    assert [future.result(10) for future in futures] == [7] * 4
    assert encoded == [1]


@pytest.mark.parametrize("problem", [None, "the device is gone"])
def test_requests_whose_program_is_missing_do_not_delay_others(
    explaining_segmenter, striped_file, monkeypatch, caplog, problem
):
    """The stand-in compiles nothing; its larger programs exist when the event is set, or cannot be compiled then."""
    service, compiled, leave, begun = WaitingService(explaining_segmenter), [], threading.Event(), threading.Event()
    segment = explaining_segmenter.segment

    def compile_(images, expressions, explain=False):
        if expressions > 4:
            begun.set()
            assert leave.wait(10)
            if problem:
                raise ValueError(problem)
        compiled.append((images, expressions, explain))

    def segment_(images, asked, **options):
        assert len(asked[0]) <= 4 or leave.wait(10)
        return segment(images, asked, **options)

    monkeypatch.setattr(explaining_segmenter, "compile", compile_)
    monkeypatch.setattr(explaining_segmenter, "segment", segment_)
    with ThreadPoolExecutor(1) as pool:
        warm_up = pool.submit(service.warm_up)
        try:
            assert begun.wait(10) and service.is_ready
            waiting = [service.submit(striped_file(), ["red"] * count, red_columns) for count in (5, 16, 16)]
            assert service.submit(striped_file(), None, lambda answer: True).result(5)
            for count in (1, 4):
                assert service.submit(striped_file(), ["red"] * count, red_columns).result(5) == 3
        finally:
            leave.set()
        assert warm_up.exception(10) is None, "the server goes on"
    assert service.is_ready and [problem in record.message for record in caplog.records] == [True] * bool(problem)
    assert [future.result(10) for future in waiting] == [3] * 3
    assert problem or compiled[9:] == [(1, 8, True), (1, 8, False), (1, 16, True), (1, 16, False)]


def test_visitors_are_served_in_turn():
    queue = FairQueue(10)
    for number, (visitor, group) in enumerate(zip("aaaaabbc", (1, 2, 1, 1, 1, 1, 1, 1), strict=True)):
        queue.add(Job(visitor, str(number).encode(), (), (), False, str, group), 1)

    def take(most):
        return [int(job.content) for job in queue.take(lambda group: most, 0.0, lambda: 0)]

    assert [take(1), take(1)] == [[0], [5]]
    assert take(4) == [7, 6, 2, 3]  # of c, b and a, whose next is of another group and remains
    assert [take(4), take(4), take(4), len(queue)] == [[1], [4], [], 0]


def test_a_request_waits_for_others_only_if_enough_are_in_progress():
    queue = FairQueue(10)
    for visitor in "ab":
        queue.add(Job(visitor, b"", (), (), False, str, 1), 1)
    assert len(queue.take(lambda group: 4, 1000.0, lambda: 1)) == 1  # three in all cannot make up four
    queue.add(Job("c", b"", (), (), False, str, 1), 1)
    with ThreadPoolExecutor(1) as pool:
        joined = pool.submit(queue.take, lambda group: 4, 1000.0, lambda: 2)
        for visitor in "de":
            queue.add(Job(visitor, b"", (), (), False, str, 1), 1)
        assert len(joined.result(10)) == 4


def test_requests_are_rejected_when_the_queue_is_full(segmenter, striped_file, hold):
    """A visitor with many waiting requests has to give way to others, but not to one with as many."""
    service = WaitingService(segmenter, Limits(waiting=4))
    leave = hold(service)

    def submit(visitor):
        return service.submit(striped_file(), ["red"], red_columns, visitor=visitor)

    waiting = [submit(visitor) for visitor in "aaab"]
    with pytest.raises(RequestError, match="too many requests are waiting; retry in 1 s") as refused:
        submit("a")
    assert (refused.value.status, refused.value.headers) == (429, {"Retry-After": "1"})
    waiting.append(submit("c"))  # in place of the last of a
    with pytest.raises(RequestError, match="too many requests are waiting"):
        waiting.pop(2).result(10)
    with pytest.raises(RequestError, match="too many requests are waiting"):
        submit("b")
    leave.set()
    assert [future.result(10) for future in waiting] == [3] * 4


def test_the_request_of_a_client_that_has_left_is_not_computed(service, hold, striped_file):
    leave = hold(service)
    computed = []
    futures = [service.submit(striped_file(), ["red"], lambda _, n=n: computed.append(n)) for n in range(3)]
    assert futures[1].cancel()
    assert "s2rm_waiting_requests 2.0" in service.metrics.exposition()[0].decode()
    leave.set()
    futures[0].result(10), futures[2].result(10)
    assert sorted(computed) == [0, 2]


def test_an_answer_that_takes_too_long_is_not_waited_for(service, hold, striped_file):
    hold(service)
    future = service.submit(striped_file(), ["red"], red_columns)
    with pytest.raises(RequestError, match=r"the answer takes longer than 0\.01 s; retry later") as late:
        asyncio.run(answer_of(future, 0.01))
    assert (late.value.status, future.cancelled()) == (503, True)


@pytest.mark.parametrize(
    ("expressions", "message"),
    [
        ([], "an expression is missing"),
        (["red", " "], "an expression is missing"),
        (["red"] * 17, "17 expressions exceed the limit of 16"),
        (["x" * 10_000], "10,000 characters, more than the limit of 500"),
        (["\u200b"], "has no words"),
    ],
)
def test_invalid_expressions(service, striped_file, expressions, message):
    with pytest.raises(UserError, match=message):
        service.segment(striped_file(), expressions)


def test_invalid_images(segmenter, striped_file, enormous_image):
    service = WaitingService(segmenter, Limits(bytes=60_000, pixels=100))
    for content, message in (
        (b"", "the image file is empty"),
        (b"not an image", "not a readable JPEG, PNG or WebP image"),
        (bytes(60_001), "60,001 bytes, more than the limit of 60,000"),
        (striped_file(1, 8, 13), "more than 100 pixels"),
        (enormous_image, "more than 100 pixels"),
    ):
        with pytest.raises(UserError, match=message):
            service.encode(content)
    assert service.encode(striped_file()).image.image.shape == (8, 8, 3)


@pytest.fixture
def now():
    """The time in seconds, as a list of one item that a test can change."""
    return [0.0]


@pytest.fixture
def visitors(now):
    """Visitors with limits of 3 requests and 60 megapixels times expressions per minute."""
    return Visitors(Limits(per_minute=3, work_per_minute=60), clock=lambda: now[0])


def test_requests_are_counted_per_visitor_and_minute(visitors, now):
    for _ in range(3):
        visitors.count("a")
    with pytest.raises(RequestError, match="more than 3 requests in a minute; retry in 20 s") as refused:
        visitors.count("a")
    assert (refused.value.status, refused.value.headers) == (429, {"Retry-After": "20"})
    visitors.count("b")
    now[0] += 20  # a third of a minute: one of three requests
    visitors.count("a")
    with pytest.raises(RequestError):
        visitors.count("a")


def test_work_is_megapixels_times_expressions(visitors, now):
    visitors.charge("a", 10_000_000, 4)
    with pytest.raises(RequestError, match=r"retry in 10 s \(3 expressions on 10\.0 megapixels\)") as refused:
        visitors.charge("a", 10_000_000, 3)
    assert (refused.value.status, refused.value.wait) == (429, 10)
    visitors.charge("a", 10_000_000, 2)  # the rejected request was not charged
    visitors.charge("b", 10_000_000, 6)
    now[0] += 9.9
    with pytest.raises(RequestError, match="retry in 1 s"):
        visitors.charge("a", 10_000_000, 1)
    now[0] += 0.1
    visitors.charge("a", 10_000_000, 1)


def test_a_small_image_counts_as_four_megapixels(visitors):
    visitors.charge("a", 100, 15)
    with pytest.raises(RequestError):
        visitors.charge("a", 100, 1)


def test_unused_limits_do_not_accumulate(visitors, now):
    """After an hour the limits are the same as after a minute."""
    visitors.count("a")
    visitors.charge("a", 10_000_000, 1)
    now[0] += 3600
    visitors.charge("a", 10_000_000, 6)
    with pytest.raises(RequestError):
        visitors.charge("a", 100, 1)
    for _ in range(3):
        visitors.count("a")
    with pytest.raises(RequestError):
        visitors.count("a")


def test_work_above_the_limit_per_minute(visitors):
    """The error has no time to wait, because no retry can succeed, and the work is not charged."""
    with pytest.raises(
        RequestError, match=r"the work for 7 expressions on 10\.0 megapixels exceeds .* smaller image"
    ) as refused:
        visitors.charge("a", 10_000_000, 7)
    assert (refused.value.status, refused.value.wait) == (422, None)
    visitors.charge("a", 10_000_000, 6)


def test_work_is_charged_before_it_is_done(segmenter, striped_file, now):
    """Encoding is charged as one expression, also for a cached image; an image that is too large is not charged."""
    service = WaitingService(segmenter, Limits(pixels=10_000, work_per_minute=40), clock=lambda: now[0])
    image = striped_file()
    service.encode(image, visitor="a")
    service.segment(image, ["red"] * 7, visitor="a")
    with pytest.raises(UserError, match="more than 10,000 pixels"):
        service.segment(striped_file(1, 101, 100), ["red"], visitor="a")
    service.segment(image, ["red"], visitor="b")
    service.segment(image, ["red", "blue"], visitor="a")
    for call in (
        lambda: service.encode(striped_file(2), visitor="a"),
        lambda: service.segment(image, ["a"], visitor="a"),
    ):
        with pytest.raises(RequestError, match="too much work in a minute"):
            call()
    assert not service.encode(striped_file(2)).was_cached  # the request was rejected before the encoding
