"""A scene as the grammar sees it: every noun that fits a thing, and every relation between two of them.

Sets of things are bit masks here (bit i for thing i), so that whole families of sentences are sifted in microseconds.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from s2rm_jax.input.synthetic.difficulty import SceneConfig
from s2rm_jax.input.synthetic.meaning import RELATIONS, Noun, holds
from s2rm_jax.input.synthetic.scene import Scene

# How often an attribute is spoken of where there is a choice: mostly the shape, less often the rest.
_MENTION = {"size": 0.35, "texture": 0.3, "colour": 0.5, "shape": 0.88}


class Described(NamedTuple):
    """A noun, the things it fits, and how readily it is said."""

    noun: Noun
    extension: int
    weight: float


class Neighbour(NamedTuple):
    """A relation to a landmark, all things that clearly stand in it, and those for which it is not clear."""

    relation: str
    landmark: int
    clear: int
    unclear: int


@dataclass(frozen=True)
class Survey:
    """A scene; for each thing the nouns that fit it; for each thing the relations in which it clearly stands."""

    scene: Scene
    nouns: tuple[tuple[Described, ...], ...]
    neighbours: tuple[tuple[Neighbour, ...], ...]


def survey(scene: Scene, config: SceneConfig) -> Survey:
    """Returns what can be said of each thing. An attribute with one value in the config is not spoken of."""
    options = {"size": config.sizes, "texture": config.textures, "colour": config.colours, "shape": config.shapes}
    spoken = [name for name, values in options.items() if len(values) > 1]
    indices = range(len(scene.things))
    nouns = tuple(_describe(scene, index, spoken) for index in indices)
    relations = [_relate(scene, name, landmark) for name in RELATIONS for landmark in indices]
    neighbours = tuple(tuple(one for one in relations if one.clear >> index & 1) for index in indices)
    return Survey(scene, nouns, neighbours)


def mask_of(indices: Iterable[int]) -> int:
    """Returns the bit mask of these things."""
    return sum(1 << index for index in indices)


def pick_described(rng: np.random.Generator, candidates: list[Described]) -> Described | None:
    """Returns one of the nouns, by its weight; None where there is none."""
    if not candidates:
        return None
    target = rng.random() * sum(candidate.weight for candidate in candidates)
    for candidate in candidates:
        target -= candidate.weight
        if target < 0:
            return candidate
    return candidates[-1]


def _describe(scene: Scene, index: int, spoken: list[str]) -> tuple[Described, ...]:
    thing = scene.things[index]
    everything = mask_of(range(len(scene.things)))
    alike = {
        name: mask_of(i for i, other in enumerate(scene.things) if getattr(other, name) == getattr(thing, name))
        for name in spoken
    }
    described = []
    for chosen in itertools.product((False, True), repeat=len(spoken)):
        names = list(itertools.compress(spoken, chosen))
        extension = everything
        for name in names:
            extension &= alike[name]
        weight = math.prod(
            _MENTION[name] if said else 1 - _MENTION[name] for name, said in zip(spoken, chosen, strict=True)
        )
        described.append(Described(Noun(**{name: getattr(thing, name) for name in names}), extension, weight))
    return tuple(described)


def _relate(scene: Scene, relation: str, landmark: int) -> Neighbour:
    clear = unclear = 0
    for index, thing in enumerate(scene.things):
        answer = False if index == landmark else holds(relation, thing, scene.things[landmark], scene)
        clear |= (answer is True) << index
        unclear |= (answer is None) << index
    return Neighbour(relation, landmark, clear, unclear)
