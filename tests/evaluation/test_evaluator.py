"""The evaluator on a network whose answers are known: what is counted, how often, and at which resolution."""

from dataclasses import replace
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from s2rm_jax.errors import UserError
from s2rm_jax.evaluation import evaluator
from s2rm_jax.evaluation.evaluator import Evaluator, score_items
from s2rm_jax.evaluation.protocols import PROTOCOLS, predicted_mask
from s2rm_jax.input.example import Example, Expression
from s2rm_jax.input.pipeline import EvalItem


def test_counts_at_the_original_size_of_a_non_square_image(colour_world, make_example, source_of):
    # 12 x 24: "red" finds columns 0-8, the true mask is columns 0-11: I = 12 * 9 = 108, U = 12 * 12 = 144.
    # "blue" finds columns 9-23: I = 12 * 3 = 36, U = 12 * 24 = 288.
    source = source_of([make_example("p", ["the red part", "blue"], height=12, width=24, kind="colour")])
    network, _, params, tokenizer, config = colour_world
    report = Evaluator(network, tokenizer, config)(params, source)
    assert [(s.intersection, s.union) for s in report.expressions] == [(108, 144), (36, 288)]
    assert report.metrics["overall_iou"] == pytest.approx(100 * 144 / 432)
    assert report.metrics["mean_iou"] == pytest.approx(100 * (0.75 + 0.125) / 2)
    assert list(report.by_kind) == ["colour"]
    first = report.expressions[0]
    assert (first.id, first.example_id, first.kind, first.expression) == ("p-0", "p", "colour", "the red part")


def test_every_expression_once_whatever_the_sizes(colour_world, make_example, source_of):
    # K = 3 and batches of two images: 1 + 1 + 2 + 3 + 1 = 8 items, then 7: a full last batch and a padded one.
    network, _, params, tokenizer, config = colour_world
    evaluator = Evaluator(network, tokenizer, config)
    for counts in ([1, 3, 4, 7, 2], [1, 3, 4, 7], [1]):
        source = source_of([make_example(f"e{i}", ["red"] * count) for i, count in enumerate(counts)])
        report = evaluator(params, source)
        expected = [e.id for example in source for e in example.expressions]
        assert [s.id for s in report.expressions] == expected
        assert report.total.expressions == sum(counts)
        assert (report.total.intersection, report.total.union) == (12 * sum(counts), 16 * sum(counts))


def test_images_of_different_sizes_in_one_batch(colour_world, make_example, source_of):
    network, _, params, tokenizer, config = colour_world
    source = source_of(
        [make_example("a", ["red"], 4, 8), make_example("b", ["red"], 16, 8), make_example("c", ["red"], 5, 80)]
    )
    report = Evaluator(network, tokenizer, config)(params, source)
    assert [(s.intersection, s.union) for s in report.expressions] == [(12, 16), (48, 64), (150, 200)]


def test_examples_of_one_file_or_of_equal_bytes_show_one_image(colour_world, make_example, source_of, tmp_path):
    network, _, params, tokenizer, config = colour_world
    examples = [make_example(f"{dataset}/{name}", ["red"]) for dataset in ("refcoco", "refcocog") for name in "ab"]
    files = [tmp_path / "a.png", tmp_path / "b.png"]
    for path, value in zip(files, (0, 1), strict=True):
        pixels = examples[0].image.copy()
        pixels[0, 0] = value
        Image.fromarray(pixels).save(path)
    evaluator = Evaluator(network, tokenizer, config)
    assert evaluator(params, source_of(examples)).images == 4  # arrays of unknown origin
    for images in (files * 2, [path.read_bytes() for path in files] * 2):
        shown = [replace(example, image=image) for example, image in zip(examples, images, strict=True)]
        report = evaluator(params, source_of(shown))
        assert report.images == 2
        assert report.expressions[0].image == report.expressions[2].image != report.expressions[1].image


def test_limit_counts_images(colour_world, make_example, source_of):
    network, _, params, tokenizer, config = colour_world
    config.eval.limit = 2
    source = source_of([make_example(f"e{i}", ["red", "blue"]) for i in range(3)])
    report = Evaluator(network, tokenizer, config)(params, source)
    assert [s.id for s in report.expressions] == ["e0-0", "e0-1", "e1-0", "e1-1"]


def test_compiles_once_and_takes_the_parameters_of_the_call(colour_world, make_example, source_of):
    network, traced, params, tokenizer, config = colour_world
    source = source_of([make_example(f"e{i}", ["red"] * 4) for i in range(3)])
    evaluator = Evaluator(network, tokenizer, config)
    first = evaluator(params, source)
    inverted = evaluator(jax.tree.map(lambda leaf: -leaf, params), source)
    assert traced == ["__call__"]
    assert first.expressions[0].intersection == 12
    assert inverted.expressions[0].intersection == 4  # what is not red: columns 3-7; of the left half one column of 4


def test_no_implicit_transfers(colour_world, make_example, source_of):
    network, _, params, tokenizer, config = colour_world
    with jax.transfer_guard("disallow"):
        report = Evaluator(network, tokenizer, config)(params, source_of([make_example("e", ["red"])]))
    assert report.total.expressions == 1


