"""The load generator: what it counts as an error, and a measurement of the stand-in."""

import asyncio
import contextlib
import json

import numpy as np
import pytest

from s2rm_jax.errors import UserError
from s2rm_jax.input.masks import encode_rle
from s2rm_jax.measure import serving_load


@pytest.fixture
def short(monkeypatch):
    for name, value in {"_IMAGES": 3, "_SECONDS": 0.3, "CLIENTS": (1, 4)}.items():
        monkeypatch.setattr(serving_load, name, value)


def test_the_suite_measures_a_server(server, short, monkeypatch):
    monkeypatch.setattr(serving_load, "_demo", lambda: contextlib.nullcontext(server.address))
    (section,) = serving_load.serving(None, rounds=2)
    assert [row[0] for row in section.rows] == [1, 4]
    for _, per_second, middle, slow, errors in section.rows:
        assert per_second > 0 and 0 < middle <= slow and errors == 0
    assert "3 different images of 320 x 240" in section.text


def answer(masks, expressions=("a", "b")):
    return [{"expression": e, "rle": encode_rle(mask)} for e, mask in zip(expressions, masks, strict=True)]


def test_answers_that_are_not_those_to_the_request_are_errors():
    request = serving_load.Request(b"", ("a", "b"))
    masks = np.zeros((2, 240, 320), bool)
    masks[:, 50:100, 50:100] = True
    nearly, other = masks.copy(), masks.copy()
    nearly[1, 100, 50:100] = True  # 50 of 76,800 pixels
    other[1, 100:102, 50:100] = True  # 100 of them
    smaller = masks[:, :239]
    cases = {"": masks, "another mask": other, "a mask of another size": smaller}
    for problem, found in [*cases.items(), ("", nearly)]:
        body = json.dumps({"results": answer(found)}).encode()
        assert serving_load._difference(body, request, answer(masks)) == problem
    for expressions in ("ba", "ac"):
        body = json.dumps({"results": answer(masks, expressions)}).encode()
        assert serving_load._difference(body, request, answer(masks)) == "other expressions"


@pytest.fixture
def answering():
    """A function that measures a server whose answer to every request is given."""

    def measure(reply):
        async def run():
            async def serve(reader, writer):
                with contextlib.suppress(asyncio.IncompleteReadError):
                    while await reader.readuntil(b"\r\n\r\n") and reply:
                        writer.write(reply)
                writer.close()

            async with await asyncio.start_server(serve, "127.0.0.1", 0) as other:
                address = f"http://127.0.0.1:{other.sockets[0].getsockname()[1]}"
                request = serving_load.Request(b"GET / HTTP/1.1\r\n\r\n", ("a",))
                return await serving_load.load(address, [request], [[]], 2, 0.1)

        return asyncio.run(run())

    return measure


@pytest.mark.parametrize(
    ("reply", "problem"),
    [
        (b"", "lost: IncompleteReadError"),
        (b"HTTP/1.1 429 Too Many Requests\r\nContent-Length: 2\r\n\r\n{}", "status 429"),
        (b'HTTP/1.1 200 OK\r\ncontent-length: 14\r\n\r\n{"results":[]}', "other expressions"),
    ],
)
def test_lost_and_refused_requests_are_errors(answering, reply, problem):
    load = answering(reply)
    assert set(load.errors) == {problem} and load.latencies == ()
    assert load.per_second == 0 and np.isnan(load.percentile(99.0))


def test_a_server_that_refuses_cannot_be_measured(server):
    request = serving_load.Request(b"GET /nowhere HTTP/1.1\r\nHost: a\r\n\r\n", ())
    with pytest.raises(UserError, match=r"cannot be measured: .*Not Found"):
        asyncio.run(serving_load.reference(server.address, [request]))
