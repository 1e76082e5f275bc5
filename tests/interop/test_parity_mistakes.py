"""Common mistakes put the outputs of the parity tests at least ten tolerances off."""

from __future__ import annotations

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from s2rm_jax.models import bert, swin
from tests.interop.comparison import LAYER_TOLERANCE, WHOLE_TOLERANCE, output_error
from tests.interop.oracles import STREAM, draw_bert, draw_swin
from tests.interop.pairs import bert_layer, swin_block, swin_merge, whole_bert, whole_swin
from tests.interop.parity_page import Mistake

SWIN = {"embed_dim": 96, "depths": (2, 2), "num_heads": (3, 6)}
BERT = {"vocab_size": 1000, "hidden_size": 128, "num_layers": 3, "num_heads": 2}
BERT |= {"intermediate_size": 512, "max_positions": 64}
BERT_LAYER = {"vocab_size": 1, "hidden_size": 128, "num_hidden_layers": 1, "num_attention_heads": 2}

roll, rearrange = jnp.roll, swin.rearrange
regions, position_index = swin.window_regions, swin.relative_position_index


def normal(*shape, size=1.0):
    return size * np.random.default_rng(2).standard_normal(shape, np.float32)


TOKENS = np.random.default_rng(2).integers(0, 1000, size=(2, 16), dtype=np.int32)
MASK = np.arange(16) < np.array([[16], [5]])
GRID = normal(1, 17, 23, 96, size=STREAM)

CASES = {  # makes a pair; its inputs; the tolerance
    "block": (lambda: swin_block(draw_swin(SWIN, 7), 1), (GRID,), LAYER_TOLERANCE),
    "merge": (lambda: swin_merge(draw_swin(SWIN, 7)), (GRID,), LAYER_TOLERANCE),
    "Swin": (lambda: whole_swin(SWIN, 7), (normal(1, 61, 75, 3),), WHOLE_TOLERANCE),
    "layer": (lambda: bert_layer(draw_bert(**BERT_LAYER)), (normal(2, 16, 128, size=STREAM), MASK), LAYER_TOLERANCE),
    "BERT": (lambda: whole_bert(**BERT), (TOKENS, MASK), WHOLE_TOLERANCE),
}


def with_pattern(ours, other):
    return lambda x, pattern, **sizes: rearrange(x, pattern.replace(ours, other), **sizes)


SWIN_TANH_GELU = ("approximate GELU", swin, "gelu", nn.gelu)
BERT_TANH_GELU = ("approximate GELU", bert, "gelu", nn.gelu)
SWIN_EPSILON = ("epsilon 1e-6 instead of 1e-5", swin, "EPSILON", 1e-6)
BERT_EPSILON = ("epsilon 1e-6 instead of 1e-12", bert, "EPSILON", 1e-6)

IN_CODE = [  # where; what is wrong; what is replaced, and by what
    ("block", *SWIN_TANH_GELU),
    ("block", *SWIN_EPSILON),
    ("block", "nothing masked", swin, "window_regions", lambda *grid: None),
    ("block", "padding masked", swin, "window_regions", lambda *grid: regions(*grid[:-1], True)),
    ("block", "not shifted, but masked", jnp, "roll", lambda x, shift, axis: x),
    ("block", "shifted the other way", jnp, "roll", lambda x, shift, axis: roll(x, (-shift[0], -shift[1]), axis)),
    ("block", "bias table backwards", swin, "relative_position_index", lambda window: position_index(window).T),
    ("block", "heads interleaved", swin, "rearrange", with_pattern("(heads d)", "(d heads)")),
    ("merge", *SWIN_EPSILON),
    ("merge", "columns first", swin, "rearrange", with_pattern("(q p c)", "(p q c)")),
    ("Swin", *SWIN_TANH_GELU),
    ("Swin", *SWIN_EPSILON),
    ("layer", *BERT_TANH_GELU),
    ("layer", *BERT_EPSILON),
    ("layer", "padding seen", jnp, "where", lambda mask, x, other: x),
    ("layer", "heads interleaved", bert, "rearrange", with_pattern("(heads d)", "(d heads)")),
    ("BERT", *BERT_TANH_GELU),
    ("BERT", *BERT_EPSILON),
]

IN_NAMES = [  # where; two names that are exchanged
    ("block", "query", "key"),
    ("block", "key", "value"),
    ("block", "layernorm_before", "layernorm_after"),
    ("layer", "query", "key"),
    ("layer", "attention.output.LayerNorm", "output.LayerNorm"),
]


@pytest.mark.parametrize(
    ("where", "what", "module", "name", "other"), IN_CODE, ids=[f"{where}-{what}" for where, what, *_ in IN_CODE]
)
def test_a_mistake_in_the_code_is_detected(where, what, module, name, other, monkeypatch, notice):
    make, inputs, tolerance = CASES[where]
    monkeypatch.setattr(module, name, other)
    notice(Mistake(where, what, output_error(make(), *inputs), tolerance))


@pytest.mark.parametrize(("where", "one", "other"), IN_NAMES)
def test_exchanged_names_are_detected(where, one, other, notice):
    make, inputs, tolerance = CASES[where]
    pair = make()
    exchanged = [replace(e, sources=tuple(exchange(n, one, other) for n in e.sources)) for e in pair.layout]
    error = output_error(pair._replace(layout=exchanged), *inputs)
    notice(Mistake(where, f"{one} and {other} exchanged", error, tolerance))


@pytest.mark.parametrize(("where", "kernel"), [("block", "attention/projection"), ("layer", "attention_output")])
def test_a_kernel_that_is_not_transposed_is_detected(where, kernel, notice):
    make, inputs, tolerance = CASES[where]
    pair = make()
    layout = [replace(e, form="same") if e.target == f"{kernel}/kernel" else e for e in pair.layout]
    notice(Mistake(where, f"{kernel} not transposed", output_error(pair._replace(layout=layout), *inputs), tolerance))


def exchange(name, one, other):
    if name.startswith(one) or f".{one}" in name:
        return name.replace(one, other)
    return name.replace(other, one)
