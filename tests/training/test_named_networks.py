"""Networks on the Hugging Face Hub are loaded by their name, and each failure is one line."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from huggingface_hub import constants

from s2rm_jax.errors import TemporaryFailure, UserError
from s2rm_jax.interop.torch_folder import write_pytorch
from s2rm_jax.segmenter import Segmenter
from s2rm_jax.training.run import find_run, load_run
from tests.command import run_command


@pytest.fixture(scope="module")
def folder(tiny_workdir, tmp_path_factory):
    """A folder of weights as `convert to-pytorch` writes it."""
    folder = tmp_path_factory.mktemp("weights")
    write_pytorch(load_run(tiny_workdir), tiny_workdir / "config.json", folder)
    return folder


@pytest.fixture
def network(hub, folder, tmp_path, monkeypatch):
    """The network anna/net on the Hub, seen from an empty folder."""
    hub.repositories["anna/net"] = {"main": {path.name: path.read_bytes() for path in folder.iterdir()}}
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return hub


def is_same(run, folder):
    jax.tree.map(np.testing.assert_array_equal, run.params, load_run(folder).params)
    return True


@pytest.mark.parametrize("name", ["anna/net", "hf://anna/net", "anna/net@main", "hf://anna/net@main"])
def test_only_the_needed_files_are_downloaded_and_only_once(network, folder, name):
    assert is_same(load_run(name), folder)
    assert sorted(network.downloads) == ["config.json", "model.safetensors", "vocab.txt"]
    assert is_same(load_run(name), folder)
    assert Segmenter.from_checkpoint(name).segment(np.zeros((8, 8, 3), np.uint8), "red").masks.shape == (1, 8, 8)
    assert len(network.downloads) == 3


@pytest.mark.parametrize(
    "source", [{"name": "scenes:Mine"}, {"name": "mixture", "parts": {"a": {"name": "scenes:Mine"}}}]
)
def test_a_network_on_the_hub_does_not_choose_what_is_imported(network, source):
    Path("scenes.py").write_text("raise SystemExit('imported')\n")
    files = network.repositories["anna/net"]["main"]
    config = json.loads(files["config.json"])
    config["input"]["source"] = source
    files["config.json"] = json.dumps(config).encode()
    assert load_run("anna/net").config.input.source.to_dict() == {"name": ""}
    for command, *arguments in (["predict", "--out=out"], ["evaluate", "--split=val", "--out=out"]):
        result = run_command(command, "--workdir=anna/net", *arguments, cwd=Path.cwd())
        assert result.returncode == 2 and "imported" not in result.stderr
        assert "config.input.source.name is ''" in result.stderr


def test_a_folder_of_weights_has_no_steps_to_choose_from(folder):
    with pytest.raises(UserError, match="is a folder of weights, without checkpoints; step 2 cannot be chosen"):
        load_run(folder, 2)


def test_a_revision_is_a_branch_a_tag_or_a_commit(network, folder):
    other = dict(network.repositories["anna/net"]["main"])
    other["config.json"] = other["config.json"].replace(b'"batch_size": 2', b'"batch_size": 7')
    network.repositories["anna/net"]["refs/pr/1"] = other
    commit, _ = network.find("anna/net", "refs/pr/1")
    assert load_run("anna/net").config.batch_size == 2
    for revision in ("refs/pr/1", commit):
        assert load_run(f"anna/net@{revision}").config.batch_size == 7
    with pytest.raises(
        UserError, match=r"^anna/net@v9: .*: there is no such revision; give a branch, a tag or a commit"
    ):
        load_run("anna/net@v9")


def test_a_local_folder_comes_first_but_not_before_the_scheme(network, folder):
    shutil.copytree(folder, "anna/net")
    network.repositories["anna/net"]["main"]["config.json"] = b"{}"
    assert is_same(load_run("anna/net"), folder) and not network.downloads
    with pytest.raises(UserError, match=r"^hf://anna/net: .*is not a configuration of s2rm_jax"):
        load_run("hf://anna/net")


@pytest.mark.parametrize("why", ["offline", "no network", "out of order"])
def test_without_the_hub_the_cache_is_used(network, folder, monkeypatch, why):
    def cut_off():
        if why == "offline":
            monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        elif why == "no network":
            monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
        else:
            network.status = 503

    with monkeypatch.context() as patch:
        patch.setattr(constants, "HF_HUB_CACHE", "another")
        load_run("anna/net")
    cut_off()
    message = {
        "offline": "it is not in the cache, and HF_HUB_OFFLINE forbids downloading; unset it",
        "no network": "([Errno 111] Connection refused): run the same command again later",
        "out of order": "run the same command again later",
    }
    with pytest.raises(UserError) as caught:
        load_run("anna/net")
    assert str(caught.value).startswith(
        "anna/net: there is no such folder, and it cannot be downloaded from the Hugging"
    )
    assert str(caught.value).endswith(message[why]) and "\n" not in str(caught.value)
    assert not isinstance(caught.value, TemporaryFailure)  # most likely a mistyped folder
    with pytest.raises(UserError) as caught:
        load_run("hf://anna/net")
    assert isinstance(caught.value, TemporaryFailure) == (why != "offline")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", "another")
    assert is_same(load_run("hf://anna/net"), folder)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hf://anna/nothing", "no such repository is visible; check the name, or log in with `hf auth login`"),
        ("runs/mistyped", "there is no such folder, and it cannot be downloaded from the Hugging Face Hub: no such"),
        ("hf://anna", "is not a name on the Hugging Face Hub: give hf://USER/NAME or hf://USER/NAME@REVISION"),
        ("hf://anna/net/more", "is not a name on the Hugging Face Hub"),
        ("hf://anna/net@", "is not a name on the Hugging Face Hub"),
        ("hf://", "is not a name on the Hugging Face Hub"),
        ("hf://anna/a--b..c", "cannot be downloaded from the Hugging Face Hub"),
        ("runs/a/b", "folder runs/a/b not found; check the path"),
    ],
)
def test_wrong_names(network, name, message):
    with pytest.raises(UserError) as caught:
        load_run(name)
    assert name in str(caught.value)[:20] and message in str(caught.value) and "\n" not in str(caught.value)


WRONG_WORKDIRS = """
from s2rm_jax.training.run import find_run

