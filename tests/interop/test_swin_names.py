"""Swin with the names of every library gives the same parameters, bit for bit."""

from __future__ import annotations

import re
from functools import reduce

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from s2rm_jax.interop.parameter_names import (
    HUGGING_FACE,
    MICROSOFT,
    TIMM,
    WeightsMismatch,
    find_swin,
    swin_architecture,
)
from s2rm_jax.interop.pretrained import load_swin
from s2rm_jax.interop.weight_files import find_weights, write_safetensors
from s2rm_jax.models.swin import Swin
from tests.interop.oracles import arrays, draw_swin, swin_arrays

SIZE = {"embed_dim": 12, "depths": (2, 2, 2), "num_heads": (1, 2, 4)}
VISION = ConfigDict(SIZE | {"window_size": 4})
STAGES = len(SIZE["depths"])


@pytest.fixture(scope="module")
def backbone():
    return draw_swin(SIZE, 4)


@pytest.fixture(scope="module")
def published(backbone):
    """Its arrays by the names of Hugging Face."""
    return swin_arrays(backbone.state_dict())


@pytest.fixture(scope="module")
def shapes():
    swin = Swin(**SIZE, window_size=4)
    return jax.eval_shape(swin.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32))["params"]


@pytest.fixture
def load(tmp_path, shapes):
    """Write arrays to a file, load it, and return {path: parameter} and the report."""

    def written_and_loaded(named):
        write_safetensors(named, tmp_path / "model.safetensors")
        loaded = load_swin(find_weights(tmp_path), VISION, shapes)
        return flatten_dict(loaded.params, sep="/"), loaded.report

    return written_and_loaded


def as_microsoft(published):
    """The names of Microsoft's dense-prediction backbones, with the buffers that their files hold."""
    names = {
        "embeddings.patch_embeddings.projection": "patch_embed.proj",
        "embeddings.norm": "patch_embed.norm",
        "encoder.": "",
        "attention.self.relative_position_bias_table": "attn.relative_position_bias_table",
        "attention.output.dense": "attn.proj",
        "layernorm_before": "norm1",
        "layernorm_after": "norm2",
        "intermediate.dense": "mlp.fc1",
        "output.dense": "mlp.fc2",
        "hidden_states_norms.stage": "norm",
    }
    renamed = {}
    for published_name, array in published.items():
        name = reduce(lambda name, pair: name.replace(*pair), names.items(), published_name)
        renamed[re.sub(r"^norm(\d)", lambda match: f"norm{int(match[1]) - 1}", name)] = array
    for query in [name for name in renamed if ".query." in name]:
        parts = [renamed.pop(query.replace("query", part)) for part in ("query", "key", "value")]
        renamed[query.replace("attention.self.query", "attn.qkv")] = np.concatenate(parts)
    for block in [name.removesuffix("norm1.weight") for name in renamed if name.endswith("norm1.weight")]:
        renamed[f"{block}attn.relative_position_index"] = np.zeros((16, 16), np.int64)
        renamed[f"{block}attn_mask"] = np.zeros((4, 16, 16), np.float32)
    return renamed


def as_timm(published):
    """The names of timm since it begins a stage with the merging."""
    return {
        re.sub(r"layers\.(\d)\.downsample", lambda match: f"layers.{int(match[1]) + 1}.downsample", name): array
        for name, array in as_microsoft(published).items()
        if not name.endswith(("relative_position_index", "attn_mask"))
    }


def as_classifier(named, head):
    """With one norm, of the last stage, and a head."""
    kept = {name: array for name, array in named.items() if not re.match(r"norm\d\.", name)}
    last = {f"norm.{kind}": named[f"norm{STAGES - 1}.{kind}"] for kind in ("weight", "bias")}
    return kept | last | {f"{head}.weight": np.zeros((10, 48), np.float32), f"{head}.bias": np.zeros(10, np.float32)}


def behind(prefix, named):
    return {prefix + name: array for name, array in named.items()}


