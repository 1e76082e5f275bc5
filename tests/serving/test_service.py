"""The service: cached images, one request at a time, and limits."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from s2rm_jax.errors import UserError
from s2rm_jax.serving.limits import Limits, RequestError, Visitors
from s2rm_jax.serving.service import Service


def red_columns(answer):
    return np.count_nonzero(answer.result.masks[0, 0])


def test_an_image_is_encoded_once(service, striped_file):
    first, second = (service.segment(striped_file(), [expression]) for expression in ("red", "blue"))
    assert (first.encoding.was_cached, second.encoding.was_cached) == (False, True)
    assert first.encoding.seconds > second.encoding.seconds == 0
    assert second.encoding.image is first.encoding.image
    assert (red_columns(first), red_columns(second)) == (3, 5)


def test_only_the_latest_images_are_cached(segmenter, striped_file):
    service = Service(segmenter, cached_images=2)
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


def test_the_device_processes_one_request_at_a_time(service, segmenter, striped_file, monkeypatch):
    at_once, most = 0, 0
    segment = segmenter.segment

    def counted(*arguments, **more):
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        result = segment(*arguments, **more)
        at_once -= 1
        return result

    monkeypatch.setattr(segmenter, "segment", counted)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: service.segment(striped_file(), ["red"]), range(16)))
    assert most == 1


def test_requests_are_rejected_when_the_queue_is_full(segmenter, striped_file):
    service = Service(segmenter, Limits(waiting=2))
    inside, leave = threading.Event(), threading.Event()

    def hold():
        with service.reserve_device():
            inside.set()
            leave.wait(10)

    holder = threading.Thread(target=hold)
    holder.start()
    assert inside.wait(10)
    waiting = threading.Thread(target=lambda: service.encode(striped_file()))
    waiting.start()
    while service._waiting < 2:
        pass
    with pytest.raises(RequestError, match="too many requests are waiting") as refused:
        service.encode(striped_file())
    assert refused.value.status == 503
    leave.set()
    holder.join()
    waiting.join()
    assert service.encode(striped_file()).was_cached


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
    service = Service(segmenter, Limits(bytes=60_000, pixels=100))
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
    with pytest.raises(RequestError, match=r"retry 3 expressions on 10\.0 megapixels in 10 s") as refused:
        visitors.charge("a", 10_000_000, 3)
    assert (refused.value.status, refused.value.wait) == (429, 10)
    visitors.charge("a", 10_000_000, 2)  # the rejected request was not charged
    visitors.charge("b", 10_000_000, 6)
    now[0] += 9.9
    with pytest.raises(RequestError, match="megapixels in 1 s"):
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
    service = Service(segmenter, Limits(pixels=10_000, work_per_minute=40), clock=lambda: now[0])
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