def test_progress_and_observer_are_called_for_everything(colour_world, make_example, source_of):
    network, _, params, tokenizer, config = colour_world
    source = source_of([make_example(f"e{i}", ["red", "blue"]) for i in range(5)])
    progress, seen = [], []
    evaluator = Evaluator(network, tokenizer, config)
    report = evaluator(params, source, progress=lambda *now: progress.append(now), observe=seen.append)
    assert progress == [(1, 3), (2, 3), (3, 3)]
    assert [p.score for p in seen] == list(report.expressions)
    np.testing.assert_array_equal(seen[0].predicted, np.broadcast_to(np.arange(8) < 3, (4, 8)))
    np.testing.assert_array_equal(seen[0].true, np.broadcast_to(np.arange(8) < 4, (4, 8)))


def test_images_are_read_from_files(colour_world, make_example, source_of, tmp_path):
    network, _, params, tokenizer, config = colour_world
    made = make_example("e", ["red"])
    Image.fromarray(made.image).save(tmp_path / "e.png")
    source = source_of([Example("e", tmp_path / "e.png", made.height, made.width, made.expressions)])
    assert Evaluator(network, tokenizer, config)(params, source).total.intersection == 12


def test_a_split_without_expressions_is_an_error(colour_world, source_of):
    network, _, params, tokenizer, config = colour_world
    with pytest.raises(UserError, match="no expressions"):
        Evaluator(network, tokenizer, config)(params, source_of([]))


def test_the_size_of_a_protocol_is_not_that_of_the_network_or_the_image(colour_world, make_example, source_of):
    # The network answers at 8 x 8, the image has 12 x 24 pixels, masks are compared at 480 x 480. Logits are -4 and 4
    # at columns 2 and 3, whose centres lie at 150 and 210 of 480: they cross 0 halfway, at 180. Meant is the left half.
    source = source_of([make_example("p", ["red"], height=12, width=24)])
    network, _, params, tokenizer, config = colour_world
    report = Evaluator(network, tokenizer, config, PROTOCOLS["lavt480"])(params, source)
    assert [(s.intersection, s.union) for s in report.expressions] == [(180 * 480, 240 * 480)]
    assert report.protocol.name == "lavt480"


def test_area_and_centre_of_the_referent(colour_world, make_example, source_of):
    network, _, params, tokenizer, config = colour_world
    source = source_of([make_example("p", ["red"], height=12, width=24)])
    for name in ("original", "lavt480"):
        (score,) = Evaluator(network, tokenizer, config, PROTOCOLS[name])(params, source).expressions
        assert score.area == 0.5
        assert score.centre == (0.25, 0.5)


class AnswerWithHead(NamedTuple):
    logits: jax.Array
    no_target_logits: jax.Array | None