SPELLINGS = {
    "Hugging Face": lambda published: published,
    "Microsoft": as_microsoft,
    "Microsoft, inside another network": lambda published: behind("backbone.", as_microsoft(published)),
    "timm": as_timm,
    "timm, inside another network": lambda published: behind("module.encoder.", as_timm(published)),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_gives_the_same_bits(spelling, published, load):
    params, _ = load(SPELLINGS[spelling](published))
    expected, _ = load(published)
    assert params.keys() == expected.keys()
    for path, array in expected.items():
        np.testing.assert_array_equal(params[path], array, path)


def test_each_parameter_comes_from_the_right_array(published, shapes, load):
    params, report = load(published)
    assert {path: array.shape for path, array in params.items()} == {
        path: leaf.shape for path, leaf in flatten_dict(shapes, sep="/").items()
    }
    block = "encoder.layers.1.blocks.0.attention.self"
    kernel = params["stage2_block0/attention/qkv/kernel"]
    for third, name in enumerate(("query", "key", "value")):
        np.testing.assert_array_equal(kernel[:, 24 * third : 24 * (third + 1)].T, published[f"{block}.{name}.weight"])
    patches = published["embeddings.patch_embeddings.projection.weight"]
    np.testing.assert_array_equal(params["patch_embed/kernel"][1, 2], patches[:, :, 1, 2].T)
    assert "initialized" not in report


def test_files_of_transformers_are_read(backbone, published, shapes, load, tmp_path):
    backbone.save_pretrained(tmp_path / "saved")
    saved = flatten_dict(load_swin(find_weights(tmp_path / "saved"), VISION, shapes).params, sep="/")
    expected, _ = load(published)
    assert saved.keys() == expected.keys()
    assert all(np.array_equal(saved[path], expected[path]) for path in expected)


@pytest.mark.parametrize("kind", ["SwinModel", "SwinForImageClassification"])
def test_a_classifier_of_transformers_fills_the_last_norm_alone(kind, shapes, tmp_path):
    import transformers

    model = getattr(transformers, kind)(transformers.SwinConfig(**SIZE, window_size=4))
    model.save_pretrained(tmp_path)
    inner = model.swin if kind == "SwinForImageClassification" else model
    inner.layernorm.weight.data.fill_(3.0)
    model.save_pretrained(tmp_path)
    _check_classifier(load_swin(find_weights(tmp_path), VISION, shapes), np.full(48, 3.0))


@pytest.mark.parametrize(("spell", "head"), [(as_microsoft, "head"), (as_timm, "head.fc")])
def test_other_classifiers_fill_the_last_norm_alone(spell, head, published, shapes, tmp_path):
    write_safetensors(as_classifier(spell(published), head), tmp_path / "model.safetensors")
    _check_classifier(
        load_swin(find_weights(tmp_path), VISION, shapes), published[f"hidden_states_norms.stage{STAGES}.weight"]
    )


def _check_classifier(loaded, last_scale):
    norms = {name for name in loaded.params if re.fullmatch(r"stage\d_norm", name)}
    assert norms == {f"stage{STAGES}_norm"}
    np.testing.assert_array_equal(loaded.params[f"stage{STAGES}_norm"]["scale"], last_scale)
    assert "initialized: stage1_norm/scale, stage1_norm/bias, stage2_norm/scale, stage2_norm/bias" in loaded.report


@pytest.mark.parametrize("extra", ["absolute_pos_embed", "layers.0.blocks.0.attn.tau", "layers.2.downsample.norm.bias"])
def test_unknown_arrays_are_refused(extra, published, load):
    with pytest.raises(WeightsMismatch) as caught:
        load(as_microsoft(published) | {extra: np.zeros(3, np.float32)})
    assert caught.value.mistakes == {"unused array": (extra,)}


def test_the_library_is_detected_by_the_names(backbone, published):
    assert find_swin(published) == [("", HUGGING_FACE)]
    assert find_swin(arrays(backbone.state_dict())) == [("swin.", HUGGING_FACE)]
    assert find_swin(as_microsoft(published)) == [("", MICROSOFT)]
    assert find_swin(behind("module.", as_timm(published))) == [("module.", TIMM)]
    assert find_swin({"bert.embeddings.word_embeddings.weight"}) == []


@pytest.mark.parametrize(
    ("spell", "names"), [(dict, HUGGING_FACE), (as_microsoft, MICROSOFT), (as_timm, TIMM)], ids=["hf", "ms", "timm"]
)
def test_the_architecture_is_read_from_shapes(spell, names, published):
    assert swin_architecture(spell(published), names) == VISION.to_dict()
