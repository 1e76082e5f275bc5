"""Pretrained Swin and BERT: detected by names, loaded completely or refused."""

import json
import re
import sys

import jax
import numpy as np
import pytest
from huggingface_hub import constants
from safetensors.numpy import load_file, save_file
from transformers import BertTokenizer

from s2rm_jax.config import default_config
from s2rm_jax.errors import UserError
from s2rm_jax.input.tokens import Tokenizer
from s2rm_jax.interop.parameter_names import (
    HUGGING_FACE,
    MICROSOFT,
    TIMM,
    WeightsMismatch,
    bert_layout,
    export_arrays,
    swin_layout,
)
from s2rm_jax.interop.pretrained import find_pretrained, find_vocabulary, load_bert, load_pretrained, load_swin, locate
from s2rm_jax.interop.weight_files import read_weights
from s2rm_jax.models.network import build_network
from s2rm_jax.training.state import parameter_shapes

DEPTHS = (1, 2, 2)


@pytest.fixture(scope="module")
def config():
    config = default_config()
    config.input.image_size = (32, 32)
    config.vision.update(embed_dim=8, depths=DEPTHS, num_heads=(1, 2, 4), window_size=4)
    config.text.update(vocab_size=30, hidden_size=16, num_layers=2, num_heads=2, intermediate_size=32, max_positions=8)
    config.text.max_tokens = 6
    config.fusion.update(width=16, recurrent_width=8, num_heads=2)
    config.decoder.widths = (8, 12, 16)
    return config


@pytest.fixture(scope="module")
def shapes(config):
    return parameter_shapes(build_network(config), config)


