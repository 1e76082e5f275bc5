"""The command train with a tiny network on synthetic scenes."""

import json
import signal
import subprocess
import sys

import numpy as np
import pytest

from tests.command import ROOT, run_command
from tests.waiting import TIMEOUT, read_metrics, wait_for

CONFIG = """
from tests.conftest import tiny_config

def get_config():
    config = tiny_config()
    config.steps, config.batch_size = 30, 4
    config.log_every, config.checkpoint_every, config.eval.every = 1, 10, 20
    config.optimizer.update({"accumulate": 2, "ema_decay": 0.9, "clip_norm": 1.0})
    return config
"""


@pytest.fixture(scope="module")
def config_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "tiny.py"
    path.write_text(CONFIG)
    return path


@pytest.fixture(scope="module")
def train(config_file, warm):
    """Start `python -m s2rm_jax.train` on a workdir; all such processes share their compiled programs.

    Python itself starts those that are not `forked`.
    """
    started = []

    def start(workdir, *more, forked):
        command = ["-m", "s2rm_jax.train", f"--config={config_file}", f"--workdir={workdir}", *more]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        process = warm(*command) if forked else subprocess.Popen([sys.executable, *command], cwd=ROOT, **pipes)
        started.append(process)
        return process

    yield start
    for process in started:  # those that a failed test left behind
        if process.poll() is None:
            process.kill()
            process.communicate()


def require_running(process):
    assert process.poll() is None, process.communicate()


def parameters(workdir):
    import jax

    from s2rm_jax.training.run import load_run

    return {
        jax.tree_util.keystr(path): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(load_run(workdir, "latest").params)
    }


def test_a_run_stopped_by_sigterm_and_continued_equals_a_straight_one(train, tmp_path):
    straight = train(tmp_path / "straight", forked=True)
    out, err = straight.communicate(timeout=TIMEOUT)
    assert straight.returncode == 0, err
    assert "Traceback" not in err
    closing = out.splitlines()[-1]
    assert closing.startswith("Trained 30 steps") and str(tmp_path / "straight") in closing
    assert "mean_iou on val" in closing

    stopped = train(tmp_path / "stopped", "--json", forked=False)
    wait_for(lambda: read_metrics(tmp_path / "stopped"), lambda: require_running(stopped))
    stopped.send_signal(signal.SIGTERM)
    out, err = stopped.communicate(timeout=TIMEOUT)
    assert stopped.returncode == 0, err
    assert "Traceback" not in err and "The same command continues." in err
    assert json.loads(out)["stopped"].startswith("Stopped after step")

    resumed = train(tmp_path / "stopped", "--json", forked=True)
    out, err = resumed.communicate(timeout=TIMEOUT)
    assert resumed.returncode == 0, err
    assert err.startswith("Continuing in")
    result = json.loads(out)
    assert result["workdir"] == str(tmp_path / "stopped") and "mean_iou" in result["metrics"]

    expected, found = parameters(tmp_path / "straight"), parameters(tmp_path / "stopped")
    assert expected.keys() == found.keys()
    for path, value in expected.items():
        np.testing.assert_array_equal(found[path], value, err_msg=path)
    assert read_metrics(tmp_path / "stopped") == read_metrics(tmp_path / "straight")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.input.train_split=trian"], "trian"),
        (["--config.optimizer.frozen=('^bert',)"], "config.optimizer.frozen: '^bert' matches no parameter"),
    ],
)
def test_mistakes_give_a_one_line_error(config_file, tmp_path, arguments, message):
    done = run_command("train", f"--config={config_file}", f"--workdir={tmp_path / 'run'}", *arguments)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ") and message in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_help_shows_an_example_and_the_flags():
    done = run_command("train", "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert "python -m s2rm_jax.train --config configs/synthetic.py" in done.stdout and "--workdir" in done.stdout
