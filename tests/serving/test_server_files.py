"""Visitors can read only the examples and their own uploads, and no other file of the server."""

import json
import os
from pathlib import Path
from urllib.parse import quote

import pytest

from s2rm_jax.serving.limits import RequestError
from s2rm_jax.serving.page_gate import Uploads
from tests.serving.standin import striped
from tests.serving.visitor import as_file

PRIVATE = striped(5, 37, 41)
SHOWN = "41 × 37 pixels"

# Both the page and Gradio's application alone are tested: either must be safe without the checks of the other.
PAGES = ("/demo", "/bare")


def shown(answer):
    return SHOWN in json.dumps(answer, ensure_ascii=False)


def spellings(private, folder):
    """Return spellings of the path of the private image; some use links in the folder of uploads."""
    (folder / "link.png").symlink_to(private)
    (folder / "linked").symlink_to(private.parent)
    up = "/".join([".."] * len(folder.parts))
    return {
        "absolute": str(private),
        "dots": f"{folder}/{up}{private}",
        "dots after a name": f"{folder}/a/../{up}{private}",
        "relative": os.path.relpath(private),
        "link": str(folder / "link.png"),
        "linked folder": f"{folder}/linked/{private.name}",
        "two slashes": f"/{private}",
        "address": f"file://{private}",
        "encoded": quote(str(private), safe=""),
        "null byte": f"{private}\0.png",
    }


@pytest.fixture(scope="module")
def private(tmp_path_factory):
    """An image on the server that is not an upload."""
    path = tmp_path_factory.mktemp("home") / "private.png"
    path.write_bytes(PRIVATE)
    return path


@pytest.fixture(scope="module")
def paths(private, server):
    folder = Path(server.uploads)
    yield spellings(private, folder)
    (folder / "link.png").unlink()
    (folder / "linked").unlink()


def copies(server):
    """Return the copies of the private image in the folder that visitors can read."""
    files = [path for path in Path(server.uploads).rglob("*") if path.is_file() and not path.is_symlink()]
    return [path for path in files if path.read_bytes() == PRIVATE]


@pytest.mark.parametrize("page", PAGES)
def test_no_event_opens_a_file_of_the_server(server, visitor, private, paths, page):
    """Send a file in place of each input of each event, including text; check the responses and the folder."""
    forms = [
        *map(as_file, paths.values()),
        as_file(str(private), url=f"/gradio_api/file={private}"),
        as_file(str(private), is_stream=True),
        [as_file(str(private))],
        {"deep": {"deeper": as_file(str(private))}},
        str(private),
    ]
    assert len(visitor.events) >= 5
    for event in visitor.events:
        places = max(1, len(event["inputs"]))  # events without inputs get one
        for file in forms:
            for place in range(places):
                data = [file if place == other else "red" for other in range(places)]
                answer = visitor.send(event, data, {"index": 0, "value": file}, page=page)
                assert not shown(answer), (event["targets"], place, file)
                assert not copies(server), (event["targets"], place, file)


@pytest.mark.parametrize("page", PAGES)
def test_every_event_with_a_file_accepts_an_upload(visitor, page):
    """The events of the test above are valid: they succeed with the visitor's own file."""
    path = visitor.upload(PRIVATE)
    with_file = [event for event in visitor.events if "file" in visitor.kinds(event)]
    assert len(with_file) >= 4
    for event in with_file:
        data = [as_file(path) if kind == "file" else "red" for kind in visitor.kinds(event)]
        assert shown(visitor.send(event, data, page=page)), event["targets"]
    Path(path).unlink()


@pytest.mark.parametrize(
    "route",
    [
        *(f"{page}/{route}" for page in PAGES for route in ("gradio_api/file=", "gradio_api/file/", "file=")),
        *("/file=", "/gradio_api/file=", "/demo/gradio_api/stream/", "/demo/gradio_api/proxy="),
        *("/demo/static/", "/demo/assets/", "/demo/svelte/"),
    ],
)
def test_no_route_returns_a_file_of_the_server(visitor, paths, route):
    for path in paths.values():
        for spelled in (quote(path), quote(path, safe=""), quote(path.lstrip("/")), f"../../../../../..{quote(path)}"):
            answer = visitor.http.get(route + spelled, follow_redirects=True)
            assert answer.status_code >= 400
            assert PRIVATE not in answer.content


