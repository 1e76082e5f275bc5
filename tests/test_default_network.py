"""The network in the package: its size, its configuration, and its masks on synthetic scenes."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from s2rm_jax import default_network
from s2rm_jax.input.sources import build_source
from s2rm_jax.training.run import load_config, require_same_config
from tests.command import run_command
from tests.test_configs import load

ROOT = Path(__file__).parents[1]
MEAN_IOU = 0.921  # of the four expressions of the first scene of val, measured


def test_it_is_small_and_complete():
    sizes = {path.name: path.stat().st_size for path in default_network.FOLDER.iterdir() if path.is_file()}
    assert {"README.md", "config.json", "vocab.txt", "model.safetensors"} <= set(sizes)
    assert sum(sizes.values()) < 20e6


def test_it_is_recognized_by_any_form_of_its_path(monkeypatch):
    monkeypatch.chdir(default_network.FOLDER.parent)
    assert default_network.is_default_network("default_network/") and not default_network.is_default_network("models")


def test_it_was_trained_as_its_card_says():
    config = load(ROOT / "configs/synthetic_benchmark.py").get_config("long")
    require_same_config(default_network.FOLDER, load_config(default_network.FOLDER), config)
    began = json.loads((default_network.FOLDER / "config.json").read_text())
    assert (began["steps"], began["text"]["vocab"]) == (config.steps, "")
    card = (default_network.FOLDER / "README.md").read_text(encoding="utf-8")
    assert "python -m s2rm_jax.train --config configs/synthetic_benchmark.py:long" in card


def test_predict_uses_it_by_default_and_finds_the_referents_of_its_scenes(tmp_path):
    out = tmp_path / "out"
    done = run_command("predict", f"--out={out}")
    assert done.returncode == 0 and "generated shapes only" not in done.stdout
    config = load_config(default_network.FOLDER)
    scene = build_source(config.input.source, config.eval.split)[0]
    found = json.loads((out / "result.json").read_text())["results"]
    assert [entry["expression"] for entry in found] == [expression.text for expression in scene.expressions]
    ious = []
    for entry, expression in zip(found, scene.expressions, strict=True):
        mask = np.asarray(Image.open(out / entry["file"])) > 0
        ious.append((mask & expression.segmentation).sum() / (mask | expression.segmentation).sum())
    assert np.mean(ious) == pytest.approx(MEAN_IOU, abs=0.02)


def test_predict_says_that_it_knows_generated_shapes_only_when_an_image_is_given(tmp_path):
    Image.new("RGB", (40, 30)).save(tmp_path / "own.png")
    asked = ("--text=a star", "--text=a ring", "--text=a square", "--text=a circle", f"--out={tmp_path / 'out'}")
    for given in (f"--image={tmp_path / 'own.png'}", f"--images={tmp_path / '*.png'}"):
        done = run_command("predict", given, *asked)
        assert (done.returncode, done.stdout.count("trained on generated shapes only")) == (0, 1), done.stderr
