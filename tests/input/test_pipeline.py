"""The order of the stream: the same for any number of processes, readers and restarts."""

import itertools
import multiprocessing
import os
import signal
from dataclasses import replace

import numpy as np
import pytest

from s2rm_jax.config import default_config
from s2rm_jax.errors import UserError
from s2rm_jax.input.encode import unpack_masks
from s2rm_jax.input.example import Batch, Example, Expression
from s2rm_jax.input.pipeline import build_tokenizer, eval_batches, train_batches
from s2rm_jax.input.synthetic import SyntheticSource

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "image", "number", *map(str, range(10)))


class Images:
    """Example i has i % 4 + 1 expressions; its image is i everywhere, the mask of expression j is column j."""

    vocabulary = WORDS

    def __init__(self, count=7):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        if not 0 <= index < self.count:
            raise IndexError(index)
        columns = [np.arange(12)[None, :].repeat(8, 0) == j for j in range(index % 4 + 1)]
        expressions = tuple(Expression(f"number {j}", mask, id=f"{index}-{j}") for j, mask in enumerate(columns))
        return Example(str(index), np.full((8, 12, 3), index, np.uint8), 8, 12, expressions)

    def expression_count(self, index):
        return index % 4 + 1

    def referents(self, index):
        """The first two expressions refer to one thing, the others each to another."""
        positions = tuple(range(index % 4 + 1))
        return (positions[:2], *((position,) for position in positions[2:]))


def small_config(**changes):
    config = default_config()
    config.batch_size = 4
    config.input.image_size = (8, 12)
    config.input.expressions_per_image = 2
    config.text.max_tokens = 5
    config.eval.batch_size = 4
    config.update(changes)
    return config


def first_batches(count, source=None, **arguments):
    config = arguments.pop("config", small_config())
    source = source or Images()
    stream = train_batches(source, build_tokenizer(config, source), config, **arguments)
    return list(itertools.islice(stream, count))


def assert_same(left, right):
    for a, b in zip(left, right, strict=True):
        for x, y in zip(a, b, strict=True):
            np.testing.assert_array_equal(x, y)


def test_shapes_and_types():
    (batch,) = first_batches(1)
    shapes = {name: (x.shape, x.dtype.name) for name, x in batch._asdict().items()}
    assert shapes == {
        "images": ((4, 8, 12, 3), "uint8"),
        "tokens": ((4, 2, 5), "int32"),
        "token_mask": ((4, 2, 5), "bool"),
        "targets": ((4, 2, 12, 1), "uint8"),
        "valid": ((4, 2), "bool"),
        "has_target": ((4, 2), "bool"),
    }


def test_a_mask_belongs_to_its_expression_and_fillers_are_invalid():
    for batch in first_batches(6):
        np.testing.assert_array_equal(batch.has_target, batch.valid)
        for tokens, targets, valid in zip(
            batch.tokens.reshape(8, 5),
            unpack_masks(batch.targets, 8).reshape(8, 8, 12),
            batch.valid.ravel(),
            strict=True,
        ):
            if valid:
                column = int(WORDS[tokens[2]])  # [CLS] number j [SEP]
                assert targets[:, column].all()
                assert targets.sum() == 8
            else:
                assert not targets.any()
                assert not tokens.any()


def test_a_later_start_continues_the_stream():
    straight = first_batches(6)
    assert_same(straight[2:], first_batches(4, start=8))


def test_processes_share_the_same_global_batches():
    together = first_batches(5)
    parts = [first_batches(5, process=(index, 2)) for index in range(2)]
    for whole, *shares in zip(together, *parts, strict=True):
        for name in Batch._fields:
            np.testing.assert_array_equal(np.concatenate([getattr(s, name) for s in shares]), getattr(whole, name))


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")  # Grain's workers; JAX warns about any fork
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_worker_processes_change_nothing_and_leave_signals_to_the_main_process(signum):
    config, source = small_config(), Images()
    config.input.workers = 2
    stream = train_batches(source, build_tokenizer(config, source), config)
    batches = list(itertools.islice(stream, 2))  # one of each worker: both have begun
    for worker in multiprocessing.active_children():
        os.kill(worker.pid, signum)  # terminals and `timeout` send it to all processes
    assert_same(first_batches(8), batches + list(itertools.islice(stream, 6)))


