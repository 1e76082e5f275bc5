"""No file of the server reaches a visitor but what that visitor has uploaded, and the examples."""

import json
import os
from pathlib import Path
from urllib.parse import quote

import pytest

from s2rm_jax.serving.limits import Refused
from s2rm_jax.serving.uploads import Uploads
from tests.serving.standin import striped
from tests.serving.visitor import as_file

PRIVATE = striped(5, 37, 41)
SHOWN = "41 × 37 pixels"

# As visitors reach it, and Gradio's application alone, so that neither check hides that the other one is gone.
PAGES = ("/demo", "/bare")


def shown(answer):
    return SHOWN in json.dumps(answer, ensure_ascii=False)


def leads_to(private, folder):
    """Ways to spell the path of the private image; some go through links in the folder of uploads."""
    (folder / "link.png").symlink_to(private)
    (folder / "linked").symlink_to(private.parent)
    up = "/".join([".."] * len(folder.parts))
    return {
        "absolute": str(private),
        "dots": f"{folder}/{up}{private}",
        "dots behind a name": f"{folder}/a/../{up}{private}",
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
    """An image of the server's owner."""
    path = tmp_path_factory.mktemp("home") / "private.png"
    path.write_bytes(PRIVATE)
    return path


@pytest.fixture(scope="module")
def paths(private, server):
    folder = Path(server.uploads)
    yield leads_to(private, folder)
    (folder / "link.png").unlink()
    (folder / "linked").unlink()


def copies(server):
    """Files with the bytes of the private image in the folder that visitors may read."""
    files = [path for path in Path(server.uploads).rglob("*") if path.is_file() and not path.is_symlink()]
    return [path for path in files if path.read_bytes() == PRIVATE]


@pytest.mark.parametrize("page", PAGES)
def test_no_event_opens_a_file_of_the_server(server, visitor, private, paths, page):
    """A file in the place of each input of each event, text among them; copies and what comes back are looked at."""
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
        places = max(1, len(event["inputs"]))  # one too many where there is none
        for file in forms:
            for place in range(places):
                data = [file if place == other else "red" for other in range(places)]
                answer = visitor.send(event, data, {"index": 0, "value": file}, page=page)
                assert not shown(answer), (event["targets"], place, file)
                assert not copies(server), (event["targets"], place, file)


@pytest.mark.parametrize("page", PAGES)
def test_an_upload_is_shown_by_every_event_that_takes_a_file(visitor, page):
    """What the test above sends is what the page sends: with the visitor's own file the events succeed."""
    path = visitor.upload(PRIVATE)
    taking = [event for event in visitor.events if "file" in visitor.kinds(event)]
    assert len(taking) >= 4
    for event in taking:
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
def test_no_address_gives_a_file_of_the_server(visitor, paths, route):
    for path in paths.values():
        for spelled in (quote(path), quote(path, safe=""), quote(path.lstrip("/")), f"../../../../../..{quote(path)}"):
            answer = visitor.http.get(route + spelled, follow_redirects=True)
            assert answer.status_code >= 400
            assert PRIVATE not in answer.content


def test_an_upload_of_another_visitor_cannot_be_guessed(visitor):
    """Who has the same bytes, and knows how the file was called, does not learn that somebody else uploaded them."""
    first, second = visitor.upload(PRIVATE, "holiday.png"), visitor.upload(PRIVATE, "holiday.png")
    assert visitor.http.get(f"/demo/gradio_api/file={first}").content == PRIVATE
    assert Path(first).name[:8] != Path(second).name[:8]
    assert len(Path(first).name) == 32  # hexadecimal: 128 bits, of which the content says nothing
    for path in (first, second):
        Path(path).unlink()


@pytest.mark.parametrize("address", ["http://127.0.0.1:1/a.png", "https://example.org/a.png", "ftp://example.org/a"])
def test_no_address_is_fetched_for_a_visitor(visitor, address):
    answer = visitor.send(visitor.find, [as_file(address), "red"])
    assert (answer["status"], answer["error"]) == (403, "send the image itself, not a path or an address")
    answer = visitor.send(visitor.find, [None, as_file(address)])
    assert answer["status"] == 403
    answer = visitor.http.get(f"/demo/gradio_api/file={address}")
    assert (answer.status_code, "not on this server" in answer.json()["error"]) == (404, True)


@pytest.mark.parametrize(
    "route", ["process_recording", "component_server", "run/asked", "api/asked", "call/asked", "vibe-code", "login"]
)
def test_what_the_page_does_not_need_of_gradio_is_closed(visitor, route):
    assert visitor.http.post(f"/demo/gradio_api/{route}", json={"data": []}).status_code == 404
    assert visitor.http.post(f"/demo/{route}", json={"data": []}).status_code == 404


@pytest.mark.parametrize(
    "route", ["monitoring/summary", "gradio_api/runs", "gradio_api/deep_link?session_hash=a", "gradio_api/queue/status"]
)
def test_what_gradio_tells_of_others_is_closed(visitor, route):
    assert visitor.http.get(f"/demo/{route}").status_code == 404


def test_an_event_that_is_too_large_or_too_deep(visitor):
    join = "/demo/gradio_api/queue/join"
    assert visitor.http.post(join, json={"data": ["x" * 1_000_000]}).status_code == 413
    assert visitor.http.post(join, content=b'{"data": ' + b"[" * 100_000).status_code == 422
    assert visitor.http.post(join, content=b'{"data": ' + b"[" * 100_000 + b"]" * 100_000 + b"}").status_code == 422


def test_a_reader_of_uploads_opens_nothing_else(tmp_path, private):
    """Without the server, so that nothing but the reader stands before the file."""
    uploads = Uploads(tmp_path)
    for name, path in leads_to(private, tmp_path).items():
        assert not uploads.holds(path), name
        with pytest.raises(Refused, match="not on this server"):
            uploads.read(path, 1000)
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo")
    for other in (tmp_path, tmp_path / "folder", tmp_path / "fifo", tmp_path / "gone"):
        with pytest.raises(Refused, match="not on this server"):
            uploads.read(str(other), 1000)


def test_a_link_that_takes_the_place_of_a_file_is_not_followed(tmp_path, private, monkeypatch):
    """The file is replaced after its path was resolved and before it is opened."""
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
    with pytest.raises(Refused, match="not on this server"):
        uploads.read(str(path), 1000)


def test_the_latest_uploads_are_kept(tmp_path):
    uploads = Uploads(tmp_path, kept=2)
    first, *later = [uploads.add(content) for content in (b"1", b"2", b"3")]
    assert not first.exists()
    assert [path.read_bytes() for path in later] == [b"2", b"3"]
