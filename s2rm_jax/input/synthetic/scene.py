"""Scenes: their configuration, the outlines of shapes, and random scenes of objects with attributes and positions."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache, lru_cache
from typing import Any, TypeVar

import numpy as np

from s2rm_jax.errors import UserError

SHAPES = ("circle", "square", "triangle", "diamond", "star", "cross", "heart", "ring")
COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink")
TEXTURES = ("plain", "striped", "dotted")
SIZES = ("small", "large")
KINDS = ("attribute", "superlative", "relation", "two_step", "ordinal")
FAR_KINDS = ("nearest", "three_step", "between", "in_line")  # their words are not in the vocabulary of KINDS
ALL_KINDS = (*KINDS, *FAR_KINDS)

# Each colour and each shape is in one pair, so training covers every word of expressions about these pairs.
HELD_OUT_PAIRS = tuple(zip(COLOURS, SHAPES, strict=True))

_CHOICES = {"shapes": SHAPES, "colours": COLOURS, "textures": TEXTURES, "sizes": SIZES, "kinds": ALL_KINDS}


@dataclass(frozen=True)
class SceneConfig:
    """The difficulty of scenes, the same for all splits of a dataset.

    Attributes:
        image_size: height and width in pixels
        min_objects: minimum number of objects
        max_objects: maximum number of objects
        shapes: possible shapes
        colours: possible colours
        textures: possible textures; attributes with a single value are never mentioned
        sizes: possible sizes
        object_scale: factor for the size of every object; 1.0 suits 3 to 6 objects
        colours_per_scene: maximum number of different colours in a scene
        shapes_per_scene: maximum number of different shapes in a scene; if few, expressions need positions
        distractors: probability that an object equals an earlier one in all attributes but one
        max_occlusion: largest share of an object's area that others may hide
        grid: rows and columns of a grid with at most one object in each cell; 0 places objects freely
        kinds: kinds of expressions, generated in turn
        expressions_per_scene: number of expressions per scene
        held_out_pairs: (colour, shape) pairs that only the compositional split shows

    Raises:
        UserError: invalid values.
    """

    image_size: tuple[int, int] = (96, 96)
    min_objects: int = 3
    max_objects: int = 5
    shapes: tuple[str, ...] = SHAPES
    colours: tuple[str, ...] = COLOURS
    textures: tuple[str, ...] = TEXTURES
    sizes: tuple[str, ...] = SIZES
    object_scale: float = 1.0
    colours_per_scene: int = 2
    shapes_per_scene: int = 3
    distractors: float = 0.5
    max_occlusion: float = 0.25
    grid: int = 0
    kinds: tuple[str, ...] = ("attribute", "superlative", "relation")
    expressions_per_scene: int = 4
    held_out_pairs: tuple[tuple[str, str], ...] = HELD_OUT_PAIRS

    def __post_init__(self) -> None:
        for name, known in _CHOICES.items():
            values, choices = getattr(self, name), ", ".join(known)
            unknown = [value for value in values if value not in known]
            _require(not unknown, f"{name} has unknown values {', '.join(map(repr, unknown))}; choose from {choices}")
            _require(len(values) > 0, f"{name} is empty; choose from {choices}")
            _require(len(set(values)) == len(values), f"{name} has a value twice: {', '.join(values)}")
        _require(
            len(self.image_size) == 2 and min(self.image_size) >= 32,
            f"image_size is {self.image_size}; it must be (height, width), each at least 32",
        )
        _require(self.min_objects >= 2, f"min_objects is {self.min_objects}; a scene needs at least 2")
        _require(
            self.max_objects >= self.min_objects,
            f"max_objects is {self.max_objects}; it must be at least min_objects={self.min_objects}",
        )
        _require(0.3 <= self.object_scale <= 2.0, f"object_scale is {self.object_scale}; it must be in 0.3 ... 2.0")
        _require(0 <= self.distractors <= 1, f"distractors is {self.distractors}; it is a probability in 0 ... 1")
        _require(0 <= self.max_occlusion <= 0.6, f"max_occlusion is {self.max_occlusion}; it must be in 0 ... 0.6")
        _require(self.grid >= 0, f"grid is {self.grid}; it must be 0, which places objects freely, or more")
        _require(
            self.grid == 0 or self.grid**2 >= self.max_objects,
            f"grid is {self.grid}: {self.grid**2} cells for {self.max_objects} objects; set a larger grid, a smaller "
            "max_objects, or grid=0",
        )
        for name in ("colours_per_scene", "shapes_per_scene", "expressions_per_scene"):
            _require(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}; it must be at least 1")
        for pair in self.held_out_pairs:
            known_pair = len(pair) == 2 and pair[0] in COLOURS and pair[1] in SHAPES
            _require(known_pair, f"held_out_pairs has {pair!r}; a pair is (colour, shape), such as ('red', 'circle')")
        _require(
            len(self.usable_held_out_pairs) < len(self.colours) * len(self.shapes),
            "held_out_pairs leaves no pair of colour and shape for training; allow more shapes or colours",
        )

    @property
    def usable_held_out_pairs(self) -> tuple[tuple[str, str], ...]:
        """The different held-out pairs whose colour and shape are possible."""
        pairs = dict.fromkeys(self.held_out_pairs)
        return tuple(pair for pair in pairs if pair[0] in self.colours and pair[1] in self.shapes)

    @classmethod
    def from_fields(cls, values: Mapping[str, Any]) -> SceneConfig:
        """Return the defaults with these fields replaced; lists become tuples.

        Raises:
            UserError: an unknown field or an invalid value.
        """
        defaults = {field.name: field.default for field in fields(cls)}
        for name in values:
            known = f"seed, length, train_length, {', '.join(defaults)}"
            _require(name in defaults, f"unknown field {name!r}; the fields are {known}")
        return cls(**{name: _as_type_of(defaults[name], value, name) for name, value in values.items()})


def _as_type_of(default: Any, value: Any, name: str) -> Any:
    if isinstance(default, tuple):
        _require(isinstance(value, list | tuple), f"{name} is {value!r}; it must be a list")
        if not default or not value:
            return tuple(value)
        return tuple(_as_type_of(default[0], item, name) for item in value)
    right = isinstance(value, str) if isinstance(default, str) else isinstance(value, int | float)
    _require(right and not isinstance(value, bool), f"{name} is {value!r}; it must be like {default!r}")
    if isinstance(default, int):
        _require(float(value).is_integer(), f"{name} is {value!r}; it must be a whole number")
    return type(default)(value)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise UserError(f"synthetic scenes: {message}")


Item = TypeVar("Item")


def pick(rng: np.random.Generator, items: Sequence[Item]) -> Item:
    """Return one of the items, each with the same probability."""
    return items[int(rng.random() * len(items))]


def shuffled(rng: np.random.Generator, items: Collection[Item]) -> list[Item]:
    """Return the items in random order, each order with the same probability."""
    listed = list(items)
    return [listed[index] for index in rng.permutation(len(listed))]


# Radius of the disc of the same area, as a share of the image's short side. The ranges are far apart (factor 1.5 in
# radius, 2.2 in area), so that small and large are unambiguous.
RADII = {"small": (0.078, 0.093), "large": (0.140, 0.165)}

_DRAWS = 20  # of attributes per object before a scene is given up
_PLACEMENTS = 40  # positions tried per object before a scene is given up


@dataclass(frozen=True)
class Thing:
    """One object: its attributes, its centre and radius in pixels, its rotation in radians.

    The radius is that of the disc of the same area.
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
    """Objects in painting order: a later one hides an earlier one. Sizes in pixels."""

    height: int
    width: int
    things: tuple[Thing, ...]


