"""The figure of how the network came to a mask: what is on it, and that values become the colours they should."""

import numpy as np
import pytest

from s2rm_jax.evaluation.explain import WIDTH, Explanation, explain_figure
from s2rm_jax.evaluation.overlay import RAMP, fit_image, heat_bar, heat_image, heat_over, span

PAIRS = ("language_parses_vision", "vision_parses_language")


def explanation_of(words=4, pairs=PAIRS, directions=("downwards", "leftwards", "upwards", "rightwards")):
    rng = np.random.default_rng(0)
    shape = (len(directions), 3, 4)
    return Explanation(
        tuple(f"word{i}" for i in range(words)),
        rng.random((words, 3, 4), np.float32),
        directions,
        {pair: rng.random(shape, np.float32) for pair in pairs},
        {pair: np.full(shape, 1 / len(directions), np.float32) for pair in pairs},
        tuple(rng.random((size, size), np.float32) for size in (2, 4, 8)),
    )


def drawn(height=60, width=80, **more):
    image = np.full((height, width, 3), 128, np.uint8)
    mask = np.zeros((height, width), bool)
    mask[:, : width // 2] = True
    true = mask if more.pop("known", True) else None
    return explain_figure(image, "the word", "score 0.9", mask, explanation_of(**more), true=true)


def test_it_is_as_wide_as_it_should_be_and_grows_with_what_is_on_it():
    usual = drawn()
    assert usual.width == WIDTH
    assert drawn(words=8).height == usual.height
    assert drawn(words=9).height > usual.height  # another row
    assert drawn(pairs=()).height < drawn(pairs=PAIRS[:1]).height < usual.height
    assert drawn(height=400, width=20).height < 2 * usual.height  # a tall image is made narrower


def test_the_truth_is_there_where_it_is_known():
    known, unknown = (np.asarray(drawn(known=known)).astype(int) for known in (True, False))
    assert known.shape == unknown.shape
    differs = (known != unknown).any(-1)
    rows, columns = np.nonzero(differs)
    assert columns.min() > WIDTH // 2  # the third panel, and nothing else
    assert rows.max() < known.shape[0] // 3


@pytest.mark.parametrize("directions", [("downwards",), ("downwards", "upwards")])
def test_fewer_directions(directions):
    assert drawn(directions=directions).width == WIDTH


def test_low_values_are_dark_and_high_ones_bright():
    values = np.array([[0.0, 0.5, 1.0]])
    layer = np.asarray(heat_image(values, (0.0, 1.0)))
    assert [tuple(colour) for colour in layer[0, :, :3].tolist()] == [RAMP[0], RAMP[2], RAMP[4]]
    assert (np.diff(layer[0, :, 3].astype(int)) > 0).all()
    grey = np.asarray(heat_bar(64, 1).convert("L")).astype(int)
    assert (np.diff(grey[0]) >= 0).all()
    assert grey[0, -1] - grey[0, 0] > 150


def test_values_all_alike_are_in_the_middle_and_beyond_the_scale_at_its_end():
    assert tuple(np.asarray(heat_image(np.ones((2, 2)), (1.0, 1.0)))[0, 0, :3]) == RAMP[2]
    assert tuple(np.asarray(heat_image(np.full((2, 2), 3.0), (0.0, 1.0)))[0, 0, :3]) == RAMP[4]
    assert span(np.array([[2.0, -1.0]])) == (-1.0, 2.0)


def test_the_map_covers_the_whole_image():
    image = fit_image(np.full((40, 80, 3), 90, np.uint8), (80, 40))
    over = np.asarray(heat_over(image, np.array([[0.0, 1.0]]), (0.0, 1.0)).convert("L")).astype(int)
    assert over.shape == (40, 80)
    assert over[:, 0].max() < over[:, -1].min()