def test_each_epoch_shows_every_image_once_in_another_order():
    config = small_config(batch_size=7)
    epochs = [batch.images[:, 0, 0, 0] for batch in first_batches(3, config=config)]
    values = [sorted(np.unique(epoch, return_counts=True)[1].tolist()) for epoch in epochs]
    assert values == [[1] * 7] * 3
    assert not np.array_equal(epochs[0], epochs[1])


def test_another_seed_is_another_order():
    other = small_config(seed=1)
    assert not np.array_equal(first_batches(1)[0].images, first_batches(1, config=other)[0].images)


def test_every_image_offers_all_its_expressions_over_the_epochs():
    seen = set()
    for batch in first_batches(40):
        for tokens, valid in zip(batch.tokens.reshape(-1, 5), batch.valid.ravel(), strict=True):
            seen |= {WORDS[tokens[2]]} if valid else set()
    assert seen == {"0", "1", "2", "3"}


@pytest.mark.parametrize("limit", [0, 3])
def test_evaluation_scores_every_expression_once(limit):
    config, source = small_config(), Images()
    config.eval.limit = limit
    batches = eval_batches(source, build_tokenizer(config, source), config)
    seen = []
    assert len(list(batches)) == len(batches)
    for batch, items, _ in batches:
        assert batch.images.shape[0] == 4
        assert batch.valid.sum() == sum(len(item.positions) for item in items)
        assert not batch.valid[len(items) :].any()
        for row, item in enumerate(items):
            assert batch.valid[row].tolist() == [k < len(item.positions) for k in range(2)]
            for k, position in enumerate(item.positions):
                expression = item.example.expressions[position]
                np.testing.assert_array_equal(unpack_masks(batch.targets[row, k], 8), expression.segmentation)
                seen.append(expression.id)
    images = [source[i] for i in range(limit or 7)]
    assert seen == [expression.id for image in images for expression in image.expressions]


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")  # Grain's workers; JAX warns about any fork
@pytest.mark.parametrize("sampling", ["expression", "referent"])
@pytest.mark.parametrize("k", [1, 2])
def test_every_rule_streams_the_same_over_processes_workers_and_restarts(sampling, k):
    config = small_config()
    config.input.update(sampling=sampling, expressions_per_image=k)
    straight = first_batches(6, config=config)
    assert_same(straight[2:], first_batches(4, config=config, start=8))
    with_workers = small_config()
    with_workers.input.update(sampling=sampling, expressions_per_image=k, workers=2)
    assert_same(straight[2:], first_batches(4, config=with_workers, start=8))
    parts = [first_batches(6, config=config, process=(index, 4)) for index in range(4)]
    for whole, *shares in zip(straight, *parts, strict=True):
        for x, *xs in zip(whole, *shares, strict=True):
            np.testing.assert_array_equal(x, np.concatenate(xs))


def test_augmented_views_are_a_function_of_seed_and_position():
    config = small_config()
    config.input.augment.update(flip=0.5, crop=0.5, hide_patches=0.5, patch=4, hide_words=0.5)
    straight = first_batches(6, config=config)
    assert_same(straight[2:], first_batches(4, config=config, start=8))
    parts = [first_batches(6, config=config, process=(index, 2)) for index in range(2)]
    for whole, *shares in zip(straight, *parts, strict=True):
        np.testing.assert_array_equal(whole.images[:2], shares[0].images)
        np.testing.assert_array_equal(whole.tokens[2:], shares[1].tokens)
    plain = first_batches(6)
    for a, b in zip(straight, plain, strict=True):  # which images and how many expressions come is not changed
        assert (a.images != b.images).any() and (a.tokens != b.tokens).any()
        np.testing.assert_array_equal(a.valid, b.valid)


def test_an_expression_that_refers_to_nothing_has_an_empty_mask():
    class Empty(Images):
        def __getitem__(self, index):
            example = super().__getitem__(index)
            first = replace(example.expressions[0], segmentation=[])
            return replace(example, expressions=(first, *example.expressions[1:]))

    config, source = small_config(), Empty()
    for batch, items, _ in eval_batches(source, build_tokenizer(config, source), config):
        for row, item in enumerate(items):
            expected = [position > 0 for position in item.positions]
            assert batch.has_target[row].tolist() == expected + [False] * (2 - len(item.positions))
            assert batch.targets[row].any((1, 2)).tolist() == batch.has_target[row].tolist()
        assert not batch.has_target[len(items) :].any()


