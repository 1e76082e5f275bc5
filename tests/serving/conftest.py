"""Gives the tests of serving a service whose answers are known beforehand, and images for it."""

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
from s2rm_jax.serving.service import Service
from tests.conftest import make_colour_world
from tests.serving.standin import striped, telling_segmenter_of

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """What `tests.serving.standin` says; it has a process of its own, as Gradio leaves event loops unclosed."""
    pytest.importorskip("gradio", reason="the extra 'demo' is not installed")
    command = [sys.executable, "-m", "tests.serving.standin", str(tmp_path_factory.mktemp("uploads"))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as server:
        yield SimpleNamespace(**json.loads(server.stdout.readline()))
        server.terminate()
        server.wait(20)


@pytest.fixture(scope="session")
def visitor(server):
    """A visitor of the page."""
    pytest.importorskip("httpx", reason="the extra 'demo' is not installed")
    from tests.serving.visitor import Visitor

    one = Visitor(server.address)
    yield one
    one.http.close()


@pytest.fixture(scope="session")
def segmenter():
    """One for all tests here, so that its programs are compiled once."""
    network, _, params, tokenizer, config = make_colour_world()
    return Segmenter(network, params, tokenizer, config)


@pytest.fixture(scope="session")
def telling_segmenter():
    return telling_segmenter_of(make_colour_world())


@pytest.fixture
def service(segmenter):
    return Service(segmenter)


@pytest.fixture
def telling_service(telling_segmenter):
    """A service whose network also has insides to be looked at."""
    return Service(telling_segmenter)


@pytest.fixture
def striped_file():
    """Makes the bytes of a PNG whose left columns are red and the others blue."""
    return striped


@pytest.fixture(scope="session")
def enormous_image() -> bytes:
    """A PNG of 200 megapixels, all white, in 45 kB."""
    buffer = io.BytesIO()
    Image.new("1", (20_000, 10_000), 1).save(buffer, "PNG")
    return buffer.getvalue()
