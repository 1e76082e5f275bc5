"""Our Swin matches that of transformers, forward and backward, in parts and in every published size."""

from __future__ import annotations

import gc

import jax
import numpy as np
import pytest

from tests.conftest import SWIN_SIZES
from tests.interop.comparison import LAYER_TOLERANCE, WHOLE_TOLERANCE, compare
from tests.interop.oracles import STREAM, draw_swin
from tests.interop.pairs import swin_block, swin_merge, swin_patches, whole_swin
from tests.interop.parity_page import Row

TWO_STAGES = {"embed_dim": 128, "depths": (2, 1), "num_heads": (4, 8)}  # as wide as Base

# Grids by what happens to them in a window of 7 and of 12.
GRIDS = {
    7: {"whole windows": (14, 21), "padded": (17, 23), "one window high": (7, 16)},
    12: {"whole windows": (24, 36), "padded": (29, 25), "one window high": (12, 26)},
}
# "odd" sides are divisible neither by patches nor, after patches, by two or by the window: every stage pads something.
# "square" is what the published networks were trained on: the last stage is a single window and not shifted.
IMAGES = {
    7: {"square": (224, 224), "oblong": (256, 320), "odd": (231, 259)},
    12: {"square": (384, 384), "oblong": (448, 512), "odd": (386, 433)},
}
EVERY_CASE = [(size, window, image) for size in SWIN_SIZES for window in IMAGES for image in IMAGES[window]]
LONG = [case for case in EVERY_CASE if case == ("base", 12, "odd") or (case[0] == "tiny" and case[2] != "oblong")]
# Images that every stage pads and shifts are large with a window of 12. Two blocks a stage, one shifted, are enough,
# and a third of the width of Tiny.
SHALLOW = {"embed_dim": 32, "depths": (2, 2, 2, 2), "num_heads": (2, 4, 8, 16)}
SIZES = SWIN_SIZES | {"shallow": SHALLOW}
SHORT = [("tiny", 7, "square"), ("shallow", 12, "odd")]


def pytest_generate_tests(metafunc):
    """Compare two whole networks in `make test`, five in `make test-all`, and all with --parity-table."""
    if "image" in metafunc.fixturenames:
        option = metafunc.config.getoption
        cases = EVERY_CASE if option("--parity-table", None) else LONG if option("--long") else SHORT
        metafunc.parametrize(("size", "window", "image"), cases)


def normal(*shape, size=1.0):
    return size * np.random.default_rng(2).standard_normal(shape, np.float32)


@pytest.mark.parametrize("height_width", [(32, 48), (29, 35)], ids=str)
def test_patches(height_width, hold):
    errors = compare(swin_patches(draw_swin(TWO_STAGES, 7)), normal(2, *height_width, 3))
    hold(Row("patch embedding", "128 wide", "{} x {} px".format(*height_width), errors, LAYER_TOLERANCE))


@pytest.mark.parametrize("grid", GRIDS[7])
@pytest.mark.parametrize("number", [0, 1], ids=["plain", "shifted"])
@pytest.mark.parametrize("window", GRIDS)
def test_block(window, number, grid, hold):
    height, width = GRIDS[window][grid]
    backbone = draw_swin(TWO_STAGES, window)  # anew each time: a grid of one window makes it forget its shift for good
    errors = compare(swin_block(backbone, number), normal(2, height, width, 128, size=STREAM))
    what = f"{'shifted' if number else 'plain'} block, window {window}"
    hold(Row(what, "128 wide", f"{height} x {width}, {grid}", errors, LAYER_TOLERANCE))


@pytest.mark.parametrize("grid", [(8, 6), (7, 9)], ids=str)
def test_merge(grid, hold):
    errors = compare(swin_merge(draw_swin(TWO_STAGES, 7)), normal(2, *grid, 128, size=STREAM))
    hold(Row("merge", "128 wide", "{} x {}".format(*grid), errors, LAYER_TOLERANCE))


@pytest.fixture
def free_memory():
    """Free the programs of a whole network after its test."""
    yield
    jax.clear_caches()
    gc.collect()


@pytest.mark.usefixtures("free_memory")
def test_whole_swin(size, window, image, hold):
    height, width = IMAGES[window][image]
    errors = compare(whole_swin(SIZES[size], window), normal(1, height, width, 3))
    what = f"whole Swin, window {window}"
    hold(Row(what, size.capitalize(), f"{height} x {width} px, {image}", errors, WHOLE_TOLERANCE))
