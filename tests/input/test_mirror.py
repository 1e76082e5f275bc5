"""Mirroring of real expressions (RefCOCO, RefCOCOg, CC BY 4.0)."""

import json
import re
from itertools import product
from pathlib import Path

import pytest

from s2rm_jax.input.mirror import mirror_expression
from tests.input.refer_fixture import refer_mini


@pytest.mark.parametrize(
    ("expression", "mirrored"),
    [
        ("the man in yellow coat", "the man in yellow coat"),
        ("far left cut off", "far right cut off"),
        ("left", "right"),
        ("leftmost zebra", "rightmost zebra"),
        ("Right-most umbrella at the restaurant.", "Left-most umbrella at the restaurant."),
        ("bike rightside", "bike leftside"),
        ("A suitcase in the very bottom right-hand corner", "A suitcase in the very bottom left-hand corner"),
        (
            "to the upper lefthand side of the other",
            "to the upper righthand side of the other",
        ),
        ("LOWER LEFT OF COUCH AND BLACK ARM OF CHAIR", "LOWER RIGHT OF COUCH AND BLACK ARM OF CHAIR"),
        ("Left facing zebra behind another zebra.", "Right facing zebra behind another zebra."),
        ("umbrella in man ' s left hand", "umbrella in man ' s right hand"),
        ("a lady with a black tank top on her right", "a lady with a black tank top on her left"),
        ("the elephant on the right facing the left", "the elephant on the left facing the right"),
        (
            "the player in the right picture , not the left picture",
            "the player in the left picture , not the right picture",
        ),
        ("the chair on the right behind facing forward", "the chair on the left behind facing forward"),
        ("An upright cat in the bright left half, leftovers", "An upright cat in the bright right half, leftovers"),
        ("the second train from the left", "the second train from the right"),
        ("2nd from right", "2nd from left"),
        ("second row left", "second row right"),
        ("first chair on the left", "first chair on the right"),
        ("the third giraffe from the left looking right", "the third giraffe from the right looking left"),
        ("second from the left-hand side", "second from the right-hand side"),
        ("second person to the left of the tree", "second person to the right of the tree"),
        (
            "an elephant with its right and left eye visible",
            "an elephant with its left and right eye visible",
        ),
        # short phrases of RefCOCO (unc val), whose last word is the side
        ("man at left", "man at right"),
        ("bottle on right", "bottle on left"),
        ("bear left", "bear right"),
        ("black laptop right .", "black laptop left ."),
        ("bright blue cab left", "bright blue cab right"),
        ("person right of umbrella", "person left of umbrella"),
        ("first left bus", "first right bus"),
        ("leftest kid", "rightest kid"),
        ("woman in black in left lower picture", "woman in black in right lower picture"),
        ("bed all the way right", "bed all the way left"),
        ("a man to the right of the tight rope at night", "a man to the left of the tight rope at night"),
        # letters that are not written on something
        ("A man in a T-shirt on the left. A dog", "A man in a T-shirt on the right. A dog"),
        ("A MAN IN A RED T SHIRT ON RIGHT", "A MAN IN A RED T SHIRT ON LEFT"),
        ("UMBRELLA IN MAN ' S LEFT HAND", "UMBRELLA IN MAN ' S RIGHT HAND"),
        ("blue M&M's on the left", "blue M&M's on the right"),
        ("seven players in a white jersey on left", "seven players in a white jersey on right"),
    ],
)
def test_sides_are_exchanged(expression, mirrored):
    assert mirror_expression(expression) == mirrored
    assert mirror_expression(mirrored) == expression


