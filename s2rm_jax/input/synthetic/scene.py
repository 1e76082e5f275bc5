"""What is in a scene and where, before it is drawn or spoken of."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from s2rm_jax.input.synthetic.chance import pick, shuffled
from s2rm_jax.input.synthetic.difficulty import SceneConfig
from s2rm_jax.input.synthetic.outlines import reach

# Radius of the disc of the same area, as a share of the picture's short side. The bands lie far apart (factor 1.5 in
# radius, 2.2 in area), so that an object is never in doubt between small and large.
RADII = {"small": (0.078, 0.093), "large": (0.140, 0.165)}

_DRAWS = 20  # of attributes, as often for each object of a scene, before the scene is given up
_PLACEMENTS = 40  # positions tried for an object before the scene is given up


@dataclass(frozen=True)
class Thing:
    """One object: its attributes, its centre and radius in pixels, its turn in radians.

    The radius is that of the disc of the same area, whatever the shape.
    """

    shape: str
    colour: str
    texture: str
    size: str
    x: float = 0.0
    y: float = 0.0
    radius: float = 0.0
    turn: float = 0.0


@dataclass(frozen=True)
class Scene:
    """Things in the order in which they are painted: a later one hides an earlier one. Sizes in pixels."""

    height: int
    width: int
    things: tuple[Thing, ...]


def sample_scene(rng: np.random.Generator, config: SceneConfig, *, compositional: bool) -> Scene | None:
    """Draws a scene, or None where the draw leads to nothing: no room, or no colour and shape that may go together.

    A compositional scene has at least one thing of a held-out (colour, shape) pair, any other scene none.
    """
    height, width = config.image_size
    things: list[Thing] = []
    unplaced = _sample_attributes(rng, config, compositional)
    for thing in sorted(unplaced, key=lambda thing: thing.size != "large"):  # the large ones find room first
        placed = _place(rng, thing, things, config)
        if placed is None:
            return None
        things.append(placed)
    if not things:
        return None
    return Scene(height, width, tuple(shuffled(rng, things)))


def is_held_out(thing: Thing, config: SceneConfig) -> bool:
    """True for a thing whose colour and shape training never shows together."""
    return (thing.colour, thing.shape) in config.held_out_pairs


def _sample_attributes(rng: np.random.Generator, config: SceneConfig, compositional: bool) -> list[Thing]:
    """Draws things without a place; all take their attributes from a small palette, so that sentences must work.

    Returns none of them where the palette does not give enough.
    """
    colours, shapes = shuffled(rng, config.colours), shuffled(rng, config.shapes)
    if compositional:  # a held-out pair leads the palette, and the first thing shows it
        colour, shape = pick(rng, config.usable_held_out_pairs)
        colours.sort(key=lambda other: other != colour)
        shapes.sort(key=lambda other: other != shape)
    shape_count = int(rng.integers(min(2, config.shapes_per_scene), config.shapes_per_scene + 1))
    palette = {
        "size": list(config.sizes),
        "texture": shuffled(rng, config.textures)[:2],
        "colour": colours[: config.colours_per_scene],
        "shape": shapes[:shape_count],
    }
    things: list[Thing] = []
    if compositional:
        things.append(_sample_thing(rng, palette | {"colour": colours[:1], "shape": shapes[:1]}))
    elif all((colour, shape) in config.held_out_pairs for colour in palette["colour"] for shape in palette["shape"]):
        return []
    count = int(rng.integers(config.min_objects, config.max_objects + 1))
    for _ in range(_DRAWS * count):  # not for ever: all distractors that there can be may be held out
        if len(things) == count:
            return things
        if things and rng.random() < config.distractors:
            thing = _change_one(rng, pick(rng, things), palette)
        else:
            thing = _sample_thing(rng, palette)
        if compositional or not is_held_out(thing, config):
            things.append(thing)
    return []


def _sample_thing(rng: np.random.Generator, palette: dict[str, list[str]]) -> Thing:
    shape, colour = pick(rng, palette["shape"]), pick(rng, palette["colour"])
    return Thing(shape, colour, pick(rng, palette["texture"]), pick(rng, palette["size"]))


def _change_one(rng: np.random.Generator, thing: Thing, palette: dict[str, list[str]]) -> Thing:
    """The thing with one attribute changed; the same thing where the palette has no choice."""
    choices = [{name: value} for name in palette for value in palette[name] if value != getattr(thing, name)]
    change: dict[str, Any] = pick(rng, choices) if choices else {}
    return replace(thing, **change)


def _place(rng: np.random.Generator, thing: Thing, others: list[Thing], config: SceneConfig) -> Thing | None:
    """Returns the thing with a size, a turn and a place in the picture that hides not too much, or None."""
    height, width = config.image_size
    low, high = RADII[thing.size]
    radius = rng.uniform(low, high) * config.object_scale * min(height, width)
    turn = rng.uniform(-0.2, 0.2)  # small enough that a square never stands like a diamond
    border = reach(thing.shape) * radius + 1.0
    if 2 * border >= min(height, width):
        return None
    for _ in range(_PLACEMENTS):
        x = rng.uniform(border, width - border)
        y = rng.uniform(border, height - border)
        if all(_apart(x, y, radius, other, config.max_occlusion) for other in others):
            return replace(thing, x=x, y=y, radius=radius, turn=turn)
    return None


def _apart(x: float, y: float, radius: float, other: Thing, max_occlusion: float) -> bool:
    """True where two discs overlap by no deeper than that share of the smaller one's diameter.

    Only a cheap forecast: what the drawn masks leave visible is what counts in the end.
    """
    depth = radius + other.radius - math.hypot(x - other.x, y - other.y)
    return depth <= 2 * max_occlusion * min(radius, other.radius)
