"""Observe the server: metrics for Prometheus, and an access log of one JSON object per request.

Neither contains what visitors send: no image, no expression, no file name and no path of an upload.
"""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable, Collection, MutableMapping, Sequence
from datetime import UTC, datetime
from ipaddress import IPv4Address, ip_address, ip_network
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

Message = MutableMapping[str, Any]  # of ASGI
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

DETAILS = "s2rm.details"  # the key of a request's scope under which the application says more for the access log
disable_created_metrics()  # the time of creation of every series, which nobody reads

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """The metrics of one service."""

    def __init__(self, waiting: Callable[[], int], joined: Sequence[int]):
        """Take a function that counts the waiting requests, and the numbers of requests that a call can have."""
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        shared: dict[str, Any] = {"namespace": "s2rm", "registry": registry}
        timed: dict[str, Any] = {**shared, "buckets": _SECONDS}
        self.requests = Counter("requests", "Answered requests", ("route", "status"), **shared)
        self.seconds = Histogram("request_seconds", "From the first byte to the answer", ("route",), **timed)
        Gauge("waiting_requests", "Requests in the queue", **shared).set_function(waiting)
        self.queue_seconds = Histogram("queue_seconds", "Time of a request in the queue", **timed)
        self.batch = Histogram("batch_requests", "Requests that were processed together", **shared, buckets=joined)
        self.device_seconds = Counter("device_seconds", "Time of calls of the network", ("call",), **shared)
        self.images = Counter("images", "Images of requests, by whether they were cached", ("cached",), **shared)

    def exposition(self) -> tuple[bytes, str]:
        """Return the metrics in the text format of Prometheus, and its media type."""
        return generate_latest(self.registry), CONTENT_TYPE_LATEST


def visitor_of(request: Any) -> str:
    """Return who sent a Starlette or Gradio request, to whom the limits apply; see `visitor_at`."""
    return visitor_at(request.client.host if request.client else "")


def visitor_at(host: str) -> str:
    """Return the address of a client; for IPv6, the network (64 bits), because a client can use all its addresses."""
    try:
        address = ip_address(host)
    except ValueError:  # not a network connection
        return host
    if isinstance(address, IPv4Address):
        return str(address)
    return str(address.ipv4_mapped or ip_network((int(address), 64), strict=False))


class Observer:
    """ASGI middleware that counts requests and writes the access log.

    Args:
        app: the application.
        metrics: where requests are counted.
        routes: the paths that are named in metrics and log; the first one that is a prefix of the path of a request
            names it, and others are "other", so that no path of an upload appears and the number of names is bounded.
        log: is called with each line of the access log; None if there is none.
    """

    def __init__(self, app: Any, metrics: Metrics, routes: Collection[str], log: Callable[[str], object] | None = None):
        self._app, self._metrics, self._routes, self._log = app, metrics, routes, log

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Pass a request on and observe its answer."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, status, sent = time.perf_counter(), 0, 0
        path = scope["path"].removeprefix(scope["root_path"])  # mounted applications change root_path
        route = next((route for route in self._routes if path.startswith(route)), "other")
        details: dict[str, Any] = {}
        scope[DETAILS] = details

        async def send_observed(message: Message) -> None:
            nonlocal status, sent
            status = message.get("status", status)
            sent += len(message.get("body", b""))
            await send(message)

        try:
            await self._app(scope, receive, send_observed)
        except BaseException:
            status = status or 500
            raise
        finally:
            seconds = time.perf_counter() - start
            self._metrics.requests.labels(route, status).inc()
            self._metrics.seconds.labels(route).observe(seconds)
            if self._log is not None:
                line = {
                    "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
                    "visitor": visitor_at(client[0]) if (client := scope.get("client")) else "",
                    "method": scope["method"],
                    "route": route,
                    "status": status,
                    "seconds": round(seconds, 6),
                    "bytes_sent": sent,
                    **details,
                }
                self._log(json.dumps(line))
