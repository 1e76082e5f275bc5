"""Runs in processes that are killed continue as if they had not been interrupted."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from s2rm_jax.parallel.mesh import make_mesh
from s2rm_jax.training.checkpoint import Checkpoints
from s2rm_jax.training.state import plan_state

STEPS = 24
TIMEOUT = 300  # seconds; only reached if something hangs


@pytest.fixture(scope="module")
def start(standin):
    """Starts the stand-in program on a workdir; it waits some seconds for each batch."""
    started = []

    def start(workdir, seconds_per_batch):
        command = [sys.executable, standin.__file__, str(workdir), str(STEPS), str(seconds_per_batch)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        process = subprocess.Popen(command, cwd=Path(__file__).parents[2], **pipes)
        started.append(process)
        return process

    yield start
    for process in started:  # those that a failed test left behind
        if process.poll() is None:
            process.kill()
            process.communicate()


def finish(process):
    out, err = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 0, err
    return out


def wait_for(process, condition):
    end = time.monotonic() + TIMEOUT
    while not condition():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < end
        time.sleep(0.02)


def lines_in(workdir):
    path = workdir / "metrics.jsonl"
    return path.read_text().splitlines() if path.exists() else []


def final_state(standin, workdir):
    config = standin.make_config(steps=STEPS, optimizer__ema_decay=0.9, optimizer__accumulate=2)
    with Checkpoints(workdir, config.checkpoint_every, "mean_iou") as checkpoints:
        checkpoint = checkpoints.restore_latest(
            plan_state(standin.StandIn(), config, make_mesh(devices=jax.devices()[:1])).abstract
        )
    assert checkpoint is not None and checkpoint.step == STEPS
    return checkpoint.state


@pytest.fixture(scope="module")
def straight(standin, start, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("straight")
    finish(start(workdir, 0))
    return final_state(standin, workdir)


def test_killed_and_resumed_equals_straight_bitwise(tmp_path, standin, start, straight):
    """SIGKILL somewhere between checkpoints, then SIGTERM, then to the end."""
    process = start(tmp_path, 0.1)
    saved = tmp_path / "checkpoints" / "5"  # has its name once it is whole
    wait_for(process, lambda: len(lines_in(tmp_path)) >= 7 and saved.exists())
    process.kill()
    assert process.wait(TIMEOUT) == -signal.SIGKILL
    process.communicate()

    process = start(tmp_path, 0.1)
    wait_for(process, lambda: len(lines_in(tmp_path)) >= 12)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 0
    assert int(out.split("from step ")[1].split()[0]) in (5, 10)
    assert "SIGTERM: saving after this step" in err and "The same command continues." in err
    assert "Traceback" not in err

    out = finish(start(tmp_path, 0))
    stopped_at = int(out.split("from step ")[1].split()[0])
    assert 12 <= stopped_at < STEPS  # nothing that was reached before the SIGTERM is lost
    state = final_state(standin, tmp_path)
    assert jax.tree.structure(state) == jax.tree.structure(straight)
    jax.tree.map(np.testing.assert_array_equal, state, straight)
    assert [line.split(",")[0] for line in lines_in(tmp_path)] == [f'{{"step": {i}' for i in range(1, STEPS + 1)]


def test_ctrl_c_saves_and_a_second_one_stops_at_once(tmp_path, start, straight):
    process = start(tmp_path / "once", 0.1)
    wait_for(process, lambda: len(lines_in(tmp_path / "once")) >= 2)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 0
    assert "Stopped after step" in err and "Traceback" not in err
    assert list((tmp_path / "once" / "checkpoints").iterdir())

    process = start(tmp_path / "twice", 30.0)
    assert any("waiting 30.0 s for a batch" in line for line in process.stdout)  # asked before, it would stop in order
    process.send_signal(signal.SIGINT)
    # Two signals before Python looks would be one: the second waits until the first was heard.
    assert any("SIGINT: saving" in line for line in process.stderr)
    asked = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 128 + signal.SIGINT and time.monotonic() - asked < 15
    assert "stopped at once" in err and "Traceback" not in err
    assert not list((tmp_path / "twice" / "checkpoints").iterdir())
