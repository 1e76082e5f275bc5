"""Synthetic scenes as a Source."""

from __future__ import annotations

import operator
from typing import Any, NamedTuple, SupportsIndex

import numpy as np

from s2rm_jax.errors import UserError
from s2rm_jax.input.example import Example, Expression, Groups, Source, consecutive_groups
from s2rm_jax.input.synthetic.draw import draw
from s2rm_jax.input.synthetic.grammar import Reference, refer
from s2rm_jax.input.synthetic.language import FAR_VOCABULARY, VOCABULARY, landmarks_of
from s2rm_jax.input.synthetic.scene import FAR_KINDS, Scene, SceneConfig, is_held_out, sample_scene

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
