"""The page over HTTP, without a browser: its resources, results, limits and examples."""

import base64
import json
import re
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urljoin

import numpy as np
import pytest

from s2rm_jax.errors import UserError
from s2rm_jax.input.masks import rasterize
from s2rm_jax.serving.page import example_cases
from tests.conftest import tiny_config
from tests.serving.standin import striped

httpx = pytest.importorskip("httpx", reason="the extra 'demo' is not installed")

from tests.serving.visitor import Visitor, as_file  # noqa: E402  needs httpx


@pytest.fixture
def limited(server):
    """A visitor with low limits: 12 requests and 24 megapixels times expressions per minute."""
    visitor = Visitor(server.limited)
    yield visitor
    visitor.http.close()


@pytest.fixture
def under(server):
    """A visitor of a page that a proxy has under /sub/path."""
    visitor = Visitor(server.under)
    yield visitor
    visitor.http.close()


def test_the_root_redirects_to_a_page_without_foreign_fonts(visitor):
    answer = visitor.http.get("/", follow_redirects=True)
    assert answer.status_code == 200
    assert answer.url.path.startswith("/demo")
    assert "fonts.googleapis.com" not in answer.text
    assert ".s2rm .layer" in answer.text  # the script of the viewer


@pytest.mark.parametrize("prefix", ["/sub/path", ""], ids=["the proxy leaves the path", "the proxy removes the path"])
def test_the_page_under_a_path_of_a_proxy(server, under, prefix):
    """What the page links to and calls begins with the path that the proxy has it under."""
    visitor = under
    root = "/sub/path/demo"
    answer = visitor.http.get(f"{prefix}/")
    assert (answer.status_code, answer.headers["location"]) == (307, f"{root}/")
    text = visitor.http.get(f"{prefix}/demo/").text
    assert f'"root":"{server.under}{root}"' in text.replace('"root": ', '"root":')
    links = set(re.findall(r'(?:href|src)="([^"#]*\.(?:js|css)(?:\?[^"]*)?)"', text))
    assert links
    for link in links:
        path = urljoin(f"{root}/", link.removeprefix(server.under))
        assert path.startswith(root), link
        assert visitor.http.get(prefix + path.removeprefix("/sub/path")).status_code == 200, link
    assert visitor.http.get(f"{prefix}/demo/config").json()["root"] == f"{server.under}{root}"
    headers = {"X-Forwarded-Host": "example.org", "X-Forwarded-Proto": "https"}
    assert visitor.http.get(f"{prefix}/demo/config", headers=headers).json()["root"] == f"https://example.org{root}"

    page = f"{prefix}/demo"
    path = visitor.http.post(f"{page}/gradio_api/upload", files={"files": striped(3, 8, 8)}).json()[0]
    answer = visitor.send(visitor.find, [as_file(path), "red"], page=page)
    assert "1 expression segmented" in str(answer)
    example = next(event for event in visitor.events if not event["inputs"])
    chosen = visitor.send(example, [], {"index": 0, "value": ""}, page=page)["output"]["data"][0]
    assert chosen["url"].startswith(f"{server.under}{root}/gradio_api/file=")
    assert visitor.http.get(chosen["url"]).status_code == 200
    assert visitor.http.get(f"{page}/gradio_api/file={path}").content == striped(3, 8, 8)
    assert visitor.http.get(f"{page}/gradio_api/startup-events").status_code == 200
    assert visitor.http.get(f"{page}/monitoring/summary").status_code == 404
    assert visitor.http.get(f"{prefix}/healthz").status_code == 200
    assert visitor.http.get(f"{prefix}/openapi.json").json()["servers"] == [{"url": "/sub/path"}]
    assert visitor.http.get("/sub/pathology/healthz").status_code == 404


def test_tracebacks_are_not_returned(visitor):
    answer = visitor.send(visitor.find, ["not a file", "red"])
    assert not answer["success"]
    assert "Traceback" not in json.dumps(answer)


