"""Runs in processes that are killed continue as if they had not been interrupted."""

import signal

import jax
import numpy as np
import pytest

from s2rm_jax.parallel.mesh import make_mesh
from s2rm_jax.training.checkpoint import Checkpoints
from s2rm_jax.training.state import plan_state
from tests.waiting import wait_for

STEPS = 24
TIMEOUT = 300  # seconds; only reached if something hangs


@pytest.fixture(scope="module")
def start(standin, warm):
    """Start the stand-in program on a workdir; with a gate, it reads the batches that `standin.allow` allows."""
    started = []

    def start(workdir, gate=None):
        if gate:
            gate.touch()
        other_hashes = len(started) % 2  # of strings than the process before
        process = warm(standin.__file__, workdir, STEPS, *([gate] if gate else []), server=other_hashes)
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


def require_running(process):
    assert process.poll() is None, process.stderr.read()


def read_to(stream, text):
    """Return the lines of a stream up to the one that contains `text`."""
    lines = []
    for line in stream:
        lines.append(line)
        if text in line:
            return "".join(lines)
    raise AssertionError("".join(lines))


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
    finish(start(workdir))
    return final_state(standin, workdir)


def test_killed_and_resumed_equals_straight_bitwise(tmp_path, standin, start, straight):
    """SIGKILL between checkpoints, then SIGTERM, then to the end."""
    workdir = tmp_path / "run"
    process = start(workdir, tmp_path / "first")
    standin.allow(tmp_path / "first", 7)
    read_to(process.stdout, "waiting for batch 8")
    saved = workdir / "checkpoints" / "5"  # has its name once it is complete
    wait_for(saved.exists, lambda: require_running(process), seconds=TIMEOUT)
    assert len(lines_in(workdir)) == 7
    process.kill()
    assert process.wait(TIMEOUT) == -signal.SIGKILL
    process.communicate()

    process = start(workdir, tmp_path / "second")
    standin.allow(tmp_path / "second", 7)
    begin = read_to(process.stdout, "waiting for batch 8")  # before, a signal could stop it a step earlier
    process.send_signal(signal.SIGTERM)
    err = read_to(process.stderr, "SIGTERM: saving after this step")
    standin.allow(tmp_path / "second")
    _, rest = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 0
    assert "from step 5 of" in begin and "Stopped after step 13 of" in rest and "The same command continues." in rest
    assert "Traceback" not in err + rest

    assert "from step 13 of" in finish(start(workdir))  # nothing that was reached before the SIGTERM is lost
    state = final_state(standin, workdir)
    assert jax.tree.structure(state) == jax.tree.structure(straight)
    jax.tree.map(np.testing.assert_array_equal, state, straight)
    assert [line.split(",")[0] for line in lines_in(workdir)] == [f'{{"step": {i}' for i in range(1, STEPS + 1)]


def test_ctrl_c_saves_and_a_second_one_stops_at_once(tmp_path, standin, start):
    process = start(tmp_path / "once", tmp_path / "gate")
    standin.allow(tmp_path / "gate", 3)
    read_to(process.stdout, "waiting for batch 4")
    process.send_signal(signal.SIGINT)
    err = read_to(process.stderr, "SIGINT: saving")
    standin.allow(tmp_path / "gate")
    _, rest = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 0
    assert "Stopped after step 4 of" in rest and "Traceback" not in err + rest
    assert list((tmp_path / "once" / "checkpoints").iterdir())

    process = start(tmp_path / "twice", tmp_path / "closed")
    read_to(process.stdout, "waiting for batch 1")  # before, a signal would stop it without being asked twice
    process.send_signal(signal.SIGINT)
    # Two signals before Python handles the first would count as one.
    err = read_to(process.stderr, "SIGINT: saving")
    process.send_signal(signal.SIGINT)
    _, rest = process.communicate(timeout=TIMEOUT)  # it would wait for its batch for ever
    assert process.returncode == 128 + signal.SIGINT
    assert "stopped at once" in rest and "Traceback" not in err + rest
    assert not list((tmp_path / "twice" / "checkpoints").iterdir())
