"""One application with the web page and the HTTP API: / redirects to the page, /segment is the API."""

from __future__ import annotations

import asyncio
import math
import os
import socket
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

# Must be set before Gradio is imported: it would send usage reports and check for updates.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

import gradio as gr
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import RedirectResponse, Response
from starlette.concurrency import run_in_threadpool
from starlette.routing import Mount
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from s2rm_jax.serving.api import build_api, uploaded_file
from s2rm_jax.serving.limits import check_bytes
from s2rm_jax.serving.observe import Message, Observer, Receive, Send, visitor_at, visitor_of
from s2rm_jax.serving.page import Case, build_page
from s2rm_jax.serving.page_gate import PageGate, Uploads
from s2rm_jax.serving.service import Service
from s2rm_jax.serving.viewer import SCRIPT, STYLE

PAGE = "/demo"
_ROUTES = (PAGE, "/segment", "/healthz", "/readyz", "/metrics", "/openapi.json")
# The longest time from the first byte to the last of the head and of the body of a request, and for the client to
# read what was sent, in seconds. Connections of clients that take longer are closed, since their number is limited.
_SECONDS_OF = {"head": 10, "body": 120, "answer": 300}
_MEDIA_TYPES = {".jpg": "image/jpeg", ".png": "image/png"}  # of the example images


def build_app(
    service: Service,
    folder: Path,
    cases: Sequence[Case] = (),
    name: str = "",
    *,
    root_path: str = "",
    access_log: Callable[[str], object] | None = None,
) -> FastAPI:
    """Return the application; the limits of a visitor apply to the page and the API together.

    Args:
        service: segments the images.
        folder: holds the uploads and the images of `cases`. It must belong to this process alone, because the page
            serves any file in it to anyone who knows its path. A process can have only one such application.
        cases: the examples on the page.
        name: the name of the network that the page displays.
        root_path: where a proxy has the application, such as "/s2rm". The proxy may remove it from the paths of
            requests or not.
        access_log: is called with a line for each request, which is a JSON object.
    """
    uploads = Uploads(folder)
    # Gradio reads files from this folder and copies others to it; its default is shared by all users of a machine.
    os.environ["GRADIO_TEMP_DIR"] = str(uploads.folder)
    page = build_page(service, cases, uploads, name)
    app = build_api(service)

    @app.get("/", include_in_schema=False)
    def index() -> RedirectResponse:
        return RedirectResponse(f"{root_path}{PAGE}/")

    _replace_gradio_routes(app, page, service, uploads)
    _mount_page(app, page, service, uploads, root_path)
    app.state.service = service
    app.add_middleware(Observer, metrics=service.metrics, routes=_ROUTES, log=access_log)
    if root_path:
        app.add_middleware(RootPath, root_path=root_path)
    return app


def _replace_gradio_routes(app: FastAPI, page: gr.Blocks, service: Service, uploads: Uploads) -> None:
    """Replace routes of Gradio. The page must be mounted afterwards, since the first route that fits is taken."""

    @app.post(f"{PAGE}/gradio_api/upload", include_in_schema=False)
    async def upload(request: Request) -> list[str]:
        """Replace Gradio's upload route, which derives the path from the content and does not limit visitors."""
        service.visitors.count(visitor_of(request))
        async with request.form(max_files=1, max_fields=0) as form:
            content = await uploaded_file(form, "files").read()
        check_bytes(len(content), service.limits)
        path = str(await run_in_threadpool(uploads.add, content))
        page.upload_file_set.add(path)  # Gradio removes old files of this set
        return [path]

    @app.get(f"{PAGE}/gradio_api/upload_progress", include_in_schema=False)
    def upload_progress() -> Response:
        """Replace Gradio's stream of the upload's progress by one that ends at once."""
        return Response('data: {"msg": "done"}\n\n', media_type="text/event-stream")

    @app.get(f"{PAGE}/gradio_api/file={{path:path}}", include_in_schema=False)
    def file(path: str) -> Response:
        """Replace Gradio's file route, which also serves other folders and fetches files from other servers."""
        headers = {"X-Content-Type-Options": "nosniff"}
        media_type = _MEDIA_TYPES.get(Path(path).suffix, "application/octet-stream")
        return Response(uploads.read(path, service.limits.bytes), media_type=media_type, headers=headers)


