"""Augmented views: consistent with their masks and expressions, and off by default."""

import numpy as np
import pytest

from s2rm_jax.config import default_config
from s2rm_jax.errors import UserError
from s2rm_jax.input.augment import (
    Augmentation,
    build_augmentation,
    crop,
    crop_box,
    croppable,
    flip,
    hide_patches,
    hide_words,
)
from s2rm_jax.input.encode import MEAN_COLOUR, Encoder, view_of
from s2rm_jax.input.example import Example, Expression
from s2rm_jax.input.tokens import Tokenizer
from s2rm_jax.models.network import normalize

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red", "zeb", "##ra", "##s", "dog")
MASK = WORDS.index("[MASK]")


def make_example(*texts, boxes=((3, 7, 4, 10), (12, 20, 15, 18)), size=(30, 40)):
    """Each expression refers to a white box (top, bottom, left, right), with the expression's number in red."""
    image = np.zeros((*size, 3), np.uint8)
    expressions = []
    for number, text in enumerate(texts):
        top, bottom, left, right = boxes[number]
        image[top:bottom, left:right] = (number + 1, 255, 255)
        mask = np.zeros(size, bool)
        mask[top:bottom, left:right] = True
        expressions.append(Expression(text, mask, id=str(number)))
    return Example("x", image, *size, tuple(expressions))


def pixels(view):
    return np.asarray(view.image)


def assert_masks_fit(view, numbers):
    for mask, number in zip(view.masks(), numbers, strict=True):
        np.testing.assert_array_equal(mask, pixels(view)[..., 0] == number + 1)


def test_a_flip_mirrors_image_masks_and_expressions():
    view = view_of(make_example("dog on left", "red dog"), [0, 1])
    mirrored = flip(view)
    assert mirrored.texts == ("dog on right", "red dog")
    np.testing.assert_array_equal(pixels(mirrored), pixels(view)[:, ::-1])
    assert_masks_fit(mirrored, [0, 1])
    assert not np.array_equal(mirrored.masks(), view.masks())


def test_one_expression_that_cannot_be_mirrored_keeps_the_image_as_it_is():
    example = make_example("dog on left", "right behind the dog")
    assert flip(view_of(example, [0, 1])) is None
    assert flip(view_of(example, [0])) is not None  # only the chosen ones count
    view = view_of(example, [0, 1])
    assert Augmentation(flip=1.0).move(view, example, np.random.default_rng(0)) is view


def test_a_crop_keeps_whole_whatever_is_referred_to_chosen_or_not():
    example, rng = make_example("red dog", "zebra"), np.random.default_rng(0)
    boxes = {crop_box(example, 0.3, rng) for _ in range(300)}
    for top, bottom, left, right in boxes:
        assert 0 <= top <= 3 and 20 <= bottom <= 30 and 0 <= left <= 4 and 18 <= right <= 40
        cropped = crop(view_of(example, [1]), (top, bottom, left, right))
        assert pixels(cropped).shape[:2] == cropped.masks()[0].shape == (bottom - top, right - left)
        assert_masks_fit(cropped, [1])
        assert cropped.masks()[0].sum() == 24
    assert len(boxes) > 100
    assert {box[0] for box in boxes} == {0, 1, 2, 3} and {box[3] for box in boxes} >= {18, 40}


def test_a_crop_of_an_image_in_which_nothing_is_meant_can_be_anywhere():
    example = make_example()
    example = Example("x", example.image, 30, 40, (Expression("zebra", []),))
    boxes = [crop_box(example, 0.5, np.random.default_rng(i)) for i in range(100)]
    assert all(bottom - top >= 15 and right - left >= 20 for top, bottom, left, right in boxes)
    view = crop(view_of(example, [0]), boxes[0])
    assert view.referents == (None,) and view.masks() == []


def test_a_crop_has_the_proportions_of_the_image():
    example, rng = make_example("red dog", boxes=((10, 11, 20, 21),)), np.random.default_rng(0)
    for _ in range(100):
        top, bottom, left, right = crop_box(example, 0.3, rng)
        assert abs((bottom - top) / 30 - (right - left) / 40) <= 0.5 / 30 + 0.5 / 40 + 1e-9  # sides are rounded


