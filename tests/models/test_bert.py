"""BERT: padding, positions and the published size."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from s2rm_jax.models.bert import Bert

TINY = Bert(vocab_size=50, hidden_size=16, num_layers=2, num_heads=4, intermediate_size=32, max_positions=12)
APPLY = jax.jit(TINY.apply)


def test_padding_does_not_change_the_words():
    tokens = jnp.array([[2, 9, 11, 3, 0, 0]])
    mask = tokens > 0
    variables = jax.jit(TINY.init)(jax.random.key(0), tokens, mask)
    alone = APPLY(variables, tokens[:, :4], mask[:, :4])
    padded = APPLY(variables, tokens.at[:, 4:].set(17), mask)
    np.testing.assert_allclose(padded[:, :4], alone, atol=1e-6)


def test_word_order_matters():
    tokens = jnp.array([[2, 9, 11, 3]])
    mask = jnp.ones_like(tokens, bool)
    variables = jax.jit(TINY.init)(jax.random.key(0), tokens, mask)
    swapped = APPLY(variables, tokens[:, jnp.array([0, 2, 1, 3])], mask)
    assert not np.allclose(swapped[:, 0], APPLY(variables, tokens, mask)[:, 0], atol=1e-5)


def test_base_has_the_published_number_of_parameters():
    tokens = jax.ShapeDtypeStruct((1, 8), jnp.int32)
    shapes = jax.eval_shape(Bert().init, jax.random.key(0), tokens, jax.ShapeDtypeStruct((1, 8), jnp.bool))
    pooler = 768 * 768 + 768
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 109_482_240 - pooler


@pytest.mark.parametrize(("token", "found"), [(50, "2 to 50"), (-1, "-1 to 9")])
def test_tokens_that_are_not_in_the_vocabulary_are_refused(token, found):
    tokens = jnp.array([[2, 9, token]])
    with pytest.raises(ValueError, match=f"tokens must be from 0 to 49, got {found}; use the tokenizer of the run"):
        TINY.init(jax.random.key(0), tokens, tokens > 0)
    constant = jnp.array([[2, 9, 49]])  # of a program
    words, _ = jax.eval_shape(lambda: TINY.init_with_output(jax.random.key(0), constant, constant > 0))
    assert words.shape == (1, 3, 16)


def test_dropout_in_training_only():
    bert = TINY.clone(dropout_rate=0.3)
    tokens = jnp.array([[2, 9, 11, 3]])
    mask = jnp.ones_like(tokens, bool)
    variables = jax.jit(bert.init)(jax.random.key(0), tokens, mask)
    plain = jax.jit(bert.apply)(variables, tokens, mask)
    np.testing.assert_array_equal(plain, APPLY(variables, tokens, mask))
    assert not np.allclose(plain, bert.apply(variables, tokens, mask, True, rngs={"dropout": jax.random.key(1)}))


def test_dropout_applies_to_embeddings_attention_weights_and_both_branches():
    dropped = []

    def record(call, arguments, options, context):
        if isinstance(context.module, nn.Dropout):
            dropped.append((context.module.rate, arguments[0].shape))
        return call(*arguments, **options)

    tokens = jnp.array([[2, 9, 11], [2, 9, 0]])
    with nn.intercept_methods(record):
        jax.eval_shape(
            lambda key: TINY.clone(dropout_rate=0.3).init_with_output(
                {"params": key, "dropout": key}, tokens, tokens > 0, True
            ),
            jax.random.key(0),
        )
    states, weights = (2, 3, 16), (2, 4, 3, 3)
    assert dropped == [(0.3, shape) for shape in (states, *[weights, states, states] * 2)]
