"""One application with the web page and the HTTP API: / redirects to the page, /segment is the API."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Sequence
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

from s2rm_jax.serving.api import build_api, uploaded_file, visitor_of
from s2rm_jax.serving.limits import check_bytes
from s2rm_jax.serving.page import Case, build_page
from s2rm_jax.serving.page_gate import PageGate
from s2rm_jax.serving.service import Service
from s2rm_jax.serving.uploads import Uploads
from s2rm_jax.serving.viewer import SCRIPT, STYLE

PAGE = "/demo"
# Further connections get status 503 at once, which bounds the number of request bodies in memory.
_MAX_CONNECTIONS = 200
_SHUTDOWN_SECONDS = 10  # to finish open requests
_MEDIA_TYPES = {".jpg": "image/jpeg", ".png": "image/png"}  # of the example images


def build_app(service: Service, folder: Path, cases: Sequence[Case] = (), name: str = "") -> FastAPI:
    """Return the application; the limits of a visitor apply to the page and the API together.

    Args:
        service: segments the images.
        folder: holds the uploads and the images of `cases`. It must belong to this process alone, because the page
            serves any file in it to anyone who knows its path. A process can have only one such application.
        cases: the examples on the page.
        name: the name of the network that the page displays.
    """
    uploads = Uploads(folder)
    # Gradio reads files from this folder and copies others to it; its default is shared by all users of a machine.
    os.environ["GRADIO_TEMP_DIR"] = str(uploads.folder)
    page = build_page(service, cases, uploads, name)
    app = build_api(service)

    @app.get("/", include_in_schema=False)
    def index() -> RedirectResponse:
        return RedirectResponse(PAGE)

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
    )
    mounted = app.routes[-1]
    assert isinstance(mounted, Mount)
    gradio: Any = mounted.app
    mounted.app = PageGate(gradio, PAGE, uploads, service.visitors)
    app.state.closing = gradio.stop_event
    return app


def build_server(app: FastAPI) -> uvicorn.Server:
    """Return the server of an application; its `run(sockets=[...])` serves until the process is interrupted."""
    config = uvicorn.Config(
        app,
        log_level="warning",
        limit_concurrency=_MAX_CONNECTIONS,
        proxy_headers=False,  # a client could set these headers to get around the limits of a visitor
        timeout_graceful_shutdown=_SHUTDOWN_SECONDS,
    )
    return _Server(config, app.state.closing)


class _Server(uvicorn.Server):
    """A server that sets an event at shutdown, which ends the streams of open pages; uvicorn would wait for them."""

    def __init__(self, config: uvicorn.Config, closing: asyncio.Event):
        super().__init__(config)
        self._closing = closing

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End the streams, finish the open requests and stop."""
        self._closing.set()
        await super().shutdown(sockets)
