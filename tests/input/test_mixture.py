"""Mixtures of sources: shares, order and completeness."""

from __future__ import annotations

import itertools
import pickle
from collections import Counter

import numpy as np
import pytest
from ml_collections import ConfigDict

from s2rm_jax.config import default_config
from s2rm_jax.errors import UserError
from s2rm_jax.input.example import Example, Expression
from s2rm_jax.input.mixture import MixtureSource
from s2rm_jax.input.pipeline import build_tokenizer, eval_batches, train_batches
from s2rm_jax.input.sources import build_source, find_source
from s2rm_jax.training.run import load_config, save_config
from tests.input.own_data_fixture import write_json_lines
from tests.input.refer_fixture import write_refer_layout


class Numbers:
    """Example i has i % 3 + 1 expressions; the first two share a referent."""

    vocabulary = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "a")

    def __init__(self, count: int, value: int = 0):
        self.count, self.value = count, value

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        assert 0 <= index < self.count
        mask = np.ones((4, 4), bool)
        expressions = tuple(Expression("a", mask, id=f"{index}.{j}") for j in range(self.expression_count(index)))
        return Example(str(index), np.full((4, 4, 3), self.value, np.uint8), 4, 4, expressions)

    def expression_count(self, index):
        return index % 3 + 1

    def referents(self, index):
        return (((0,),), ((0, 1),), ((0, 1), (2,)))[index % 3]


def part_of(example: Example) -> str:
    return example.id.split("/")[0]


def shares(source: MixtureSource) -> Counter[str]:
    return Counter(part_of(source[index]) for index in range(len(source)))


@pytest.mark.parametrize(
    ("counts", "weights"),
    [
        ((100, 10), (1, 1)),
        ((100, 10), (9, 1)),
        ((10, 100), (1, 1)),
        ((7, 13, 29), (0.5, 0.25, 0.25)),
        ((1, 1), (1, 999)),
        ((17, 3), (0.1, 0.7)),
        ((30, 60), (1, 2)),
        ((3, 1), (0.7, 0.1)),  # 3 images are 2.9999999999999996 in floating point
        ((29, 2), (1.1, 0.3)),
    ],
)
def test_each_part_has_the_share_of_its_weight_and_every_image_occurs(counts, weights):
    names = "abc"[: len(counts)]
    parts = {name: Numbers(count) for name, count in zip(names, counts, strict=True)}
    source = MixtureSource(parts, dict(zip(names, weights, strict=True)))
    of_part = shares(source)
    for name, weight in zip(names, weights, strict=True):
        assert abs(of_part[name] - len(source) * weight / sum(weights)) <= 1
    times = Counter(source[index].id for index in range(len(source)))
    for name, count in zip(names, counts, strict=True):
        of_images = [times[f"{name}/{index}"] for index in range(count)]
        assert min(of_images) >= 1
        assert max(of_images) - min(of_images) <= 1
    # It is no longer than it must be: in some part every image occurs once.
    assert any(of_part[name] == count for name, count in zip(names, counts, strict=True))


def test_weights_in_the_proportion_of_the_images_show_each_once():
    source = MixtureSource({"a": Numbers(30), "b": Numbers(60)}, {"a": 1, "b": 2})
    assert len(source) == len({source[index].id for index in range(90)}) == 90


def test_without_weights_every_image_occurs_once_in_order():
    source = MixtureSource({"b": Numbers(2), "a": Numbers(3)})
    assert [source[index].id for index in range(len(source))] == ["b/0", "b/1", "a/0", "a/1", "a/2"]
    with pytest.raises(IndexError):
        source[5]
    with pytest.raises(IndexError):
        source[-1]


def test_an_item_is_that_of_its_part_with_ids_that_no_other_part_has():
    parts = {"a": Numbers(4), "b": Numbers(9)}
    source = MixtureSource(parts, {"a": 3, "b": 1})
    ids = set()
    for index in range(len(source)):
        example = source[index]
        name, number = part_of(example), int(example.id.split("/")[1])
        original = parts[name][number]
        assert [one.text for one in example.expressions] == [one.text for one in original.expressions]
        assert [one.id for one in example.expressions] == [f"{name}/{one.id}" for one in original.expressions]
        assert source.expression_count(index) == len(example.expressions)
        assert source.referents(index) == parts[name].referents(number)
        ids |= {one.id for one in example.expressions}
    assert len(ids) == sum(part.expression_count(i) for part in parts.values() for i in range(len(part)))


def test_the_same_mixture_is_made_again_and_again():
    source = MixtureSource({"a": Numbers(4), "b": Numbers(9)}, {"a": 3, "b": 1})
    copy = pickle.loads(pickle.dumps(source))
    order = np.random.default_rng(0).permutation(len(source)).tolist()
    assert [copy[index].id for index in order] == [source[index].id for index in order]


def test_the_words_that_all_parts_bring_are_the_mixtures():
    class Wordless(Numbers):
        vocabulary = None

    assert MixtureSource({"a": Numbers(1), "b": Numbers(2)}).vocabulary == Numbers.vocabulary
    assert MixtureSource({"a": Numbers(1), "b": Wordless(2)}).vocabulary is None


