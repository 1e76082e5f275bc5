"""A visitor of the page without a browser: sends what the script of the page sends."""

from __future__ import annotations

import json
from functools import cached_property
from typing import Any

import httpx


class Visitor:
    """Uploads files and sends events. One may be used by many threads; each session has its own answers."""

    def __init__(self, address: str):
        self.http = httpx.Client(base_url=address, timeout=60)

    @cached_property
    def config(self) -> dict[str, Any]:
        """What the page is made of."""
        return self.http.get("/demo/config").json()

    @property
    def events(self) -> list[dict[str, Any]]:
        """The events that the server answers."""
        return [event for event in self.config["dependencies"] if event["backend_fn"]]

    @property
    def find(self) -> dict[str, Any]:
        """The event of the button "Find", with an image and text."""
        return next(event for event in self.events if self.kinds(event) == ["file", "textbox"])

    def kinds(self, event: dict[str, Any]) -> list[str]:
        """The kind of component of each input of an event."""
        kind = {component["id"]: component["type"] for component in self.config["components"]}
        return [kind[identity] for identity in event["inputs"]]

    def upload(self, content: bytes, name: str = "a.png") -> str:
        """Returns the path by which the uploaded file is known."""
        answer = self.http.post("/demo/gradio_api/upload", files={"files": (name, content)})
        answer.raise_for_status()
        return answer.json()[0]

    def send(
        self, event: dict[str, Any], data: list[Any], event_data: Any = None, session: str = "a", page: str = "/demo"
    ) -> dict[str, Any]:
        """Returns the answer to an event, or the refusal to take it."""
        sent = {"fn_index": event["id"], "session_hash": session, "data": data, "event_data": event_data}
        taken = self.http.post(f"{page}/gradio_api/queue/join", json=sent)
        if taken.status_code != 200:
            return {"success": False, "status": taken.status_code, **taken.json()}
        with self.http.stream("GET", f"{page}/gradio_api/queue/data", params={"session_hash": session}) as answer:
            for line in answer.iter_lines():
                message = json.loads(line.removeprefix("data:")) if line.startswith("data:") else {}
                if message.get("msg") == "process_completed":
                    return message
        raise AssertionError("no answer")


def as_file(path: str, **more: Any) -> dict[str, Any]:
    """A path as the page sends it."""
    return {"path": path, "meta": {"_type": "gradio.FileData"}, **more}
