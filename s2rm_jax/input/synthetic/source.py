"""Synthetic scenes as a Source, and their drawing: an anti-aliased image, and the visible pixels of each object.

Backgrounds are muted tones, which no object has, in gradients, glows, stripes, clouds and grain.
"""

from __future__ import annotations

import math
import operator
from typing import Any, NamedTuple, SupportsIndex

import numpy as np
from PIL import Image, ImageDraw

from s2rm_jax.errors import UserError
from s2rm_jax.input.example import Example, Expression, Groups, Source, consecutive_groups
from s2rm_jax.input.synthetic.grammar import Reference, refer
from s2rm_jax.input.synthetic.language import FAR_VOCABULARY, VOCABULARY, landmarks_of
from s2rm_jax.input.synthetic.scene import (
    FAR_KINDS,
    Scene,
    SceneConfig,
    Thing,
    is_held_out,
    outline,
    reach,
    sample_scene,
)

# The length of each split. Its position here selects its stream of random numbers.
SPLITS = {"train": 2**31 - 1, "val": 512, "test": 512, "compositional": 512}

_ATTEMPTS = 1000  # scenes drawn before a configuration counts as impossible; usually a few are enough


class Composition(NamedTuple):
    """A scene, its references, its image (uint8 [H, W, 3]) and the mask of each object (bool [H, W])."""

    scene: Scene
    references: tuple[Reference, ...]
    image: np.ndarray
    masks: list[np.ndarray]

    def landmark_distance(self, reference: Reference, slices: int) -> int | None:
        """Return the number of slices between the referent and its landmark, the farther one of two.

        It is the larger one of the distances in rows and in columns.

        Args:
            reference: one of the references of this scene.
            slices: the number of slices along the image's height and along its width.

        Returns:
            0 for the same slice, 1 for neighbours, and so on; None if the expression has no landmark.
        """
        scene = self.scene
        places = np.array(
            [(thing.y * slices // scene.height, thing.x * slices // scene.width) for thing in scene.things]
        )
        landmarks = landmarks_of(reference.meaning, scene)
        if not landmarks:
            return None
        return int(abs(places[list(landmarks)] - places[reference.referent]).max())


class SyntheticSource(Source):
    """Scenes of coloured shapes with expressions; scene i is a pure function of (seed, split, i).

    Nothing is stored: every access generates the scene, so threads and processes share nothing.
    """

    def __init__(
        self,
        split: str,
        *,
        seed: int = 0,
        length: int | None = None,
        train_length: int | None = None,
        scene: SceneConfig | None = None,
        **difficulty: Any,
    ):
        """Set the difficulty by a SceneConfig, by its fields, or by both (fields take precedence).

        Args:
            split: train, val, test or compositional; they share no scene, and only the last shows held-out pairs
            length: number of scenes; by default 2**31 - 1 for train (practically endless), else 512
            train_length: the length of train alone, so that one configuration can describe all splits

        Raises:
            UserError: an unknown split or field, or invalid values.
        """
        if split not in SPLITS:
            raise UserError(f"synthetic scenes: no split {split!r}; the splits are {', '.join(SPLITS)}")
        if seed < 0:
            raise UserError(f"synthetic scenes: seed is {seed}; it must not be negative")
        if split == "train" and train_length is not None:
            length = train_length
        if length is not None and length < 1:
            raise UserError(f"synthetic scenes: length is {length}; a split has at least 1 scene")
        self._split, self._seed = split, seed
        self._length = SPLITS[split] if length is None else length
        self._config = SceneConfig.from_fields((vars(scene) if scene else {}) | difficulty)
        if split == "compositional" and not self._config.usable_held_out_pairs:
            raise UserError("synthetic scenes: held_out_pairs has no pair of these colours and shapes to show")

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """A BERT vocabulary with every word of every expression, [PAD] first.

        The shorter one, for the kinds of KINDS, is the beginning of the other.
        """
        return FAR_VOCABULARY if set(self._config.kinds) & set(FAR_KINDS) else VOCABULARY

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: SupportsIndex) -> Example:
        index = operator.index(index)
        composed = self.composition(index)
        height, width = self._config.image_size
        name = f"{self._split}-{index}"
        expressions = tuple(
            Expression(reference.text, composed.masks[reference.referent], reference.kind, f"{name}-{number}")
            for number, reference in enumerate(composed.references)
        )
        return Example(name, composed.image, height, width, expressions)

    def composition(self, index: int) -> Composition:
        """Return scene `index` with its structure, for analyses."""
        if not 0 <= index < self._length:
            raise IndexError(f"scene {index} of {self._length}")
        return compose(self._config, self._split, self._seed, index)

    def referents(self, index: int) -> Groups:
        """Return the positions of a scene's expressions, each as a group of its own."""
        return consecutive_groups([1] * self._config.expressions_per_scene)


def compose(config: SceneConfig, split: str, seed: int, index: int) -> Composition:
    """Draw scenes until one allows expressions of the kinds that are next in turn and shows enough of every object.

    Raises:
        UserError: none does.
    """
    stream = (list(SPLITS).index(split), index)
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=stream))
    first = index * config.expressions_per_scene
    kinds = [config.kinds[(first + k) % len(config.kinds)] for k in range(config.expressions_per_scene)]
    compositional = split == "compositional"
    for _ in range(_ATTEMPTS):
        scene = sample_scene(rng, config, compositional=compositional)
        if scene is None:
            continue
        referents = [i for i, thing in enumerate(scene.things) if not compositional or is_held_out(thing, config)]
        references = refer(rng, scene, config, kinds, referents)
        if references is None:
            continue
        image, masks, shares = draw(scene, rng)
        if min(shares) >= 1 - config.max_occlusion:
            return Composition(scene, references, image, masks)
    raise UserError(
        f"synthetic scenes: {_ATTEMPTS} scenes gave none with expressions of the kinds {', '.join(kinds)};"
        " allow more objects, shapes, colours or textures, smaller objects, or other kinds"
    )


