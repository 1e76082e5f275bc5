"""Mirroring of real expressions (RefCOCO, RefCOCOg, CC BY 4.0)."""

import pytest

from s2rm_jax.input.mirror import mirror_expression


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
        (
            "an elephant with its right and left eye visible",
            "an elephant with its left and right eye visible",
        ),
    ],
)
def test_sides_are_exchanged(expression, mirrored):
    assert mirror_expression(expression) == mirrored
    assert mirror_expression(mirrored) == expression


@pytest.mark.parametrize(
    "expression",
    [
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
        "what is left of the cake",
        "the last slice that's left",
        "on the same side as the right side up pepsi cup",
        "the car going the right way",
        # not certainly a side: nothing before or after it says so
        "bear left",
        "yellow piece of food onthe right",
        "2nd to theleft brown horse drinking",
        # misspelt or abbreviated
        "lefft guy sitting",
        "the phone to the righ",
        "man on l",
        "rt side",
        # writing and numbers, which a mirror makes unreadable
        "a truck number 14 on a snow bank",
        'a yellow bus with the words "my bus"',
        "man on the left with the logo",
        "player # 24 swinging a bat",
        "a bus that says stop",
        # clock positions, bearings, the sides of cars, the shape of a letter
        "pizza slice at 6 oclock",
        "the orange in the 5 o'clock position",
        "the traffic light facing west",
        "A golden colored dog sitting on the passenger side.",
        "the dog in the driver ' s side window",
        "An L-shaped couch",
        # counted from the left, without saying so
        "the third elephant in a group of four",
    ],
)
def test_what_is_not_certain_is_refused(expression):
    assert mirror_expression(expression) is None