# Each has one word that a crop can make wrong.
DEPENDING = """
leftmost zebra; dog at right; Top shelf; bottom shelf; upper shelf; lower shelf; middle zebra; mid air
dog in the center; dog in the centre; centers of attention; centres of attention; central dog; dog in a corner
dogs in the corners; dog at the edge; dogs at the edges; dog at the end; dogs at the ends; dog at a side; dogs at sides
between the dogs; among zebras; half a dog; halves of a dog; part of a zebra; partly hidden dog; partial zebra
partially hidden dog; portion of a zebra; portions of zebras; whole zebra; entire zebra; full body; fully shown dog
complete zebra; completely shown dog; cut zebra; cropped zebra; dog going off; visible dog; dog you see; dog seen well
dog of the picture; dog of the image; dog of the photo; dog of the photograph; dog of the pic; dog in frame
dog on the screen; dog of the shot; in view; dog at the border; first dog; second dog; third dog; fourth dog; fifth dog
sixth dog; last dog; next dog; only dog; dog alone; single dog; one dog; two dogs; three dogs; four dogs; five dogs
six dogs; all dogs; both dogs; other dog; the others; another dog; group of dogs; row of dogs; 3 dogs; 2nd dog
dog at noon o clock; dog at noon oclock; north dog; south dog; east dog; west dog; dog above; dog below; under a dog
far dog; farthest dog; furthest dog; most striped zebra
the seventh giraffe; the eighth car in line; ninth dog; tenth dog; eleventh dog; twelfth dog; 7th dog; seven players
eight dogs; nine dogs; ten balloons; eleven dogs; twelve dogs; thirteen dogs; nineteen dogs; twenty dogs; dozen dogs
dozens of dogs; pair of shoes; pairs of dogs; trio of dogs; the penultimate man; the start of the line
front botom; botttom; bittom plate; couch on botto; bottomcenter dog; midle motercycle; midlle phamplet; inmiddle dog
topcenter thing; centerbackground; couple of dogs; several dogs; few dogs; lone dog; lonely dog; remaining pizza
rest of the dogs
"""


@pytest.mark.parametrize("expression", DEPENDING.strip().replace("\n", "; ").split("; "))
def test_what_depends_on_the_frame_is_not_cropped(expression):
    example = make_example("red dog", expression)
    assert not croppable(view_of(example, [0, 1]))
    assert croppable(view_of(example, [0]))
    view = view_of(example, [0, 1])
    assert Augmentation(crop=1.0).move(view, example, np.random.default_rng(0)) is view


@pytest.mark.parametrize(
    "expression", ["the tallest man", "stop sign", "someone in an overall", "rowing team", "about to start"]
)
def test_what_does_not_depend_on_the_frame_is_cropped(expression):
    assert croppable(view_of(make_example(expression), [0]))


def test_patches_become_the_mean_and_the_rest_stays():
    pixels = np.random.default_rng(0).integers(0, 100, (20, 30, 3), dtype=np.uint8)
    hidden = hide_patches(pixels, 0.5, 8, np.random.default_rng(1))
    assert hidden.dtype == np.uint8
    gone = (hidden == (124, 116, 104)).all(-1)
    assert np.abs(normalize(hidden)[gone]).max() < 0.01  # half a grey level: 0.5 / 255 / 0.225
    np.testing.assert_array_equal(hidden[~gone], pixels[~gone])
    for top in range(0, 20, 8):
        for left in range(0, 30, 8):
            assert gone[top : top + 8, left : left + 8].all() or not gone[top : top + 8, left : left + 8].any()
    assert 0.2 < gone.mean() < 0.8
    np.testing.assert_array_equal(hide_patches(pixels, 0.0, 8, np.random.default_rng(1)), pixels)


