"""Gives the tests of serving a service whose answers are known beforehand, and pictures for it."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from s2rm_jax.segmenter import Segmenter
from s2rm_jax.serving.service import Service


@pytest.fixture
def segmenter(colour_world):
    network, _, params, tokenizer, config = colour_world
    return Segmenter(network, params, tokenizer, config)


@pytest.fixture
def service(segmenter):
    return Service(segmenter)


@pytest.fixture
def striped_file():
    """Makes the bytes of a PNG whose left columns are red and the others blue; 8 columns are as the network sees it."""

    def make(red: int = 3, height: int = 8, width: int = 8) -> bytes:
        picture = np.zeros((height, width, 3), np.uint8)
        picture[:, :red, 0] = 255
        picture[:, red:, 2] = 255
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, "PNG")
        return buffer.getvalue()

    return make


def enormous_file() -> bytes:
    """A PNG of 200 megapixels, all white, in 25 kB."""
    buffer = io.BytesIO()
    Image.new("1", (20_000, 10_000), 1).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="session")
def enormous_picture() -> bytes:
    return enormous_file()
