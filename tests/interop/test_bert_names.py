"""BERT with old and new names gives the same parameters, bit for bit."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from s2rm_jax.interop.parameter_names import WeightsMismatch, bert_architecture, find_bert
from s2rm_jax.interop.pretrained import load_bert
from s2rm_jax.interop.weight_files import find_weights, write_safetensors
from s2rm_jax.models.bert import Bert
from tests.interop.oracles import arrays, draw_bert

TEXT = {
    "vocab_size": 60,
    "hidden_size": 24,
    "num_layers": 2,
    "num_heads": 2,
    "intermediate_size": 48,
    "max_positions": 16,
}


@pytest.fixture(scope="module")
def bert():
    return draw_bert(
        vocab_size=60,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        max_position_embeddings=16,
    )


@pytest.fixture(scope="module")
def published(bert):
    return arrays(bert.state_dict())


@pytest.fixture(scope="module")
def shapes():
    tokens, mask = (jax.ShapeDtypeStruct((1, 8), kind) for kind in (jnp.int32, jnp.bool))
    return jax.eval_shape(Bert(**TEXT).init, jax.random.key(0), tokens, mask)["params"]


@pytest.fixture
def load(tmp_path, shapes):
    """Write arrays to a file, load it, and return {path: parameter}."""

    def written_and_loaded(named):
        write_safetensors(named, tmp_path / "model.safetensors")
        return flatten_dict(load_bert(find_weights(tmp_path), ConfigDict(TEXT), shapes).params, sep="/")

    return written_and_loaded


def as_of_old(published):
    """Rename as in files converted from the first TensorFlow checkpoints, with pooler, positions and heads."""
    old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    renamed = {
        "bert." + re.sub("|".join(old), lambda match: old[match[0]], name): array for name, array in published.items()
    }
    return renamed | {
        "bert.pooler.dense.weight": np.zeros((24, 24), np.float32),
        "bert.pooler.dense.bias": np.zeros(24, np.float32),
        "bert.embeddings.position_ids": np.arange(16)[None],
        "cls.predictions.transform.LayerNorm.gamma": np.zeros(24, np.float32),
        "cls.seq_relationship.bias": np.zeros(2, np.float32),
    }


def test_old_names_give_the_same_bits(published, load):
    params, expected = load(as_of_old(published)), load(published)
    assert params.keys() == expected.keys()
    assert all(np.array_equal(params[path], expected[path]) for path in expected)


def test_each_parameter_comes_from_the_right_array(published, shapes, load):
    params = load(published)
    assert {path: array.shape for path, array in params.items()} == {
        path: leaf.shape for path, leaf in flatten_dict(shapes, sep="/").items()
    }
    for name in ("query", "key", "value"):
        source = published[f"encoder.layer.1.attention.self.{name}.weight"]
        np.testing.assert_array_equal(params[f"layer1/{name}/kernel"], source.T)
    words = published["embeddings.word_embeddings.weight"]
    np.testing.assert_array_equal(params["word_embeddings/embedding"], words)


def test_files_of_transformers_are_read(bert, published, shapes, load, tmp_path):
    from transformers import BertForMaskedLM

    whole = BertForMaskedLM(bert.config)
    whole.bert.load_state_dict(bert.state_dict())
    whole.save_pretrained(tmp_path / "saved")
    saved = flatten_dict(load_bert(find_weights(tmp_path / "saved"), ConfigDict(TEXT), shapes).params, sep="/")
    expected = load(published)
    assert saved.keys() == expected.keys()
    assert all(np.array_equal(saved[path], expected[path]) for path in expected)


def test_unknown_arrays_are_refused(published, load):
    with pytest.raises(WeightsMismatch) as caught:
        load(published | {"embeddings.language_embeddings.weight": np.zeros((4, 24), np.float32)})
    assert caught.value.mistakes == {"unused array": ("embeddings.language_embeddings.weight",)}


def test_bert_is_detected_by_its_names(published):
    assert find_bert(published) == [""]
    assert find_bert(as_of_old(published)) == ["bert."]
    assert find_bert({"patch_embed.proj.weight"}) == []


def test_the_architecture_is_read_from_shapes(published):
    assert bert_architecture(published) == {field: n for field, n in TEXT.items() if field != "num_heads"}
