"""The meaning of each kind of expression on hand-made scenes, in an image of 100 x 100 pixels."""

import numpy as np
import pytest

from s2rm_jax.input.synthetic.grammar import is_economical
from s2rm_jax.input.synthetic.language import (
    SIDES,
    Between,
    Extreme,
    InLine,
    Nearest,
    Noun,
    Nth,
    Related,
    evaluate,
    landmarks_of,
)
from s2rm_jax.input.synthetic.scene import SHAPES, Scene, Thing, reach_towards
from s2rm_jax.input.synthetic.source import draw


def thing(x, y, shape="circle", colour="red", texture="plain", size="small", radius=8.0):
    return Thing(shape, colour, texture, size, float(x), float(y), radius)


def scene(*things):
    return Scene(100, 100, things)


CIRCLE, SQUARE, STAR = Noun("circle"), Noun("square"), Noun("star")


def test_a_noun_means_all_things_with_its_attributes():
    shown = scene(thing(10, 10), thing(50, 50, colour="blue"), thing(80, 80, "star", size="large", texture="striped"))
    assert evaluate(CIRCLE, shown) == {0, 1}
    assert evaluate(Noun("circle", colour="blue"), shown) == {1}
    assert evaluate(Noun(texture="striped", size="large"), shown) == {2}
    assert evaluate(Noun(), shown) == {0, 1, 2}
    assert evaluate(Noun("heart"), shown) == set()


@pytest.mark.parametrize("which, expected", [("left", 0), ("right", 1), ("top", 2), ("bottom", 0)])
def test_an_extreme_is_the_one_furthest_to_a_side(which, expected):
    shown = scene(thing(20, 80), thing(70, 50), thing(50, 20), thing(5, 5, "star"), thing(95, 95, "star"))
    assert evaluate(Extreme(which, CIRCLE), shown) == {expected}


@pytest.mark.parametrize("gap, expected", [(9.0, {0}), (7.0, None), (-7.0, None), (-9.0, {1})])
def test_an_extreme_needs_a_margin_of_8_percent_of_the_short_side(gap, expected):
    assert evaluate(Extreme("left", CIRCLE), scene(thing(40, 20), thing(40 + gap, 80))) == expected


def test_an_extreme_needs_both_edges_further():
    small_beside_large = scene(thing(40, 20, radius=8.0), thing(49, 80, radius=16.0))  # 32...48 and 33...65
    assert evaluate(Extreme("left", CIRCLE), small_beside_large) == {0}
    large_spans_small = scene(thing(40, 20, radius=8.0), thing(49, 80, radius=18.0))  # 32...48 and 31...67
    assert evaluate(Extreme("left", CIRCLE), large_spans_small) is None


def test_edges_are_those_of_the_outline():
    # Of a triangle of radius 1, the top is 1.56 above the centre and the base 0.78 below it.
    high_triangle = scene(thing(20, 40, radius=6.0), thing(60, 49, "triangle", radius=10.0))  # tops: 34 and 33.4
    assert evaluate(Extreme("top", Noun()), high_triangle) is None
    short_triangle = scene(thing(20, 49, radius=6.0), thing(60, 40, "triangle", radius=16.0))  # bottoms: 55 and 52.4
    assert evaluate(Extreme("bottom", Noun()), short_triangle) == {0}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("turn", [0.0, 0.2, -0.2])
def test_edges_are_those_of_the_mask(shape, turn):
    alone = Thing(shape, "red", "plain", "large", 50.0, 50.0, 20.0, turn)
    _, (mask,), _ = draw(scene(alone), np.random.default_rng(0))
    rows, columns = np.nonzero(mask)
    seen = {"left": 50 - columns.min(), "right": columns.max() + 1 - 50}
    seen |= {"top": 50 - rows.min(), "bottom": rows.max() + 1 - 50}
    for side, (x, y) in SIDES.items():
        assert seen[side] == pytest.approx(20 * reach_towards(shape, turn, x, y), abs=2)  # a thin tip fades out


@pytest.mark.parametrize("radius, expected", [(12.1, {1}), (11.5, None), (10.0, None), (8.0, {0})])
def test_the_largest_has_a_radius_larger_by_a_fifth(radius, expected):
    shown = scene(thing(20, 20, radius=10.0), thing(70, 70, radius=radius))
    assert evaluate(Extreme("largest", CIRCLE), shown) == expected
    flipped = None if expected is None else {1 - next(iter(expected))}
    assert evaluate(Extreme("smallest", CIRCLE), shown) == flipped


def test_an_extreme_among_none_is_none_and_among_one_is_that_one():
    shown = scene(thing(20, 20), thing(21, 60, "star"))
    assert evaluate(Extreme("left", SQUARE), shown) == set()
    assert evaluate(Extreme("left", STAR), shown) == {1}


@pytest.mark.parametrize(
    "rank, side, expected", [(2, "left", 2), (3, "left", 0), (2, "right", 0), (2, "top", 0), (3, "bottom", 0)]
)
def test_ordinals_count_from_their_side(rank, side, expected):
    shown = scene(thing(60, 30), thing(20, 90), thing(40, 10), thing(80, 50), thing(30, 30, "star"))
    assert evaluate(Nth(rank, side, CIRCLE), shown) == {expected}


