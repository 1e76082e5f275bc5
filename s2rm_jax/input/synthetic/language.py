"""The meaning of expressions, as small trees that are evaluated on scenes, and their wording.

Geometry has margins. Where people could disagree (an object that is only slightly further left, or as far above as
left), the meaning is None, "not clear", and no expression is generated. With u the short side of the image:

- further to a side (leftmost, second from the left): the centre by at least 0.08 u, and both edges of the outline
  (including hidden parts);
- A left of B: A is further left as above, and at most 1.25 times as far up or down as it is left. A is not left of B:
  its centre is less than 0.02 u to the left. Everything between is not clear;
- largest: the radius by a factor of at least 1.2, the area by 1.44.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from s2rm_jax.input.synthetic.scene import COLOURS, SHAPES, TEXTURES, Scene, Thing, pick, reach_towards

SIDES = {"left": (-1, 0), "right": (1, 0), "top": (0, -1), "bottom": (0, 1)}  # unit step (x, y) towards each
EXTREMES = (*SIDES, "largest", "smallest")
RELATIONS = {"left of": "left", "right of": "right", "above": "top", "below": "bottom"}  # the side of each relation

_MARGIN = 0.08  # shares of the short side
_SLACK = 0.02
_CONE = 1.25
_SIZE_RATIO = 1.2


@dataclass(frozen=True)
class Noun:
    """All things with these attributes; None matches any value."""

    shape: str | None = None
    colour: str | None = None
    texture: str | None = None
    size: str | None = None


@dataclass(frozen=True)
class Extreme:
    """The thing of a noun that is furthest to a side, the largest or the smallest; `which` is one of EXTREMES."""

    which: str
    noun: Noun


@dataclass(frozen=True)
class Nth:
    """The thing of a noun with rank - 1 others of that noun between itself and a side."""

    rank: int
    side: str
    noun: Noun


@dataclass(frozen=True)
class Related:
    """The things of a noun for which the relation, one of RELATIONS, to the landmark holds."""

    noun: Noun
    relation: str
    landmark: Noun | Related


Meaning = Noun | Extreme | Nth | Related


def evaluate(meaning: Meaning, scene: Scene) -> frozenset[int] | None:
    """Return the indices of the things that the meaning refers to, or None if that is not clear.

    A relation is not clear either if its landmark is not exactly one thing.
    """
    match meaning:
        case Noun():
            return frozenset(i for i, thing in enumerate(scene.things) if _fits(meaning, thing))
        case Extreme():
            return _evaluate_extreme(meaning, scene)
        case Nth():
            return _evaluate_nth(meaning, scene)
        case Related():
            return _evaluate_related(meaning, scene)


def is_further(a: Thing, b: Thing, side: str, scene: Scene) -> bool:
    """Return whether a is clearly further than b towards a side, by its centre and both its edges."""
    ahead = _ahead(a, b, side)
    if ahead < _MARGIN * min(scene.height, scene.width):
        return False
    x, y = SIDES[side]
    return ahead >= max(_extent(b, x, y) - _extent(a, x, y), _extent(a, -x, -y) - _extent(b, -x, -y))


def exceeds(a: Thing, b: Thing, which: str, scene: Scene) -> bool:
    """Return whether a clearly exceeds b in the sense of an extreme, one of EXTREMES."""
    if which == "largest":
        return a.radius >= _SIZE_RATIO * b.radius
    if which == "smallest":
        return b.radius >= _SIZE_RATIO * a.radius
    return is_further(a, b, which, scene)


def holds(relation: str, a: Thing, b: Thing, scene: Scene) -> bool | None:
    """Return whether the relation of a to b holds; None if that is not clear."""
    side = RELATIONS[relation]
    ahead = _ahead(a, b, side)
    if ahead < _SLACK * min(scene.height, scene.width):
        return False
    aside = abs(a.x - b.x) + abs(a.y - b.y) - ahead  # the other coordinate
    return True if is_further(a, b, side, scene) and aside <= _CONE * ahead else None


def _fits(noun: Noun, thing: Thing) -> bool:
    return (
        noun.shape in (None, thing.shape)
        and noun.colour in (None, thing.colour)
        and noun.texture in (None, thing.texture)
        and noun.size in (None, thing.size)
    )


def _ahead(a: Thing, b: Thing, side: str) -> float:
    """Return the distance of the centre of a ahead of that of b towards a side, in pixels."""
    x, y = SIDES[side]
    return (a.x - b.x) * x + (a.y - b.y) * y


def _extent(thing: Thing, x: int, y: int) -> float:
    """Return the distance from the thing's centre to its edge in the direction (x, y), in pixels."""
    return thing.radius * reach_towards(thing.shape, thing.turn, x, y)