def test_an_evaluation_may_take_more_expressions_at_a_time_than_the_training():
    config, source = small_config(), Images()
    config.eval.expressions_per_image = 4
    batches = list(eval_batches(source, build_tokenizer(config, source), config))
    assert [one.batch.valid.shape for one in batches] == [(4, 4)] * 2
    assert sum(len(one.items) for one in batches) == len(source)


def test_evaluation_makes_every_example_once():
    class Counted(Images):
        def __init__(self):
            super().__init__()
            self.made = []

        def __getitem__(self, index):
            self.made.append(index)
            return super().__getitem__(index)

    config, source = small_config(), Counted()
    config.input.expressions_per_image = 4
    batches = eval_batches(source, build_tokenizer(config, source), config)
    assert source.made == []
    assert len(list(batches)) == 2
    assert sorted(source.made) == list(range(7))


def test_an_image_that_is_not_the_annotated_one_is_named():
    class Wrong(Images):
        def __getitem__(self, index):
            example = super().__getitem__(index)
            return Example(example.id, example.image, 8, 99, example.expressions)

    source = Wrong()
    batches = eval_batches(source, build_tokenizer(small_config(), source), small_config())
    with pytest.raises(UserError, match=r"12 x 8 pixels, but its annotation says 99 x 8"):
        next(iter(batches))


def test_what_is_wrong_with_an_expression_names_it():
    class Blank(Images):
        def __getitem__(self, index):
            example = super().__getitem__(index)
            return Example(example.id, example.image, 8, 12, (Expression("", np.ones((8, 12), bool), id="7-0"),))

        def expression_count(self, index):
            return 1

    source = Blank()
    batches = eval_batches(source, build_tokenizer(small_config(), source), small_config())
    with pytest.raises(UserError, match=r"expression 7-0: .*has no words"):
        next(iter(batches))


@pytest.mark.parametrize("count", [1, 2, 4])
def test_processes_share_an_evaluation(count):
    """10 parts of images in batches of 8: whatever the number of processes, each part once, and as many batches."""
    config, source = small_config(), Images()
    tokenizer = build_tokenizer(config, source)
    straight = [item for one in eval_batches(source, tokenizer, config) for item in one.items]
    parts = [list(eval_batches(source, tokenizer, config, 8, (index, count))) for index in range(count)]
    assert [len(part) for part in parts] == [-(-len(straight) // 8)] * count
    assert all(batch.images.shape[0] == 8 // count for part in parts for batch, _, _ in part)
    together = [item for shares in zip(*parts, strict=True) for one in shares for item in one.items]
    assert [(i.example.id, i.positions) for i in together] == [(i.example.id, i.positions) for i in straight]
    for part in parts:
        for batch, items, _ in part:
            assert batch.valid.sum(1).tolist()[: len(items)] == [len(item.positions) for item in items]
            assert not batch.valid[len(items) :].any()


def test_an_endless_split_needs_a_limit():
    config = default_config()
    source = SyntheticSource("train")
    with pytest.raises(UserError, match=r"the split has 2,147,483,647 images; evaluate the first N .*--limit N"):
        eval_batches(source, build_tokenizer(config, source), config)
    config.eval.update(limit=2, batch_size=1)
    assert sum(len(batch.items) for batch in eval_batches(source, build_tokenizer(config, source), config)) >= 2


def test_a_batch_must_divide_over_processes():
    with pytest.raises(UserError, match="multiple of the 3 processes"):
        first_batches(1, process=(0, 3))


def test_a_vocabulary_must_be_given_and_fit():
    class Wordless(Images):
        vocabulary = None

    config = small_config()
    with pytest.raises(UserError, match=r"config\.text\.vocab is empty"):
        build_tokenizer(config, Wordless())
    config.text.vocab_size = 4
    with pytest.raises(UserError, match=rf"set config\.text\.vocab_size={len(WORDS)}"):
        build_tokenizer(config, Images())
