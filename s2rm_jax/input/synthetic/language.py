"""The meaning of expressions, as small trees that are evaluated on scenes, and their wording.

Geometry has margins. Where people could disagree (an object that is only slightly further left, or as far above as
left), the meaning is None, "not clear", and no expression is generated. With u the short side of the image:

- further to a side (leftmost, second from the left): the centre by at least 0.08 u, and both edges of the outline
  (including hidden parts);
- A left of B: A is further left as above, and at most 1.25 times as far up or down as it is left. A is not left of B:
  its centre is less than 0.02 u to the left. Everything between is not clear;
- largest: the radius by a factor of at least 1.2, the area by 1.44;
- nearest to A: the distance between the centres; every other candidate is at least 1.2 times as far from A;
- X between A and B: at the centre of X, the directions to A and B differ by at least 150 degrees. X is not between
  them: by at most 120 degrees. Everything between is not clear;
- in the row of A: the centre is at most 0.06 u above or below that of A. Not in its row: at least 0.12 u. Columns are
  the same from side to side.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
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
_DISTANCE_RATIO = 1.2
_BETWEEN, _NOT_BETWEEN = math.cos(math.radians(150)), math.cos(math.radians(120))  # of the angle towards the landmarks
_IN_LINE, _NOT_IN_LINE = 0.06, 0.12  # shares of the short side


@dataclass(frozen=True)
class Noun:
    """All objects with these attributes; None matches any value."""

    shape: str | None = None
    colour: str | None = None
    texture: str | None = None
    size: str | None = None


@dataclass(frozen=True)
class Extreme:
    """The object of a noun that is furthest to a side, the largest or the smallest; `which` is one of EXTREMES."""

    which: str
    noun: Noun


@dataclass(frozen=True)
class Nth:
    """The object of a noun with rank - 1 others of that noun between itself and a side."""

    rank: int
    side: str
    noun: Noun


@dataclass(frozen=True)
class Related:
    """The objects of a noun for which the relation, one of RELATIONS, to the landmark holds."""

    noun: Noun
    relation: str
    landmark: Noun | Related


@dataclass(frozen=True)
class Between:
    """The objects of a noun that are between two landmarks."""

    noun: Noun
    first: Noun
    second: Noun


@dataclass(frozen=True)
class Nearest:
    """The object of a noun that is nearest to the landmark, which is not meant itself."""

    noun: Noun
    landmark: Noun


@dataclass(frozen=True)
class InLine:
    """The object of a noun with rank - 1 others of that noun between itself and a side, in the line of the landmark.

    The line is the row of the landmark for the sides left and right, its column for top and bottom. The landmark counts
    where the noun fits it.
    """

    rank: int
    side: str
    noun: Noun
    landmark: Noun


Meaning = Noun | Extreme | Nth | Related | Between | Nearest | InLine


def evaluate(meaning: Meaning, scene: Scene) -> frozenset[int] | None:
    """Return the indices of the objects that the meaning refers to, or None if that is not clear.

    An expression with a landmark is not clear either if its landmark is not exactly one object.
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
        case _:
            return _evaluate_far(meaning, scene)


def landmarks_of(meaning: Meaning, scene: Scene) -> tuple[int, ...] | None:
    """Return the indices of the landmarks that the meaning compares its referent with, none for a noun or an extreme.

    In a chain of relations, only the landmark of the outermost one counts. Return None if a landmark is not exactly one
    object, or if both landmarks are the same object.
    """
    match meaning:
        case Noun() | Extreme() | Nth():
            return ()
        case Between():
            described: tuple[Noun | Related, ...] = (meaning.first, meaning.second)
        case Related() | Nearest() | InLine():
            described = (meaning.landmark,)
    found = [evaluate(landmark, scene) for landmark in described]
    indices = [index for one in found if one is not None and len(one) == 1 for index in one]
    return tuple(indices) if len(set(indices)) == len(described) else None


def is_between(index: int, first: int, second: int, scene: Scene) -> bool | None:
    """Return whether an object is between two others, given by their indices; None if that is not clear."""
    (x, y), (x1, y1), (x2, y2) = ((scene.things[i].x, scene.things[i].y) for i in (index, first, second))
    lengths = math.hypot(x1 - x, y1 - y) * math.hypot(x2 - x, y2 - y)
    product = (x1 - x) * (x2 - x) + (y1 - y) * (y2 - y)
    if product <= _BETWEEN * lengths:
        return True
    return False if product >= _NOT_BETWEEN * lengths else None