def _mount_page(app: FastAPI, page: gr.Blocks, service: Service, uploads: Uploads, root_path: str) -> None:
    # System fonts, because the fonts of Gradio's themes are loaded from other servers.
    fonts: dict[str, Any] = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
    gr.mount_gradio_app(
        app,
        page,
        PAGE,
        theme=gr.themes.Default(primary_hue="orange", **fonts),
        css=STYLE,
        head=SCRIPT,
        max_file_size=service.limits.bytes,
        run_history=False,
        ssr_mode=False,
        footer_links=[],
        show_error=False,
        root_path=f"{root_path}{PAGE}" if root_path else None,
    )
    mounted = app.routes[-1]
    assert isinstance(mounted, Mount)
    gradio: Any = mounted.app
    mounted.app = PageGate(gradio, uploads, service.visitors)
    app.state.closing = gradio.stop_event


class RootPath:
    """ASGI middleware that puts `root_path` before the path of a request, unless the proxy has left it there."""

    def __init__(self, app: Any, root_path: str):
        self._app, self._root_path = app, root_path

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Pass a request on as ASGI wants it: its path begins with the root path."""
        if scope["type"] == "http":
            path = scope["path"]
            if not f"{path}/".startswith(f"{self._root_path}/"):
                path = self._root_path + path
            scope = {**scope, "root_path": self._root_path, "path": path}
        await self._app(scope, receive, send)


def build_server(app: FastAPI) -> uvicorn.Server:
    """Return the server of an application; its `run(sockets=[...])` serves until the process is interrupted."""
    limits = app.state.service.limits
    config = uvicorn.Config(
        app,
        http=partial(_Connection, limits.connections_per_visitor),  # type: ignore[arg-type]
        log_level="warning",
        limit_concurrency=limits.connections,
        ws="none",  # the page needs none, and they would not be counted as connections
        proxy_headers=False,  # a client could set these headers to get around the limits of a visitor
        timeout_graceful_shutdown=math.ceil(limits.seconds),
    )
    return _Server(config, app.state.closing)


class _Connection(AutoHTTPProtocol):  # type: ignore[valid-type, misc]
    """A connection that is closed at once if its visitor has `most` others."""

    def __init__(self, most: int, *arguments: Any, **named: Any):
        super().__init__(*arguments, **named)
        self._most = most

    def connection_made(self, transport: Any) -> None:
        """Close the connection, or accept it."""
        super().connection_made(transport)
        self._visitor = visitor_at(self.client[0] if self.client else "")
        if sum(each._visitor == self._visitor for each in self.connections) > self._most:
            self.connections.discard(self)  # so that it takes no place from others until it is closed
            transport.abort()


class _Server(uvicorn.Server):
    """A server that closes the connections of slow clients, and ends the streams of open pages at shutdown.

    uvicorn would wait for both without limit.
    """

    def __init__(self, config: uvicorn.Config, closing: asyncio.Event):
        super().__init__(config)
        self._closing = closing
        self._phases: dict[Any, tuple[tuple[str, object], float]] = {}  # by connection; and when it began

    async def on_tick(self, counter: int) -> bool:
        """Close the connections of slow clients once a second."""
        if counter % 10 == 0:
            self._close_slow(time.monotonic())
        return await super().on_tick(counter)

    def _close_slow(self, now: float) -> None:
        before, self._phases = self._phases, {}
        connections: list[Any] = list(self.server_state.connections)
        for connection in connections:
            phase = _phase(connection)
            then, since = before.get(connection, (phase, now))
            self._phases[connection] = phase, since if phase == then else now
            if now - since > _SECONDS_OF.get(phase[0], math.inf) and phase == then:
                connection.transport.abort()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End the streams, finish the open requests and stop."""
        self._closing.set()
        await super().shutdown(sockets)


def _phase(connection: Any) -> tuple[str, object]:
    """Return what a connection is waiting for, and an object that is another for each request."""
    cycle = connection.cycle
    if connection.transport.get_write_buffer_size():
        return "answer", cycle
    if cycle is None or cycle.response_complete:
        return "head", cycle
    return "body" if cycle.more_body else "work", cycle