@pytest.mark.parametrize(
    ("parts", "weights", "message"),
    [
        ({}, None, "a mixture has no parts"),
        ({"a": Numbers(0)}, None, "part 'a' of the mixture has no images"),
        ({"a": Numbers(1)}, {"a": 0.0}, "part 'a' of the mixture has the weight 0.0; it must be a number above 0"),
        ({"a": Numbers(1)}, {"a": "3"}, "part 'a' of the mixture has the weight '3'; it must be a number above 0"),
        ({"a": Numbers(1)}, {"a": float("inf")}, "has the weight inf"),
        ({"a": Numbers(1)}, {}, "has the weight None; it must be"),
        ({"a": Numbers(1), "b": Numbers(2**31 - 1)}, {"a": 1, "b": 1}, "would have 4,294,967,294 items; limit the"),
    ],
)
def test_what_cannot_be_mixed_is_reported(parts, weights, message):
    with pytest.raises(UserError, match=message):
        MixtureSource(parts, weights)


def pipeline_config() -> ConfigDict:
    config = default_config()
    config.batch_size = 4
    config.input.image_size = (4, 4)
    config.input.expressions_per_image = 2
    config.text.max_tokens = 4
    config.eval.batch_size = 4
    return config


def test_the_pipeline_shuffles_and_repeats_it_like_any_source():
    config = pipeline_config()
    source = MixtureSource({"a": Numbers(3, value=0), "b": Numbers(10, value=255)}, {"a": 3, "b": 5})
    assert len(source) == 16
    tokenizer = build_tokenizer(config, source)
    stream = [batch.images[:, 0, 0, 0] > 0 for batch in itertools.islice(train_batches(source, tokenizer, config), 12)]
    epochs = np.concatenate(stream).reshape(3, 16)
    assert epochs.sum(axis=1).tolist() == [10, 10, 10]
    assert not np.array_equal(epochs[0], epochs[1])
    later = next(iter(train_batches(source, tokenizer, config, start=20)))
    np.testing.assert_array_equal(later.images[:, 0, 0, 0] > 0, stream[5])


def test_evaluation_scores_every_expression_of_every_part_once():
    config = pipeline_config()
    source = MixtureSource({"a": Numbers(3), "b": Numbers(5)})
    seen = [
        item.example.expressions[position].id
        for one in eval_batches(source, build_tokenizer(config, source), config)
        for item in one.items
        for position in item.positions
    ]
    assert len(seen) == len(set(seen)) == 6 + 9


def settings(tmp_path) -> ConfigDict:
    write_refer_layout(tmp_path / "refer")
    write_json_lines(tmp_path / "mine")
    parts = {
        "refcoco": {"name": "refer", "root": str(tmp_path / "refer"), "weight": 1.0},
        "mine": {"name": "json_lines", "root": str(tmp_path / "mine"), "weight": 3.0},
    }
    return ConfigDict({"name": "mixture", "parts": parts})


def test_a_configuration_can_ask_for_a_mixture(tmp_path):
    config = default_config()
    config.input.source = settings(tmp_path)
    config.lock()
    config.input.source.parts.mine.weight = 5.0  # as --config.input.source.parts.mine.weight=5 does
    source = build_source(config.input.source, "train", training=True)
    assert shares(source) == {"refcoco": 2, "mine": 10}
    save_config(tmp_path, config)
    again = build_source(load_config(tmp_path).input.source, "train", training=True)
    assert [again[index].id for index in range(12)] == [source[index].id for index in range(12)]


def test_an_evaluation_sees_each_image_once_and_one_part_can_be_taken_alone(tmp_path):
    config = settings(tmp_path)
    assert shares(build_source(config, "val")) == {"refcoco": 2, "mine": 1}
    assert shares(build_source(config, "train", training=True)) == {"refcoco": 2, "mine": 6}
    train = build_source(config, "train")
    assert shares(train) == {"refcoco": 2, "mine": 2}
    assert len({train[index].id for index in range(len(train))}) == 4
    nested = ConfigDict({"name": "mixture", "parts": {"both": config}})
    assert len(build_source(nested, "train")) == 4
    assert len(build_source(nested, "train", training=True)) == 8
    alone = build_source(config, "refcoco:testA")
    assert [example.id for example in alone] == ["104", "105"]
    assert shares(build_source(config, "val", training=True)) == {"refcoco": 2, "mine": 6}
    with pytest.raises(UserError, match="split 'coco:val': part 'coco' not found; available: mine, refcoco"):
        build_source(config, "coco:val")
    with pytest.raises(UserError, match=r"^parts\.mine: split 'testA' not found in .*data\.jsonl"):
        build_source(config, "testA")


@pytest.mark.parametrize("parts", [({"name": "refer", "weight": 1.0},), {"refcoco": 3}])
def test_parts_without_names_are_refused(parts):
    with pytest.raises(UserError, match="parts of a mixture must be a ConfigDict"):
        build_source(ConfigDict({"name": "mixture", "parts": parts}), "train")


def test_a_mistake_in_a_part_is_reported_with_its_name(tmp_path):
    parts = {"a": {"name": "json_lines", "root": str(write_json_lines(tmp_path)), "file": 7}}
    for build in (build_source, find_source):
        with pytest.raises(UserError, match=r"^parts\.a: config\.input\.source\.file is 7; it must be a string"):
            build(ConfigDict({"name": "mixture", "parts": parts}), "train")
