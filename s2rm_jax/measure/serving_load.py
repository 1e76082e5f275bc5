"""The service under load: requests per second, latencies and errors with 1, 8, 32 and 64 clients.

Each client sends a request, waits for the answer and sends the next. Every answer is compared with that to the same
request sent alone: an answer that was lost, cut off or meant for another request is counted as an error.
"""

from __future__ import annotations

import asyncio
import io
import json
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http import HTTPStatus
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

import numpy as np

from s2rm_jax.errors import UserError

if TYPE_CHECKING:
    from s2rm_jax.measure.harness import Cells, Section, Subject

CLIENTS = (1, 8, 32, 64)
_SECONDS = 4.0  # of a round with one number of clients
_SIZE = (320, 240)  # width and height of the images
_IMAGES = 48  # more than the service caches, so every request encodes its image
_EXPRESSIONS = 2  # per request
_MOST_EXPRESSIONS = 16  # that the demo takes in a request
_BOUNDARY = "boundary-of-s2rm"
# The program of joined requests differs from that of single ones, and its rounding may flip a pixel on an outline.
_MOST_DIFFERENT = 0.001  # share of the pixels


class Request(NamedTuple):
    """One request: its bytes, and the expressions that the answer must have."""

    content: bytes
    expressions: tuple[str, ...]


class Load(NamedTuple):
    """What some clients saw: the seconds of each answered request, the errors, and the duration of all."""

    latencies: tuple[float, ...]
    errors: tuple[str, ...]
    seconds: float

    @property
    def per_second(self) -> float:
        """Correctly answered requests per second."""
        return len(self.latencies) / self.seconds

    def percentile(self, percent: float) -> float:
        """Return a percentile of the latencies, in seconds."""
        return float(np.percentile(self.latencies, percent)) if self.latencies else float("nan")


def make_requests(host: str, repeated: int = 1) -> list[Request]:
    """Return different requests for POST /segment as forms: generated scenes as JPEG, each with its expressions."""
    from PIL import Image

    from s2rm_jax import default_network
    from s2rm_jax.input.sources import build_source
    from s2rm_jax.training.run import load_config

    source = build_source(load_config(default_network.FOLDER).input.source, "test")
    found = []
    for number in range(_IMAGES):
        example = source[number]
        file = io.BytesIO()
        Image.fromarray(np.asarray(example.image)).resize(_SIZE).save(file, "JPEG", quality=90)
        expressions = tuple(expression.text for expression in example.expressions)[:_EXPRESSIONS] * repeated
        found.append(Request(_form(host, file.getvalue(), expressions), expressions))
    return found


