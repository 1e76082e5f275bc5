"""The synthetic benchmark: unchanged scenes, and scores of trivial answers as counted by hand."""

from pathlib import Path

import numpy as np
import pytest

from data import synthetic_baselines
from data.synthetic_baselines import baseline_table, checksum, fits_head, score_baselines
from s2rm_jax.errors import UserError
from s2rm_jax.input.sources import build_source
from s2rm_jax.input.synthetic.grammar import Reference
from s2rm_jax.input.synthetic.language import Between, Extreme, InLine, Nearest, Noun, Nth, Related
from s2rm_jax.input.synthetic.scene import Scene, Thing
from s2rm_jax.input.synthetic.source import Composition
from tests.test_configs import load

ROOT = Path(__file__).parents[2]
CARD = (ROOT / "docs/synthetic_benchmark.md").read_text(encoding="utf-8")
FIRST_32 = {
    ("", "test"): "762cad4588d566d830df373f741cf0ddef40a025e3694ecb85d4e35ce1949899",
    ("", "compositional"): "74829a2a6b1dce94071552cbb6482a4b62f17bcdaa74c964fef09daf1c51284c",
    ("far", "test"): "568f92997c012969d672eefa0927e4bf2a5ce6e6868f47ada3b98f7d30168acb",
    ("far", "compositional"): "2096e3dd3d96c82ed905d3ca9a9f2a3141fd4c711605f504b207bbae5ab3a140",
}
SCENE = Scene(
    100,
    100,
    (
        Thing("star", "red", "plain", "small", 10.0, 50.0, 8.0),
        Thing("star", "red", "plain", "small", 40.0, 50.0, 8.0),
        Thing("star", "red", "plain", "large", 70.0, 50.0, 8.0),
        Thing("ring", "blue", "plain", "large", 90.0, 50.0, 8.0),
    ),
)
STAR, RING = Noun(shape="star"), Noun(shape="ring")


def reference(meaning, referent, kind="any"):
    return Reference("the words", kind, meaning, referent)


def get_config(variant):
    return load(ROOT / "configs/synthetic_benchmark.py").get_config(variant)


@pytest.mark.parametrize(("variant", "split"), FIRST_32)
def test_the_held_out_scenes_are_those_of_the_card(variant, split):
    source = build_source(get_config(variant).input.source, split)
    assert len(source) == 512
    assert checksum([source.composition(index) for index in range(32)]) == FIRST_32[variant, split]
    assert FIRST_32[variant, split] in CARD


@pytest.mark.parametrize("variant", ["", "far"])
def test_a_training_set_has_as_many_scenes_as_the_budget_takes(variant):
    config = get_config(variant)
    assert len(build_source(config.input.source, "train")) == config.steps * config.batch_size


@pytest.mark.parametrize(
    ("variant", "noun", "relations"), [("", "the little yellow triangle", 2), ("far", "the yellow triangle", 3)]
)
def test_the_longest_expression_is_not_cut(variant, noun, relations):
    longest = " ".join([f"{noun} that is to the right of"] * relations + [noun])
    assert len(longest.split()) + 2 <= get_config(variant).text.max_tokens


def test_in_the_far_setting_the_last_stage_has_several_windows():
    config = get_config("far")
    slices = config.input.image_size[0] // 16
    assert len(config.vision.depths) == 3 and slices == 10
    assert slices > 3 * config.vision.window_size
    vocabulary = build_source(config.input.source, "train").vocabulary
    assert len(vocabulary) <= config.text.vocab_size


@pytest.mark.parametrize(("name", "longer"), [("", "long"), ("far", "far_long")])
def test_long_settings_differ_in_their_length_alone(name, longer):
    short, long = get_config(name), get_config(longer)
    for config in (short, long):
        assert config.steps * config.batch_size == config.input.source.train_length  # each scene once
    assert long.steps > short.steps
    long.steps, long.input.source.train_length, long.eval.every = (
        short.steps,
        short.input.source.train_length,
        short.eval.every,
    )
    assert long.to_dict() == short.to_dict()


def test_an_unknown_setting_is_named():
    with pytest.raises(UserError, match="has no variant 'near'; available: 'far', 'far_long', 'long'"):
        get_config("near")


@pytest.mark.parametrize(
    ("meaning", "referent", "fitting"),
    [
        (RING, 3, {3}),
        (Extreme("left", STAR), 0, {0, 1, 2}),
        (Nth(2, "left", Noun(colour="red", size="small")), 1, {0, 1}),
        (Related(STAR, "left of", RING), 2, {0, 1, 2}),
        (Related(Noun(), "right of", Related(Noun(size="large"), "left of", RING)), 3, {0, 1, 3}),
        (Between(Noun(), Noun(colour="red", size="large"), RING), 1, {0, 1}),
        (Nearest(STAR, RING), 2, {0, 1, 2}),
        (InLine(2, "left", Noun(), RING), 1, {0, 1, 2}),
    ],
)
def test_the_head_noun_leaves_these_things(meaning, referent, fitting):
    assert fits_head(reference(meaning, referent), SCENE) == fitting


def test_answers_are_worth_what_is_counted_by_hand():
    masks = [np.zeros((10, 10), bool) for _ in SCENE.things]
    for row, mask in enumerate(masks):
        mask[row, : row + 1] = True
    expressions = (reference(RING, 3, "attribute"), reference(Extreme("right", STAR), 2, "superlative"))
    composition = Composition(SCENE, expressions, np.zeros((10, 10, 3), np.uint8), masks)
    by_name = [
        dict(zip(synthetic_baselines.BASELINES, scores.ious, strict=True)) for scores in score_baselines(composition)
    ]
    assert by_name[0] == {"empty": 0, "whole image": 0.04, "random object": 0.25, "head noun": 1}
    assert by_name[1] == {"empty": 0, "whole image": 0.03, "random object": 0.25, "head noun": 1 / 3}
    table = baseline_table([composition], "test")
    assert [row[0] for row in table.rows] == ["attribute", "superlative", "all"]
    assert table.rows[-1][1:] == ("0.00", "3.50", "25.00", "66.67", "2")


def test_the_checksum_tells_expressions_and_masks_apart():
    mask = np.eye(16, dtype=bool)
    one = Composition(SCENE, (reference(RING, 0),), np.zeros((16, 16, 3), np.uint8), [mask])
    other_words = one._replace(references=(one.references[0]._replace(text="the word"),))
    other_mask = one._replace(masks=[mask.copy()])
    assert checksum([one]) == checksum([other_mask])
    other_mask.masks[0][0, 0] = False
    assert len({checksum([x]) for x in (one, other_words, other_mask)}) == 3
