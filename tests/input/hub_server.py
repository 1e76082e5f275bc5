"""A stand-in for the part of the Hugging Face Hub from which files of datasets are downloaded, on the loopback."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub.constants
import pytest

COMMITS = {"main": "a" * 40, "v1": "b" * 40}


@contextlib.contextmanager
def serve_hub(folders: dict[str, Path], cache: Path) -> Iterator[list[str]]:
    """Serve {"USER/NAME": folder} as datasets, each with the revisions main and v1; yield the paths of the files sent.

    huggingface_hub uses this server, and `cache`, within the context.
    """
    sent: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, body: bool) -> None:
            path = self.path.split("?")[0]
            match = re.fullmatch(
                r"(?:/api)?/datasets/([^/]+/[^/]+)(?:/(revision|tree|resolve)/([^/]+)(?:/(.+))?)?", path
            )
            folder = folders.get(match[1]) if match else None
            if match is None or folder is None:
                return self._send(404, b"", body, {"X-Error-Code": "RepoNotFound"})
            revision = match[3] or "main"
            commit = COMMITS.get(revision, revision)
            if commit not in COMMITS.values():
                return self._send(404, b"", body, {"X-Error-Code": "RevisionNotFound"})
            if match[2] == "resolve":
                content = (folder / match[4]).read_bytes()
                etag = f'"{hashlib.sha256(content).hexdigest()}"'
                sent.extend([match[4]] if body else [])
                return self._send(200, content, body, {"ETag": etag, "X-Repo-Commit": commit})
            files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
            tree = [
                {"type": "file", "path": str(path.relative_to(folder)), "size": path.stat().st_size, "oid": "c" * 40}
                for path in files
            ]
            answer = tree if match[2] == "tree" else {"id": match[1], "sha": commit, "siblings": []}
            return self._send(200, json.dumps(answer).encode(), body, {"Content-Type": "application/json"})

        def _send(self, status: int, content: bytes, body: bool, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in (headers | {"Content-Length": str(len(content))}).items():
                self.send_header(name, value)
            self.end_headers()
            if body:
                self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        with use_hub(f"http://127.0.0.1:{server.server_port}", cache):
            yield sent
    finally:
        server.shutdown()
        server.server_close()


@contextlib.contextmanager
def use_hub(endpoint: str, cache: Path, *, offline: bool = False) -> Iterator[None]:
    """Let huggingface_hub use another server and cache; it reads these settings when it is imported."""
    with pytest.MonkeyPatch.context() as patch:
        constants = huggingface_hub.constants
        template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        patch.setattr(constants, "ENDPOINT", endpoint)
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        patch.setattr(constants, "HF_HUB_CACHE", str(cache))
        patch.setattr(constants, "HF_HUB_OFFLINE", offline)
        yield
