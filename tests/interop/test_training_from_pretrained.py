"""A run begins from its pretrained parts and reads them only once."""

import json
import sys

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from safetensors.numpy import save_file

from s2rm_jax.errors import UserError
from s2rm_jax.input.pipeline import build_tokenizer
from s2rm_jax.input.sources import build_source
from s2rm_jax.input.synthetic.language import VOCABULARY
from s2rm_jax.input.tokens import Tokenizer
from s2rm_jax.interop import exported_segment
from s2rm_jax.interop import pretrained as pretrained_weights
from s2rm_jax.interop.parameter_names import MICROSOFT, bert_layout, export_arrays, swin_layout
from s2rm_jax.interop.torch_folder import write_pytorch
from s2rm_jax.models.network import build_network
from s2rm_jax.training import compile, loop
from s2rm_jax.training.compile import CompiledStep
from s2rm_jax.training.loop import train_and_evaluate
from s2rm_jax.training.run import load_config, load_run
from s2rm_jax.training.state import parameter_shapes
from tests.conftest import tiny_config


@pytest.fixture
def pretrained(tmp_path):
    """A tiny configuration whose learning rate is 0, and the parameters in the files that it begins from.

    What is not pretrained is as small as it can be, because every run traces and compiles it.
    """
    config = tiny_config()
    config.fusion.mode, config.decoder.guidance = "sum", "none"
    config.steps, config.checkpoint_every, config.eval.every = 1, 1, 0
    config.optimizer.update({"learning_rate": 0.0, "ema_decay": 0.9})
    shapes = parameter_shapes(build_network(config), config)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: 0.1 * rng.normal(size=leaf.shape).astype(np.float32), shapes)
    save_file(
        export_arrays(swin_layout(config.vision.depths, MICROSOFT), params["vision"]), tmp_path / "swin.safetensors"
    )
    (tmp_path / "bert").mkdir()
    save_file(export_arrays(bert_layout(1), params["text"]), tmp_path / "bert" / "model.safetensors")
    Tokenizer(VOCABULARY).save(tmp_path / "bert" / "vocab.txt")
    config.vision.pretrained = str(tmp_path / "swin.safetensors")
    config.text.pretrained = str(tmp_path / "bert")
    return config, params


compiled: dict[str, CompiledStep] = {}  # by the configuration without weights and vocabulary


@pytest.fixture(autouse=True)
def compile_once(monkeypatch):
    """Compile a training step once for all tests: it is the same whatever the weights and the vocabulary."""

    def compile_step(network, plan, config, mesh):
        same = config.copy_and_resolve_references()
        same.vision.pretrained = same.text.pretrained = same.text.vocab = ""
        key = same.to_json()
        if key not in compiled:
            compiled[key] = compile.compile_step(network, plan, config, mesh)
        return compiled[key]

    monkeypatch.setattr(loop, "compile_step", compile_step)


def test_a_run_begins_from_its_pretrained_parts(pretrained, tmp_path, capsys, monkeypatch):
    config, params = pretrained
    train_and_evaluate(config, tmp_path / "run")
    found = load_run(tmp_path / "run", "latest").params
    for part in ("vision", "text"):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), found[part], params[part])
    out = capsys.readouterr().out
    assert "Pretrained vision:" in out and "a Swin, Microsoft names" in out and "Pretrained text:" in out

    # What they were read from may go: a run that continues does not read them.
    (tmp_path / "swin.safetensors").unlink()
    monkeypatch.setitem(sys.modules, "transformers", None)  # any import of it fails
    config.steps, config.text.pretrained = 2, "another/bert"
    train_and_evaluate(config, tmp_path / "run")
    out = capsys.readouterr().out
    assert "ignored: config.text.pretrained=another/bert" in out and "Continuing in" in out
    assert load_config(tmp_path / "run").text.pretrained == str(tmp_path / "bert")


def test_the_vocabulary_of_pretrained_text_is_copied_to_the_workdir(pretrained, tmp_path):
    config, _ = pretrained
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "red", "circle"]
    (tmp_path / "bert" / "vocab.txt").write_text("".join(f"{word}\n" for word in words))
    train_and_evaluate(config, tmp_path / "run")
    assert (tmp_path / "run" / "vocab.txt").read_text().split() == words
    assert load_config(tmp_path / "run").text.vocab == str(tmp_path / "run" / "vocab.txt")

    (tmp_path / "bert" / "vocab.txt").unlink()
    config.steps = 2
    train_and_evaluate(config, tmp_path / "run")  # goes on with its own copy
    assert (tmp_path / "run" / "vocab.txt").read_text().split() == words


