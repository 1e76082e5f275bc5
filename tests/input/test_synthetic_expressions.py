"""Every expression, parsed from its words by an independent parser, means the thing of its mask."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pytest

from s2rm_jax.input.synthetic import SceneConfig, SyntheticSource
from s2rm_jax.input.synthetic.grammar import is_economical
from s2rm_jax.input.synthetic.language import FAR_VOCABULARY, VOCABULARY, Related, evaluate
from s2rm_jax.input.synthetic.scene import FAR_KINDS, KINDS
from s2rm_jax.input.synthetic.source import Composition, compose

ALL_KINDS = SceneConfig(kinds=KINDS, min_objects=4, max_objects=7, expressions_per_scene=5)
FAR = SceneConfig(
    image_size=(160, 160),
    min_objects=8,
    max_objects=12,
    object_scale=0.46,
    sizes=("large",),
    grid=5,
    textures=("plain", "striped"),
    shapes_per_scene=4,
    colours_per_scene=4,
    kinds=("relation", *FAR_KINDS),
    expressions_per_scene=5,
)
SCENES = 200

SIZES = {"small": "small", "little": "small", "large": "large", "big": "large"}
TEXTURES = {"plain": "plain", "striped": "striped", "dotted": "dotted", "spotted": "dotted"}
LEFT, RIGHT, UP, DOWN = (lambda t: -t.x), (lambda t: t.x), (lambda t: -t.y), (lambda t: t.y)
RELATIONS = {
    "to the left of": LEFT,
    "left of": LEFT,
    "to the right of": RIGHT,
    "right of": RIGHT,
    "above": UP,
    "higher than": UP,
    "below": DOWN,
    "under": DOWN,
    "lower than": DOWN,
}
BEFORE_NOUN = {
    "leftmost": LEFT,
    "rightmost": RIGHT,
    "topmost": UP,
    "highest": UP,
    "bottommost": DOWN,
    "lowest": DOWN,
    "largest": lambda t: t.radius,
    "biggest": lambda t: t.radius,
    "smallest": lambda t: -t.radius,
}
AFTER_NOUN = {
    "furthest to the left": LEFT,
    "furthest left": LEFT,
    "furthest to the right": RIGHT,
    "furthest right": RIGHT,
    "nearest the top": UP,
    "nearest the bottom": DOWN,
}
SIDES = {"left": LEFT, "right": RIGHT, "top": UP, "bottom": DOWN}
RANKS = {"second": 1, "third": 2, "fourth": 3}
_RELATION = re.compile(rf"the (?P<noun>[a-z ]+?) (?:that is )?(?P<relation>{'|'.join(RELATIONS)}) (?P<landmark>the .+)")
_ORDINAL = re.compile(
    rf"the (?:(?P<r1>{'|'.join(RANKS)}) (?P<n1>.+)|(?P<n2>.+) that is (?P<r2>{'|'.join(RANKS)})) from the (?P<side>\w+)"
)
_IN_LINE = re.compile(
    r"the (?:(?P<r1>first|second|third|fourth) (?P<n1>.+)|(?P<n2>.+) that is (?P<r2>first|second|third|fourth))"
    r" from the (?P<side>\w+) in the (?P<line>row|column) of (?P<landmark>the .+)"
)
_BETWEEN = re.compile(r"the (?P<noun>[a-z ]+?) (?:that is )?between (?P<first>the .+) and (?P<second>the .+)")
_NEAREST = re.compile(r"the (?P<noun>[a-z ]+?) (?:that is )?(?:nearest|closest) to (?P<landmark>the .+)")
_BEFORE = re.compile(rf"the (?P<how>{'|'.join(BEFORE_NOUN)}) (?P<noun>.+)")
_AFTER = re.compile(rf"the (?P<noun>.+) (?P<how>{'|'.join(AFTER_NOUN)})")


def read_noun(words, things):
    kept = set(range(len(things)))
    for word in words.split():
        if word in ("shape", "object", "thing"):
            continue
        if word in SIZES:
            fits = {i for i, thing in enumerate(things) if thing.size == SIZES[word]}
        elif word in TEXTURES:
            fits = {i for i, thing in enumerate(things) if thing.texture == TEXTURES[word]}
        else:
            fits = {i for i, thing in enumerate(things) if word in (thing.colour, thing.shape)}
        kept &= fits
    return kept


def read(expression, things, side=96):
    """The things that an expression means when places are compared without any margin, and those its head noun fits."""
    if found := _IN_LINE.fullmatch(expression):
        head, landmark = read_noun(found["n1"] or found["n2"], things), read_one(found["landmark"], things)
        across = "y" if found["line"] == "row" else "x"
        assert (found["side"] in ("left", "right")) == (across == "y")
        line = [i for i in head if abs(getattr(things[i], across) - getattr(things[landmark], across)) < 0.09 * side]
        order = sorted(line, key=lambda i: SIDES[found["side"]](things[i]), reverse=True)
        return {order[{"first": 0, **RANKS}[found["r1"] or found["r2"]]]}, head
    if found := _BETWEEN.fullmatch(expression):
        head = read_noun(found["noun"], things)
        ends = {read_one(found["first"], things), read_one(found["second"], things)}
        assert len(ends) == 2
        a, b = (complex(things[i].x, things[i].y) for i in ends)
        places = {i: complex(things[i].x, things[i].y) for i in head - ends}
        # Seen from a thing between them, the landmarks are at least 135 degrees apart.
        apart = {i: abs(np.angle((a - place) / (b - place), deg=True)) for i, place in places.items()}
        return {i for i, angle in apart.items() if angle > 135}, head - ends
    if found := _NEAREST.fullmatch(expression):
        landmark = read_one(found["landmark"], things)
        head = read_noun(found["noun"], things) - {landmark}
        place = np.array([things[landmark].x, things[landmark].y])
        return {min(head, key=lambda i: np.linalg.norm(place - (things[i].x, things[i].y)))}, head
    if found := _RELATION.fullmatch(expression):
        where = RELATIONS[found["relation"]]
        (landmark,), _ = read(found["landmark"], things, side)
        head = read_noun(found["noun"], things)
        # 2 % of the image's side counts as level
        return {i for i in head - {landmark} if where(things[i]) > where(things[landmark]) + 0.02 * side}, head
    if found := _ORDINAL.fullmatch(expression):
        head = read_noun(found["n1"] or found["n2"], things)
        order = sorted(head, key=lambda i: SIDES[found["side"]](things[i]), reverse=True)
        return {order[RANKS[found["r1"] or found["r2"]]]}, head
    for pattern, table in ((_BEFORE, BEFORE_NOUN), (_AFTER, AFTER_NOUN)):
        if found := pattern.fullmatch(expression):
            head = read_noun(found["noun"], things)
            return {max(head, key=lambda i: table[found["how"]](things[i]))}, head
    head = read_noun(expression.removeprefix("the "), things)
    return head, head


def read_one(noun, things):
    (one,) = read_noun(noun.removeprefix("the "), things)
    return one


@pytest.fixture(scope="module", params=["train", "compositional"])
def compositions(request) -> list[Composition]:
    return [compose(ALL_KINDS, request.param, 0, index) for index in range(SCENES)]


@pytest.fixture(scope="module", params=["train", "compositional"])
def far_compositions(request) -> list[Composition]:
    return [compose(FAR, request.param, 0, index) for index in range(60)]


def test_each_expression_means_its_one_referent(compositions):
    for composed in compositions:
        for reference in composed.references:
            meant, _ = read(reference.text, composed.scene.things)
            assert meant == {reference.referent}, (reference.text, composed.scene)


def test_attributes_alone_do_not_answer_the_other_kinds(compositions):
    fewest = {"attribute": 1, "superlative": 2, "relation": 2, "two_step": 2, "ordinal": 3}
    for composed in compositions:
        for reference in composed.references:
            _, head = read(reference.text, composed.scene.things)
            assert len(head) >= fewest[reference.kind], reference.text
            assert is_economical(reference.meaning, composed.scene)


def test_no_scene_says_the_same_twice(compositions):
    for composed in compositions:
        assert len({reference.meaning for reference in composed.references}) == len(composed.references)
        assert len({reference.text for reference in composed.references}) == len(composed.references)


def test_every_wording_and_every_side_occurs(compositions):
    text = " | ".join(reference.text for composed in compositions for reference in composed.references)
    for words in (*RELATIONS, *BEFORE_NOUN, *AFTER_NOUN, *RANKS, *SIZES, *TEXTURES, "that is"):
        assert words in text
    for side in SIDES:
        assert f"from the {side}" in text


def test_each_expression_with_remote_landmarks_means_its_one_referent(far_compositions):
    fewest = {"relation": 2, "nearest": 2, "three_step": 2, "between": 2, "in_line": 3}
    for composed in far_compositions:
        assert [reference.kind for reference in composed.references] == list(FAR.kinds)
        for reference in composed.references:
            meant, head = read(reference.text, composed.scene.things, side=160)
            assert meant == {reference.referent}, (reference.text, composed.scene)
            assert len(head) >= fewest[reference.kind], reference.text
            assert is_economical(reference.meaning, composed.scene)


def test_a_chain_of_three_relations_names_four_different_things(far_compositions):
    def things_of(meaning, scene):
        (one,) = evaluate(meaning, scene)
        return [one, *(things_of(meaning.landmark, scene) if isinstance(meaning, Related) else [])]

    for composed in far_compositions:
        (chain,) = (reference.meaning for reference in composed.references if reference.kind == "three_step")
        assert len(set(things_of(chain, composed.scene))) == 4


def test_every_wording_with_remote_landmarks_occurs(far_compositions):
    text = " | ".join(reference.text for composed in far_compositions for reference in composed.references)
    wordings = ("that is between", "nearest to", "closest to", *("first", "second", "third"), " in the row of")
    for words in (*wordings, "from the left in the row of", "from the bottom in the column of"):
        assert words in text
    assert {word for one in text.split(" | ") for word in one.split()} <= set(FAR_VOCABULARY)


@pytest.mark.parametrize("kinds", [("attribute", "superlative", "relation"), KINDS])
def test_kinds_come_in_equal_shares(kinds):
    source = SyntheticSource("val", kinds=kinds, min_objects=4, max_objects=6)
    count = 5 * len(kinds)
    shown = Counter(expression.kind for index in range(count) for expression in source[index].expressions)
    assert shown == dict.fromkeys(kinds, count * 4 // len(kinds))


def test_referents_and_places_are_not_skewed(compositions):
    # A network that always answers "the last painted" or "the one in the middle" must not be right often.
    places = Counter()
    for composed in compositions:
        for reference in composed.references:
            places[reference.referent / max(1, len(composed.scene.things) - 1) > 0.5] += 1
    assert 0.35 < places[True] / places.total() < 0.65


def test_the_vocabulary_knows_every_word():
    source = SyntheticSource("train", kinds=KINDS, min_objects=4, max_objects=6)
    vocabulary = source.vocabulary
    assert vocabulary[:5] == ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    assert len(set(vocabulary)) == len(vocabulary) < 100
    words = {word for index in range(500) for one in source[index].expressions for word in one.text.split()}
    assert words <= set(vocabulary)
    assert SyntheticSource("val", shapes=("circle", "star"), held_out_pairs=()).vocabulary == vocabulary


@pytest.mark.parametrize("kind", FAR_KINDS)
def test_new_words_come_after_those_that_networks_know(kind):
    known = SyntheticSource("val", kinds=KINDS).vocabulary
    assert SyntheticSource("val", kinds=(kind,)).vocabulary[: len(known)] == known == VOCABULARY
    assert len(known) == 62 and len(set(FAR_VOCABULARY)) == len(FAR_VOCABULARY) == 69


def test_an_attribute_without_choice_is_not_spoken_of():
    source = SyntheticSource("train", textures=("plain",), sizes=("large",), max_objects=4, object_scale=0.8)
    found = " ".join(one.text for index in range(40) for one in source[index].expressions).split()
    assert not {"plain", "large", "big", "small", "little"} & set(found)
