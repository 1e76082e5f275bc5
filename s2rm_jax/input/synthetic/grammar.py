"""Search for expressions about a scene: of a given kind, true of exactly one object, and without superfluous parts.

Sets of objects are bit masks (bit i for object i), so that whole families of expressions are filtered in microseconds.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from s2rm_jax.input.synthetic.language import (
    EXTREMES,
    MAX_RANK,
    RELATIONS,
    SIDES,
    Between,
    Extreme,
    InLine,
    Meaning,
    Nearest,
    Noun,
    Nth,
    Related,
    evaluate,
    exceeds,
    holds,
    is_between,
    is_further,
    is_in_line,
    is_nearer,
    landmarks_of,
    to_words,
)
from s2rm_jax.input.synthetic.scene import ALL_KINDS, Scene, SceneConfig, shuffled

# How often an attribute is mentioned if that is optional: mostly the shape, less often the others.
_MENTION = {"size": 0.35, "texture": 0.3, "colour": 0.5, "shape": 0.88}


class Described(NamedTuple):
    """A noun, the objects it fits (bit mask), and its relative frequency."""

    noun: Noun
    extension: int
    weight: float


class Condition(NamedTuple):
    """Bit masks: the objects for which a condition clearly holds, those for which it is not clear, and its landmarks.

    A landmark is in none of the others.
    """

    clear: int
    unclear: int
    landmarks: int


class Neighbour(NamedTuple):
    """A relation to a landmark, the objects for which it clearly holds, and those for which it is not clear."""

    relation: str
    landmark: int
    clear: int
    unclear: int

    @property
    def condition(self) -> Condition:
        """The relation as a condition for the referent."""
        return Condition(self.clear, self.unclear, 1 << self.landmark)


@dataclass(frozen=True)
class Survey:
    """A scene, with the nouns that fit each object and the relations that clearly hold for it."""

    scene: Scene
    nouns: tuple[tuple[Described, ...], ...]
    neighbours: tuple[tuple[Neighbour, ...], ...]


def survey(scene: Scene, config: SceneConfig) -> Survey:
    """Return the survey of a scene. Attributes with a single value in the config are never mentioned."""
    options = {"size": config.sizes, "texture": config.textures, "colour": config.colours, "shape": config.shapes}
    varied = [name for name, values in options.items() if len(values) > 1]
    indices = range(len(scene.things))
    nouns = tuple(_describe(scene, index, varied) for index in indices)
    relations = [_relate(scene, name, landmark) for name in RELATIONS for landmark in indices]
    neighbours = tuple(tuple(one for one in relations if one.clear >> index & 1) for index in indices)
    return Survey(scene, nouns, neighbours)


def mask_of(indices: Iterable[int]) -> int:
    """Return the bit mask of objects."""
    return sum(1 << index for index in indices)


def pick_described(rng: np.random.Generator, candidates: list[Described]) -> Described | None:
    """Draw one of the nouns by weight; return None if there are none."""
    if not candidates:
        return None
    target = rng.random() * sum(candidate.weight for candidate in candidates)
    for candidate in candidates:
        target -= candidate.weight
        if target < 0:
            return candidate
    return candidates[-1]


def _describe(scene: Scene, index: int, varied: list[str]) -> tuple[Described, ...]:
    thing = scene.things[index]
    everything = mask_of(range(len(scene.things)))
    alike = {
        name: mask_of(i for i, other in enumerate(scene.things) if getattr(other, name) == getattr(thing, name))
        for name in varied
    }
    described = []
    for chosen in itertools.product((False, True), repeat=len(varied)):
        names = list(itertools.compress(varied, chosen))
        extension = everything
        for name in names:
            extension &= alike[name]
        weight = math.prod(
            _MENTION[name] if mentioned else 1 - _MENTION[name] for name, mentioned in zip(varied, chosen, strict=True)
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


class Reference(NamedTuple):
    """An expression, its kind, its meaning, and the index of the object it refers to."""

    text: str
    kind: str
    meaning: Meaning
    referent: int


def refer(
    rng: np.random.Generator, scene: Scene, config: SceneConfig, kinds: Sequence[str], referents: Collection[int]
) -> tuple[Reference, ...] | None:
    """Return different references of the given kinds, in order, or None if the scene does not allow them.

    Only objects whose index is in `referents` are referred to.
    """
    surveyed = survey(scene, config)
    found: dict[int, Reference] = {}
    # Rare kinds first, to reject unsuitable scenes early.
    for place in sorted(range(len(kinds)), key=lambda place: ALL_KINDS.index(kinds[place]), reverse=True):
        taken = {reference.meaning for reference in found.values()}
        reference = _find(rng, surveyed, kinds[place], referents, taken)
        if reference is None:
            return None
        found[place] = reference
    return tuple(found[place] for place in range(len(kinds)))


def is_economical(meaning: Meaning, scene: Scene) -> bool:
    """Return whether every part of the expression is needed to identify the referent.

    A superlative selects among at least two objects, an ordinal among at least three, and a relation (also one inside a
    landmark), "between" and "nearest to" among at least two besides the landmarks. An ordinal in a line selects among
    at least two in that line, with others outside, and not the landmark. So the attributes alone never identify the
    referent.
    """
    match meaning:
        case Noun():
            return True
        case Extreme():
            return _count(meaning.noun, scene) >= 2
        case Nth():
            return _count(meaning.noun, scene) >= 3
        case Related():
            landmark = evaluate(meaning.landmark, scene) or frozenset()
            rivals = (evaluate(meaning.noun, scene) or frozenset()) - landmark
            return len(rivals) >= 2 and is_economical(meaning.landmark, scene)
        case Between() | Nearest() | InLine():
            candidates, landmarks = evaluate(meaning.noun, scene) or frozenset(), landmarks_of(meaning, scene)
            if not isinstance(meaning, InLine) or landmarks is None:
                return landmarks is not None and len(candidates - set(landmarks)) >= 2
            inside = [one for one in candidates if is_in_line(one, landmarks[0], meaning.side, scene)]
            return 2 <= len(inside) < len(candidates) and evaluate(meaning, scene) != set(landmarks)


def _count(noun: Noun, scene: Scene) -> int:
    return len(evaluate(noun, scene) or ())


def _find(
    rng: np.random.Generator, surveyed: Survey, kind: str, referents: Collection[int], taken: set[Meaning]
) -> Reference | None:
    scene = surveyed.scene
    for referent in shuffled(rng, referents):
        for meaning in _PROPOSALS[kind](rng, surveyed, referent):
            # Proposals should mean the referent; this is verified on the scene itself.
            if meaning not in taken and evaluate(meaning, scene) == {referent} and is_economical(meaning, scene):
                return Reference(to_words(meaning, rng), kind, meaning, referent)
    return None


def _propose_attribute(rng: np.random.Generator, surveyed: Survey, referent: int) -> Iterator[Meaning]:
    noun = _pick_name(rng, surveyed, referent)
    if noun is not None:
        yield noun


def _propose_superlative(rng: np.random.Generator, surveyed: Survey, referent: int) -> Iterator[Meaning]:
    scene, thing = surveyed.scene, surveyed.scene.things[referent]
    for which in shuffled(rng, EXTREMES):
        exceeded = mask_of(i for i, other in enumerate(scene.things) if exceeds(thing, other, which, scene))
        candidates = [
            described
            for described in surveyed.nouns[referent]
            if described.extension & exceeded and described.extension & ~exceeded == 1 << referent
        ]
        if which not in SIDES:  # not "the largest small star"
            candidates = [described for described in candidates if described.noun.size is None]
        picked = pick_described(rng, candidates)
        if picked is not None:
            yield Extreme(which, picked.noun)


def _propose_ordinal(rng: np.random.Generator, surveyed: Survey, referent: int) -> Iterator[Meaning]:
    scene, thing = surveyed.scene, surveyed.scene.things[referent]
    for side in shuffled(rng, tuple(SIDES)):
        before = mask_of(i for i, other in enumerate(scene.things) if is_further(other, thing, side, scene))
        after = mask_of(i for i, other in enumerate(scene.things) if is_further(thing, other, side, scene))
        candidates = [
            described
            for described in surveyed.nouns[referent]
            if described.extension & ~(before | after) == 1 << referent
            and described.extension.bit_count() >= 3
            and 1 <= (described.extension & before).bit_count() < MAX_RANK
        ]
        picked = pick_described(rng, candidates)
        if picked is not None:
            yield Nth(1 + (picked.extension & before).bit_count(), side, picked.noun)


def _propose_relation(rng: np.random.Generator, surveyed: Survey, referent: int) -> Iterator[Related]:
    for neighbour in shuffled(rng, surveyed.neighbours[referent]):
        noun = _pick_head(rng, surveyed.nouns[referent], referent, neighbour.condition)
        landmark = _pick_name(rng, surveyed, neighbour.landmark) if noun is not None else None
        if noun is not None and landmark is not None:
            yield Related(noun, neighbour.relation, landmark)


def _propose_two_step(rng: np.random.Generator, surveyed: Survey, referent: int) -> Iterator[Related]:
    for neighbour in shuffled(rng, surveyed.neighbours[referent]):
        noun = _pick_head(rng, surveyed.nouns[referent], referent, neighbour.condition)
        landmark = next(_propose_relation(rng, surveyed, neighbour.landmark), None) if noun is not None else None
        if noun is not None and landmark is not None:
            yield Related(noun, neighbour.relation, landmark)


def _propose_three_step(rng: np.random.Generator, surveyed: Survey, referent: int) -> Iterator[Related]:
    for neighbour in shuffled(rng, surveyed.neighbours[referent]):
        noun = _pick_head(rng, surveyed.nouns[referent], referent, neighbour.condition)
        landmark = next(_propose_two_step(rng, surveyed, neighbour.landmark), None) if noun is not None else None
        if noun is None or landmark is None:
            continue
        if len({referent} | _chain(landmark, surveyed.scene)) == 4:  # no object is named twice
            yield Related(noun, neighbour.relation, landmark)


def _chain(meaning: Noun | Related, scene: Scene) -> set[int]:
    """Return the object that a chain of relations means, its landmark, the landmark of that, and so on."""
    things = set(evaluate(meaning, scene) or ())
    return things | _chain(meaning.landmark, scene) if isinstance(meaning, Related) else things


def _propose_between(rng: np.random.Generator, surveyed: Survey, referent: int) -> Iterator[Meaning]:
    scene = surveyed.scene
    indices = range(len(scene.things))
    others = [index for index in indices if index != referent]
    for first, second in shuffled(rng, list(itertools.permutations(others, 2))):
        if not is_between(referent, first, second, scene):
            continue
        names = _pick_name(rng, surveyed, first), _pick_name(rng, surveyed, second)
        answers = {i: is_between(i, first, second, scene) for i in indices if i not in (first, second)}
        condition = _condition(answers, first, second)
        noun = _pick_head(rng, surveyed.nouns[referent], referent, condition)
        if noun is not None and names[0] is not None and names[1] is not None:
            yield Between(noun, names[0], names[1])


def _propose_nearest(rng: np.random.Generator, surveyed: Survey, referent: int) -> Iterator[Meaning]:
    scene = surveyed.scene
    others = [index for index in range(len(scene.things)) if index != referent]
    for landmark in shuffled(rng, others):
        name = _pick_name(rng, surveyed, landmark)
        # Any other object that is not clearly further away may not fit the noun.
        answers = {i: not is_nearer(referent, i, landmark, scene) for i in others if i != landmark}
        noun = _pick_head(rng, surveyed.nouns[referent], referent, _condition(answers | {referent: True}, landmark))
        if name is not None and noun is not None:
            yield Nearest(noun, name)


def _condition(answers: Mapping[int, bool | None], *landmarks: int) -> Condition:
    """Return the condition with these answers for all objects but the landmarks."""
    clear = mask_of(index for index, answer in answers.items() if answer)
    unclear = mask_of(index for index, answer in answers.items() if answer is None)
    return Condition(clear, unclear, mask_of(landmarks))


def _propose_in_line(rng: np.random.Generator, surveyed: Survey, referent: int) -> Iterator[Meaning]:
    scene = surveyed.scene
    indices = range(len(scene.things))
    for landmark in shuffled(rng, [index for index in indices if index != referent]):
        name = _pick_name(rng, surveyed, landmark)
        if name is None:
            continue
        for side in shuffled(rng, tuple(SIDES)):
            inside = {index: is_in_line(index, landmark, side, scene) for index in indices}
            if not inside[referent]:
                continue
            line, unclear, _ = _condition(inside)
            thing = scene.things[referent]
            before = mask_of(i for i in indices if is_further(scene.things[i], thing, side, scene)) & line
            after = mask_of(i for i in indices if is_further(thing, scene.things[i], side, scene)) & line
            candidates = [
                described
                for described in surveyed.nouns[referent]
                if described.extension & line & ~(before | after) == 1 << referent
                and not described.extension & unclear
                and (described.extension & line).bit_count() >= 2
                and described.extension & ~line
                and (described.extension & before).bit_count() < MAX_RANK
            ]
            picked = pick_described(rng, candidates)
            if picked is not None:
                yield InLine(1 + (picked.extension & before).bit_count(), side, picked.noun, name)


def _pick_name(rng: np.random.Generator, surveyed: Survey, index: int) -> Noun | None:
    """Draw a noun that fits this object alone."""
    picked = pick_described(rng, [one for one in surveyed.nouns[index] if one.extension == 1 << index])
    return picked.noun if picked else None


def _pick_head(
    rng: np.random.Generator, described: Sequence[Described], referent: int, where: Condition
) -> Noun | None:
    """Draw a noun that fits the referent and others besides the landmarks.

    Among the objects that it fits, the condition clearly holds for the referent and clearly fails for all others.
    """
    candidates = [
        one
        for one in described
        if one.extension & where.clear == 1 << referent
        and not one.extension & where.unclear
        and (one.extension & ~where.landmarks).bit_count() >= 2
    ]
    picked = pick_described(rng, candidates)
    return picked.noun if picked else None


_PROPOSALS: dict[str, Callable[[np.random.Generator, Survey, int], Iterator[Meaning]]] = {
    "attribute": _propose_attribute,
    "superlative": _propose_superlative,
    "relation": _propose_relation,
    "two_step": _propose_two_step,
    "ordinal": _propose_ordinal,
    "nearest": _propose_nearest,
    "three_step": _propose_three_step,
    "between": _propose_between,
    "in_line": _propose_in_line,
}
