"""Page and HTTP interface in one application: / leads to the page, /segment answers programs."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Before Gradio is imported: it would report its use and look for newer versions of itself.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

import gradio as gr
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import RedirectResponse, Response
from starlette.concurrency import run_in_threadpool
from starlette.routing import Mount

from s2rm_jax.serving.api import build_api, uploaded, visitor_of
from s2rm_jax.serving.limits import check_bytes
from s2rm_jax.serving.page import Case, build_page
from s2rm_jax.serving.page_gate import PageGate
from s2rm_jax.serving.service import Service
from s2rm_jax.serving.uploads import Uploads
from s2rm_jax.serving.viewer import SCRIPT, STYLE

PAGE = "/demo"
# Beyond, a connection is answered by 503 at once, so that no more bodies than these are ever held.
_MOST_CONNECTIONS = 200
_LAST_ANSWERS = 10  # seconds, to finish them when the server ends
_SHOWN_AS = {".jpg": "image/jpeg", ".png": "image/png"}  # the images of the examples


def build_app(service: Service, folder: Path, cases: Sequence[Case] = (), name: str = "") -> FastAPI:
    """Returns the application; page and interface share the limits of a visitor.

    Args:
        service: answers the requests.
        folder: holds what visitors upload. It must belong to this process alone, as the page gives out any file in it
            to who knows its path; only one application of a process can have one. The images of the cases lie there.
        cases: the examples of the page.
        name: which network answers.
    """
    uploads = Uploads(folder)
    # Where Gradio looks for files, and where it would copy others to; its default is shared by all users of a machine.
    os.environ["GRADIO_TEMP_DIR"] = str(uploads.folder)
    page = build_page(service, cases, uploads, name)
    app = build_api(service)

    @app.get("/", include_in_schema=False)
    def front() -> RedirectResponse:
        return RedirectResponse(PAGE)

    @app.post(f"{PAGE}/gradio_api/upload", include_in_schema=False)
    async def upload(request: Request) -> list[str]:
        """Takes the place of Gradio's upload, which derives the path from the content and counts no visitors."""
        service.visitors.count(visitor_of(request))
        async with request.form(max_files=1, max_fields=0) as form:
            content = await uploaded(form, "files").read()
        check_bytes(len(content), service.limits)
        path = str(await run_in_threadpool(uploads.add, content))
        page.upload_file_set.add(path)  # which Gradio removes when they are old
        return [path]

    @app.get(f"{PAGE}/gradio_api/upload_progress", include_in_schema=False)
    def upload_progress() -> Response:
        """Ends at once the stream by which the page would show how much has arrived."""
        return Response('data: {"msg": "done"}\n\n', media_type="text/event-stream")

    @app.get(f"{PAGE}/gradio_api/file={{path:path}}", include_in_schema=False)
    def file(path: str) -> Response:
        """Takes the place of Gradio's files, which lie in more folders and may be fetched from other servers."""
        headers = {"X-Content-Type-Options": "nosniff"}
        media_type = _SHOWN_AS.get(Path(path).suffix, "application/octet-stream")
        return Response(uploads.read(path, service.limits.bytes), media_type=media_type, headers=headers)

    # Fonts of the system, as those of Gradio's themes are loaded from elsewhere.
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
    """Returns the server of an application; `run(sockets=[...])` serves until it is ended."""
    config = uvicorn.Config(
        app,
        log_level="warning",
        limit_concurrency=_MOST_CONNECTIONS,
        proxy_headers=False,  # any client can write those, and would be another visitor with each
        timeout_graceful_shutdown=_LAST_ANSWERS,
    )
    return _Server(config, app.state.closing)


class _Server(uvicorn.Server):
    """Sets an event when it begins to end, which ends the streams that open pages hold; it would wait for those."""

    def __init__(self, config: uvicorn.Config, closing: asyncio.Event):
        super().__init__(config)
        self._closing = closing

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Ends streams, finishes answers, ends."""
        self._closing.set()
        await super().shutdown(sockets)
