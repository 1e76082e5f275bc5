"""Gives the tests of serving a service whose answers are known beforehand, and pictures for it."""

from __future__ import annotations

import io

import pytest
from PIL import Image

from s2rm_jax.segmenter import Segmenter
from s2rm_jax.serving.service import Service
from tests.serving.standin import striped, telling_service_of


@pytest.fixture
def segmenter(colour_world):
    network, _, params, tokenizer, config = colour_world
    return Segmenter(network, params, tokenizer, config)


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
def enormous_picture() -> bytes:
    """A PNG of 200 megapixels, all white, in 45 kB."""
    buffer = io.BytesIO()
    Image.new("1", (20_000, 10_000), 1).save(buffer, "PNG")
    return buffer.getvalue()