def sample_scene(rng: np.random.Generator, config: SceneConfig, *, compositional: bool) -> Scene | None:
    """Draw a random scene; return None if there is no room, or no allowed pair of colour and shape.

    A compositional scene has at least one object of a held-out (colour, shape) pair, other scenes have none.
    """
    height, width = config.image_size
    things: list[Thing] = []
    unplaced = _sample_attributes(rng, config, compositional)
    if config.grid:
        things = _place_on_grid(rng, unplaced, config)
        return Scene(height, width, tuple(things)) if things else None
    for thing in sorted(unplaced, key=lambda thing: thing.size != "large"):  # place large objects first
        placed = _place(rng, thing, things, config)
        if placed is None:
            return None
        things.append(placed)
    if not things:
        return None
    return Scene(height, width, tuple(shuffled(rng, things)))


def is_held_out(thing: Thing, config: SceneConfig) -> bool:
    """Return whether training never shows the object's colour and shape together."""
    return (thing.colour, thing.shape) in config.held_out_pairs


def _sample_attributes(rng: np.random.Generator, config: SceneConfig, compositional: bool) -> list[Thing]:
    """Draw objects without positions, with attributes from a small palette that makes expressions non-trivial.

    Return an empty list if the palette does not allow enough objects.
    """
    colours, shapes = shuffled(rng, config.colours), shuffled(rng, config.shapes)
    if compositional:  # a held-out pair comes first in the palette and is the first object
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
    for _ in range(_DRAWS * count):  # bounded, as all possible distractors may be held out
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
    """Return the object with one attribute changed, or unchanged if the palette has no alternative."""
    choices = [{name: value} for name in palette for value in palette[name] if value != getattr(thing, name)]
    change: dict[str, Any] = pick(rng, choices) if choices else {}
    return replace(thing, **change)


def _place(rng: np.random.Generator, thing: Thing, others: list[Thing], config: SceneConfig) -> Thing | None:
    """Return the object with a size, a rotation and a position that hides little of the others, or None."""
    height, width = config.image_size
    low, high = RADII[thing.size]
    radius = rng.uniform(low, high) * config.object_scale * min(height, width)
    turn = rng.uniform(-0.2, 0.2)  # small, so that a square never looks like a diamond
    border = reach(thing.shape) * radius + 1.0
    if 2 * border >= min(height, width):
        return None
    for _ in range(_PLACEMENTS):
        x = rng.uniform(border, width - border)
        y = rng.uniform(border, height - border)
        if all(_apart(x, y, radius, other, config.max_occlusion) for other in others):
            return replace(thing, x=x, y=y, radius=radius, turn=turn)
    return None


