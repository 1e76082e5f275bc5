"""A bucket in the memory of this process, for etils.epath and TensorStore.

epath is given a file system over it in place of gcsfs; TensorStore speaks with it by HTTP, through the variable by
which it is pointed at emulators of Google Cloud Storage. As there, folders are but beginnings of names, an object
appears whole when it is closed, and nothing is appended to.
"""

from __future__ import annotations

import io
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import fsspec


class FakeBucket:
    """`objects` are the contents by name, "bucket/path/of/object"; `url` is where TensorStore finds them."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.generations: dict[str, int] = {}
        bucket = self

        class Handler(_Handler):
            store = bucket

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def put(self, name: str, content: bytes) -> None:
        self.generations[name] = self.generations.get(name, 0) + 1
        self.objects[name] = content

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class BucketFileSystem(fsspec.AbstractFileSystem):
    """The objects of a FakeBucket as fsspec sees them; paths are gs://bucket/name or bucket/name."""

    protocol = "gs"
    cachable = False

    def __init__(self, bucket: FakeBucket):
        super().__init__()
        self._bucket = bucket

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        path = self._strip_protocol(path).rstrip("/")
        names = list(self._bucket.objects)
        found = {name: "file" for name in names if name == path}
        if not found:
            inside = [name[len(path) + 1 :] for name in names if name.startswith(path + "/")]
            found = {f"{path}/{rest.split('/')[0]}": "directory" if "/" in rest else "file" for rest in sorted(inside)}
        if not found:
            raise FileNotFoundError(path)
        entries = [
            {"name": name, "type": kind, "size": len(self._bucket.objects.get(name, b""))}
            for name, kind in found.items()
        ]
        return entries if detail else [entry["name"] for entry in entries]

    def mkdir(self, path: str, create_parents: bool = True, **_: Any) -> None:
        """There is nothing to make."""

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """There is nothing to make."""

    def _rm(self, path: str) -> None:
        self._bucket.objects.pop(self._strip_protocol(path), None)

    def cp_file(self, path1: str, path2: str, **_: Any) -> None:
        content = self._bucket.objects[self._strip_protocol(path1)]
        self._bucket.put(self._strip_protocol(path2), content)

    def _open(self, path: str, mode: str = "rb", **_: Any) -> Any:
        name = self._strip_protocol(path)
        if mode == "rb":
            if name not in self._bucket.objects:
                raise FileNotFoundError(path)
            return io.BytesIO(self._bucket.objects[name])
        if mode != "wb":
            raise ValueError(f"a bucket does not know mode {mode}")
        return _NewObject(self._bucket, name)


class _NewObject(io.BytesIO):
    def __init__(self, bucket: FakeBucket, name: str):
        super().__init__()
        self._bucket, self._name = bucket, name

    def close(self) -> None:
        if not self.closed:
            self._bucket.put(self._name, self.getvalue())
        super().close()


class _Handler(BaseHTTPRequestHandler):
    """What TensorStore asks of the JSON interface of Google Cloud Storage."""

    store: FakeBucket
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        name, query = self._target()
        if not name.partition("/")[2]:
            prefix = name.partition("/")[0] + "/"
            first, end = prefix + query.get("startOffset", ""), query.get("endOffset")
            names = [n for n in sorted(self.store.objects) if n.startswith(prefix) and n >= first]
            listed = [n for n in names if end is None or n < prefix + end]
            self._answer(200, json.dumps({"items": [self._describe(n) for n in listed]}).encode())
        elif name not in self.store.objects:
            self._answer(404)
        elif query.get("ifGenerationNotMatch") == str(self.store.generations[name]):
            self._answer(304)
        else:
            content, status = self.store.objects[name], 200
            if wanted := self.headers.get("Range"):
                first, _, last = wanted.removeprefix("bytes=").partition("-")
                whole = len(content)
                content = content[int(first) : int(last) + 1 if last else None] if first else content[-int(last) :]
                start = int(first) if first else whole - len(content)
                extra = {"Content-Range": f"bytes {start}-{start + len(content) - 1}/{whole}"}
                self._answer(206, content, name, extra)
            else:
                self._answer(status, content, name)

    def do_POST(self) -> None:
        bucket, query = self._target()
        content = self.rfile.read(int(self.headers["Content-Length"]))
        name = bucket.rstrip("/") + "/" + query["name"]
        expected = query.get("ifGenerationMatch")
        if expected is not None and int(expected) != self._generation(name):
            self._answer(412)
            return
        self.store.put(name, content)
        self._answer(200, json.dumps(self._describe(name)).encode())

    def do_DELETE(self) -> None:
        name, _ = self._target()
        self._answer(204 if self.store.objects.pop(name, None) is not None else 404)

    def _target(self) -> tuple[str, dict[str, str]]:
        """The object, as "bucket/name", or "bucket/" where the path names none; and the query."""
        parts = urlsplit(self.path)
        bucket, _, name = parts.path.partition("/b/")[2].partition("/o")
        return f"{bucket}/{unquote(name.removeprefix('/'))}", {k: v[0] for k, v in parse_qs(parts.query).items()}

    def _generation(self, name: str) -> int:
        return self.store.generations[name] if name in self.store.objects else 0

    def _describe(self, name: str) -> dict[str, str]:
        bucket, _, path = name.partition("/")
        size, generation = str(len(self.store.objects[name])), str(self.store.generations[name])
        return {"name": path, "bucket": bucket, "size": size, "generation": generation}

    def _answer(self, status: int, content: bytes = b"", name: str = "", extra: dict[str, str] | None = None) -> None:
        self.send_response(status)
        if name:
            self.send_header("x-goog-generation", str(self.store.generations[name]))
        for field, value in (extra or {}).items():
            self.send_header(field, value)
        if status not in (204, 304):
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if status not in (204, 304):
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Says nothing."""