def test_a_vocabulary_in_a_tokenizer_json_is_copied_too(pretrained, tmp_path, monkeypatch):
    """What later commands need is in the workdir, for a cased model too."""
    config, _ = pretrained
    words = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "red", "Red", "circle")
    (tmp_path / "bert" / "vocab.txt").unlink()
    Tokenizer(words, lower_case=False).save_engine(tmp_path / "bert" / "tokenizer.json")
    (tmp_path / "bert" / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    config.text.lower_case = False
    train_and_evaluate(config, tmp_path / "run")
    (tmp_path / "bert" / "tokenizer.json").unlink()
    monkeypatch.setitem(sys.modules, "transformers", None)  # any import of it fails
    run = load_run(tmp_path / "run", "latest")
    assert run.tokenizer.vocabulary == words
    assert run.tokenizer.words(run.tokenizer.encode("the Red circle")[0]) == ["[CLS]", "the", "Red", "circle", "[SEP]"]

    (tmp_path / "folder").mkdir()
    write_pytorch(run, tmp_path / "run" / "config.json", tmp_path / "folder")
    text = json.loads((tmp_path / "folder" / "preprocessing.json").read_text())["text"]
    assert (text["lower_case"], text["strip_accents"]) == (False, False)
    engine = exported_segment.Tokenizer.from_file(str(tmp_path / "folder" / "tokenizer.json"))
    (tokens,), _ = exported_segment.prepare_expressions(["the Red circle"], engine)
    np.testing.assert_array_equal(tokens, run.tokenizer.encode("the Red circle")[0])


def test_the_vocabulary_of_the_source_does_not_stand_in(pretrained, tmp_path):
    config, _ = pretrained
    (tmp_path / "bert" / "vocab.txt").unlink()
    with pytest.raises(UserError, match=r"has weights but no vocabulary: put the vocab\.txt or tokenizer\.json of"):
        train_and_evaluate(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(UserError, match=r"config\.text\.vocab is empty and config\.text\.pretrained is set"):
        build_tokenizer(config, build_source(config.input.source, config.input.train_split))


def test_an_incomplete_vocabulary_is_reported(caplog):
    config = tiny_config()
    config.text.pretrained = "bert"
    words = tuple(f"word{number}" for number in range(config.text.vocab_size - 4))
    special = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
    source = build_source(config.input.source, config.input.train_split)
    build_tokenizer(config, source, (*special, *words))
    assert not caplog.records
    build_tokenizer(config, source, (*special, *words[:-1]))
    assert f"the vocabulary has {config.text.vocab_size - 1} words, but the pretrained" in caplog.text


def test_a_vocabulary_without_a_checkpoint_is_not_used(pretrained, tmp_path):
    config, _ = pretrained
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "red", "circle"]
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "vocab.txt").write_text("".join(f"{word}\n" for word in [*words[:4], "other", "words"]))
    (tmp_path / "bert" / "vocab.txt").write_text("".join(f"{word}\n" for word in words))
    train_and_evaluate(config, tmp_path / "run")
    assert (tmp_path / "run" / "vocab.txt").read_text().split() == words


def test_missing_weights(pretrained, tmp_path):
    config, _ = pretrained
    config.vision.pretrained = str(tmp_path / "gone.pth")
    with pytest.raises(UserError, match=r"config\.vision\.pretrained: weights .*gone\.pth not found"):
        train_and_evaluate(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_missing_data_is_reported_before_the_hub_is_used(pretrained, tmp_path, monkeypatch):
    config, _ = pretrained
    monkeypatch.setattr(pretrained_weights, "_fetch", lambda name, field: pytest.fail("the Hub was asked"))
    config.text.pretrained = "google-bert/bert-base-uncased"
    config.input.source = ConfigDict({"name": "refer", "root": str(tmp_path / "nowhere")})
    with pytest.raises(UserError, match=r"the folder of the data, .*nowhere, does not exist"):
        train_and_evaluate(config, tmp_path / "run")


def test_a_folder_with_other_files_is_not_a_workdir(pretrained, tmp_path):
    config, _ = pretrained
    before = sorted(tmp_path.iterdir())
    with pytest.raises(UserError, match="holds files that do not belong to a run, such as bert"):
        train_and_evaluate(config, tmp_path)
    with pytest.raises(UserError, match=r"swin\.safetensors is a file; give a folder"):
        train_and_evaluate(config, tmp_path / "swin.safetensors")
    assert sorted(tmp_path.iterdir()) == before


def test_weights_that_do_not_fit_leave_no_workdir(pretrained, tmp_path):
    config, _ = pretrained
    config.vision.pretrained = config.text.pretrained
    with pytest.raises(UserError, match=r"contains no Swin but a BERT"):
        train_and_evaluate(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