def test_an_ordinal_beyond_the_count_is_nothing():
    assert evaluate(Nth(3, "left", CIRCLE), scene(thing(20, 20), thing(60, 20))) == set()


def test_an_ordinal_needs_a_margin_to_its_neighbours_only():
    close_pair = scene(thing(20, 20), thing(23, 60), thing(50, 20), thing(80, 20))
    assert evaluate(Nth(3, "left", CIRCLE), close_pair) == {2}
    assert evaluate(Nth(2, "left", CIRCLE), close_pair) is None


@pytest.mark.parametrize("relation, expected", [("left of", 0), ("right of", 1), ("above", 2), ("below", 3)])
def test_relations_look_from_the_landmark(relation, expected):
    shown = scene(thing(15, 50), thing(85, 50), thing(50, 15), thing(50, 85), thing(50, 50, "star"))
    assert evaluate(Related(CIRCLE, relation, STAR), shown) == {expected}


@pytest.mark.parametrize(
    "x, y, expected",
    [
        (30, 50, {0}),  # straight left
        (41, 50, {0}),  # by a clear margin
        (44, 50, None),  # only a little left: neither left nor not left
        (49, 50, set()),  # as good as none
        (60, 50, set()),  # on the other side
        (32, 30, {0}),  # 1.1 times as far up as left
        (34, 28, None),  # 1.4 times: a person could argue
    ],
)
def test_left_of_has_a_margin_and_a_cone(x, y, expected):
    shown = scene(thing(x, y), thing(50, 50, "star"))
    assert evaluate(Related(CIRCLE, "left of", STAR), shown) == expected


def test_one_unclear_thing_makes_the_relation_unclear_only_where_the_noun_fits_it():
    shown = scene(thing(20, 50), thing(46, 20, colour="blue"), thing(50, 50, "star"))
    assert evaluate(Related(CIRCLE, "left of", STAR), shown) is None
    assert evaluate(Related(Noun("circle", "red"), "left of", STAR), shown) == {0}


def test_a_relation_needs_exactly_one_landmark_and_never_means_it():
    two_stars = scene(thing(20, 50), thing(50, 50, "star"), thing(80, 50, "star"))
    assert evaluate(Related(CIRCLE, "left of", STAR), two_stars) is None
    assert evaluate(Related(CIRCLE, "left of", SQUARE), two_stars) is None
    itself = scene(thing(20, 50, colour="blue"), thing(50, 50), thing(80, 50))
    assert evaluate(Related(CIRCLE, "right of", Noun("circle", "blue")), itself) == {1, 2}


def test_two_steps_look_from_the_landmarks_landmark():
    shown = scene(
        thing(80, 20),  # above the square that is meant
        thing(20, 20),  # above the other square
        thing(80, 60, "square"),
        thing(20, 60, "square"),
        thing(50, 60, "star"),
    )
    right_square = Related(SQUARE, "right of", STAR)
    assert evaluate(right_square, shown) == {2}
    assert evaluate(Related(CIRCLE, "right of", Related(SQUARE, "left of", STAR)), shown) == {0}
    assert evaluate(Related(CIRCLE, "above", right_square), scene(*shown.things[:1], *shown.things[2:])) == {0}


def test_economy_asks_that_no_part_can_be_left_out():
    shown = scene(thing(20, 50), thing(80, 50), thing(50, 50, "star"), thing(50, 90, "square"))
    assert is_economical(Noun("star"), shown)
    assert is_economical(Extreme("left", CIRCLE), shown)
    assert not is_economical(Extreme("top", STAR), shown)
    assert not is_economical(Nth(2, "left", CIRCLE), shown)
    assert is_economical(Nth(2, "left", Noun()), shown)
    assert is_economical(Related(CIRCLE, "left of", STAR), shown)
    assert not is_economical(Related(SQUARE, "below", STAR), shown)
    # One circle is the landmark, so "circle" alone already tells the other one.
    blue = scene(thing(20, 50), thing(80, 50, colour="blue"))
    assert not is_economical(Related(CIRCLE, "left of", Noun("circle", "blue")), blue)
    # The inner relation tells nothing: there is one star.
    assert not is_economical(Related(CIRCLE, "left of", Related(STAR, "above", SQUARE)), shown)


@pytest.mark.parametrize(
    "x, y, expected",
    [
        (50, 50, {2}),  # half-way
        (30, 50, {2}),  # nearer to one of them
        (50, 59, {2}),  # seen from its centre, the landmarks are 153 degrees apart
        (50, 63, None),  # 141 degrees: a person could argue
        (50, 69, None),  # 126 degrees
        (50, 73, set()),  # 116 degrees
        (5, 50, set()),  # in line with them, but not between them
    ],
)
def test_between_two_landmarks_means_that_they_are_in_opposite_directions(x, y, expected):
    shown = scene(thing(13, 50, "star"), thing(87, 50, "square"), thing(x, y))
    assert evaluate(Between(CIRCLE, STAR, SQUARE), shown) == expected
    assert evaluate(Between(CIRCLE, SQUARE, STAR), shown) == expected