class WithHead(nn.Module):
    """Predicts no target for expressions that name green, and the left half for all others."""

    silent: bool = False

    @nn.compact
    def __call__(self, images, tokens, token_mask):
        b, h, w, _ = images.shape
        green = (tokens == 5).any(-1)
        left = jnp.where(jnp.arange(w) < w // 2, 1.0, -1.0)
        logits = jnp.broadcast_to(left, (b, tokens.shape[1], h, w))
        return AnswerWithHead(logits, None if self.silent else jnp.where(green, 2.0, -2.0))


@pytest.fixture
def four_answers(make_example, source_of):
    """An image with two expressions that mean its left half and two that mean nothing; one of each names green."""
    example = make_example("p", ["red"], height=8, width=8)
    left, nothing = np.asarray(example.expressions[0].segmentation), []
    cases = (("red", left), ("green", left), ("blue", nothing), ("green", nothing))
    expressions = tuple(Expression(s, mask, "", f"p-{i}") for i, (s, mask) in enumerate(cases))
    return source_of([Example("p", example.image, 8, 8, expressions)])


def test_a_network_predicts_that_an_expression_refers_to_nothing(colour_world, four_answers):
    # At 480 x 480 the left half has 115,200 pixels = h. TN: I = U = h. FP: I lost, U = h. FN: U = h. TP: IoU 1.
    h = 480 * 240
    report = Evaluator(WithHead(), colour_world.tokenizer, colour_world.config, PROTOCOLS["rela_gref"])(
        {}, four_answers
    )
    assert [(s.intersection, s.union, s.iou) for s in report.expressions] == [
        (h, h, 1),
        (0, h, 0),
        (0, h, 0),
        (0, 0, 1),
    ]
    assert [(s.targeted, s.answered) for s in report.expressions] == [
        (True, True), (True, False), (False, True), (False, False),
    ]  # fmt: skip
    assert report.metrics["no_target_accuracy"] == report.metrics["target_accuracy"] == report.metrics["mean_iou"] == 50
    assert report.metrics["overall_iou"] == pytest.approx(100 / 3)


NO_PIXEL: dict[str, Any] = {
    "a polygon": [[1.0, 1.0, 1.2, 1.0, 1.0, 1.2]],
    "a list of run lengths": {"size": [8, 8], "counts": [64]},
    "compressed run lengths": {"size": [8, 8], "counts": coco_mask.encode(np.zeros((8, 8), np.uint8, "F"))["counts"]},
    "an array": np.zeros((8, 8), bool),
}


@pytest.mark.parametrize("form", NO_PIXEL)
def test_a_mask_without_a_pixel_means_nothing(colour_world, make_example, source_of, form):
    example = make_example("p", ["red"], height=8, width=8)
    expressions = (Expression("green", NO_PIXEL[form], "", "p-0"),)
    source = source_of([Example("p", example.image, 8, 8, expressions)])
    report = Evaluator(WithHead(), colour_world.tokenizer, colour_world.config, PROTOCOLS["rela_gref"])({}, source)
    (score,) = report.expressions
    assert (score.targeted, score.answered, score.area, score.centre) == (False, False, 0.0, None)
    assert (report.total.targeted, report.total.no_target) == (0, 1)


def test_a_mask_file_that_is_black_means_nothing(colour_world, make_example, source_of, tmp_path):
    Image.new("L", (8, 8)).save(tmp_path / "black.png")
    example = make_example("p", ["red"], height=8, width=8)
    black = (Expression("green", {"png": str(tmp_path / "black.png")}, "", "p-0"),)
    source = source_of([Example("p", example.image, 8, 8, black)])
    report = Evaluator(WithHead(), colour_world.tokenizer, colour_world.config, PROTOCOLS["rela_gref"])({}, source)
    assert [(s.targeted, s.answered, s.iou) for s in report.expressions] == [(False, False, 1)]


def test_rela_keeps_the_mask_of_an_expression_that_the_network_rejects(colour_world, make_example, source_of):
    # Meant is the right half, the mask is the left half, and the head says "nothing": the union is the whole image.
    example = make_example("p", ["red"], height=8, width=8)
    right = (Expression("green", ~np.asarray(example.expressions[0].segmentation), "", "p-0"),)
    source = source_of([Example("p", example.image, 8, 8, right)])
    tokenizer, config = colour_world.tokenizer, colour_world.config
    for name, union in (("rela_gref", 480 * 480), ("lavt480", 480 * 240), ("lisa", 32)):
        (score,) = Evaluator(WithHead(), tokenizer, config, PROTOCOLS[name])({}, source).expressions
        assert (score.intersection, score.union) == (0, union)


def test_without_that_output_the_mask_decides(colour_world, four_answers):
    tokenizer, config = colour_world.tokenizer, colour_world.config
    report = Evaluator(WithHead(silent=True), tokenizer, config, PROTOCOLS["rela_gref"])({}, four_answers)
    assert all(score.answered for score in report.expressions)  # no mask is empty
    assert report.metrics["no_target_accuracy"] == 0
    assert report.metrics["target_accuracy"] == 100


def test_under_lisa_that_output_empties_the_mask(colour_world, four_answers):
    # Of the left half (32 pixels): found; lost; found but not asked for; rightly nothing.
    report = Evaluator(WithHead(), colour_world.tokenizer, colour_world.config, PROTOCOLS["lisa"])({}, four_answers)
    assert [(s.intersection, s.union, s.iou) for s in report.expressions] == [
        (32, 32, 1),
        (0, 32, 0),
        (0, 32, 0),
        (0, 0, 1),
    ]
    assert list(report.metrics) == ["overall_iou", "mean_iou"]


def test_a_protocol_without_support_for_no_target_scores_the_masks(colour_world, four_answers):
    report = Evaluator(WithHead(), colour_world.tokenizer, colour_world.config)({}, four_answers)
    assert [s.iou for s in report.expressions] == [1, 0, 0, 0]  # the two that name green are emptied
    assert "no_target_accuracy" not in report.metrics


def test_predictions_come_in_order_from_threads_and_a_damaged_mask_is_named(make_example, monkeypatch):
    monkeypatch.setattr(evaluator, "_THREADS", 2)
    examples = [make_example(f"e{i}", ["red", "blue"], height=4 + i % 3, width=8) for i in range(20)]
    items = [EvalItem(example, [0, 1]) for example in examples]
    logits = np.random.default_rng(0).normal(size=(24, 3, 8, 8)).astype(np.float32)  # the last rows are padding
    predictions = list(score_items(PROTOCOLS["original"], items, logits))
    assert [p.score.id for p in predictions] == [e.id for example in examples for e in example.expressions]
    for number, prediction in enumerate(predictions):
        alone = predicted_mask(PROTOCOLS["original"], logits[number // 2, number % 2], *prediction.true.shape)
        np.testing.assert_array_equal(prediction.predicted, alone)
    damaged = replace(examples[3], expressions=(Expression("red", {"size": [1, 1], "counts": [1]}, id="damaged"),))
    items[3] = EvalItem(damaged, [0])
    with pytest.raises(UserError, match="size"):
        list(score_items(PROTOCOLS["original"], items, logits))