def _evaluate_extreme(meaning: Extreme, scene: Scene) -> frozenset[int] | None:
    things = scene.things
    candidates = evaluate(meaning.noun, scene)
    if not candidates:
        return candidates
    for first in candidates:
        if all(exceeds(things[first], things[other], meaning.which, scene) for other in candidates - {first}):
            return frozenset({first})
    return None


def _evaluate_nth(meaning: Nth, scene: Scene) -> frozenset[int] | None:
    things = scene.things
    candidates = evaluate(meaning.noun, scene)
    if candidates is None or len(candidates) < meaning.rank:
        return frozenset()
    for one in candidates:
        others = candidates - {one}
        before = sum(is_further(things[other], things[one], meaning.side, scene) for other in others)
        after = sum(is_further(things[one], things[other], meaning.side, scene) for other in others)
        if before == meaning.rank - 1 and before + after == len(others):
            return frozenset({one})
    return None


def _evaluate_related(meaning: Related, scene: Scene) -> frozenset[int] | None:
    landmarks = evaluate(meaning.landmark, scene)
    candidates = evaluate(meaning.noun, scene)
    if landmarks is None or candidates is None or len(landmarks) != 1:
        return None
    landmark = scene.things[next(iter(landmarks))]
    answers = {one: holds(meaning.relation, scene.things[one], landmark, scene) for one in candidates - landmarks}
    if None in answers.values():
        return None
    return frozenset(one for one, answer in answers.items() if answer)


SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")

_ANY_SHAPE = ("shape", "object", "thing")
_SIZE_WORDS = {"small": ("small", "little"), "large": ("large", "big")}
_TEXTURE_WORDS = {texture: (texture,) for texture in TEXTURES} | {"dotted": ("dotted", "spotted")}
_RELATION_WORDS = {
    "left of": ("left of", "to the left of"),
    "right of": ("right of", "to the right of"),
    "above": ("above", "higher than"),
    "below": ("below", "under", "lower than"),
}
_EXTREME_PHRASES = {
    "left": ("the leftmost {}", "the {} furthest left", "the {} furthest to the left"),
    "right": ("the rightmost {}", "the {} furthest right", "the {} furthest to the right"),
    "top": ("the topmost {}", "the highest {}", "the {} nearest the top"),
    "bottom": ("the bottommost {}", "the lowest {}", "the {} nearest the bottom"),
    "largest": ("the largest {}", "the biggest {}"),
    "smallest": ("the smallest {}",),
}
_RANKS = {2: "second", 3: "third", 4: "fourth"}
_NTH_PHRASES = ("the {rank} {noun} from the {side}", "the {noun} that is {rank} from the {side}")
_LINKS = ("", "that is ")

MAX_RANK = max(_RANKS)


def to_words(meaning: Meaning, rng: np.random.Generator) -> str:
    """Return an expression with this meaning, in one of several wordings."""
    match meaning:
        case Noun():
            return f"the {_noun(meaning, rng)}"
        case Extreme(which, noun):
            return pick(rng, _EXTREME_PHRASES[which]).format(_noun(noun, rng))
        case Nth(rank, side, noun):
            return pick(rng, _NTH_PHRASES).format(rank=_RANKS[rank], noun=_noun(noun, rng), side=side)
        case Related():
            return _related(meaning, rng, inner=False)


def _noun(noun: Noun, rng: np.random.Generator) -> str:
    words = []
    if noun.size:
        words.append(pick(rng, _SIZE_WORDS[noun.size]))
    if noun.texture:
        words.append(pick(rng, _TEXTURE_WORDS[noun.texture]))
    if noun.colour:
        words.append(noun.colour)
    words.append(noun.shape or pick(rng, _ANY_SHAPE))
    return " ".join(words)


def _related(meaning: Related, rng: np.random.Generator, inner: bool) -> str:
    # An inner relation always has "that is", which ties it to the noun before it.
    link = "that is " if inner else pick(rng, _LINKS)
    relation = pick(rng, _RELATION_WORDS[meaning.relation])
    landmark = meaning.landmark
    landmark_words = _related(landmark, rng, inner=True) if isinstance(landmark, Related) else to_words(landmark, rng)
    return f"the {_noun(meaning.noun, rng)} {link}{relation} {landmark_words}"


def _make_vocabulary() -> tuple[str, ...]:
    tables = (_SIZE_WORDS, _TEXTURE_WORDS, _RELATION_WORDS, _EXTREME_PHRASES)
    phrases = [*itertools.chain(*(itertools.chain(*table.values()) for table in tables))]
    phrases += [*SHAPES, *COLOURS, *_ANY_SHAPE, *_NTH_PHRASES, *_LINKS, *_RANKS.values(), "the left right top bottom"]
    words = {word for phrase in phrases for word in phrase.split() if "{" not in word}
    return (*SPECIAL_TOKENS, *sorted(words))


VOCABULARY = _make_vocabulary()  # the same for all scene configurations, so that a model can be used with any of them
