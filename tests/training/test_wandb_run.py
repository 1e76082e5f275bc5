"""Weights & Biases: enabled by the configuration, one run per workdir."""

import contextlib
import importlib.util
import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
from etils import epath

from s2rm_jax.config import default_config
from s2rm_jax.errors import UserError
from s2rm_jax.io import JsonLines
from s2rm_jax.training import logging as training_logging
from s2rm_jax.training.interrupt import Interrupted
from s2rm_jax.training.logging import MetricsWriter, TensorBoardFiles, WandbRun, require_wandb
from s2rm_jax.training.loop import check_before_start
from tests.command import ROOT


@pytest.fixture
def config():
    config = default_config()
    config.wandb_project = "referring"
    return config


class StandIn:
    """In place of the package: keeps what it is told."""

    class Error(Exception):
        pass

    def __init__(self):
        self.runs, self.said = [], []
        self.Settings = dict
        self.define_metric = lambda *names, **given: None
        self.log = self.said.append

    def finish(self, exit_code):
        self.said.append(exit_code)

    def init(self, **given):
        self.runs.append(given)
        return self


@pytest.fixture
def standin(monkeypatch):
    module = StandIn()
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def test_a_run_continues_under_its_id(standin, config, tmp_path):
    with MetricsWriter(tmp_path, config) as writer:
        writer.write(5, "train", {"loss": 1.5})
    with MetricsWriter(tmp_path, config, step=5) as writer:
        writer.write(6, "val", {"mean_iou": 50.0})
    assert standin.said == [{"step": 5, "train/loss": 1.5}, 0, {"step": 6, "val/mean_iou": 50.0}, 0]
    assert standin.runs[0]["id"] == standin.runs[1]["id"] == (tmp_path / "wandb_run.txt").read_text().strip()
    for run in standin.runs:
        assert (run["project"], run["name"]) == ("referring", tmp_path.name)
        assert run["config"]["fusion"]["width"] == config.fusion.width


@pytest.mark.parametrize(
    ("raised", "code"), [(Interrupted("stopped", signal.SIGTERM), 0), (UserError("the loss is nan"), 1)]
)
def test_a_run_is_marked_by_how_it_ends(standin, config, tmp_path, raised, code):
    with pytest.raises(type(raised)), MetricsWriter(tmp_path, config):
        raise raised
    assert standin.said == [code]


def test_an_error_of_wandb_is_reported_in_one_line(standin, config, tmp_path):
    def refuse(**_):
        raise standin.Error("No API key configured.\nUse `wandb login`.")

    standin.init = refuse
    with pytest.raises(UserError, match=r"wandb failed: No API key configured\. Use .* WANDB_MODE=offline") as told:
        MetricsWriter(tmp_path, config)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("mode", ["online", "offline", "disabled"])
def test_a_missing_login_is_an_error_at_the_start_unless_offline(standin, config, monkeypatch, mode):
    def refuse(**_):
        raise standin.Error("No API key configured.\nUse `wandb login`.")

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    standin.setup, standin.login = lambda _: SimpleNamespace(settings=SimpleNamespace(mode=mode)), refuse
    message = r"config\.wandb_project=referring: wandb failed: No API key configured\. .* WANDB_MODE=offline"
    with pytest.raises(UserError, match=message) if mode == "online" else contextlib.nullcontext():
        check_before_start(config)
    config.wandb_project = ""
    standin.setup = None
    check_before_start(config)


def noted(monkeypatch, kind, then):
    """Has `then` called after each close of a kind."""
    close = kind.close

    def close_and_note(self, *given):
        close(self, *given)
        then(kind)

    monkeypatch.setattr(kind, "close", close_and_note)


def test_what_was_opened_is_closed_when_a_later_part_fails(standin, config, tmp_path, monkeypatch):
    closed = []
    for kind in (JsonLines, TensorBoardFiles):
        noted(monkeypatch, kind, lambda kind: closed.append(kind.__name__))

    def fail(*names, **given):
        raise OSError("disk full")

    standin.define_metric = fail
    with pytest.raises(OSError, match="disk full"):
        MetricsWriter(tmp_path, config)
    assert standin.said == [1]  # the run that had begun is marked as failed
    assert sorted(closed) == ["JsonLines", "TensorBoardFiles"]


def test_all_are_closed_where_one_cannot_be(standin, config, tmp_path, monkeypatch):
    def fail(_):
        raise OSError("disk full")

    for kind in (JsonLines, TensorBoardFiles):
        noted(monkeypatch, kind, fail)
    with pytest.raises(OSError, match="disk full"), MetricsWriter(tmp_path, config):
        pass
    assert standin.said == [0]


def test_on_a_bucket_what_wandb_keeps_goes_with_the_process(standin, config, tmp_path, monkeypatch):
    monkeypatch.setattr(training_logging, "on_bucket", lambda path: True)
    WandbRun(epath.Path(tmp_path), config).close(failed=False)
    init, standin.init = standin.init, None
    with pytest.raises(TypeError):
        WandbRun(epath.Path(tmp_path), config)
    standin.init, standin.finish = init, None
    with pytest.raises(TypeError):
        WandbRun(epath.Path(tmp_path), config).close(failed=False)
    folders = [run["dir"] for run in standin.runs]
    assert len(folders) == 2 and not any(map(os.path.exists, folders))


def test_a_missing_package_is_reported_at_the_start(config, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"wandb is not installed: pip install -e '\.\[wandb\]'"):
        require_wandb(config)
    require_wandb(default_config())


def test_the_real_package_without_a_login(tmp_path):
    pytest.importorskip("wandb", reason="the extra 'wandb' is not installed")
    code = """
from s2rm_jax.config import default_config
from s2rm_jax.training.logging import require_wandb
config = default_config()
config.wandb_project = "referring"
require_wandb(config)
"""
    own = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    own |= {"HOME": str(tmp_path), "NETRC": str(tmp_path / "netrc"), "WANDB_CONFIG_DIR": str(tmp_path)}
    for key, status, last in (("", 1, "No API key configured"), (40 * "a", 0, "")):
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=own | ({"WANDB_API_KEY": key} if key else {}),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            cwd=ROOT,
        )
        assert done.returncode == status and last in done.stderr and bool(last) == bool(done.stderr + done.stdout)
    assert not (tmp_path / "netrc").exists()


def test_the_real_package_offline(tmp_path):
    pytest.importorskip("wandb", reason="the extra 'wandb' is not installed")
    code = f"""
import os, sys
os.environ["WANDB_MODE"] = "offline"
from s2rm_jax.config import default_config
from s2rm_jax.training.logging import MetricsWriter, require_wandb
config = default_config()
require_wandb(config)
assert "wandb" not in sys.modules
config.wandb_project = "referring"
require_wandb(config)
for step in (0, 5):
    with MetricsWriter({str(tmp_path)!r}, config, step) as writer:
        writer.write(step + 5, "train", {{"loss": 1.5}})
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    run_id = (tmp_path / "wandb_run.txt").read_text().strip()
    kept = sorted(tmp_path.glob(f"wandb/offline-run-*-{run_id}/run-{run_id}.wandb"))
    assert kept and b"train/loss" in b"".join(path.read_bytes() for path in kept)