def _form(host: str, image: bytes, expressions: Sequence[str]) -> bytes:
    disposition = f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="%s"'
    file = f'{disposition % "image"}; filename="a.jpg"\r\nContent-Type: image/jpeg\r\n\r\n'
    text = "".join(f"\r\n{disposition % 'expressions'}\r\n\r\n{expression}" for expression in expressions)
    body = file.encode() + image + f"{text}\r\n--{_BOUNDARY}--\r\n".encode()
    head = (
        f"POST /segment HTTP/1.1\r\nHost: {host}\r\nContent-Type: multipart/form-data; boundary={_BOUNDARY}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


class Client:
    """A connection that is kept open. It is minimal, because it shares the processors with the server."""

    def __init__(self, address: str):
        parts = urlsplit(address)
        self._host, self._port = parts.hostname, parts.port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def send(self, request: bytes) -> tuple[int, bytes]:
        """Send a request and return the status and the body of the answer."""
        if self._streams is None:
            self._streams = await asyncio.open_connection(self._host, self._port)
        reader, writer = self._streams
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"\r\ncontent-length: *(\d+)", head, re.IGNORECASE)
        assert length is not None, head
        return int(head.split(None, 2)[1]), await reader.readexactly(int(length[1]))

    def close(self) -> None:
        """Close the connection; the next request opens another."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


async def reference(address: str, requests: Sequence[Request]) -> list[Any]:
    """Return the results of requests that are sent one after another."""
    client = Client(address)
    answers = [await client.send(request.content) for request in requests]
    client.close()
    wrong = [body.decode() for status, body in answers if status != 200]
    if wrong:
        raise UserError(f"{address} cannot be measured: {wrong[0]}")
    return [json.loads(body)["results"] for _, body in answers]


async def load(
    address: str, requests: Sequence[Request], expected: Sequence[Any], clients: int, seconds: float
) -> Load:
    """Let a number of clients send requests for some seconds, each the next as soon as it has an answer."""
    latencies: list[float] = []
    errors: list[str] = []
    numbers = iter(range(10**9))
    start = time.perf_counter()

    async def work() -> None:
        client = Client(address)
        while time.perf_counter() - start < seconds:
            number = next(numbers) % len(requests)
            sent = time.perf_counter()
            try:
                status, body = await client.send(requests[number].content)
            except (OSError, EOFError) as error:
                errors.append(f"lost: {type(error).__name__}")
                client.close()
                continue
            latency = time.perf_counter() - sent
            problem = f"status {status}" if status != 200 else _difference(body, requests[number], expected[number])
            if problem:
                errors.append(problem)
            else:
                latencies.append(latency)
        client.close()

    await asyncio.gather(*(work() for _ in range(clients)))
    return Load(tuple(latencies), tuple(errors), time.perf_counter() - start)


def _difference(body: bytes, request: Request, expected: Any) -> str:
    """Return what is wrong with an answer, or nothing."""
    from s2rm_jax.input.masks import rasterize

    results = json.loads(body)["results"]
    if tuple(result["expression"] for result in results) != request.expressions:
        return "other expressions"
    for result, alone in zip(results, expected, strict=True):
        if result["rle"] == alone["rle"]:
            continue
        if result["rle"]["size"] != alone["rle"]["size"]:
            return "a mask of another size"
        width, height = _SIZE
        masks = (rasterize(each["rle"], height, width) for each in (result, alone))
        if np.mean(np.logical_xor(*masks)) > _MOST_DIFFERENT:
            return "another mask"
    return ""


def serving(subject: Subject, rounds: int) -> list[Section]:
    """Measure the demo with the bundled network, whatever the subject, in a process of its own."""
    from s2rm_jax.measure.harness import Section

    del subject
    loads: dict[int, list[Load]] = {count: [] for count in CLIENTS}
    with _demo() as address:
        host = urlsplit(address).netloc
        # The warm-up ends with the program of the most expressions. A request that needs it waits for the end.
        asyncio.run(reference(address, make_requests(host, _MOST_EXPRESSIONS // _EXPRESSIONS)[:1]))
        requests = make_requests(host)
        expected = asyncio.run(reference(address, requests))
        for _ in range(rounds):
            for count, found in loads.items():
                found.append(asyncio.run(load(address, requests, expected, count, _SECONDS)))
        figures = _scrape(address)
    rows: list[Cells] = [
        [
            count,
            median(each.per_second for each in found),
            median(each.percentile(50.0) for each in found),
            median(each.percentile(99.0) for each in found),
            sum(len(each.errors) for each in found),
        ]
        for count, found in loads.items()
    ]
    answered, batches = figures["s2rm_batch_requests_sum"], figures["s2rm_batch_requests_count"]
    text = (
        f"The demo with the bundled network, {_IMAGES} different images of {_SIZE[0]} x {_SIZE[1]} as JPEG, "
        f"{_EXPRESSIONS} expressions each, {rounds} rounds of {_SECONDS:g} s per row. Clients and server share this "
        "machine. Every answer is compared with that to the same request sent alone. Images and expressions that "
        "occurred before are not encoded again. On average a call joined "
        f"{answered / batches:.1f} requests, and a request took "
        f"{1000 * figures['process_cpu_seconds_total'] / answered:.1f} ms of the processors, compilation included."
    )
    head = ["clients", "requests per second", "p50, seconds", "p99, seconds", "errors"]
    by_count = {f"requests/s, {row[0]} clients": float(row[1]) for row in rows}
    return [Section("The service under load", text, head, rows, by_count)]


@contextmanager
def _demo() -> Iterator[str]:
    """Serve the bundled network with high limits; yield the address when the server is ready."""
    high = ("--per_minute=1000000000", "--work_per_minute=1000000000", "--max_seconds=3600")
    command = [sys.executable, "-m", "s2rm_jax.demo", "--port=0", *high]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            address = next((line.split()[1] for line in server.stdout if line.startswith("open ")), None)
            if address is None:
                raise UserError("--suite=serving: the demo has not started; see its error above")
            while not _is_ready(address):
                if server.poll() is not None:
                    raise UserError("--suite=serving: the demo has ended; see its error above")
                time.sleep(0.5)
            yield address
        finally:
            server.terminate()


def _is_ready(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/readyz", timeout=60) as answer:
            return answer.status == HTTPStatus.OK
    except OSError:  # status 503, or no connection
        return False


def _scrape(address: str) -> dict[str, float]:
    """Return the metrics of a server that have no labels."""
    with urllib.request.urlopen(f"{address}/metrics") as answer:
        lines = (line.split() for line in answer.read().decode().splitlines() if not line.startswith("#"))
    return {name: float(value) for name, value in lines if "{" not in name}
