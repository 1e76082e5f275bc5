"""The server over sockets: slow clients, the number of connections, IPv6, and the shutdown."""

import asyncio
import base64
import contextlib
import json
import socket
import sys
import threading
import time
from functools import partial

import pytest

from s2rm_jax.demo import _address, _listen
from s2rm_jax.serving.limits import Limits
from tests import waiting
from tests.serving.standin import WaitingService

pytest.importorskip("gradio", reason="the extra 'demo' is not installed")

wait_for = partial(waiting.wait_for, seconds=20)  # less than the limits that a test does not change


@pytest.fixture
def serve(segmenter):
    """A function that serves the API in a thread and returns the service, the server and its listening socket."""
    from s2rm_jax.serving.api import build_api
    from s2rm_jax.serving.app import build_server

    running = []

    def start(limits=None, host="127.0.0.1"):
        service = WaitingService(segmenter, limits)
        api = build_api(service)
        api.state.service, api.state.closing = service, asyncio.Event()
        server, listening = build_server(api), _listen(host, 0)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        running.append((server, thread))
        return service, server, listening

    yield start
    for server, thread in running:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


def connect(listening):
    connection = socket.create_connection(listening.getsockname()[:2], timeout=10)
    connection.settimeout(10)
    return connection


HEALTH = b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n"


def ask(listening, request=HEALTH):
    """Send a request and return the first line of the answer."""
    with connect(listening) as connection:
        connection.sendall(request)
        return connection.recv(1000).splitlines()[0]


def post(image, expressions=("red",)):
    body = json.dumps({"image": base64.b64encode(image).decode(), "expressions": expressions}).encode()
    head = f"POST /segment HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def drip(connection, start, more=b"a"):
    """Send bytes one by one until the server closes the connection; return the seconds that this took."""
    began = time.monotonic()
    connection.sendall(start)
    try:
        while time.monotonic() < began + 10:
            connection.sendall(more)
            connection.settimeout(0.05)
            try:
                if not connection.recv(100):
                    break
            except TimeoutError:
                continue
    except OSError:
        pass
    return time.monotonic() - began


@pytest.mark.parametrize(
    ("start", "more"),
    [
        (b"", b""),
        (b"GET /healthz HTTP/1.1\r\nX: ", b"a"),
        (b"POST /segment HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n", b" "),
        (HEALTH + b"GET /", b"a"),
    ],
    ids=["nothing is sent", "the head is dripped", "the body is dripped", "the second head is dripped"],
)
def test_a_slow_client_is_disconnected(serve, monkeypatch, start, more):
    from s2rm_jax.serving import app

    monkeypatch.setattr(app, "_SECONDS_OF", {"head": 0.2, "body": 0.2, "answer": 0.2})
    _, _, listening = serve()
    with connect(listening) as slow:
        assert drip(slow, start, more) < 9
    assert ask(listening) == b"HTTP/1.1 200 OK"


def test_a_client_that_does_not_read_is_disconnected(serve, monkeypatch):
    from s2rm_jax.serving import app

    monkeypatch.setattr(app, "_SECONDS_OF", {"head": 60, "body": 60, "answer": 0.2})
    _, server, listening = serve()
    with connect(listening) as slow:
        threading.Thread(target=flood, args=(slow, b"GET /openapi.json HTTP/1.1\r\nHost: a\r\n\r\n")).start()
        wait_for(lambda: server.server_state.connections)
        wait_for(lambda: not server.server_state.connections)


def flood(connection, request):
    """Send a request again and again without reading the answers."""
    try:
        while True:
            connection.sendall(request)
    except OSError:
        pass


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have one address on the loopback")
def test_one_visitor_cannot_hold_all_connections(serve):
    """Connections of one address beyond its limit are closed at once; its others, and other visitors, are served."""
    _, server, listening = serve(Limits(connections=8, connections_per_visitor=4))
    first = [connect(listening) for _ in range(4)]
    for connection in first:
        connection.sendall(HEALTH[:-2])
    wait_for(lambda: len(server.server_state.connections) == 4)
    more = [connect(listening) for _ in range(20)]
    other = socket.create_connection(listening.getsockname()[:2], timeout=10, source_address=("127.0.0.2", 0))
    other.sendall(HEALTH[:-2])
    for connection in (other, *first):
        connection.sendall(HEALTH[-2:])
        assert connection.recv(1000).startswith(b"HTTP/1.1 200 OK")
    for connection in more:
        assert connection.recv(1000) == b""  # closed
    for connection in (other, *first, *more):
        connection.close()


def _has_ipv6() -> bool:
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET6) as probe:
        probe.bind(("::1", 0))
        return True
    return False


@pytest.mark.parametrize(
    ("host", "shown"), [("::1", "[::1]"), ("::", "[::]"), ("0.0.0.0", "0.0.0.0"), ("127.0.0.1", "127.0.0.1")]
)
def test_addresses(serve, host, shown):
    """`::` admits IPv4 too."""
    if ":" in host and not _has_ipv6():
        pytest.skip("this machine has no IPv6")
    _, _, listening = serve(host=host)
    port = listening.getsockname()[1]
    assert _address(listening) == f"http://{shown}:{port}"
    for address in ["::1"] * (":" in host) + ["127.0.0.1"] * (host != "::1"):
        with socket.create_connection((address, port), timeout=10) as connection:
            connection.sendall(HEALTH)
            assert connection.recv(1000).startswith(b"HTTP/1.1 200 OK")


def test_waiting_requests_are_answered_at_the_shutdown(serve, striped_file):
    """The threads of the service are held until the server has begun to shut down."""
    service, server, listening = serve()
    service.segment(striped_file(), ["red"])  # compiled
    leave = threading.Event()
    held = [service.submit(striped_file(), ["red"] * 5, lambda _: leave.wait(10)) for _ in range(2)]
    waiting = [connect(listening) for _ in range(6)]
    for connection in waiting:
        connection.sendall(post(striped_file()))
    wait_for(lambda: len(service._queue) == 6)
    server.should_exit = True
    wait_for(server._closing.is_set)
    with pytest.raises(OSError):
        connect(listening)
    leave.set()
    for connection in waiting:
        assert connection.recv(10_000).startswith(b"HTTP/1.1 200 OK")
        connection.close()
    assert all(future.result(10) for future in held)


def test_a_client_that_leaves_is_not_computed_for(serve, striped_file):
    service, _, listening = serve()
    leave = threading.Event()
    held = [service.submit(striped_file(), ["red"] * 5, lambda _: leave.wait(10)) for _ in range(2)]
    with connect(listening) as connection:
        connection.sendall(post(striped_file()))
        wait_for(lambda: len(service._queue) == 1)
    wait_for(lambda: len(service._queue) == 0)
    leave.set()
    assert all(future.result(10) for future in held)
