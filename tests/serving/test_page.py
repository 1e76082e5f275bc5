"""The page over HTTP, without a browser: what it loads, what it never does, and where its examples come from."""

import base64
import json
import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from s2rm_jax.input.masks import rasterize
from s2rm_jax.serving.page import example_cases
from tests.conftest import tiny_config
from tests.serving.standin import striped

httpx = pytest.importorskip("httpx", reason="the extra 'demo' is not installed")


def send_event(address, data, session="abc"):
    """Sends to the page what the browser sends when "Find" is clicked; returns the answer to it."""
    gradio = f"{address}/demo/gradio_api/queue"
    config = httpx.get(f"{address}/demo/config").json()
    asked = next(event["id"] for event in config["dependencies"] if len(event["inputs"]) == 2)
    sent = {"fn_index": asked, "session_hash": session, "data": data}
    httpx.post(f"{gradio}/join", json=sent).raise_for_status()
    with httpx.stream("GET", f"{gradio}/data", params={"session_hash": session}, timeout=60) as answer:
        for line in answer.iter_lines():
            message = json.loads(line.removeprefix("data:")) if line.startswith("data:") else {}
            if message.get("msg") == "process_completed":
                return message
    raise AssertionError("no answer")


def as_file(path):
    return {"path": path, "meta": {"_type": "gradio.FileData"}}


def test_the_front_leads_to_the_page_and_nothing_is_loaded_from_elsewhere(address):
    answer = httpx.get(address, follow_redirects=True)
    assert answer.status_code == 200
    assert answer.url.path.startswith("/demo")
    assert "fonts.googleapis.com" not in answer.text
    assert ".s2rm .layer" in answer.text  # the script of the viewer


def test_no_address_is_fetched_for_a_visitor(address):
    answer = send_event(address, [as_file("http://example.org/a.png"), "red"])
    assert not answer["success"]
    assert "not its address" in answer["output"]["error"]


def test_no_file_of_the_server_is_read_for_a_visitor(address):
    answer = send_event(address, [as_file(__file__), "red"])
    assert not answer["success"]
    assert "Traceback" not in json.dumps(answer)


def test_fifty_visitors_at_once_see_their_own_images(address):
    def visit(number):
        image = striped(8 * (number % 7 + 1), 40 + number, 64)
        sent = httpx.post(f"{address}/demo/gradio_api/upload", files={"files": ("a.png", image)}, timeout=60)
        answer = send_event(address, [as_file(sent.json()[0]), f"red\nblue {number}"], f"visitor{number}")
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


def test_examples_are_images_of_the_run_with_its_expressions(tmp_path):
    cases = example_cases(tiny_config(), tmp_path, count=3)
    assert [case.path.name for case in cases] == ["example_1.png", "example_2.png", "example_3.png"]
    assert all(0 < len(case.expressions) <= 3 for case in cases)
    assert len({case.path.read_bytes() for case in cases}) == 3


def test_without_the_data_of_the_run_there_are_no_examples(tmp_path):
    config = tiny_config()
    config.input.source = {"name": "refer", "root": str(tmp_path / "gone"), "dataset": "refcoco", "split_by": "unc"}
    assert example_cases(config, tmp_path) == []
