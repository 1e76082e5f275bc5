"""The figures of docs/network.md are up to date and agree with the network."""

import re

import numpy as np
import pytest

from docs import draw_network
from docs.draw_network import attention_groups, shapes, slice_numbers
from s2rm_jax.config import default_config


def texts(figure):
    return re.findall(r"<text[^>]*>([^<]*)</text>", figure)


@pytest.fixture(scope="module")
def sizes():
    return shapes()


def test_figures_in_the_repository_are_up_to_date(tmp_path, monkeypatch):
    kept = {path.name: path.read_text() for path in draw_network.IMAGES.glob("*.svg")}
    monkeypatch.setattr(draw_network, "IMAGES", tmp_path)
    draw_network.main()
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == kept, "run: python -m docs.draw_network"


def test_slices_are_numbered_in_scan_order():
    rows, columns = np.mgrid[1:4, 1:6]
    for degrees, expected in {0: rows, 90: 6 - columns, 180: 4 - rows, 270: columns}.items():
        np.testing.assert_array_equal(slice_numbers(3, 5, degrees), expected)
    drawn = texts(draw_network.scan_orders(3, 5))
    assert sum(text.isdigit() for text in drawn) == 4 * 15
    assert drawn.count("rotated by 90°: 5 slices of 3") == 1


@pytest.mark.parametrize("shift", [0, 2])
def test_positions_of_one_group_are_neighbours_in_one_window(shift):
    grid, window = 10, 4
    groups = attention_groups(grid, window, shift)
    assert groups.shape == (12, 12)
    assert (groups[grid:] == -1).all() and (groups[:, grid:] == -1).all()
    # Windows begin at `shift`, not at 0; those at the near edge are cut off.
    of_row = (np.arange(grid) + window - shift) // window
    expected = of_row[:, None] * 100 + of_row
    pairs = {(int(a), int(b)) for a, b in zip(groups[:grid, :grid].ravel(), expected.ravel(), strict=True)}
    assert len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs})  # the same partition
    assert f"{len(pairs)} groups of positions that attend to each other" in texts(draw_network.windows(grid, window))


def test_every_size_on_the_figure_is_one_of_the_network(sizes):
    config = default_config()
    for stage, width in enumerate(config.decoder.widths, start=1):
        side = 480 // 2 ** (stage + 1)
        assert sizes[f"V{stage}"] == (side, side, config.vision.embed_dim * 2 ** (stage - 1))
        assert sizes[f"D{stage}"] == (side, side, width)
        assert sizes[f"m{stage}"] == (side, side)
    assert sizes["F"] == (15, 15, config.fusion.width)
    drawn = set(texts(draw_network.coarse_to_fine()))
    assert {draw_network._by(size) for name, size in sizes.items() if name != "words"} <= drawn