def test_fifty_concurrent_visitors_get_their_own_results(visitor):
    def visit(number):
        path = visitor.upload(striped(8 * (number % 7 + 1), 40 + number, 64))
        answer = visitor.send(visitor.find, [as_file(path), f"red\nblue {number}"], session=f"visitor{number}")
        assert answer["success"], answer
        return answer["output"]["data"][1]

    with ThreadPoolExecutor(50) as visitors:
        pages = list(visitors.map(visit, range(50)))
    for number, page in enumerate(pages):
        assert f"64 × {40 + number} pixels" in page
        assert f"<b>blue {number}</b>" in page
        rle = json.loads(base64.b64decode(re.search(r'download="mask_1_red_rle.json" href="[^,]*,([^"]*)"', page)[1]))
        mask = rasterize(rle, 40 + number, 64)
        assert (mask == (np.arange(64) < 8 * (number % 7 + 1))).all()


@pytest.mark.parametrize(
    ("files", "status", "message"),
    [
        ([("files", ("a.png", b""))], 400, "the image file is empty"),
        ([("files", ("a.png", bytes(20_000_001)))], 413, "20,000,001 bytes"),
        ([("files", ("a.png", b"a")), ("files", ("b.png", b"b"))], 400, "Too many files"),
        ([("other", ("a.png", b"a"))], 422, "files: image file missing"),
        ([("text", (None, b"a")), ("files", ("a.png", b"a"))], 400, "Too many fields"),
    ],
)
def test_invalid_uploads(visitor, files, status, message):
    answer = visitor.http.post("/demo/gradio_api/upload", files=files)
    assert answer.status_code == status
    assert message in answer.json()["error"]


def test_page_and_api_share_the_limits_of_a_visitor(limited):
    """An expression on a small image counts as 4 megapixels, so six of them reach the limit."""
    image = striped()
    headers = {"X-Forwarded-For": "192.0.2.1"}  # any client can send this header, so it must be ignored
    body = {"image": base64.b64encode(image).decode(), "expressions": ["red", "blue", "green"]}
    assert limited.http.post("/segment", json=body).status_code == 200
    path = limited.upload(image)
    assert "2 expressions segmented" in str(limited.send(limited.find, [as_file(path), "red\nblue"]))
    refused = limited.http.post("/segment", json=body, headers=headers)
    assert refused.status_code == 429
    assert re.search(r"too much work in a minute; retry in \d+ s \(3 expressions on ", refused.json()["error"])
    assert 0 < int(refused.headers["retry-after"]) <= 60
    answer = limited.send(limited.find, [as_file(path), "red\nblue\ngreen"])
    assert answer["success"]
    assert "too much work in a minute" in answer["output"]["data"][0]
    choose = next(event for event in limited.events if limited.kinds(event) == ["file"])
    assert "8 × 8 pixels" in str(limited.send(choose, [as_file(path)]))  # the last 4 of 24
    assert "too much work in a minute" in limited.send(choose, [as_file(path)])["output"]["data"][0]

    more = (limited.http.post("/segment", json=body) for _ in range(20))
    assert any("requests in a minute" in answer.json().get("error", "") for answer in more)
    for send in (
        lambda: limited.http.post("/segment", json=body, headers=headers),
        lambda: limited.http.post("/demo/gradio_api/upload", files={"files": image}),
        lambda: limited.http.post("/demo/gradio_api/queue/join", json={}),
        lambda: limited.http.get("/demo/gradio_api/queue/data", params={"session_hash": "a"}),
    ):
        refused = send()
        assert refused.status_code == 429
        assert "more than 12 requests in a minute; retry in" in refused.json()["error"]


def test_examples_are_images_and_expressions_of_the_run(tmp_path):
    cases = example_cases(tiny_config(), tmp_path, count=3)
    assert [case.path.name for case in cases] == ["example_1.png", "example_2.png", "example_3.png"]
    assert all(0 < len(case.expressions) <= 3 for case in cases)
    assert len({case.path.read_bytes() for case in cases}) == 3


def test_no_examples_without_the_data_of_the_run(tmp_path):
    config = tiny_config()
    config.input.source = {"name": "refer", "root": str(tmp_path / "gone"), "dataset": "refcoco", "split_by": "unc"}
    assert example_cases(config, tmp_path) == example_cases(config, tmp_path, 0, "val") == []
    with pytest.raises(UserError, match=r"^--split val has no examples: .*gone"):
        example_cases(config, tmp_path, split="val")
    with pytest.raises(UserError, match=r"^--split tset has no examples: .*tset"):
        example_cases(tiny_config(), tmp_path, split="tset")