_JITTER = 1 / 12  # of a cell of the grid, to each side


def _place_on_grid(rng: np.random.Generator, things: Sequence[Thing], config: SceneConfig) -> list[Thing]:
    """Return the objects in different cells of the grid, in a random order; an empty list if one is too large."""
    height, width = config.image_size
    cells = rng.permutation(config.grid**2)
    placed = []
    for thing, cell in zip(shuffled(rng, things), cells, strict=False):
        low, high = RADII[thing.size]
        radius = rng.uniform(low, high) * config.object_scale * min(height, width)
        border = reach(thing.shape) * radius + 1.0
        if 2 * border >= min(height, width):
            return []
        row, column = divmod(int(cell), config.grid)
        y, x = (place + 0.5 + rng.uniform(-_JITTER, _JITTER) for place in (row, column))
        y = min(max(y * height / config.grid, border), height - border)
        x = min(max(x * width / config.grid, border), width - border)
        placed.append(replace(thing, x=x, y=y, radius=radius, turn=rng.uniform(-0.2, 0.2)))
    return placed


def _apart(x: float, y: float, radius: float, other: Thing, max_occlusion: float) -> bool:
    """Return whether two discs overlap by at most `max_occlusion` of the smaller one's diameter.

    This is a cheap estimate; the visible shares of the drawn masks decide in the end.
    """
    depth = radius + other.radius - math.hypot(x - other.x, y - other.y)
    return depth <= 2 * max_occlusion * min(radius, other.radius)


_ROUND = 48  # corners of a circle


@cache
def outline(shape: str) -> tuple[np.ndarray, ...]:
    """Return the closed loops of a shape, each [N, 2] as (x, y), y downwards, of joint area pi.

    The first loop is filled, the others are holes. The centre of gravity is the origin. The area of every shape is that
    of the unit disc, so that equal radii mean equal sizes.
    """
    loops = tuple(loop - _centre(_LOOPS[shape][0]) for loop in _LOOPS[shape])
    area = _area(loops[0]) - sum(_area(hole) for hole in loops[1:])
    scaled = tuple(loop * math.sqrt(math.pi / area) for loop in loops)
    for loop in scaled:
        loop.setflags(write=False)
    return scaled


@cache
def reach(shape: str) -> float:
    """Return the largest distance of the outline from its centre, in radii of the disc of the same area."""
    return float(np.linalg.norm(outline(shape)[0], axis=1).max())


@lru_cache(maxsize=1024)
def reach_towards(shape: str, turn: float, x: int, y: int) -> float:
    """Return the extent of the outline, rotated by `turn` radians, from its centre in the direction (x, y).

    In radii of the disc of the same area.
    """
    cos, sin = math.cos(turn), math.sin(turn)
    return float((outline(shape)[0] @ (x * cos + y * sin, y * cos - x * sin)).max())  # rotates the direction back


def _area(loop: np.ndarray) -> float:
    x, y = loop.T
    return abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2


def _centre(loop: np.ndarray) -> np.ndarray:
    """Return the centre of gravity of a loop's area, from the triangles between its sides and the origin."""
    following = np.roll(loop, -1, axis=0)
    areas = loop[:, 0] * following[:, 1] - loop[:, 1] * following[:, 0]
    return (areas[:, None] * (loop + following)).sum(axis=0) / (3 * areas.sum())


def _polar(radii: list[float], count: int) -> np.ndarray:
    """Return corners at equal angles from the top, with the radii in turn."""
    angles = np.arange(count) * (2 * math.pi / count) - math.pi / 2
    return np.stack([np.cos(angles), np.sin(angles)], axis=1) * np.resize(radii, count)[:, None]


def _heart() -> np.ndarray:
    t = np.arange(_ROUND) * (2 * math.pi / _ROUND)
    x = 16 * np.sin(t) ** 3
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    return np.stack([x, y], axis=1)


def _cross() -> np.ndarray:
    arm, half = 1.0, 0.36
    quarter = np.array([(-half, -half), (-half, -arm), (half, -arm)])
    turns = [np.array([[math.cos(a), -math.sin(a)], [math.sin(a), math.cos(a)]]) for a in np.arange(4) * math.pi / 2]
    return np.concatenate([quarter @ turn.T for turn in turns])


_CIRCLE = _polar([1.0], _ROUND)
_LOOPS = {
    "circle": (_CIRCLE,),
    "square": (np.array([(-1.0, -1.0), (1.0, -1.0), (1.0, 1.0), (-1.0, 1.0)]),),
    "triangle": (_polar([1.0], 3),),
    "diamond": (_polar([1.3, 1.0], 4),),
    "star": (_polar([1.0, 0.5], 10),),
    "cross": (_cross(),),
    "heart": (_heart(),),
    "ring": (_CIRCLE, _CIRCLE * 0.42),
}