@pytest.mark.parametrize(
    "expression",
    [
        # counted from the left, although a side is named: of a body, a direction, or a place beside
        "third giraffe with head turned left",
        "third giraffe looking to the right",
        "the second zebra facing right",
        "the second zebra right facing",
        "second man holding a bat in his left hand",
        "first guy, right handed",
        "1st person with left arm raised",
        "last cow looking left",
        "man to the left of the third giraffe",
        "man on the left side of the third giraffe",
        "left person of the second row",
        "woman on the left next to the second man",
        "third plane flying left",
        "third giraffe looking slightly left",
        "second zebra looking back to the left",
        "third horse with its left front leg raised",
        "second man riding right",
        # an adverb, a verb, or what is correct
        "a white commercial van follows right behind an orange passenger sedan",
        "the piece of broccoli that is right in the center",
        "It's right next to the cow",
        "a giraffe looking right behind another giraffe",
        "Frozen spicy Italian pizza right out of the oven.",
        "right now",
        "all right",
        "a portion of cake left on a plate",
        "the left over pizza",
        "all of the pizza left",
        "nobody left",
        "the right tool",
        "what is left of the cake",
        "the last slice that's left",
        "on the same side as the right side up pepsi cup",
        "the car going the right way",
        "right-of-way sign",
        "the right person for the job",
        "giraffe looking right back at us",
        "the left luggage office",
        # what remains, and what is correct
        "two slices left",
        "pizza with cheese left",
        "the one that just left",
        "some water and a little left",
        "one third left",
        "so close you were right",
        # not certainly a side: nothing before or after it says so
        "man right in dark gray jacket",
        "truck left behind guys",
        "yellow piece of food onthe right",
        "2nd to theleft brown horse drinking",
        # abbreviated
        "man on l",
        "rt side",
        # writing and numbers, which a mirror makes unreadable
        "a truck number 14 on a snow bank",
        'a yellow bus with the words "my bus"',
        "man on the left with the logo",
        "player # 24 swinging a bat",
        "a bus that says stop",
        "the E on the sign",
        "stop sign",
        "jersey seven",
        "ten jersey on the left",
        "ten bib on the left",
        "two signs on the left",
        "player twelve",
        "The fighter plane with a W on the side.",
        "the woman whose head is blocking the O in ROCK",
        "an I love the rain umbrella",
        "the big A on the left",
        # clock positions, bearings, the sides of cars, the shape of a letter
        "pizza slice at 6 oclock",
        "the orange in the 5 o'clock position",
        "the traffic light facing west",
        "A golden colored dog sitting on the passenger side.",
        "the dog in the driver ' s side window",
        "An L-shaped couch",
        # another language or script
        "左边的人",
        "человек слева",
        "l'homme à gauche",
        "the ｌｅｆｔ man",
        # counted from the left, without saying so
        "the third elephant in a group of four",
    ],
)
def test_what_is_not_certain_is_refused(expression):
    assert mirror_expression(expression) is None


@pytest.mark.parametrize(
    "expression",
    [
        "laft sand", "head of guy on lefy", "riht", "irght one", "sandwich piece on ruight", "girl on rgiht", "ght guy",
        "man in the front ight with all white", "rihg tpurple", "very le t elephant", "le t guy", "lefft guy sitting",
        "the phone to the righ", "far fight bottom fridge", "chair bottom let", "smiroff to plelft", "onrihgt",
        "leftmots zebra", "rigthmost cow", "lefthnd side", "RGIHT MAN", "ri-ght dog", "man on the lef t", "farlefy cow",
        "laftman", "manruight",
        "woman on the left, dog on the rigth",
    ],
)  # fmt: skip
def test_a_misspelt_side_is_refused(expression):
    assert mirror_expression(expression) is None


def test_words_within_one_edit_of_a_side_that_are_something_else():
    for word in (
        "bright",
        "brighter",
        "eight",
        "fighter",
        "lift",
        "light",
        "lighter",
        "loft",
        "might",
        "night",
        "tight",
    ):
        assert mirror_expression(f"{word} on left") == f"{word} on right"


def edits(a, b):
    """The optimal string alignment distance, by its recurrence."""
    far = len(a) + len(b)
    table = [[max(i, j) if 0 in (i, j) else far for j in range(len(b) + 1)] for i in range(len(a) + 1)]
    for i, j in product(range(1, len(a) + 1), range(1, len(b) + 1)):
        table[i][j] = min(
            table[i - 1][j] + 1,
            table[i][j - 1] + 1,
            table[i - 1][j - 1] + (a[i - 1] != b[j - 1]),
            table[i - 2][j - 2] + 1 if i > 1 and j > 1 and a[i - 2 : i] == b[j - 2 : j][::-1] else far,
        )
    return table[-1][-1]


def test_of_an_english_word_list_only_the_ordinary_words_near_a_side_are_not_refused():
    word_list = Path("/usr/share/dict/words")
    if not word_list.is_file():
        pytest.skip(f"{word_list} is missing; it is in Debian's package wamerican")
    words = {word for word in word_list.read_text(encoding="utf-8").split() if re.fullmatch("[a-z]{3,6}", word)}
    near = {word for word in words if min(edits(word, "left"), edits(word, "right")) == 1}
    accepted = {word for word in near if mirror_expression(word) is not None}
    assert accepted == {"bright", "eight", "lift", "light", "loft", "might", "night", "sight", "tight"}
    assert {"fight", "lent", "let", "wight"} <= near - accepted


def test_most_real_expressions_that_name_a_side_are_mirrored():
    mini = refer_mini()
    path = mini.parent / "expressions/refcoco_unc_val.jsonl" if mini else None
    if path is None or not path.is_file():
        pytest.skip("no expressions of RefCOCO beside the sample of real data")
    texts = [json.loads(line)["sentence"] for line in path.read_text(encoding="utf-8").splitlines()]
    naming = [text for text in texts if re.search("left|right", text)]
    refused = [text for text in naming if mirror_expression(text) is None]
    assert (len(naming), len(refused)) == (5144, 223)
