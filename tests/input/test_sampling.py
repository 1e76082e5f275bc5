"""The contents of an epoch under each rule of sampling, and the count of expressions."""

from collections import Counter
from itertools import chain

import numpy as np
import pytest

from s2rm_jax.config import SAMPLINGS, default_config
from s2rm_jax.errors import UserError
from s2rm_jax.input.example import Example, Expression
from s2rm_jax.input.sampling import _RULES, EpochSize, epoch_size, rows_of, steps_for

# Positions of the expressions of each image, those of one referent together.
IMAGES = (((0, 2), (1, 3, 4)), ((0,),), ((0, 1), (2,), (3,), (4, 5), (6,)), ())


class Source:
    def __len__(self):
        return len(IMAGES)

    def __getitem__(self, index):
        expressions = tuple(Expression(f"{index}-{k}", []) for k in range(self.expression_count(index)))
        return Example(str(index), np.zeros((2, 2, 3), np.uint8), 2, 2, expressions)

    def expression_count(self, index):
        return sum(map(len, IMAGES[index]))

    def referents(self, index):
        return IMAGES[index]


def make_config(sampling, k):
    config = default_config()
    config.input.update(sampling=sampling, expressions_per_image=k)
    return config


def an_epoch(config, rng):
    rows = rows_of(Source(), config)
    k = config.input.expressions_per_image
    drawn = [
        [row.example.expressions[position].text for position in row.draw(k, rng)]
        for row in (rows[i] for i in range(len(rows)))
    ]
    assert all(len(expressions) <= k for expressions in drawn)
    assert all(len({expression.split("-")[0] for expression in expressions}) <= 1 for expressions in drawn)
    return drawn


@pytest.mark.parametrize("k", [1, 2, 3, 8])
def test_every_expression_once(k):
    drawn = an_epoch(make_config("expression", k), np.random.default_rng(0))
    everything = Counter(f"{i}-{j}" for i, groups in enumerate(IMAGES) for j in range(sum(map(len, groups))))
    assert Counter(chain(*drawn)) == everything
    assert len(drawn) == sum(-(-count // k) for count in (5, 1, 7))


@pytest.mark.parametrize("k", [1, 2, 3, 8])
def test_every_referent_once_with_any_of_its_expressions(k):
    config, rng = make_config("referent", k), np.random.default_rng(0)
    seen = set()
    for _ in range(30):
        drawn = chain(*an_epoch(config, rng))
        pairs = [tuple(map(int, expression.split("-"))) for expression in drawn]
        referents = [(i, next(g for g, group in enumerate(IMAGES[i]) if j in group)) for i, j in pairs]
        assert sorted(referents) == [(i, g) for i, groups in enumerate(IMAGES) for g in range(len(groups))]
        seen |= set(pairs)
    assert len(seen) == 13


def test_parts_of_an_image_are_nearly_equal():
    rows = rows_of(Source(), make_config("expression", 4))
    assert [len(groups) for _, groups in rows.spans] == [2, 3, 1, 3, 4]


def test_images_with_k_of_their_expressions():
    rng = np.random.default_rng(0)
    drawn = an_epoch(make_config("image", 3), rng)
    assert [len(set(expressions)) for expressions in drawn] == [3, 1, 3, 0]


@pytest.mark.parametrize("sampling", ["image", "expression", "referent"])
@pytest.mark.parametrize("k", [1, 3])
def test_an_epoch_is_counted_as_it_is_drawn(sampling, k):
    config = make_config(sampling, k)
    drawn = an_epoch(config, np.random.default_rng(0))
    assert epoch_size(Source(), config) == (len(drawn), sum(map(len, drawn)))


def test_a_source_without_end_has_no_epochs_and_is_not_listed():
    class Endless(Source):
        def __len__(self):
            return 2**31 - 1

    assert epoch_size(Endless(), make_config("image", 4)) is None
    assert len(rows_of(Endless(), make_config("image", 4))) == 2**31 - 1
    with pytest.raises(UserError, match=r"sampling='referent' lists every expression.*2,147,483,647 images"):
        rows_of(Endless(), make_config("referent", 4))


def test_every_rule_of_the_configuration_exists_and_others_are_refused():
    assert tuple(_RULES) == SAMPLINGS
    with pytest.raises(
        UserError, match=r"config\.input\.sampling is 'images'; it must be one of: image, expression, ref"
    ):
        rows_of(Source(), make_config("images", 4))


def test_steps_of_epochs_are_those_that_the_peers_take():
    refcoco = EpochSize(rows=42_404, expressions=42_404)
    assert steps_for(1, refcoco, 32) == 1325
    assert steps_for(40, refcoco, 32) == 53_000
    assert steps_for(0.5, refcoco, 32) == 662
    with pytest.raises(UserError, match=r"config\.epochs: an epoch has 7 rows, fewer than config\.batch_size=32"):
        steps_for(40, EpochSize(7, 7), 32)
    with pytest.raises(UserError, match=r"config\.epochs=0\.5 of 40 rows, 32 per step, is less than one step"):
        steps_for(0.5, EpochSize(40, 40), 32)
    with pytest.raises(UserError, match="is endless and has no epochs"):
        steps_for(40, None, 32)
