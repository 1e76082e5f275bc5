"""The command convert, with a trained tiny run."""

import json
import os
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from s2rm_jax.convert import write_workdir
from s2rm_jax.errors import UserError
from s2rm_jax.io import atomic_folder
from s2rm_jax.training.run import load_run
from tests.command import ROOT, run_command, run_process


def convert(*arguments):
    return run_command("convert", *arguments)


@pytest.fixture(scope="module")
def exported(tiny_workdir, tmp_path_factory):
    out = tmp_path_factory.mktemp("convert") / "torch"
    done = convert("to-pytorch", "--workdir", tiny_workdir, "--out", out)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{out} holds the network for PyTorch")
    return out


def test_converting_to_pytorch_and_back_changes_no_bit(exported, tiny_workdir, tmp_path):
    with_the_network = {"model.safetensors", "config.json", "vocab.txt", "torch_model.py"}
    to_use_it = {"segment.py", "preprocessing.json", "tokenizer.json"}
    assert {path.name for path in exported.iterdir()} == with_the_network | to_use_it
    back, again = tmp_path / "back", tmp_path / "again"
    done = convert("from-pytorch", "--weights", exported, "--workdir", back)
    assert (done.returncode, done.stderr) == (0, "")
    jax.tree.map(np.testing.assert_array_equal, load_run(back).params, load_run(tiny_workdir).params)
    assert (back / "config.json").read_text() == (tiny_workdir / "config.json").read_text()

    assert convert("to-pytorch", "--workdir", back, "--out", again).returncode == 0
    for name in ("model.safetensors", "config.json", "vocab.txt"):
        assert (again / name).read_bytes() == (exported / name).read_bytes()


def test_training_continues_from_converted_weights(exported, tmp_path):
    from s2rm_jax.training.loop import train_and_evaluate
    from s2rm_jax.training.run import load_config

    convert("from-pytorch", "--weights", exported, "--workdir", tmp_path / "back")
    config = load_config(tmp_path / "back")
    with config.unlocked():
        config.steps, config.eval.every = 1, 0
    train_and_evaluate(config, tmp_path / "back")
    assert [json.loads(line)["step"] for line in (tmp_path / "back" / "metrics.jsonl").read_text().splitlines()] == [1]


def spoil(exported, folder, change):
    """Return a copy of the exported folder with changed weights."""
    folder.mkdir()
    for path in exported.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    arrays = load_file(folder / "model.safetensors")
    change(arrays)
    save_file(arrays, folder / "model.safetensors")
    return folder


def test_weights_that_do_not_fit_are_refused(exported, tmp_path):
    def change(arrays):
        arrays["fusion.vision_norm.weight"] = np.ones(5, np.float32)
        arrays["fusion.vision_norm.bias"] = arrays["fusion.vision_norm.bias"].astype(np.int32)
        arrays["adapter.weight"] = np.ones(2, np.float32)
        del arrays["vision.embeddings.norm.bias"]

    folder = spoil(exported, tmp_path / "spoilt", change)
    done = convert("from-pytorch", "--weights", folder, "--workdir", tmp_path / "back")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    for part in (
        "1 unused arrays: adapter.weight",
        "vision/patch_norm/bias (no vision.embeddings.norm.bias)",
        "fusion.vision_norm.weight (5,) cannot fill fusion/vision_norm/scale (16,)",
        "fusion.vision_norm.bias holds int32, not floating-point numbers",
    ):
        assert part in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["spoilt"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "the command is missing; available: to-pytorch, from-pytorch, to-stablehlo, to-onnx"),
        (("to-tensorflow",), "unknown command 'to-tensorflow'; available: to-pytorch, from-pytorch"),
        (("to-pytorch", "--out", "x"), "--workdir is missing"),
        (("to-pytorch", "--workdir", "nowhere", "--out", "x"), "nowhere is not the workdir of a training run"),
        (
            ("from-pytorch", "--weights", "nowhere", "--workdir", "x"),
            "nowhere/config.json not found; --weights must be a folder that to-pytorch wrote",
        ),
    ],
)
def test_mistakes_give_a_one_line_error(arguments, message):
    done = convert(*arguments)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert message in done.stderr
    assert not (ROOT / "x").exists()


def test_a_file_that_cannot_be_written_leaves_nothing_behind(exported, tiny_workdir, tmp_path):
    full = ("-m", "s2rm_jax.convert")
    done = run_process(*full, "to-pytorch", "--workdir", tiny_workdir, "--out", tmp_path / "out", blocks=16)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert "File too large" in done.stderr and done.stderr.endswith("nothing was left there\n")
    done = run_process(*full, "from-pytorch", "--weights", exported, "--workdir", tmp_path / "out", blocks=16)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert "a checkpoint cannot be written" in done.stderr
    assert os.listdir(tmp_path) == []


def test_a_full_disk_is_reported_before_anything_is_written(exported, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    with (
        pytest.raises(UserError, match=r"cannot be written \(1 MB are needed, 0 MB are free\); nothing was left there"),
        atomic_folder(tmp_path / "out", "--workdir") as folder,
    ):
        write_workdir(exported, folder)
    assert os.listdir(tmp_path) == []


def test_help():
    done = convert("--help")
    assert done.returncode == 0 and "convert to-pytorch   --workdir" in done.stdout
