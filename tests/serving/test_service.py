"""The service: images known by their bytes, one question at a time, and limits that say what to do."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from s2rm_jax.errors import UserError
from s2rm_jax.serving.limits import Limits, Rate, Refused
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
        (b"not an image", "not an image that can be read"),
        (bytes(60_001), "60,001 bytes, more than 60,000"),
        (striped_file(1, 8, 13), "8 pixels, more than 100"),
        (enormous_image, "more than 100 pixels"),
    ):
        with pytest.raises(UserError, match=says):
            service.encode(content)
    assert service.encode(striped_file()).image.image.shape == (8, 8, 3)


def test_visitors_are_counted_apart_and_may_come_again():
    now = [0.0]
    rate = Rate(3, clock=lambda: now[0])
    for _ in range(3):
        rate("a")
    with pytest.raises(Refused, match="more than 3 requests in a minute") as refused:
        rate("a")
    assert refused.value.status == 429
    rate("b")
    now[0] += 20  # a third of a minute: one of three requests more
    rate("a")
    with pytest.raises(Refused):
        rate("a")
