"""A server with the file interface of the Hugging Face Hub, for tests without a network."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


@dataclass
class Hub:
    """The repositories of the server, and what it does wrong.

    - `repositories`: {name: {revision: {file: content}}}; names of datasets are "datasets/USER/NAME"
    - `private`: the names of private repositories
    - `refused`: {name: status} of repositories whose files nobody may download
    - `cut`: files of which only a half is sent
    - `status`: the status of every answer, 0 for the right one
    - `downloads`: the files that were sent, in order
    """

    url: str = ""
    repositories: dict[str, dict[str, dict[str, bytes]]] = field(default_factory=dict)
    private: set[str] = field(default_factory=set)
    refused: dict[str, int] = field(default_factory=dict)
    cut: set[str] = field(default_factory=set)
    status: int = 0
    downloads: list[str] = field(default_factory=list)

    def find(self, name: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """Return the commit and the files of a branch, a tag or a commit."""
        revisions = self.repositories.get(name, {})
        for label, files in revisions.items():
            commit = hashlib.sha1(repr((name, sorted(files.items()))).encode()).hexdigest()
            if revision in (label, commit):
                return commit, files
        return None


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: object) -> None:
        """Print nothing."""

    def answer(self, status: int, content: object = b"", code: str = "", **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        for name, value in (
            {"Content-Length": str(len(body))} | named | ({"X-Error-Code": code} if code else {})
        ).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self) -> None:
        if self.hub.status:
            return self.answer(self.hub.status)
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        about = parts[:2] in (["api", "models"], ["api", "datasets"])
        scheme = "datasets/" if "datasets" in parts[: 1 + about] else ""
        parts = parts[2:] if about else parts[1:] if scheme else parts
        user, repo, kind, revision, *path = parts if parts[2:] else [*parts, "revision", "main"]
        name = f"{scheme}{user}/{repo}"
        if name not in self.hub.repositories:
            return self.answer(401)  # as for a private repository, whose name stays hidden
        found = self.hub.find(name, "/".join([revision, *path]) if kind == "revision" else revision)
        if found is None:
            return self.answer(404, code="RevisionNotFound")
        commit, files = found
        if about:
            return self.about(kind, name, commit, files)
        if name in self.hub.refused:
            return self.answer(self.hub.refused[name], code="GatedRepo")
        return self.file("/".join(path), commit, files)

    do_HEAD = do_GET

    def about(self, kind: str, name: str, commit: str, files: dict[str, bytes]) -> None:
        if kind == "revision":
            siblings = [{"rfilename": file} for file in files]
            private = name in self.hub.private
            return self.answer(200, {"id": name, "sha": commit, "private": private, "siblings": siblings})
        listed = [
            {"type": "file", "path": file, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
            for file, content in files.items()
        ]
        return self.answer(200, listed)

    def file(self, path: str, commit: str, files: dict[str, bytes]) -> None:
        if path not in files:
            return self.answer(404, code="EntryNotFound")
        content = files[path]
        about = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X_Repo_Commit": commit}
        about["Content_Length"] = str(len(content))
        if self.command == "GET":
            self.hub.downloads.append(path)
            if path in self.hub.cut:
                self.close_connection = True
                content = content[: len(content) // 2]
        return self.answer(200, content, **about)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        if self.hub.status:
            return self.answer(self.hub.status)
        path = urlsplit(self.path).path
        if path == "/api/validate-yaml":
            return self.answer(200, {"warnings": [], "errors": []})
        if "Authorization" not in self.headers:
            return self.answer(401)
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            if name not in self.hub.repositories:  # an existing one stays as it is
                self.hub.repositories[name] = {"main": {}}
                self.hub.private |= {name} if asked.get("private") or asked.get("visibility") == "private" else set()
            return self.answer(200, {"url": f"{self.hub.url}/{name}", "name": name})
        _, _, user, repo, kind, _ = path.strip("/").split("/")
        name = f"{user}/{repo}"
        if kind == "preupload":
            asked = json.loads(body)["files"]
            modes = [{"path": one["path"], "uploadMode": "regular", "shouldIgnore": False} for one in asked]
            return self.answer(200, {"files": modes})
        values = [json.loads(line)["value"] for line in body.splitlines()]
        files = {one["path"]: base64.b64decode(one["content"]) for one in values if "path" in one}
        self.hub.repositories[name]["main"] |= files
        commit = self.hub.find(name, "main")
        assert commit is not None
        return self.answer(
            200, {"success": True, "commitUrl": f"{self.hub.url}/{name}/commit/{commit[0]}", "commitOid": commit[0]}
        )


@contextlib.contextmanager
def serve_hub() -> Iterator[Hub]:
    """Serve a Hub without repositories on the loopback."""
    hub = Hub()
    with ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub})) as server:
        server.daemon_threads = True
        hub.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()
