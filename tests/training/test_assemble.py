"""What a run is built from: its splits, the protocol of its evaluations, and its number of steps."""

import json
import logging
import pickle

import jax
import pytest
from ml_collections import ConfigDict

from s2rm_jax.config import default_config
from s2rm_jax.evaluation import evaluator
from s2rm_jax.input.refer_annotations import load_refs
from s2rm_jax.parallel.mesh import make_mesh
from s2rm_jax.training import loop
from tests.input.own_data_fixture import write_json_lines
from tests.input.refer_fixture import write_refer_layout

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "left", "one")


@pytest.fixture
def config(tmp_path):
    """A mixture of two datasets, of two images to train on and one to evaluate on each, with the weights 1 and 3."""
    config = default_config()
    config.steps, config.epochs, config.batch_size = 0, 2, 3
    config.input.image_size = (16, 16)
    parts = {
        name: {"name": "json_lines", "root": str(write_json_lines(tmp_path / name)), "weight": weight}
        for name, weight in (("a", 1.0), ("b", 3.0))
    }
    config.input.source = ConfigDict({"name": "mixture", "parts": parts})
    config.text.vocab = str(tmp_path / "vocab.txt")
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS))
    return config


def test_a_run_trains_on_the_mixture_and_is_evaluated_on_each_held_out_image_once(config, monkeypatch):
    calls = []

    class Recorder:
        """An Evaluator that records its arguments."""

        def __init__(self, network, tokenizer, config, protocol, mesh):
            self.given = (protocol.name, config.eval.limit, mesh)

        def __call__(self, params, source, *, progress):
            calls.append((*self.given, params, [source[index].id for index in range(len(source))]))
            return evaluator.Report(())

    monkeypatch.setattr(evaluator, "Evaluator", Recorder)
    config.eval.update({"every": 1, "protocol": "rela_gref", "limit": 5})
    mesh = make_mesh(devices=jax.local_devices()[:1])
    parts = loop.assemble(config, mesh)
    assert parts.epoch is not None and parts.epoch.rows == 2 + 6  # the images of b are repeated for its weight
    assert next(parts.batches(0)).images.shape == (3, 16, 16, 3)
    assert parts.evaluate is not None
    parts.evaluate("the parameters", lambda done, total: None)
    assert calls == [("rela_gref", 5, mesh, "the parameters", ["a/images/2.png", "b/images/2.png"])]


def of_json_lines(folder, other, linked):
    """Data of one file per split in which image 1 of the training split has another path in val."""
    write_json_lines(folder)
    lines = [json.loads(line) for line in (folder / "data.jsonl").read_text().splitlines()]
    if linked:
        (folder / other).symlink_to(folder / "images/1.png")
    for split in ("train", "val"):
        kept = [line for line in lines if line["split"] == split]
        kept += [lines[3] | {"image": other, "split": split}] if split == "val" else []
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in kept))
    return ConfigDict({"name": "json_lines", "root": str(folder), "file": "{split}.jsonl"})


@pytest.mark.parametrize(("other", "linked"), [("images/1.png", False), ("b.png", True)])
def test_images_to_train_on_and_to_evaluate_on_are_warned_of_once(config, tmp_path, caplog, other, linked):
    config.input.source = of_json_lines(tmp_path / "own", other, linked)
    config.eval.every = 1
    with caplog.at_level(logging.WARNING):
        loop.assemble(config, make_mesh(devices=jax.local_devices()[:1]))
    (warning,) = caplog.messages
    assert "images of val that are also in train: 1, such as" in warning and warning.count(other) == 1


def test_shared_images_of_one_file_are_warned_of_once(config, tmp_path, caplog):
    write_json_lines(tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "data.jsonl").read_text().splitlines()]
    lines.append(lines[3] | {"image": "images/1.png", "split": "val"})
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    config.input.source = ConfigDict({"name": "json_lines", "root": str(tmp_path), "file": "data.jsonl"})
    config.eval.every = 1
    with caplog.at_level(logging.WARNING):
        loop.assemble(config, make_mesh(devices=jax.local_devices()[:1]))
    (warning,) = caplog.messages
    assert "images of val that are also in other splits: 1, such as 1.png" in warning


@pytest.mark.parametrize(("split_by", "warnings"), [("unc", 1), ("google", 0)])
def test_of_refer_data_only_the_splits_of_google_share_images(config, tmp_path, caplog, split_by, warnings):
    root = write_refer_layout(tmp_path, split_by=split_by, splits=("train", "train", "val"))
    path = root / f"refcoco/refs({split_by}).p"
    refs = load_refs(path)
    refs[-1]["split"] = "val"
    path.write_bytes(pickle.dumps(refs))
    config.input.source = ConfigDict({"name": "refer", "root": str(root), "split_by": split_by})
    config.eval.every = 1
    with caplog.at_level(logging.WARNING):
        loop.assemble(config, make_mesh(devices=jax.local_devices()[:1]))
    assert sum("images of val that are also in train: 1" in one for one in caplog.messages) == warnings


def test_epochs_are_counted_in_whole_batches(config, tmp_path, monkeypatch):
    trained = []
    monkeypatch.setattr(loop, "train_with_parts", lambda config, *_, **__: trained.append(config.steps) or {})
    loop.train_and_evaluate(config, tmp_path / "run")
    assert trained == [2 * (8 // 3)]