_SUPERSAMPLE = 4
_PERIODS = {"striped": 0.62, "dotted": 0.66}  # of the patterns, in radii

# Base tone, and the second tone for stripes and dots, which has the same hue and another lightness.
_TONES = {
    "red": ((218, 28, 36), (95, 0, 12)),
    "orange": ((250, 130, 10), (130, 50, 0)),
    "yellow": ((250, 222, 40), (145, 110, 0)),
    "green": ((30, 145, 55), (200, 245, 195)),
    "cyan": ((60, 215, 225), (0, 95, 110)),
    "blue": ((35, 70, 215), (190, 210, 255)),
    "purple": ((130, 40, 175), (230, 195, 250)),
    "pink": ((255, 135, 190), (255, 232, 244)),
}


def draw(scene: Scene, rng: np.random.Generator) -> tuple[np.ndarray, list[np.ndarray], list[float]]:
    """Return the image, the masks and the visible shares of a scene.

    Returns:
        image: uint8 [H, W, 3]
        masks: one boolean [H, W] per object: its visible pixels; no pixel is in two masks
        shares: one number per object: its visible pixels over all its pixels
    """
    image = paint_ground(scene.height, scene.width, rng)
    owner = np.full((scene.height, scene.width), -1, np.int16)
    areas = []
    for index, thing in enumerate(scene.things):
        box, coverage, inside = _rasterize(thing, scene.height, scene.width)
        alpha = coverage[..., None]
        image[box] = image[box] * (1 - alpha) + _paint(thing, box, inside, rng) * alpha
        solid = coverage >= 0.5
        owner[box][solid] = index
        areas.append(int(solid.sum()))
    masks = [owner == index for index in range(len(scene.things))]
    shares = [float(mask.sum()) / area for mask, area in zip(masks, areas, strict=True)]
    return np.clip(image + 0.5, 0, 255).astype(np.uint8), masks, shares