def is_nearer(first: int, second: int, landmark: int, scene: Scene) -> bool:
    """Return whether the first object is clearly nearer to the landmark than the second; all are given by indices."""
    return distance(second, landmark, scene) >= _DISTANCE_RATIO * distance(first, landmark, scene)


def distance(first: int, second: int, scene: Scene) -> float:
    """Return the distance in pixels between the centres of two objects, given by their indices."""
    one, other = scene.things[first], scene.things[second]
    return math.hypot(one.x - other.x, one.y - other.y)


def is_in_line(index: int, landmark: int, side: str, scene: Scene) -> bool | None:
    """Return whether an object is in the landmark's row (left, right) or column (top, bottom); None if it is not clear.

    An object is in its own line.
    """
    one, other = scene.things[index], scene.things[landmark]
    offset = abs(one.y - other.y if SIDES[side][0] else one.x - other.x) / min(scene.height, scene.width)
    if offset <= _IN_LINE:
        return True
    return False if offset >= _NOT_IN_LINE else None


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
    """Return the distance from the object's centre to its edge in the direction (x, y), in pixels."""
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
    return _nth(evaluate(meaning.noun, scene) or frozenset(), meaning.rank, meaning.side, scene)


def _nth(candidates: frozenset[int], rank: int, side: str, scene: Scene) -> frozenset[int] | None:
    things = scene.things
    if len(candidates) < rank:
        return frozenset()
    for one in candidates:
        others = candidates - {one}
        before = sum(is_further(things[other], things[one], side, scene) for other in others)
        after = sum(is_further(things[one], things[other], side, scene) for other in others)
        if before == rank - 1 and before + after == len(others):
            return frozenset({one})
    return None


def _nearest(candidates: frozenset[int], landmark: int, scene: Scene) -> frozenset[int] | None:
    for one in candidates:
        if all(is_nearer(one, other, landmark, scene) for other in candidates - {one}):
            return frozenset({one})
    return None if candidates else frozenset()


def _evaluate_far(meaning: Between | Nearest | InLine, scene: Scene) -> frozenset[int] | None:
    candidates, landmarks = evaluate(meaning.noun, scene) or frozenset(), landmarks_of(meaning, scene)
    if landmarks is None:
        return None
    rivals = candidates - set(landmarks)
    match meaning:
        case Between():
            return _holding(rivals, lambda i: is_between(i, landmarks[0], landmarks[1], scene))
        case Nearest():
            return _nearest(rivals, landmarks[0], scene)
        case InLine():
            inside = _holding(candidates, lambda i: is_in_line(i, landmarks[0], meaning.side, scene))
            return None if inside is None else _nth(inside, meaning.rank, meaning.side, scene)


def _holding(candidates: frozenset[int], holds_for: Callable[[int], bool | None]) -> frozenset[int] | None:
    """Return the candidates for which a condition holds, or None if that is not clear for one of them."""
    answers = {one: holds_for(one) for one in candidates}
    return None if None in answers.values() else frozenset(one for one, answer in answers.items() if answer)


def _evaluate_related(meaning: Related, scene: Scene) -> frozenset[int] | None:
    landmarks = evaluate(meaning.landmark, scene)
    candidates = evaluate(meaning.noun, scene)
    if landmarks is None or candidates is None or len(landmarks) != 1:
        return None
    landmark = scene.things[next(iter(landmarks))]
    return _holding(candidates - landmarks, lambda i: holds(meaning.relation, scene.things[i], landmark, scene))


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
_IN_LINE_RANKS = {1: "first"} | _RANKS
_NEAREST_WORDS = ("nearest to", "closest to")
_LINES = {"left": "row", "right": "row", "top": "column", "bottom": "column"}

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
        case _:
            return _far(meaning, rng)


def _far(meaning: Between | Nearest | InLine, rng: np.random.Generator) -> str:
    noun = _noun(meaning.noun, rng)
    match meaning:
        case Between(_, first, second):
            return f"the {noun} {pick(rng, _LINKS)}between {to_words(first, rng)} and {to_words(second, rng)}"
        case Nearest(_, landmark):
            return f"the {noun} {pick(rng, _LINKS)}{pick(rng, _NEAREST_WORDS)} {to_words(landmark, rng)}"
        case InLine(rank, side, _, landmark):
            words = pick(rng, _NTH_PHRASES).format(rank=_IN_LINE_RANKS[rank], noun=noun, side=side)
            return f"{words} in the {_LINES[side]} of {to_words(landmark, rng)}"


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
# For scenes with any of FAR_KINDS. Words are appended only, so that each word has the same token in both.
FAR_VOCABULARY = (*VOCABULARY, "between", "and", "closest", "first", "in", "row", "column")
