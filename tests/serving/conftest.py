"""Fixtures for the tests of serving: a service whose results are known in advance, and images for it."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from s2rm_jax.segmenter import Segmenter
from tests.conftest import make_colour_world
from tests.serving.standin import WaitingService, explaining_segmenter_of, striped

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="package")  # three idle servers take 6 % of a core
def server(tmp_path_factory):
    """The output of `tests.serving.standin`, which runs in a separate process, as Gradio leaves event loops open."""
    pytest.importorskip("gradio", reason="the extra 'demo' is not installed")
    command = [sys.executable, "-m", "tests.serving.standin", str(tmp_path_factory.mktemp("uploads"))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as server:
        yield SimpleNamespace(**json.loads(server.stdout.readline()))
        server.terminate()
        server.wait(20)


@pytest.fixture(scope="package")
def visitor(server):
    """A visitor of the page."""
    pytest.importorskip("httpx", reason="the extra 'demo' is not installed")
    from tests.serving.visitor import Visitor

    visitor = Visitor(server.address)
    yield visitor
    visitor.http.close()


@pytest.fixture(scope="session")
def segmenter():
    """A Segmenter shared by all tests of this folder, so that its programs are compiled once."""
    network, _, params, tokenizer, config = make_colour_world()
    return Segmenter(network, params, tokenizer, config)


@pytest.fixture(scope="session")
def explaining_segmenter():
    return explaining_segmenter_of(make_colour_world())


@pytest.fixture
def service(segmenter):
    return WaitingService(segmenter)


@pytest.fixture
def explaining_service(explaining_segmenter):
    """A service whose network also returns attention, group maps and weights for explanations."""
    return WaitingService(explaining_segmenter)


@pytest.fixture
def striped_file():
    """A function that returns a PNG whose left columns are red and the others blue."""
    return striped


@pytest.fixture(scope="session")
def enormous_image() -> bytes:
    """An all-white PNG of 200 megapixels in 45 kB."""
    buffer = io.BytesIO()
    Image.new("1", (20_000, 10_000), 1).save(buffer, "PNG")
    return buffer.getvalue()
