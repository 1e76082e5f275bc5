"""Gives the tests of serving a service whose answers are known beforehand, and images for it."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from s2rm_jax.serving.service import Service
from tests.serving.standin import striped, telling_service_of

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def address(tmp_path_factory):
    """The address of a server with one example; in a process of its own, as Gradio leaves event loops unclosed."""
    pytest.importorskip("gradio", reason="the extra 'demo' is not installed")
    command = [sys.executable, "-m", "tests.serving.standin", str(tmp_path_factory.mktemp("examples"))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as server:
        yield server.stdout.readline().strip()
        server.terminate()
        server.wait(20)


@pytest.fixture
def service(segmenter):
    return Service(segmenter)


@pytest.fixture
def telling_service(colour_world):
    """A service whose network also has insides to be looked at."""
    return telling_service_of(colour_world)


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