def test_between_needs_two_different_landmarks_and_never_means_them():
    shown = scene(thing(10, 50, "star"), thing(90, 50, "square"), thing(50, 50, "star", "blue"), thing(50, 90))
    assert evaluate(Between(STAR, Noun("star", "red"), SQUARE), shown) == {2}
    assert evaluate(Between(CIRCLE, STAR, SQUARE), shown) is None, "there are two stars"
    assert evaluate(Between(CIRCLE, SQUARE, Noun("square", "red")), shown) is None, "they are the same"
    assert evaluate(Between(Noun(), SQUARE, CIRCLE), shown) == set()


@pytest.mark.parametrize("x, expected", [(75, {0}), (73, None), (70, None), (68, None), (66, {1})])
def test_the_nearest_needs_a_factor_of_1_2(x, expected):
    shown = scene(thing(30, 50), thing(x, 50), thing(50, 50, "star"))  # the first circle is 20 from the star
    assert evaluate(Nearest(CIRCLE, STAR), shown) == expected


def test_the_nearest_is_not_the_landmark_itself():
    shown = scene(thing(50, 50, colour="blue"), thing(30, 50), thing(90, 50), thing(50, 52, "star"))
    assert evaluate(Nearest(CIRCLE, Noun("circle", "blue")), shown) == {1}
    assert evaluate(Nearest(SQUARE, STAR), shown) == set()
    assert evaluate(Nearest(STAR, CIRCLE), shown) is None, "there are three circles"


@pytest.mark.parametrize(
    "rank, side, expected",
    [(1, "left", 3), (2, "left", 1), (3, "right", 3), (1, "top", 4), (2, "bottom", 4), (2, "top", 2)],
)
def test_an_ordinal_in_a_line_counts_in_the_row_or_column_of_the_landmark(rank, side, expected):
    shown = scene(
        *(thing(50, 50, "star"), thing(30, 54), thing(50, 90), thing(10, 50), thing(54, 10), thing(90, 46)),
        thing(20, 90),  # in neither
    )
    assert evaluate(InLine(rank, side, CIRCLE, STAR), shown) == {expected}
    assert evaluate(InLine(4, side, CIRCLE, STAR), shown) == set()


def test_a_line_counts_its_landmark_where_the_noun_fits_it():
    shown = scene(thing(50, 50, "star"), thing(20, 50), thing(80, 50), thing(50, 20))
    assert evaluate(InLine(2, "left", Noun(), STAR), shown) == {0}
    assert evaluate(InLine(3, "left", Noun(), STAR), shown) == {2}


@pytest.mark.parametrize("y, expected", [(56, {1}), (57, None), (61, None), (62, {2})])
def test_a_line_has_a_margin_of_6_to_12_percent_of_the_short_side(y, expected):
    shown = scene(thing(50, 50, "star"), thing(20, y), thing(80, 50))
    assert evaluate(InLine(1, "left", CIRCLE, STAR), shown) == expected


def test_the_landmarks_are_those_that_the_referent_is_compared_with():
    shown = scene(thing(20, 50), thing(50, 50, "star"), thing(80, 50, "square"), thing(50, 90, "square", "blue"))
    red_square = Noun("square", "red")
    assert landmarks_of(CIRCLE, shown) == landmarks_of(Extreme("left", SQUARE), shown) == ()
    assert landmarks_of(Nearest(SQUARE, STAR), shown) == landmarks_of(InLine(1, "left", CIRCLE, STAR), shown) == (1,)
    assert landmarks_of(Between(STAR, CIRCLE, red_square), shown) == (0, 2)
    assert landmarks_of(Related(CIRCLE, "left of", Related(STAR, "left of", red_square)), shown) == (1,)
    assert landmarks_of(Nearest(CIRCLE, SQUARE), shown) is None


def test_economy_of_the_expressions_with_remote_landmarks():
    shown = scene(thing(20, 50), thing(80, 50), thing(50, 50, "star"), thing(50, 90, "square"), thing(80, 90))
    assert is_economical(Nearest(CIRCLE, SQUARE), shown)
    assert not is_economical(Nearest(STAR, SQUARE), shown)
    assert not is_economical(Between(STAR, SQUARE, Noun("square")), shown)
    assert is_economical(Between(CIRCLE, STAR, SQUARE), shown)
    assert is_economical(InLine(1, "left", CIRCLE, STAR), shown)
    assert not is_economical(InLine(1, "left", CIRCLE, SQUARE), shown), "there is one circle in that row"
    assert not is_economical(InLine(1, "left", Noun(), Noun("circle", "red")), shown), "no such landmark"
    in_one_row = scene(*shown.things[:3])
    assert not is_economical(InLine(1, "left", CIRCLE, STAR), in_one_row), "the row excludes no circle"
    assert not is_economical(InLine(2, "left", Noun(), STAR), shown), "the landmark is the referent"