for workdir in (None, 5, ""):
    try:
        find_run(workdir)
    except Exception as error:
        print(f"{type(error).__name__}: {error}")
"""


def test_a_workdir_of_another_type():
    """In a process of its own, because types are checked by the tests, but not where the package is used."""
    done = subprocess.run([sys.executable, "-c", WRONG_WORKDIRS], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "UserError: a workdir must be a path or a name on the Hub, got NoneType; give a string",
        "UserError: a workdir must be a path or a name on the Hub, got int; give a string",
        "UserError: the workdir is empty; give the folder of a run",
    ]


@pytest.mark.parametrize("status", [401, 403])
def test_a_gated_network(network, tmp_path, status):
    network.refused["anna/net"] = status
    with pytest.raises(
        UserError, match=r"access is refused; ask for it on the page of the repository, and log in with"
    ):
        load_run("hf://anna/net")
    assert not list(tmp_path.glob("cache/**/snapshots/*/*"))


def test_a_cache_that_cannot_be_written(network, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"its cache cannot be written \(Not a directory\); set HF_HOME to"):
        load_run("hf://anna/net")


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "vocab.txt"])
def test_a_missing_file(network, file):
    del network.repositories["anna/net"]["main"][file]
    with pytest.raises(UserError, match=rf"^hf://anna/net: the repository on the Hugging Face Hub has no {file}; give"):
        load_run("hf://anna/net")


def test_a_download_that_is_cut_leaves_no_file(network, folder, tmp_path):
    network.cut.add("model.safetensors")
    with pytest.raises(UserError) as caught:
        load_run("hf://anna/net")
    assert "cannot be downloaded" in str(caught.value) and "\n" not in str(caught.value)
    assert not list(tmp_path.glob("cache/**/model.safetensors"))
    network.cut.clear()
    assert is_same(load_run("hf://anna/net"), folder)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "vocab.txt"])
def test_a_damaged_file(network, folder, tmp_path, file):
    sound = network.repositories["anna/net"]["main"][file]
    network.repositories["anna/net"]["main"][file] = bytes(len(sound))
    with pytest.raises(UserError) as caught:
        load_run("anna/net")
    cache = tmp_path / "cache" / "models--anna--net"
    assert str(caught.value).startswith("anna/net: ") and "\n" not in str(caught.value)
    assert str(caught.value).endswith(f"To download it again, delete {cache}.")
    with pytest.raises(UserError, match=rf"To download it again, delete {cache}\.$"):
        load_run(find_run("anna/net"))  # as `predict` and `evaluate` do
    network.repositories["anna/net"]["main"][file] = sound
    shutil.rmtree(cache)
    assert is_same(load_run("anna/net"), folder)


def test_commands_take_names(network, tiny_workdir, monkeypatch):
    asked, find = [], network.find
    monkeypatch.setattr(network, "find", lambda name, revision: asked.append(revision) or find(name, revision))
    done = run_command("predict", "--workdir", "hf://anna/net", "--out", "masks", cwd=".")
    assert (done.returncode, done.stderr) == (0, "")
    assert asked.count("main") == 1  # another revision between two look-ups would give a mixture
    local = run_command("predict", "--workdir", tiny_workdir, "--out", "local", cwd=".")
    assert local.returncode == 0
    results = [json.loads(Path(out, "result.json").read_text())["results"] for out in ("masks", "local")]
    assert results[0] == results[1]

    done = run_command("evaluate", "--workdir", "anna/net", cwd=".")
    assert done.returncode == 2 and done.stderr.startswith(
        "error: --out is missing: anna/net is on the Hugging Face Hub"
    )
    done = run_command(
        "evaluate", "--workdir", "hf://anna/net@main", "--out", "report", "--limit", 2, "--gallery", 0, cwd="."
    )
    assert (done.returncode, done.stderr) == (0, "")
    content = json.loads(Path("report/metrics.json").read_text())
    assert (content["workdir"], content["step"]) == ("hf://anna/net@main", None)

    done = run_command("convert", "from-pytorch", "--weights", "anna/net", "--workdir", "back", cwd=".")
    assert (done.returncode, done.stderr) == (0, "")
    assert is_same(load_run("back"), tiny_workdir)
    done = run_command("convert", "to-pytorch", "--workdir", "anna/net@main", "--out", "again", cwd=".")
    assert (done.returncode, done.stderr) == (0, "")

    done = run_command("predict", "--workdir", "hf://anna/nothing", "--out", "nothing", cwd=".")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "no such repository is visible" in done.stderr
    done = run_command("convert", "to-pytorch", "--workdir", "hf://anna/nothing", "--out", "nothing", cwd=".")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    done = run_command("train", "--config", "synthetic:smoke", "--workdir", "hf://anna/net", cwd=".")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