@pytest.fixture(scope="module")
def params(shapes):
    """Random values for every parameter, for the checkpoints of these tests."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)


def assert_equal(found, expected):
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def swin_arrays(params, names):
    """Return a checkpoint of a backbone with the names of a library and the buffers of its files."""
    arrays = export_arrays(swin_layout(DEPTHS, names), params["vision"])
    for name in [name for name in arrays if name.endswith("bias_table")]:
        arrays[name.replace("bias_table", "index")] = np.zeros((16, 16), np.int64)
    return arrays


@pytest.mark.parametrize("names", [HUGGING_FACE, MICROSOFT, TIMM], ids=lambda names: names.library)
@pytest.mark.parametrize("prefix", ["", "backbone.", "module.swin."])
def test_a_swin_in_the_names_of_every_library(tmp_path, config, shapes, params, names, prefix):
    arrays = {prefix + name: array for name, array in swin_arrays(params, names).items()}
    besides = {"decode_head.weight": np.ones(3, np.float32)} if prefix else {}
    save_file(arrays | besides, tmp_path / "w")
    loaded = load_swin(tmp_path / "w", config.vision, shapes["vision"])
    assert_equal(loaded.params, params["vision"])
    assert f"a Swin, {names.library} names" in loaded.report
    tables = names.block.format(i="*", j="*") + names.bias_table.replace("bias_table", "index")
    listed = ", ".join([*besides, f"{tables} (5)"])
    assert f"in the file but not used: {listed}" in loaded.report


@pytest.mark.parametrize("names", [HUGGING_FACE, MICROSOFT], ids=lambda names: names.library)
def test_a_classifier_fills_the_last_norm_and_leaves_the_others(tmp_path, config, shapes, params, names):
    arrays = swin_arrays(params, names)
    for stage in range(3):
        for leaf in ("weight", "bias"):
            norm = arrays.pop(f"{names.output_norm.format(n=stage + names.first_output)}.{leaf}")
    arrays |= {f"{names.last_norm}.weight": params["vision"]["stage3_norm"]["scale"], f"{names.last_norm}.bias": norm}
    head = {"head.weight": np.ones((5, 32), np.float32), "head.bias": np.ones(5, np.float32)}
    arrays |= head if names is MICROSOFT else {"pooler.dense.weight": head["head.weight"]}
    save_file(arrays, tmp_path / "w")
    if names is HUGGING_FACE:  # the pooler of a Swin has no parameters; what looks like one is a mistake
        with pytest.raises(WeightsMismatch, match=r"1 unused array: pooler\.dense\.weight"):
            load_swin(tmp_path / "w", config.vision, shapes["vision"])
        del arrays["pooler.dense.weight"]
        save_file(arrays, tmp_path / "w")
    loaded = load_swin(tmp_path / "w", config.vision, shapes["vision"])
    expected = {name: tree for name, tree in params["vision"].items() if name not in ("stage1_norm", "stage2_norm")}
    assert_equal(loaded.params, expected)
    left_out = "stage1_norm/scale, stage1_norm/bias, stage2_norm/scale, stage2_norm/bias"
    assert f"not in the file, and so initialized: {left_out}" in loaded.report
    if names is MICROSOFT:
        assert "head.bias, head.weight" in loaded.report


def test_another_window_resizes_the_bias_tables(tmp_path, config, shapes, params):
    save_file(swin_arrays(params, MICROSOFT), tmp_path / "w")
    wider = default_config()
    wider.update(config)
    wider.vision.window_size = 6
    wide_shapes = parameter_shapes(build_network(wider), wider)["vision"]
    loaded = load_swin(tmp_path / "w", wider.vision, wide_shapes)
    assert "5 bias tables resized from window 4 to 6" in loaded.report
    assert jax.tree.map(np.shape, loaded.params) == jax.tree.map(lambda leaf: leaf.shape, wide_shapes)
    assert_equal(loaded.params["stage1_block0"]["mlp_in"], params["vision"]["stage1_block0"]["mlp_in"])


@pytest.mark.parametrize("prefix", ["", "bert."])
@pytest.mark.parametrize("old_names", [False, True])
def test_a_bert_with_old_and_new_names(tmp_path, config, shapes, params, prefix, old_names):
    arrays = {prefix + n: a for n, a in export_arrays(bert_layout(2), params["text"]).items()}
    if old_names:
        spelled = ((r"LayerNorm\.weight", "LayerNorm.gamma"), (r"LayerNorm\.bias", "LayerNorm.beta"))
        for new, old in spelled:
            arrays = {re.sub(new, old, name): array for name, array in arrays.items()}
        assert any("gamma" in name for name in arrays)
    besides = {"pooler.dense.weight": np.ones((16, 16), np.float32), "embeddings.position_ids": np.arange(8)[None]}
    arrays |= {prefix + name: array for name, array in besides.items()}
    arrays |= {"cls.predictions.bias": np.ones(30, np.float32)} if prefix else {}
    save_file(arrays, tmp_path / "w")
    loaded = load_bert(tmp_path / "w", config.text, shapes["text"])
    assert_equal(loaded.params, params["text"])
    assert "pooler.dense.weight" in loaded.report


def bert_file(tmp_path, params, change):
    arrays = export_arrays(bert_layout(2), params["text"])
    change(arrays)
    save_file(arrays, tmp_path / "bert")
    return tmp_path / "bert"


def test_all_that_is_wrong_is_reported_at_once(tmp_path, config, shapes, params):
    def spoil(arrays):
        del arrays["encoder.layer.1.output.dense.bias"]
        arrays["encoder.layer.0.adapter.weight"] = np.ones((2, 2), np.float32)
        arrays["embeddings.token_type_embeddings.weight"] = np.ones((3, 16), np.float32)
        arrays["encoder.layer.0.output.dense.weight"] = np.ones((16, 32), np.int8)
        arrays["encoder.layer.0.output.dense.bias"] = np.full(16, np.nan, np.float32)

    with pytest.raises(WeightsMismatch) as caught:
        load_bert(bert_file(tmp_path, params, spoil), config.text, shapes["text"])
    assert caught.value.mistakes == {
        "unused array": ("encoder.layer.0.adapter.weight",),
        "unfilled parameter": ("layer1/output/bias (no encoder.layer.1.output.dense.bias)",),
        "wrong array": (
            "embeddings.token_type_embeddings.weight (3, 16) cannot fill type_embeddings/embedding (2, 16)",
            "encoder.layer.0.output.dense.weight holds int8, not floating-point numbers",
            "encoder.layer.0.output.dense.bias holds NaN or infinity",
        ),
    }
    assert "\n" not in str(caught.value)


def test_two_spellings_of_one_name(tmp_path, config, shapes, params):
    def spoil(arrays):
        arrays["embeddings.LayerNorm.gamma"] = arrays["embeddings.LayerNorm.weight"]

    twice = r"2 repeated names: embeddings\.LayerNorm\.gamma, embeddings\.LayerNorm\.weight$"  # in any configuration
    with pytest.raises(WeightsMismatch, match=twice):
        load_bert(bert_file(tmp_path, params, spoil), config.text, shapes["text"])


def test_another_size_names_the_fields_to_set(tmp_path, config, shapes, params):
    save_file(swin_arrays(params, MICROSOFT), tmp_path / "w")
    other = default_config().vision
    flags = r"--config\.vision\.embed_dim=8 --config\.vision\.depths=\(1,2,2\) --config\.vision\.num_heads=\(1,2,4\)"
    with pytest.raises(UserError, match=rf"does not match the size in config\.vision \(embed_dim=128, .*set {flags}"):
        load_swin(tmp_path / "w", other, shapes["vision"])
    file = bert_file(tmp_path, params, lambda arrays: None)
    with pytest.raises(UserError, match=r"set --config\.text\.vocab_size=30 --config\.text\.hidden_size=16"):
        load_bert(file, default_config().text, shapes["text"])


def test_the_number_of_heads_comes_from_config_json(tmp_path, config, shapes, params):
    file = bert_file(tmp_path, params, lambda arrays: None)
    (tmp_path / "config.json").write_text('{"model_type": "bert", "num_attention_heads": 4}')
    with pytest.raises(UserError, match=r"\(num_heads=2\): give other weights, or set --config\.text\.num_heads=4"):
        load_bert(file, config.text, shapes["text"])
    (tmp_path / "config.json").write_text('{"model_type": "bert", "num_attention_heads": 2}')
    assert_equal(load_bert(file, config.text, shapes["text"]).params, params["text"])


def write_json(folder, **files):
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"model_type": "roberta"},
            "describes a model of type 'roberta': config.text.pretrained takes weights of type bert",
        ),
        ({"model_type": "xlm-roberta"}, "describes a model of type 'xlm-roberta'"),
        ({"model_type": "swin"}, "describes a model of type 'swin'"),
        ({"model_type": "no-such-model"}, "transformers cannot read the configuration"),
        (
            {"model_type": "bert", "hidden_act": "relu", "is_decoder": True},
            "a model with hidden_act='relu', is_decoder=True: config.text.pretrained takes weights of a model with "
            "hidden_act='gelu', is_decoder=False",
        ),
        (
            {"model_type": "bert", "position_embedding_type": "relative_key"},
            "with position_embedding_type='relative_key': config.text.pretrained takes",
        ),
        ({"model_type": "bert", "layer_norm_eps": 1e-5}, "with layer_norm_eps=1e-05: config.text.pretrained takes"),
        ({"num_attention_heads": 4}, "set --config.text.num_heads=4"),
        ({"model_type": "bert"}, "set --config.text.num_heads=12"),  # the default of transformers
        (
            {"model_type": "grounding-dino", "text_config": {"model_type": "bert", "num_attention_heads": 4}},
            "set --config.text.num_heads=4",
        ),
    ],
)
def test_what_the_config_json_beside_a_bert_says(tmp_path, config, shapes, params, settings, message):
    file = bert_file(tmp_path, params, lambda arrays: None)
    write_json(tmp_path, config=settings)
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        load_bert(file, config.text, shapes["text"])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["", "{", "[" * 100_000])
def test_a_damaged_config_json_beside_weights(tmp_path, config, shapes, params, content):
    file = bert_file(tmp_path, params, lambda arrays: None)
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match=r"transformers cannot read the configuration in .*config\.json \("):
        load_bert(file, config.text, shapes["text"])


@pytest.mark.parametrize("settings", [{}, [1], {"architecture": "swin_tiny"}, {"text": {"num_heads": 3}}])
def test_the_config_json_of_another_program_is_not_read(tmp_path, config, shapes, params, settings):
    file = bert_file(tmp_path, params, lambda arrays: None)
    write_json(tmp_path, config=settings)
    assert_equal(load_bert(file, config.text, shapes["text"]).params, params["text"])
    save_file(swin_arrays(params, TIMM), tmp_path / "swin")
    load_swin(tmp_path / "swin", config.vision, shapes["vision"])


def test_a_swin_of_another_version(tmp_path, config, shapes, params):
    save_file(swin_arrays(params, HUGGING_FACE), tmp_path / "model.safetensors")
    write_json(tmp_path, config={"model_type": "swinv2"})
    with pytest.raises(UserError, match=r"of type 'swinv2': config\.vision\.pretrained takes weights of type swin or"):
        load_swin(tmp_path / "model.safetensors", config.vision, shapes["vision"])
    other = {"mlp_ratio": 2.0, "qkv_bias": False, "patch_size": 2, "use_absolute_embeddings": True}
    write_json(tmp_path, config={"model_type": "swin"} | other)
    with pytest.raises(
        UserError,
        match=r"with mlp_ratio=2\.0, qkv_bias=False, patch_size=2, use_absolute_embeddings=True: .* mlp_ratio=4",
    ):
        load_swin(tmp_path / "model.safetensors", config.vision, shapes["vision"])
    for settings in ({}, {"mlp_ratio": 4.0, "patch_size": [4, 4]}):
        write_json(tmp_path, config={"model_type": "swin"} | settings)
        load_swin(tmp_path / "model.safetensors", config.vision, shapes["vision"])


def as_mmsegmentation(name):
    return "backbone." + name.replace("layers.", "stages.").replace("attn.", "attn.w_msa.")


@pytest.mark.parametrize(
    ("rename", "shown"),
    [
        (lambda name: name.replace("layers.", "layers_"), r"layers_0\.blocks\.0\.attn\.proj\.bias"),
        (as_mmsegmentation, r"stages\.0\.blocks\.0\.attn\.w_msa\.proj\.bias"),
    ],
    ids=["timm's features_only", "mmsegmentation"],
)
def test_blocks_with_the_names_of_another_library(tmp_path, config, shapes, params, rename, shown):
    save_file({rename(name): array for name, array in swin_arrays(params, TIMM).items()}, tmp_path / "w")
    with pytest.raises(UserError, match=rf"has a patch embedding, but no blocks with .* such as {shown}, .*: give"):
        load_swin(tmp_path / "w", config.vision, shapes["vision"])


def test_windows_that_differ_by_stage(tmp_path, config, shapes, params):
    arrays = swin_arrays(params, TIMM)
    for block in range(DEPTHS[1]):
        arrays[f"layers.1.blocks.{block}.attn.relative_position_bias_table"] = np.zeros((13**2, 2), np.float32)
    save_file(arrays, tmp_path / "w")
    with pytest.raises(UserError, match=r"has windows \(4, 7, 4\): .* takes weights with one window for all stages"):
        load_swin(tmp_path / "w", config.vision, shapes["vision"])


def test_a_roberta_without_its_config_json(tmp_path, config, shapes, params):
    def spoil(arrays):
        arrays["embeddings.token_type_embeddings.weight"] = np.ones((1, 16), np.float32)

    with pytest.raises(UserError, match="has one type of token, as a RoBERTa has"):
        load_bert(bert_file(tmp_path, params, spoil), config.text, shapes["text"])


WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "red", "Red", "café", "cafe")


@pytest.fixture
def text_config(tmp_path, params):
    """A configuration whose pretrained text weights are in `tmp_path`, without a vocabulary."""
    bert_file(tmp_path, params, lambda arrays: None).rename(tmp_path / "model.safetensors")
    config = default_config()
    config.text.pretrained = str(tmp_path)
    return config


def write_tokenizer_json(path, lower_case=True):
    words = Tokenizer(WORDS, lower_case=lower_case)
    words.save_engine(path)


@pytest.mark.parametrize("files", ["vocab.txt", "tokenizer.json", "both"])
def test_the_vocabulary_beside_the_weights(tmp_path, text_config, files):
    if files != "tokenizer.json":
        Tokenizer(WORDS).save(tmp_path / "vocab.txt")
    if files != "vocab.txt":
        write_tokenizer_json(tmp_path / "tokenizer.json")
    assert find_vocabulary(text_config) == WORDS
    text_config.text.pretrained = str(tmp_path / "model.safetensors")
    assert find_vocabulary(text_config) == WORDS
    text_config.text.pretrained = ""
    assert find_vocabulary(text_config) is None


def test_weights_without_a_vocabulary(tmp_path, text_config):
    with pytest.raises(UserError, match=r"has weights but no vocabulary: put the vocab\.txt or tokenizer\.json of"):
        find_vocabulary(text_config)
    text_config.text.vocab = str(tmp_path / "mine.txt")
    assert find_vocabulary(text_config) is None


def test_another_vocabulary_than_that_of_the_weights_is_noted(tmp_path, text_config, caplog):
    Tokenizer(WORDS).save(tmp_path / "vocab.txt")
    Tokenizer(WORDS).save(tmp_path / "same.txt")
    text_config.text.vocab = str(tmp_path / "same.txt")
    assert find_vocabulary(text_config) is None and caplog.text == ""
    Tokenizer((*WORDS[:-2], WORDS[-1], WORDS[-2])).save(tmp_path / "mine.txt")
    text_config.text.vocab = str(tmp_path / "mine.txt")
    assert find_vocabulary(text_config) is None
    assert f"mine.txt is not the vocabulary beside the weights in {tmp_path}" in caplog.text


@pytest.mark.parametrize("vocabulary", ["beside", "named", "in json"])
def test_a_cased_model_needs_its_case(tmp_path, text_config, vocabulary):
    write_json(tmp_path, tokenizer_config={"do_lower_case": False})
    if vocabulary == "in json":
        write_tokenizer_json(tmp_path / "tokenizer.json", lower_case=False)
    else:
        Tokenizer(WORDS).save(tmp_path / ("vocab.txt" if vocabulary == "beside" else "mine.txt"))
    if vocabulary == "named":
        text_config.text.vocab = str(tmp_path / "mine.txt")
    with pytest.raises(UserError, match=r"is of a cased model: set --config\.text\.lower_case=False"):
        find_vocabulary(text_config)
    text_config.text.lower_case = False
    assert find_vocabulary(text_config) == (None if vocabulary == "named" else WORDS)


def test_an_uncased_model_needs_its_case(tmp_path, text_config):
    Tokenizer(WORDS).save(tmp_path / "vocab.txt")
    text_config.text.lower_case = False
    assert find_vocabulary(text_config) == WORDS  # a vocab.txt alone does not tell the case
    write_json(tmp_path, tokenizer_config={"do_lower_case": True})
    with pytest.raises(UserError, match=r"is of an uncased model: set --config\.text\.lower_case=True"):
        find_vocabulary(text_config)


def test_files_that_disagree_on_the_case(tmp_path, text_config):
    write_tokenizer_json(tmp_path / "tokenizer.json", lower_case=False)
    with pytest.raises(UserError, match=r'tokenizer\.json is cased, but .*: set "do_lower_case": false there'):
        find_vocabulary(text_config)


@pytest.mark.parametrize("settings", [{"tokenize_chinese_chars": False}, {"strip_accents": False}])
def test_a_tokenizer_with_other_rules_is_refused(tmp_path, text_config, settings):
    Tokenizer(WORDS).save(tmp_path / "vocab.txt")
    write_json(tmp_path, tokenizer_config=settings)
    with pytest.raises(UserError, match="is not the WordPiece of BERT"):
        find_vocabulary(text_config)


def test_a_vocabulary_without_special_tokens_of_transformers(tmp_path, text_config):
    """transformers would add [MASK] behind the last word."""
    words = [word for word in WORDS if word != "[MASK]"]
    Tokenizer(words).save(tmp_path / "vocab.txt")
    assert find_vocabulary(text_config) == tuple(words)


def test_added_tokens_outside_the_vocabulary_are_refused(tmp_path, text_config):
    Tokenizer(WORDS).save(tmp_path / "vocab.txt")
    reference = BertTokenizer.from_pretrained(tmp_path)
    reference.add_tokens(["giraffe"])
    reference.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="adds tokens to the vocabulary, such as 'giraffe'"):
        find_vocabulary(text_config)


def test_files_that_transformers_saves(tmp_path, text_config):
    Tokenizer(WORDS).save(tmp_path / "vocab.txt")
    BertTokenizer.from_pretrained(tmp_path).save_pretrained(tmp_path)
    BertTokenizer.from_pretrained(tmp_path, do_lower_case=False).save_pretrained(tmp_path / "cased")
    (tmp_path / "vocab.txt").unlink()
    assert find_vocabulary(text_config) == WORDS
    for file in (tmp_path / "cased").iterdir():
        file.rename(tmp_path / file.name)
    text_config.text.lower_case = False
    assert find_vocabulary(text_config) == WORDS


def test_a_damaged_tokenizer(tmp_path, text_config):
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="transformers cannot read the tokenizer in") as caught:
        find_vocabulary(text_config)
    assert "\n" not in str(caught.value)


def test_a_network_of_another_kind(tmp_path, config, shapes, params):
    bert = bert_file(tmp_path, params, lambda arrays: None)
    with pytest.raises(UserError, match=r"contains no Swin but a BERT: set config\.text\.pretrained"):
        load_swin(bert, config.vision, shapes["vision"])
    save_file(swin_arrays(params, TIMM), tmp_path / "swin")
    with pytest.raises(UserError, match=r"contains no BERT but a Swin: set config\.vision\.pretrained"):
        load_bert(tmp_path / "swin", config.text, shapes["text"])
    save_file({"conv1.weight": np.ones(3, np.float32)}, tmp_path / "resnet")
    with pytest.raises(UserError, match=r"contains no Swin but 1 arrays, such as conv1\.weight"):
        load_swin(tmp_path / "resnet", config.vision, shapes["vision"])


def test_two_networks_in_one_file(tmp_path, config, shapes, params):
    arrays = swin_arrays(params, MICROSOFT)
    both = {f"{owner}.{name}": array for owner in ("student", "teacher") for name, array in arrays.items()}
    save_file(both, tmp_path / "w")
    with pytest.raises(UserError, match=r"contains 2 networks of the kind Swin at 'student\.', 'teacher\.'"):
        load_swin(tmp_path / "w", config.vision, shapes["vision"])


def test_only_what_the_configuration_names_is_loaded(tmp_path, config, shapes, params):
    assert load_pretrained(config, shapes) == {}
    chosen = default_config()
    chosen.update(config)
    chosen.text.pretrained = str(bert_file(tmp_path, params, lambda arrays: None))
    loaded = load_pretrained(chosen, shapes)
    assert loaded.keys() == {"text"}
    assert_equal(loaded["text"].params, params["text"])


def test_weights_that_need_torch_are_refused_early_without_it(tmp_path, params, monkeypatch):
    torch = pytest.importorskip("torch")
    torch.save({"a": torch.ones(1)}, tmp_path / "pytorch_model.bin")
    config = default_config()
    config.vision.pretrained = str(tmp_path)
    assert find_pretrained(config) == {"vision": tmp_path / "pytorch_model.bin"}
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UserError, match=r"reading .*pytorch_model\.bin needs PyTorch: pip install"):
        find_pretrained(config)
    save_file(swin_arrays(params, TIMM), tmp_path / "model.safetensors")
    assert find_pretrained(config) == {"vision": tmp_path / "model.safetensors"}


def test_a_repository_without_safetensors_is_used_from_the_cache(hub, monkeypatch):
    hub.repositories["anna/old"] = {"main": {"pytorch_model.bin": b"weights", "config.json": b"{}"}}
    found = locate("anna/old", "vision.pretrained")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert locate("anna/old", "vision.pretrained") == found and found.read_bytes() == b"weights"
    with pytest.raises(UserError, match=r"^config\.vision\.pretrained=anna/other is not a path and cannot be "):
        locate("anna/other", "vision.pretrained")


def test_a_classifier_in_the_layout_of_timm_on_the_hub(tmp_path, config, shapes, params, monkeypatch):
    """As timm/swin_base_patch4_window12_384.ms_in22k, the default of the recipes; it needs no PyTorch."""
    arrays = export_arrays(swin_layout(DEPTHS, TIMM), params["vision"])
    last = [f"{TIMM.output_norm.format(n=2 + TIMM.first_output)}.{leaf}" for leaf in ("weight", "bias")]
    head = {"head.fc.weight": np.ones((5, 32), np.float32), "head.fc.bias": np.ones(5, np.float32)}
    norm = {"norm.weight": arrays[last[0]], "norm.bias": arrays[last[1]]}
    norms = re.compile(TIMM.output_norm.format(n=r"\d") + r"\.")
    save_file({n: a for n, a in arrays.items() if not norms.match(n)} | norm | head, tmp_path / "model.safetensors")
    pretrained_cfg = {
        "tag": "ms_in22k",
        "custom_load": False,
        "input_size": [3, 384, 384],
        "fixed_input_size": True,
        "interpolation": "bicubic",
        "crop_pct": 1.0,
        "crop_mode": "center",
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "num_classes": 21841,
        "pool_size": [12, 12],
        "first_conv": "patch_embed.proj",
        "classifier": "head.fc",
    }
    about = {"architecture": "swin_base_patch4_window12_384", "num_classes": 21841, "num_features": 1024}
    write_json(tmp_path, config=about | {"pretrained_cfg": pretrained_cfg})
    monkeypatch.setitem(sys.modules, "torch", None)
    chosen = default_config()
    chosen.update(config)
    chosen.vision.pretrained = str(tmp_path)
    loaded = load_pretrained(chosen, shapes)["vision"]
    expected = {name: tree for name, tree in params["vision"].items() if name not in ("stage1_norm", "stage2_norm")}
    assert_equal(loaded.params, expected)
    assert "a Swin, timm names" in loaded.report and "not used: head.fc.bias, head.fc.weight" in loaded.report


def test_files_written_by_transformers(tmp_path, config, shapes):
    torch = pytest.importorskip("torch")
    from transformers import BertConfig, BertModel, SwinConfig, SwinForImageClassification

    swin = SwinForImageClassification(
        SwinConfig(image_size=32, embed_dim=8, depths=list(DEPTHS), num_heads=[1, 2, 4], window_size=4)
    )
    swin.save_pretrained(tmp_path / "swin")
    loaded = load_swin(tmp_path / "swin" / "model.safetensors", config.vision, shapes["vision"])
    block = loaded.params["stage3_block1"]["attention"]["qkv"]["kernel"]
    query = swin.state_dict()["swin.encoder.layers.2.blocks.1.attention.q_proj.weight"].numpy()
    np.testing.assert_array_equal(block[:, :32], query.T)
    assert "classifier.bias, classifier.weight" in loaded.report

    # The same parameters saved by hand, with the names of transformers 5.
    torch.save(swin.state_dict(), tmp_path / "by_hand.pth")
    assert (
        not load_file(tmp_path / "swin" / "model.safetensors").keys() <= read_weights(tmp_path / "by_hand.pth").keys()
    )
    assert_equal(load_swin(tmp_path / "by_hand.pth", config.vision, shapes["vision"]).params, loaded.params)

    sizes = {"vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    bert = BertModel(BertConfig(**sizes, intermediate_size=32, max_position_embeddings=8))
    bert.save_pretrained(tmp_path / "bert")
    loaded = load_bert(tmp_path / "bert" / "model.safetensors", config.text, shapes["text"])
    words = bert.state_dict()["embeddings.word_embeddings.weight"].numpy()
    np.testing.assert_array_equal(loaded.params["word_embeddings"]["embedding"], words)
