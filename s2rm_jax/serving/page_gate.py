"""Store uploads under names that cannot be guessed, and pass only requests to Gradio that the page needs.

Gradio has many more routes than the page uses: it fetches addresses for visitors, converts videos and saves links. It
also looks for files in every value of every event, including text. How it treats a path depends on the way it was
started and on its version. Therefore routes and paths are checked before a request reaches Gradio.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import stat
import threading
from collections import deque
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from s2rm_jax.serving.api import MAX_TEXT_BYTES
from s2rm_jax.serving.limits import RequestError, Visitors
from s2rm_jax.serving.observe import Message, Receive, Send, visitor_of

_QUEUE = "/gradio_api/queue/"
_ALLOWED_ROUTES = re.compile(
    r"/?|/(config|theme\.css|favicon\.ico|manifest\.json)|/(assets|static)/.+"
    r"|/gradio_api/(info|startup-events|queue/join|queue/data|cancel|reset|heartbeat/[^/]+)"
)


class Uploads:
    """A folder of uploaded images. Anyone who knows the path of a file can read it; only its uploader gets the path.

    Args:
        folder: a folder that belongs to this process alone; it may also hold the example images.
        max_files: the number of uploads to keep; beyond it the oldest are removed, which bounds the use of the disk.
    """

    def __init__(self, folder: Path, max_files: int = 100):
        self.folder = folder.resolve()
        self._max_files = max_files
        self._added: deque[Path] = deque()  # oldest first
        self._lock = threading.Lock()

    def add(self, content: bytes) -> Path:
        """Write an uploaded file and return its path."""
        path = self.folder / secrets.token_hex(16)
        with path.open("xb") as file:
            file.write(content)
        with self._lock:
            self._added.append(path)
            oldest = self._added.popleft() if len(self._added) > self._max_files else None
        if oldest is not None:
            oldest.unlink(missing_ok=True)
        return path

    def contains(self, path: str) -> bool:
        """Return whether a path, with symbolic links resolved, is inside the folder; the file need not exist."""
        return self._resolved(path) is not None

    def read(self, path: str, limit: int) -> bytes:
        """Return the first `limit` bytes of a file in the folder.

        Raises:
            RequestError: the file does not exist or is outside the folder.
        """
        real = self._resolved(path)
        try:
            if real is not None and stat.S_ISREG((expected := real.lstat()).st_mode):
                with real.open("rb") as file:
                    # The files differ if a link has replaced the file since its path was resolved.
                    if os.path.samestat(os.fstat(file.fileno()), expected):
                        return file.read(limit)
        except OSError:
            pass  # the file does not exist, or was removed meanwhile
        raise RequestError("image not found on this server; upload it again", HTTPStatus.NOT_FOUND)

    def _resolved(self, path: str) -> Path | None:
        try:
            real = Path(os.path.realpath(path))
        except (OSError, ValueError):  # the path is too long or has a null byte
            return None
        return real if real.is_relative_to(self.folder) and real != self.folder else None


class PageGate:
    """An ASGI application that filters the requests to Gradio's application; it is mounted in another application.

    Events count as requests of their visitor. Each file in an event must be in `uploads`.
    """

    def __init__(self, gradio: Any, uploads: Uploads, visitors: Visitors):
        self.gradio = gradio
        self._uploads, self._visitors = uploads, visitors

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Reject a request or pass it to Gradio."""
        if scope["type"] == "http":
            try:
                receive = await self._check(Request(scope, receive))
            except RequestError as error:
                answer = JSONResponse({"error": str(error)}, error.status, error.headers)
                await answer(scope, receive, send)
                return
            except ClientDisconnect:
                await Response(status_code=499)(scope, receive, send)  # for the access log
                return
        await self.gradio(scope, receive, send)

    async def _check(self, request: Request) -> Receive:
        """Check a request and return the function by which Gradio receives it; an event has exactly the checked body.

        Raises:
            RequestError: the page does not use this route, the visitor has sent too many requests, or the event
                refers to a file that is not an upload.
        """
        mount = request.scope["root_path"]
        route = request.scope["path"].removeprefix(mount)
        if not _ALLOWED_ROUTES.fullmatch(route):
            raise RequestError(f"address not found; open {mount}", HTTPStatus.NOT_FOUND)
        if route.startswith(_QUEUE):
            self._visitors.count(visitor_of(request))
        if request.method != "POST":
            return request.receive
        body = await request.body()
        if len(body) > MAX_TEXT_BYTES:
            raise RequestError(
                f"request body: more than {MAX_TEXT_BYTES:,} bytes; shorten the text",
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            )
        try:
            content = json.loads(body)
            paths = list(_paths(content))
        except (ValueError, RecursionError) as error:
            raise RequestError(
                "request body: invalid JSON; reload the page", HTTPStatus.UNPROCESSABLE_ENTITY
            ) from error
        if not all(isinstance(path, str) and self._uploads.contains(path) for path in paths):
            raise RequestError("paths and addresses of images are not accepted; upload the image", HTTPStatus.FORBIDDEN)
        messages = iter([{"type": "http.request", "body": json.dumps(content).encode(), "more_body": False}])

        async def receive() -> Message:
            return next(messages, None) or await request.receive()

        return receive


def _paths(value: Any) -> Iterator[Any]:
    """Yield the value of every key `path` in a JSON value; Gradio identifies files by this key."""
    if isinstance(value, dict):
        if "path" in value:
            yield value["path"]
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _paths(item)
