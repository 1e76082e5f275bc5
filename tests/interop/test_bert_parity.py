"""Our BERT matches that of transformers, forward and backward, in parts and as a whole."""

from __future__ import annotations

import numpy as np
import pytest

from tests.interop.comparison import LAYER_TOLERANCE, WHOLE_TOLERANCE, compare
from tests.interop.oracles import STREAM, draw_bert
from tests.interop.pairs import bert_embeddings, bert_layer, whole_bert
from tests.interop.parity_page import Row

BASE = {
    "vocab_size": 30_522,
    "hidden_size": 768,
    "num_layers": 12,
    "num_heads": 12,
    "intermediate_size": 3072,
    "max_positions": 512,
}
SMALL = BASE | {"hidden_size": 512, "num_layers": 4, "num_heads": 8, "intermediate_size": 2048}
ONE_LAYER = {"vocab_size": 1000, "hidden_size": 768, "num_hidden_layers": 1, "num_attention_heads": 12}

WORDS = {"no padding": (20, 20, 20), "padded": (20, 9, 2)}  # real tokens of the three expressions of 20


def expressions(padding, vocabulary=1000):
    rng = np.random.default_rng(2)
    tokens = rng.integers(0, vocabulary, size=(3, 20), dtype=np.int32)
    return tokens, np.arange(20) < np.array(WORDS[padding])[:, None]


def test_embeddings(hold):
    errors = compare(bert_embeddings(draw_bert(**ONE_LAYER)), *expressions("no padding"))
    hold(Row("BERT embeddings", "768 wide", "3 x 20 tokens", errors, LAYER_TOLERANCE))


@pytest.fixture(scope="module")
def layer():
    return bert_layer(draw_bert(**ONE_LAYER))


@pytest.mark.parametrize("padding", WORDS)
def test_layer(layer, padding, hold):
    _, mask = expressions(padding)
    x = STREAM * np.random.default_rng(3).standard_normal((3, 20, 768), np.float32)
    errors = compare(layer, x, mask)
    hold(Row("BERT layer", "768 wide", f"3 x 20 tokens, {padding}", errors, LAYER_TOLERANCE))


@pytest.fixture(scope="module", params=["small", "base"])
def whole(request):
    """A size and its pair, drawn once because Base has 109 million parameters.

    `make test` takes two of its twelve layers: only the width and the number of heads differ from Small.
    """
    option = request.config.getoption
    shallow = {} if option("--parity-table", None) or option("--long") else {"num_layers": 2}
    return request.param, whole_bert(**{"small": SMALL, "base": BASE | shallow}[request.param])


@pytest.mark.parametrize("padding", WORDS)
def test_whole_bert(whole, padding, hold):
    size, pair = whole
    errors = compare(pair, *expressions(padding, BASE["vocab_size"]))
    hold(Row("whole BERT", size.capitalize(), f"3 x 20 tokens, {padding}", errors, WHOLE_TOLERANCE))