def paint_ground(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """Return a background, float32 [H, W, 3] in 0 ... 255."""
    first, second = _tone(rng), _tone(rng)
    second = first + (second - first) * 0.5
    rows = np.linspace(-0.5, 0.5, height, dtype=np.float32)[:, None]
    columns = np.linspace(-0.5, 0.5, width, dtype=np.float32)[None, :]
    angle = rng.uniform(0, 2 * math.pi)
    along = columns * math.cos(angle) + rows * math.sin(angle)
    kind = int(rng.integers(5))
    share: np.ndarray
    if kind == 0:  # a gradient
        share = along + 0.5
    elif kind == 1:  # a glow around some point
        share = 1.2 * np.hypot(rows - rng.uniform(-0.5, 0.5), columns - rng.uniform(-0.5, 0.5))
    elif kind == 2:  # faint stripes
        share = 0.5 + 0.25 * np.sin(along * (2 * math.pi * rng.uniform(4, 12)))
    elif kind == 3:  # clouds
        cells = Image.fromarray(rng.random((5, 5), dtype=np.float32))
        share = np.asarray(cells.resize((width, height), Image.Resampling.BICUBIC))
    else:  # plain
        share = np.zeros((height, width), np.float32)
    ground = first + (second - first) * share[..., None].astype(np.float32)
    grain = rng.standard_normal((height, width, 1), dtype=np.float32) * rng.uniform(0, 5)
    return ground + grain.astype(np.float32)


def _tone(rng: np.random.Generator) -> np.ndarray:
    """Draw a dark or a light grey with a touch of colour."""
    low, high = (28, 80) if rng.random() < 0.4 else (150, 235)
    return (rng.uniform(low, high) + rng.uniform(-10, 10, 3)).astype(np.float32)


def _rasterize(thing: Thing, height: int, width: int) -> tuple[tuple[slice, slice], np.ndarray, np.ndarray]:
    """Return an object's box in the image and, in it, the share of each pixel inside the outline and inside the rim."""
    extent = reach(thing.shape) * thing.radius + 1.0
    top, left = max(0, math.floor(thing.y - extent)), max(0, math.floor(thing.x - extent))
    bottom, right = min(height, math.ceil(thing.y + extent)), min(width, math.ceil(thing.x + extent))
    cos, sin = math.cos(thing.turn), math.sin(thing.turn)
    # for row vectors: x' = x cos - y sin, y' = x sin + y cos
    turn = np.array([[cos, sin], [-sin, cos]]) * thing.radius
    shift = np.array([thing.x - left, thing.y - top])
    loops = [((loop @ turn + shift) * _SUPERSAMPLE).ravel().tolist() for loop in outline(thing.shape)]

    size = ((right - left) * _SUPERSAMPLE, (bottom - top) * _SUPERSAMPLE)
    image = Image.new("L", size)
    pen = ImageDraw.Draw(image)
    for loop, fill in zip(loops, (255, 0), strict=False):
        pen.polygon(loop, fill=fill)
    coverage = _reduce(image)
    rim = max(1, round(_SUPERSAMPLE * (1.2 + 0.12 * thing.radius)))  # half of it is inside the outline
    for loop in loops:
        pen.line([*loop, *loop[:4]], fill=0, width=rim)
    return (slice(top, bottom), slice(left, right)), coverage, _reduce(image)


def _reduce(image: Image.Image) -> np.ndarray:
    return np.asarray(image.reduce(_SUPERSAMPLE), np.float32) / 255


def _paint(thing: Thing, box: tuple[slice, slice], inside: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the object's colours in its box, [h, w, 3] in 0 ... 255: texture, light from above, a darker rim."""
    base, second = (np.array(tone, np.float32) for tone in _TONES[thing.colour])
    base = base + rng.uniform(-8, 8, 3).astype(np.float32)
    rows = (np.arange(box[0].start, box[0].stop, dtype=np.float32)[:, None] + 0.5 - thing.y) / thing.radius
    columns = (np.arange(box[1].start, box[1].stop, dtype=np.float32)[None, :] + 0.5 - thing.x) / thing.radius
    light = (1.0 - 0.08 * rows)[..., None]
    rim = (0.62 + 0.38 * inside)[..., None]
    if thing.texture == "plain":
        return base * light * rim
    # The pattern ends at the rim, which stays a closed line of the base colour.
    share = (_pattern(thing.texture, rows, columns, thing.radius, rng) * inside)[..., None]
    return (base + (second - base) * share) * light * rim


def _pattern(
    texture: str, rows: np.ndarray, columns: np.ndarray, radius: float, rng: np.random.Generator
) -> np.ndarray:
    """Return the share of the second tone at each pixel, [h, w].

    `rows` [h, 1] and `columns` [1, w] are offsets from the object's centre, in radii.
    """
    angle = rng.uniform(0, math.pi)
    period = _PERIODS[texture]
    along = columns * math.cos(angle) + rows * math.sin(angle)
    across = rows * math.cos(angle) - columns * math.sin(angle)
    u, v = (2 * math.pi * (offset / period + rng.random()) for offset in (along, across))
    # Signed distance of a pixel inside the second tone, scaled so that the slope at the border is about one.
    if texture == "striped":
        wave = np.sin(u) - 0.1
    else:
        wave = 1.45 - np.hypot(np.remainder(u, 2 * math.pi) - math.pi, np.remainder(v, 2 * math.pi) - math.pi)
    return np.clip(0.5 + wave * (radius * period / (2 * math.pi)), 0, 1)
