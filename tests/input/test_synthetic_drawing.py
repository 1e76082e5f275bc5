"""Drawn scenes: the image agrees with the masks."""

from __future__ import annotations

import math

import numpy as np
import pytest

from s2rm_jax.input.synthetic import SceneConfig
from s2rm_jax.input.synthetic.scene import COLOURS, SHAPES, TEXTURES, Scene, Thing, outline
from s2rm_jax.input.synthetic.source import compose, draw


def rng():
    return np.random.default_rng(0)


def one(shape="circle", colour="red", texture="plain", x=50.0, y=50.0, radius=20.0, turn=0.0):
    return Thing(shape, colour, texture, "large", x, y, radius, turn)


@pytest.mark.parametrize("shape", SHAPES)
def test_equal_radius_means_equal_area_around_the_centre(shape):
    _, (mask,), (share,) = draw(Scene(100, 100, (one(shape, x=48.6, y=51.3, turn=0.15),)), rng())
    assert mask.sum() == pytest.approx(math.pi * 20**2, rel=0.03)
    rows, columns = np.nonzero(mask)
    assert columns.mean() + 0.5 == pytest.approx(48.6, abs=0.25)
    assert rows.mean() + 0.5 == pytest.approx(51.3, abs=0.25)
    assert share == 1.0


@pytest.mark.parametrize("shape", SHAPES)
def test_the_mask_is_the_outline(shape):
    # Each pixel centre well inside the outline is in the mask, each one well outside is not.
    thing = one(shape, x=47.3, y=52.8)
    _, (mask,), _ = draw(Scene(100, 100, (thing,)), rng())
    rows, columns = np.mgrid[:100, :100] + 0.5
    inside = np.zeros((100, 100), bool)
    distance = np.full((100, 100), np.inf)
    for loop in outline(shape):
        corners = loop * thing.radius + (thing.x, thing.y)
        for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
            crosses = (y0 > rows) != (y1 > rows)
            with np.errstate(divide="ignore", invalid="ignore"):
                inside ^= crosses & (columns < (x1 - x0) * (rows - y0) / (y1 - y0) + x0)
            along = ((columns - x0) * (x1 - x0) + (rows - y0) * (y1 - y0)) / ((x1 - x0) ** 2 + (y1 - y0) ** 2)
            along = np.clip(along, 0, 1)
            distance = np.minimum(distance, np.hypot(columns - x0 - along * (x1 - x0), rows - y0 - along * (y1 - y0)))
    sure = distance > 0.75
    assert sure.mean() > 0.8
    np.testing.assert_array_equal(mask[sure], inside[sure])


def test_edges_are_smooth():
    white = Scene(100, 100, (one(colour="cyan"),))
    image, (mask,), _ = draw(white, rng())
    inner, outer = image[50, 50].astype(int), image[5, 5].astype(int)
    rows, columns = np.mgrid[:100, :100] + 0.5
    edge = np.abs(np.hypot(rows - 50, columns - 50) - 20) < 0.5
    channel = np.argmax(np.abs(inner - outer))
    values = np.unique(image[edge][:, channel])
    assert len(values) > 20  # not only two
    assert mask[50, 50] and not mask[5, 5]


@pytest.mark.parametrize("texture", TEXTURES)
@pytest.mark.parametrize("colour", COLOURS)
def test_textures_keep_the_colour_in_the_lead(colour, texture):
    plain, (mask,), _ = draw(Scene(100, 100, (one(colour=colour),)), rng())
    painted, _, _ = draw(Scene(100, 100, (one(colour=colour, texture=texture),)), rng())
    changed = np.abs(painted[mask].astype(int) - plain[mask]).max(axis=1) > 60
    low, high = {"plain": (0.0, 0.0), "striped": (0.25, 0.5), "dotted": (0.08, 0.3)}[texture]
    assert low <= changed.mean() <= high


def test_colours_are_far_apart():
    means = []
    for colour in COLOURS:
        image, (mask,), _ = draw(Scene(100, 100, (one(colour=colour),)), rng())
        means.append(image[mask].mean(axis=0))
    distances = np.linalg.norm(np.array(means)[:, None] - np.array(means)[None], axis=-1)
    assert distances[~np.eye(len(COLOURS), dtype=bool)].min() > 60


def test_the_later_thing_hides_the_earlier_one():
    red, blue = one(colour="red"), one(colour="blue", x=65.0)
    image, masks, shares = draw(Scene(100, 100, (red, blue)), rng())
    assert not (masks[0] & masks[1]).any()
    assert shares[1] == 1.0 and 0.4 < shares[0] < 0.6
    assert masks[1][50, 60] and image[50, 60, 2] > image[50, 60, 0]
    assert masks[0][50, 35] and image[50, 35, 0] > image[50, 35, 2]
    _, swapped, _ = draw(Scene(100, 100, (blue, red)), rng())
    assert swapped[1][50, 60] and not swapped[0][50, 60]
    np.testing.assert_array_equal(masks[0] | masks[1], swapped[0] | swapped[1])


@pytest.mark.parametrize("limit", [0.0, 0.25, 0.5])
def test_things_hide_each_other_within_the_limit(limit):
    config = SceneConfig(max_occlusion=limit, min_objects=4, max_objects=6)
    shares = []
    for index in range(60):
        scene, _, _, masks = compose(config, "train", 0, index)
        assert np.sum(masks, axis=0).max() == 1  # no pixel belongs to two
        for thing, mask in zip(scene.things, masks, strict=True):
            _, (whole,), _ = draw(Scene(scene.height, scene.width, (thing,)), rng())
            assert not (mask & ~whole).any()
            shares.append(mask.sum() / whole.sum())
    assert min(shares) >= 1 - limit
    if limit > 0:
        assert min(shares) < 1 - limit / 2  # and they do hide each other


def test_things_lie_wholly_in_the_image():
    for index in range(40):
        for mask in compose(SceneConfig(image_size=(96, 140)), "train", 0, index).masks:
            border = np.ones_like(mask)
            border[1:-1, 1:-1] = False
            assert not (mask & border).any()


def test_grounds_vary():
    images = [compose(SceneConfig(), "train", 0, index) for index in range(30)]
    grounds = np.array([p.image[~np.any(p.masks, axis=0)].mean() for p in images])
    assert grounds.min() < 80 and grounds.max() > 180
    saturation = [np.ptp(p.image[~np.any(p.masks, axis=0)].mean(axis=0)) for p in images]
    assert max(saturation) < 45  # muted: no ground could be taken for a colour of the things
