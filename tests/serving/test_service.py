"""The service: images known by their bytes, one question at a time, and limits that say what to do."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from s2rm_jax.errors import UserError
from s2rm_jax.serving.limits import Limits, Refused, Visitors
from s2rm_jax.serving.service import Service


def red_columns(answer):
    return np.count_nonzero(answer.result.masks[0, 0])


def test_a_image_is_encoded_once(service, striped_file):
    first, second = (service.ask(striped_file(), [expression]) for expression in ("red", "blue"))
    assert (first.encoding.was_known, second.encoding.was_known) == (False, True)
    assert first.encoding.seconds > second.encoding.seconds == 0
    assert second.encoding.image is first.encoding.image
    assert (red_columns(first), red_columns(second)) == (3, 5)


def test_only_the_latest_images_stay(segmenter, striped_file):
    service = Service(segmenter, kept_images=2)
    known = [service.encode(striped_file(red)).was_known for red in (1, 2, 1, 3, 1, 2)]
    assert known == [False, False, True, False, True, False]


def test_remarks_come_with_the_answer(service, striped_file):
    assert service.ask(striped_file(), ["red", "zebra"]).remarks[0] == ()
    assert "zebra" in service.ask(striped_file(), ["red", "zebra"]).remarks[1][0]


def test_fifty_threads_get_their_own_answers(service, striped_file):
    service.ask(striped_file(), ["red"])  # compiled
    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(lambda i: service.ask(striped_file(i % 7 + 1), ["red"]), range(50)))
    assert [red_columns(answer) for answer in answers] == [i % 7 + 1 for i in range(50)]


def test_the_device_has_one_question_at_a_time(service, segmenter, striped_file, monkeypatch):
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
        list(pool.map(lambda _: service.ask(striped_file(), ["red"]), range(16)))
    assert most == 1


def test_who_would_wait_too_long_is_sent_away(segmenter, striped_file):
    service = Service(segmenter, Limits(waiting=2))
    inside, leave = threading.Event(), threading.Event()

    def hold():
        with service.turn():
            inside.set()
            leave.wait(10)

    holder = threading.Thread(target=hold)
    holder.start()
    assert inside.wait(10)
    waiting = threading.Thread(target=lambda: service.encode(striped_file()))
    waiting.start()
    while service._waiting < 2:
        pass
    with pytest.raises(Refused, match="too many requests are waiting") as refused:
        service.encode(striped_file())
    assert refused.value.status == 503
    leave.set()
    holder.join()
    waiting.join()
    assert service.encode(striped_file()).was_known


@pytest.mark.parametrize(
    ("expressions", "says"),
    [
        ([], "an expression is missing"),
        (["red", " "], "an expression is missing"),
        (["red"] * 17, "17 expressions are more than the 16"),
        (["x" * 10_000], "10,000 characters, more than 500"),
        (["\u200b"], "has no words"),
    ],
)
def test_expressions_that_are_refused(service, striped_file, expressions, says):
    with pytest.raises(UserError, match=says):
        service.ask(striped_file(), expressions)


def test_images_that_are_refused(segmenter, striped_file, enormous_image):
    service = Service(segmenter, Limits(bytes=60_000, pixels=100))
    for content, says in (
        (b"", "the image is empty"),
        (b"not an image", "not an image that can be read here"),
        (bytes(60_001), "60,001 bytes, more than 60,000"),
        (striped_file(1, 8, 13), "more than 100 pixels"),
        (enormous_image, "more than 100 pixels"),
    ):
        with pytest.raises(UserError, match=says):
            service.encode(content)
    assert service.encode(striped_file()).image.image.shape == (8, 8, 3)


@pytest.fixture
def now():
    """The time in seconds, as a list of one."""
    return [0.0]


@pytest.fixture
def visitors(now):
    """Visitors who may ask for 3 requests and 60 megapixels times expressions in a minute."""
    return Visitors(Limits(per_minute=3, work_per_minute=60), clock=lambda: now[0])


def test_visitors_are_counted_apart_and_may_come_again(visitors, now):
    for _ in range(3):
        visitors.count("a")
    with pytest.raises(Refused, match="more than 3 requests in a minute; ask again in 20 s") as refused:
        visitors.count("a")
    assert (refused.value.status, refused.value.headers) == (429, {"Retry-After": "20"})
    visitors.count("b")
    now[0] += 20  # a third of a minute: one of three requests more
    visitors.count("a")
    with pytest.raises(Refused):
        visitors.count("a")


def test_work_is_megapixels_times_expressions(visitors, now):
    visitors.charge("a", 10_000_000, 4)
    with pytest.raises(Refused, match=r"ask for 3 expressions on 10\.0 megapixels again in 10 s") as refused:
        visitors.charge("a", 10_000_000, 3)
    assert (refused.value.status, refused.value.wait) == (429, 10)
    visitors.charge("a", 10_000_000, 2)  # what was refused has cost nothing
    visitors.charge("b", 10_000_000, 6)
    now[0] += 9.9
    with pytest.raises(Refused, match="again in 1 s"):
        visitors.charge("a", 10_000_000, 1)
    now[0] += 0.1
    visitors.charge("a", 10_000_000, 1)


def test_a_small_image_counts_as_four_megapixels(visitors):
    visitors.charge("a", 100, 15)
    with pytest.raises(Refused):
        visitors.charge("a", 100, 1)


def test_what_is_not_asked_for_is_not_saved_up(visitors, now):
    """After an hour there is no more than after a minute."""
    visitors.count("a")
    visitors.charge("a", 10_000_000, 1)
    now[0] += 3600
    visitors.charge("a", 10_000_000, 6)
    with pytest.raises(Refused):
        visitors.charge("a", 100, 1)
    for _ in range(3):
        visitors.count("a")
    with pytest.raises(Refused):
        visitors.count("a")


def test_work_that_is_never_allowed(visitors):
    """Nobody is told to wait for what no minute allows, and trying it costs nothing."""
    with pytest.raises(
        Refused, match=r"7 expressions on 10\.0 megapixels is more work than .* smaller image"
    ) as refused:
        visitors.charge("a", 10_000_000, 7)
    assert (refused.value.status, refused.value.wait) == (422, None)
    visitors.charge("a", 10_000_000, 6)


def test_work_is_charged_before_it_is_done(segmenter, striped_file, now):
    """For encoding alone as for one expression; for an image that is known, too; for what is too large, not at all."""
    service = Service(segmenter, Limits(pixels=10_000, work_per_minute=40), clock=lambda: now[0])
    image = striped_file()
    service.encode(image, visitor="a")
    service.ask(image, ["red"] * 7, visitor="a")
    with pytest.raises(UserError, match="more than 10,000 pixels"):
        service.ask(striped_file(1, 101, 100), ["red"], visitor="a")
    service.ask(image, ["red"], visitor="b")
    service.ask(image, ["red", "blue"], visitor="a")
    for ask in (lambda: service.encode(striped_file(2), visitor="a"), lambda: service.ask(image, ["a"], visitor="a")):
        with pytest.raises(Refused, match="too much work in a minute"):
            ask()
    assert not service.encode(striped_file(2)).was_known  # it was refused before it was encoded