def test_words_are_hidden_with_all_their_pieces_and_one_stays():
    tokenizer = Tokenizer(WORDS, 9)
    continues = np.array([word.startswith("##") for word in WORDS])
    tokens, _ = tokenizer.encode("red zebras dog")
    pieces = ["[CLS]", "red", "zeb", "##ra", "##s", "dog", "[SEP]"]
    assert tokenizer.words(tokens) == pieces
    seen = set()
    for seed in range(200):
        hidden = hide_words(tokens, 0.5, MASK, continues, np.random.default_rng(seed))
        assert hidden.dtype == np.int32 and hidden[0] == tokens[0] and (hidden[6:] == tokens[6:]).all()
        gone = hidden == MASK
        assert len(set(gone[2:5])) == 1
        seen.add((gone[1], gone[2], gone[5]))
    assert len(seen) == 7 and (True, True, True) not in seen
    assert (hide_words(tokens, 1.0, MASK, continues, np.random.default_rng(0)) == MASK).sum() < 5


@pytest.mark.parametrize("share", [0.1, 0.9])
def test_words_are_hidden_with_the_given_probability(share):
    tokens, _ = Tokenizer(WORDS, 9).encode("red dog zeb")
    continues, rng = np.array([word.startswith("##") for word in WORDS]), np.random.default_rng(0)
    hidden = [np.count_nonzero(hide_words(tokens, share, MASK, continues, rng) == MASK) for _ in range(2000)]
    assert np.mean(hidden) == pytest.approx(3 * share - share**3, abs=0.06)  # one stays if all three would be hidden


def test_hiding_words_needs_a_mask_in_the_vocabulary():
    config = default_config().input.augment
    config.hide_words = 0.2
    with pytest.raises(UserError, match=r"hide_words is 0\.2, but the vocabulary has no \[MASK\]"):
        build_augmentation(config, Tokenizer([word for word in WORDS if word != "[MASK]"], 9))
    assert build_augmentation(config, Tokenizer(WORDS, 9)).mask_id == MASK


def test_nothing_is_changed_by_default_and_no_chance_is_used():
    augmentation = build_augmentation(default_config().input.augment, Tokenizer(WORDS, 9))
    example, rng = make_example("red dog"), np.random.default_rng(0)
    view = view_of(example, [0])
    assert augmentation.move(view, example, rng) is view
    assert rng.random() == np.random.default_rng(0).random()


@pytest.mark.parametrize("kind", ["flip", "crop"])
def test_views_are_moved_with_the_given_probability(kind):
    example, rng = make_example("red dog"), np.random.default_rng(0)
    view = view_of(example, [0])
    augmentation = Augmentation(**{kind: 0.25})
    moved = sum(augmentation.move(view, example, rng) is not view for _ in range(400))
    assert 70 < moved < 130  # 100 +- 3.5 standard deviations


def test_the_share_of_hidden_patches_is_drawn_between_none_and_the_largest():
    arrays = Encoder(Tokenizer(WORDS, 9), (64, 64), 1)(make_example("red dog"), [0])
    augmentation, rng = Augmentation(hide_patches=0.6, patch=4), np.random.default_rng(0)
    shares = [(augmentation.hide(arrays, rng).images == MEAN_COLOUR).all(-1).mean() for _ in range(100)]
    assert min(shares) < 0.1 and 0.5 < max(shares) < 0.75
    assert 0.25 < np.mean(shares) < 0.35


def test_words_of_an_expression_that_refers_to_nothing_are_not_hidden():
    """Without them it could have a referent."""
    augmentation = Augmentation(hide_words=1.0, mask_id=MASK, continues=np.zeros(len(WORDS), bool))
    arrays = Encoder(Tokenizer(WORDS, 9), (64, 64), 2)(make_example("red dog", "red dog"), [0, 1])
    arrays = arrays._replace(has_target=np.array([True, False]))
    hidden = augmentation.hide(arrays, np.random.default_rng(0)).tokens
    assert MASK in hidden[0]
    np.testing.assert_array_equal(hidden[1], arrays.tokens[1])
