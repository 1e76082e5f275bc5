"""A client of the page that sends the same requests as the script of the page in a browser."""

from __future__ import annotations

import json
from functools import cached_property
from typing import Any

import httpx


class Visitor:
    """Uploads files and sends events. Threads can share a visitor; each session has its own results."""

    def __init__(self, address: str):
        self.http = httpx.Client(base_url=address, timeout=60)

    @cached_property
    def config(self) -> dict[str, Any]:
        """The configuration of the page: its components and events."""
        return self.http.get("/demo/config").json()

    @property
    def events(self) -> list[dict[str, Any]]:
        """The events that are processed by the server."""
        return [event for event in self.config["dependencies"] if event["backend_fn"]]

    @property
    def find(self) -> dict[str, Any]:
        """The event of the button "Find", with an image and text."""
        return next(event for event in self.events if self.kinds(event) == ["file", "textbox"])

    def kinds(self, event: dict[str, Any]) -> list[str]:
        """Return the component type of each input of an event."""
        kind = {component["id"]: component["type"] for component in self.config["components"]}
        return [kind[identity] for identity in event["inputs"]]

    def upload(self, content: bytes, name: str = "a.png") -> str:
        """Upload a file and return its path on the server."""
        answer = self.http.post("/demo/gradio_api/upload", files={"files": (name, content)})
        answer.raise_for_status()
        return answer.json()[0]

    def send(
        self, event: dict[str, Any], data: list[Any], event_data: Any = None, session: str = "a", page: str = "/demo"
    ) -> dict[str, Any]:
        """Send an event and return its result, or the error if the server rejects it."""
        sent = {"fn_index": event["id"], "session_hash": session, "data": data, "event_data": event_data}
        response = self.http.post(f"{page}/gradio_api/queue/join", json=sent)
        if response.status_code != 200:
            return {"success": False, "status": response.status_code, **response.json()}
        with self.http.stream("GET", f"{page}/gradio_api/queue/data", params={"session_hash": session}) as stream:
            for line in stream.iter_lines():
                message = json.loads(line.removeprefix("data:")) if line.startswith("data:") else {}
                if message.get("msg") == "process_completed":
                    return message
        raise AssertionError("the stream ended without a result")


def as_file(path: str, **more: Any) -> dict[str, Any]:
    """Return the JSON by which the page refers to a file."""
    return {"path": path, "meta": {"_type": "gradio.FileData"}, **more}
