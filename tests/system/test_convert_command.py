"""The command convert, with a trained tiny run."""

import importlib.util
import json
import os
import shutil
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file, save_file

from s2rm_jax.convert import write_workdir
from s2rm_jax.errors import UserError
from s2rm_jax.evaluation.calibration import Calibration
from s2rm_jax.io import atomic_folder
from s2rm_jax.training.run import load_run, save_calibration
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
    assert f"Read the weights of {exported}/model.safetensors\n" in done.stdout
    jax.tree.map(np.testing.assert_array_equal, load_run(back).params, load_run(tiny_workdir).params)
    assert (back / "config.json").read_text() == (tiny_workdir / "config.json").read_text()

    assert convert("to-pytorch", "--workdir", back, "--out", again).returncode == 0
    for name in ("model.safetensors", "config.json", "vocab.txt"):
        assert (again / name).read_bytes() == (exported / name).read_bytes()


def test_the_calibration_of_other_weights_is_not_kept(exported, tiny_workdir, tmp_path):
    folder = shutil.copytree(exported, tmp_path / "calibrated")
    save_calibration(folder, Calibration(0.5, -1.0))
    done = convert("from-pytorch", "--weights", folder, "--workdir", tmp_path / "back")
    assert done.returncode == 0 and "scores are no longer calibrated" in done.stdout + done.stderr
    assert (tmp_path / "back" / "config.json").read_text() == (tiny_workdir / "config.json").read_text()


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
        "1 unused array: adapter.weight",
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
        (("to-pytorch", "--workdir", "nowhere", "--out", "x"), "folder nowhere not found; check the path"),
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


def test_a_file_that_cannot_be_written_leaves_nothing_behind(warm, exported, tiny_workdir, tmp_path):
    full = ("-m", "s2rm_jax.convert")
    done = run_process(*full, "to-pytorch", "--workdir", tiny_workdir, "--out", tmp_path / "out", blocks=16)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert "File too large" in done.stderr and done.stderr.endswith("; give another --out\n")
    done = warm.run(*full, "from-pytorch", "--weights", exported, "--workdir", tmp_path / "out", blocks=16)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert "a checkpoint cannot be written" in done.stderr
    assert os.listdir(tmp_path) == []