def test_an_upload_of_another_visitor_cannot_be_guessed(visitor):
    """A visitor with the same bytes and file name cannot find out whether another visitor uploaded them."""
    first, second = visitor.upload(PRIVATE, "holiday.png"), visitor.upload(PRIVATE, "holiday.png")
    assert visitor.http.get(f"/demo/gradio_api/file={first}").content == PRIVATE
    assert Path(first).name[:8] != Path(second).name[:8]
    assert len(Path(first).name) == 32  # 128 random bits in hexadecimal, independent of the content
    for path in (first, second):
        Path(path).unlink()


@pytest.mark.parametrize("address", ["http://127.0.0.1:1/a.png", "https://example.org/a.png", "ftp://example.org/a"])
def test_no_address_is_fetched_for_a_visitor(visitor, address):
    answer = visitor.send(visitor.find, [as_file(address), "red"])
    assert (answer["status"], answer["error"]) == (
        403,
        "paths and addresses of images are not accepted; upload the image",
    )
    answer = visitor.send(visitor.find, [None, as_file(address)])
    assert answer["status"] == 403
    answer = visitor.http.get(f"/demo/gradio_api/file={address}")
    assert (answer.status_code, "not found on this server" in answer.json()["error"]) == (404, True)


@pytest.mark.parametrize(
    "route",
    ["process_recording", "component_server", "run/segment", "api/segment", "call/segment", "vibe-code", "login"],
)
def test_unused_routes_of_gradio_are_closed(visitor, route):
    assert visitor.http.post(f"/demo/gradio_api/{route}", json={"data": []}).status_code == 404
    assert visitor.http.post(f"/demo/{route}", json={"data": []}).status_code == 404


@pytest.mark.parametrize(
    "route", ["monitoring/summary", "gradio_api/runs", "gradio_api/deep_link?session_hash=a", "gradio_api/queue/status"]
)
def test_routes_about_other_visitors_are_closed(visitor, route):
    assert visitor.http.get(f"/demo/{route}").status_code == 404


def test_an_event_that_is_too_large_or_too_deep(visitor):
    join = "/demo/gradio_api/queue/join"
    assert visitor.http.post(join, json={"data": ["x" * 200_000]}).status_code == 413
    assert visitor.http.post(join, content=b'{"data": ' + b"[" * 90_000).status_code == 422
    assert visitor.http.post(join, content=b'{"data": ' + b"[" * 90_000 + b"]" * 90_000 + b"}").status_code == 422


def test_uploads_reads_no_other_file(tmp_path, private):
    """Uploads is tested without the server, whose other checks would hide its errors."""
    uploads = Uploads(tmp_path)
    for name, path in spellings(private, tmp_path).items():
        assert not uploads.contains(path), name
        with pytest.raises(RequestError, match="not found on this server"):
            uploads.read(path, 1000)
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo")
    pipe = os.open(tmp_path / "fifo", os.O_RDWR)
    os.write(pipe, bytes(2000))  # a reader does not block
    for other in (tmp_path, tmp_path / "folder", tmp_path / "fifo", tmp_path / "gone"):
        with pytest.raises(RequestError, match="not found on this server"):
            uploads.read(str(other), 1000)
    os.close(pipe)


def test_a_link_that_replaces_a_file_is_not_followed(tmp_path, private, monkeypatch):
    """The file is replaced between the resolution of its path and its opening."""
    uploads = Uploads(tmp_path)
    path = tmp_path / "image.png"
    path.write_bytes(b"an upload")
    assert uploads.read(str(path), 1000) == b"an upload"
    opened = Path.open

    def replaced(self, *arguments):
        path.unlink()
        path.symlink_to(private)
        return opened(self, *arguments)

    monkeypatch.setattr(Path, "open", replaced)
    with pytest.raises(RequestError, match="not found on this server"):
        uploads.read(str(path), 1000)


def test_the_oldest_uploads_are_removed(tmp_path):
    uploads = Uploads(tmp_path, max_files=2)
    first, *later = [uploads.add(content) for content in (b"1", b"2", b"3")]
    assert not first.exists()
    assert [path.read_bytes() for path in later] == [b"2", b"3"]
