"""Lets through to Gradio only what the page needs of it, and only paths of uploaded files.

Gradio has many more routes than a page uses (it fetches addresses for visitors, converts videos, saves links), and
looks for files in every value of every event, text among them. What it does with a path depends on how it was started
and changes with its versions, so that paths are checked before it sees them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse

from s2rm_jax.serving.api import ROOM_FOR_TEXT, Message, Receive, Send, visitor_of
from s2rm_jax.serving.limits import Refused, Visitors
from s2rm_jax.serving.uploads import Uploads

_QUEUE = "/gradio_api/queue/"
_NEEDED = re.compile(
    r"/?|/(config|theme\.css|favicon\.ico|manifest\.json)|/(assets|static)/.+"
    r"|/gradio_api/(info|startup-events|queue/join|queue/data|cancel|reset|heartbeat/[^/]+)"
)


class PageGate:
    """An ASGI application in front of Gradio's, which is mounted at `path`.

    Events count as requests of their visitor. Each file that an event names must be one of the `uploads`.
    """

    def __init__(self, gradio: Any, path: str, uploads: Uploads, visitors: Visitors):
        self.gradio = gradio
        self._path, self._uploads, self._visitors = path, uploads, visitors

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Refuse a request or let Gradio answer it."""
        if scope["type"] == "http":
            try:
                receive = await self._checked(Request(scope, receive))
            except Refused as error:
                answer = JSONResponse({"error": str(error)}, error.status, error.headers)
                await answer(scope, receive, send)
                return
        await self.gradio(scope, receive, send)

    async def _checked(self, request: Request) -> Receive:
        """Return what Gradio may receive: of an event, exactly the body that was checked.

        Raises:
            Refused: the page does not need this, or a visitor has asked too often or named another file.
        """
        path = request.url.path.removeprefix(self._path)
        if not _NEEDED.fullmatch(path):
            raise Refused("there is nothing at this address", HTTPStatus.NOT_FOUND)
        if path.startswith(_QUEUE):
            self._visitors.count(visitor_of(request))
        if request.method != "POST":
            return request.receive
        body = await request.body()
        if len(body) > ROOM_FOR_TEXT:
            raise Refused(f"more than {ROOM_FOR_TEXT:,} bytes; use fewer words", HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        try:
            content = json.loads(body)
            named = list(_paths(content))
        except (ValueError, RecursionError) as error:
            raise Refused("the request is not JSON; load the page again", HTTPStatus.UNPROCESSABLE_ENTITY) from error
        if not all(isinstance(name, str) and self._uploads.holds(name) for name in named):
            raise Refused("send the image itself, not a path or an address", HTTPStatus.FORBIDDEN)
        messages = iter([{"type": "http.request", "body": json.dumps(content).encode(), "more_body": False}])

        async def receive() -> Message:
            return next(messages, None) or await request.receive()

        return receive


def _paths(value: Any) -> Iterator[Any]:
    """Yield what any object in a JSON value has under the key `path`, by which Gradio knows files."""
    if isinstance(value, dict):
        if "path" in value:
            yield value["path"]
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _paths(item)