def test_a_full_disk_is_reported_before_anything_is_written(exported, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    with (
        pytest.raises(UserError, match=r"\(1 MB are needed, 0 MB are free\); free space there, or give another --work"),
        atomic_folder(tmp_path / "out", "--workdir") as folder,
    ):
        write_workdir(exported, folder)
    assert os.listdir(tmp_path) == []


REPORT = {
    "source": "refer",
    "dataset": "refcoco",
    "split_by": "unc",
    "root": "/home/anna/data",
    "split": "testA",
    "protocol": "lavt480",
    "images": 750,
    "limit": None,
    "step": 2,
    "definitions": "Protocol lavt480: as LAVT.",
    "remarks": [],
    "all": {"overall_iou": 72.345, "mean_iou": 74.0, "interval_95": {"overall_iou": [71.0, 73.5]}},
}


@pytest.fixture
def reported(tiny_workdir, tmp_path):
    """A copy of the run with reports on its checkpoint, on another one, and a damaged one."""
    workdir = tmp_path / "reported"
    shutil.copytree(tiny_workdir, workdir)
    config = json.loads((workdir / "config.json").read_text())
    config["text"]["pretrained"] = "/home/anna/weights/bert.safetensors"
    (workdir / "config.json").write_text(json.dumps(config))
    reports = {"eval-testA": REPORT, "eval-testB": REPORT | {"split": "testB", "step": 1}, "eval-val": ["damaged"]}
    for name, content in reports.items():
        (workdir / name).mkdir(exist_ok=True)
        (workdir / name / "metrics.json").write_text(json.dumps(content))
    return workdir


def test_a_folder_for_the_hub_and_its_model_card(reported, exported, tmp_path):
    out = tmp_path / "net"
    done = convert("to-hub", "--workdir", reported, "--out", out)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith(f"Next: hf upload USER/net {out}\n")
    assert {path.name for path in out.iterdir()} == {path.name for path in exported.iterdir()} | {"README.md"}
    for name in ("model.safetensors", "vocab.txt", "preprocessing.json", "torch_model.py"):
        assert (out / name).read_bytes() == (exported / name).read_bytes()
    for name in ("README.md", "config.json"):
        assert "anna" not in (out / name).read_text()
    assert json.loads((out / "config.json").read_text())["text"]["pretrained"] == "bert.safetensors"
    jax.tree.map(np.testing.assert_array_equal, load_run(out).params, load_run(reported).params)

    card = (out / "README.md").read_text()
    front = yaml.safe_load(card.split("---\n")[1])
    assert front["pipeline_tag"] == "image-segmentation" and "license" not in front
    assert "| refcoco unc | testA | lavt480 | oIoU | 72.34 | 71.00 to 73.50 | 750 |" in card.replace("\\_", "_")
    assert "| mIoU | 74.00 |" in card and "testB" not in card and "Protocol lavt480: as LAVT." in card
    for part in ('Segmenter.from_checkpoint("USER/net")', 'S2RMModel.from_pretrained("USER/net")', "step 2 of 2"):
        assert part in card
    assert 'sys.path.insert(0, "net")' in card  # torch_model.py is in the downloaded folder
    assert "text from bert.safetensors" in card and "Weights: not stated by the author." in card


def test_a_network_is_uploaded_and_loaded_by_its_name(hub, tiny_workdir, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_token")
    workdir = shutil.copytree(tiny_workdir, tmp_path / "run", ignore=shutil.ignore_patterns("eval-*"))  # of other tests
    flags = ("--workdir", workdir, "--repo", "anna/net")
    done = convert("to-hub", *flags, "--out", tmp_path / "out", "--license", "apache-2.0")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{hub.url}/anna/net holds the network")
    uploaded = hub.repositories["anna/net"]["main"]
    assert uploaded == {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    card = uploaded["README.md"].decode()
    assert yaml.safe_load(card.split("---\n")[1])["license"] == "apache-2.0" and "\nNot measured.\n" in card
    jax.tree.map(np.testing.assert_array_equal, load_run("hf://anna/net").params, load_run(tiny_workdir).params)

    torch = pytest.importorskip("torch")
    name = "torch_model_of_the_folder"
    specification = importlib.util.spec_from_file_location(name, tmp_path / "out" / "torch_model.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    monkeypatch.chdir(tmp_path)
    weights = load_file(tmp_path / "out" / "model.safetensors")
    for name in ("anna/net", "hf://anna/net@main"):
        found = module.S2RMModel.from_pretrained(name).state_dict()
        assert found.keys() == weights.keys()
        assert all(torch.equal(found[key], torch.from_numpy(value)) for key, value in weights.items())
    for name in ("anna/nothing", "hf://anna/net@v9"):
        with pytest.raises(module.LoadError, match=rf"^{name} is neither a folder nor can it be downloaded .*\)\.$"):
            module.S2RMModel.from_pretrained(name)


@pytest.mark.parametrize(
    ("repo", "token", "status", "message", "code"),
    [
        ("net", "hf_token", 0, "--repo: net is not the name of a repository; give USER/NAME", 2),
        ("anna/net@main", "hf_token", 0, "--repo: anna/net@main is not the name of a repository", 2),
        ("anna/net", "", 0, "no such repository is visible; check the name, or log in with `hf auth login`; then", 2),
        ("anna/net", "hf_token", 403, "access is refused", 2),
        ("anna/net", "hf_token", 500, "run `hf upload anna/net ", 75),
    ],
)
def test_an_upload_that_fails(hub, tiny_workdir, tmp_path, monkeypatch, repo, token, status, message, code):
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no token"))
    monkeypatch.setenv("HF_TOKEN", token)
    hub.status = status
    done = convert("to-hub", "--workdir", tiny_workdir, "--out", tmp_path / "out", "--repo", repo)
    assert (done.returncode, done.stderr.count("\n")) == (code, 1)
    assert done.stderr.startswith("error: --repo: ") and message in done.stderr
    assert not hub.repositories
    if "is not the name" not in message:
        assert f"{tmp_path / 'out'} is complete, but cannot be uploaded to {repo}" in done.stderr
        assert f"run `hf upload {repo} {tmp_path / 'out'}`" in done.stderr and "same command" not in done.stderr
        assert (tmp_path / "out" / "README.md").is_file()


def test_the_command_that_repeats_an_upload_keeps_the_repository_private(hub, tiny_workdir, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_token")
    hub.status, out = 500, tmp_path / "my net"
    done = convert("to-hub", "--workdir", tiny_workdir, "--out", out, "--repo", "anna/net", "--private")
    assert done.returncode == 75 and done.stderr.endswith(f"run `hf upload anna/net '{out}' --private` later\n")


def test_a_public_repository_does_not_receive_a_private_network(hub, tiny_workdir, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_token")
    hub.repositories["anna/net"] = {"main": {"README.md": b"public"}}
    for repo, status in (("anna/net", 2), ("anna/new", 0)):
        out = tmp_path / repo.split("/")[1]
        done = convert("to-hub", "--workdir", tiny_workdir, "--out", out, "--repo", repo, "--private")
        assert done.returncode == status, done.stderr
        assert (
            status == 0 or "complete, but anna/net exists and is public; make it private in its settings" in done.stderr
        )
    assert list(hub.repositories["anna/net"]["main"]) == ["README.md"]
    assert "model.safetensors" in hub.repositories["anna/new"]["main"] and hub.private == {"anna/new"}


def test_flags_of_another_subcommand_are_refused(tiny_workdir, tmp_path):
    done = convert("to-onnx", "--workdir", tiny_workdir, "--out", tmp_path / "out", "--repo=anna/net", "--private")
    assert (done.returncode, done.stderr) == (2, "error: to-onnx does not take --repo, --private (see --help)\n")
    assert not (tmp_path / "out").exists()


def test_help():
    done = convert("--help")
    assert done.returncode == 0 and "convert to-pytorch   --workdir" in done.stdout
