"""What somebody outside reads of a run."""

import json
import signal
from dataclasses import replace

import jax
import pytest
from etils import epath

from s2rm_jax.errors import UserError
from s2rm_jax.parallel.mesh import make_mesh
from s2rm_jax.training import heartbeat
from s2rm_jax.training.heartbeat import Heartbeat
from s2rm_jax.training.interrupt import Interrupted
from s2rm_jax.training.loop import run

MESH = make_mesh(devices=jax.devices()[:1])


@pytest.fixture
def told(monkeypatch):
    """Collects what is written, in order."""
    contents = []

    def write(path, text):
        contents.append(json.loads(text))
        path.write_text(text)

    monkeypatch.setattr(heartbeat, "write_whole", write)
    return contents


def read(workdir):
    return json.loads((workdir / "heartbeat.json").read_text())


def test_a_run_tells_what_it_does_from_start_to_end(tmp_path, standin, told):
    config = standin.make_config(steps=6, eval__every=4, checkpoint_every=4)
    parts = standin.make_parts(config, evaluate=lambda params, progress: progress(1, 1) or {"mean_iou": 1.0})
    run(config, tmp_path, parts, MESH)
    states = ["starting", "compiling", "training", "evaluating", "saving"]
    assert [beat["state"] for beat in told] == [*states, *states[2:], "finished"]
    assert [beat["step"] for beat in told] == [0, 0, 1, 4, 4, 5, 6, 6, 6]
    assert read(tmp_path).keys() == {"time", "state", "step", "steps", "host", "pid"} and read(tmp_path)["steps"] == 6
    run(config, tmp_path, parts, MESH)
    assert [beat["state"] for beat in told[9:]] == ["starting", "finished"] and told[-1]["step"] == 6


def test_how_a_run_ended(tmp_path, standin):
    config = standin.make_config(steps=6)
    parts = standin.make_parts(config)

    def stopping(examples_seen):
        signal.raise_signal(signal.SIGTERM)
        return parts.batches(examples_seen)

    with pytest.raises(Interrupted):
        run(config, tmp_path, replace(parts, batches=stopping), MESH)
    assert read(tmp_path)["state"] == "stopped"

    def broken(examples_seen):
        yield from ()
        raise UserError("image 7 is damaged")

    with pytest.raises(UserError):
        run(config, tmp_path, replace(parts, batches=broken), MESH)
    assert (read(tmp_path)["state"], read(tmp_path)["message"]) == ("failed", "image 7 is damaged")


def test_a_start_that_is_refused_leaves_the_file_of_the_run_alone(tmp_path, standin):
    config = standin.make_config(steps=3)
    run(config, tmp_path, standin.make_parts(config), MESH)
    before, lines = read(tmp_path), (tmp_path / "log" / "process_0.jsonl").read_text()
    other = standin.make_config(steps=3, optimizer__learning_rate=0.5)
    with pytest.raises(UserError, match="another configuration"):
        run(other, tmp_path, standin.make_parts(other), MESH)
    assert read(tmp_path) == before and (tmp_path / "log" / "process_0.jsonl").read_text() == lines


def test_it_is_written_at_intervals_and_at_once_when_the_state_changes(tmp_path, told, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(heartbeat.time, "monotonic", lambda: now[0])
    with Heartbeat(epath.Path(tmp_path), 100) as beating:
        for step in range(1, 26):
            now[0] += 1
            beating.beat("training", step)
        beating.beat("saving")
    assert [(beat["state"], beat["step"]) for beat in told] == [
        *(("training", step) for step in (1, 11, 21)),
        ("saving", 25),
        ("finished", 25),
    ]


def test_a_disk_on_which_it_cannot_be_written_does_not_end_the_run(tmp_path):
    with Heartbeat(epath.Path(tmp_path / "not" / "there"), 5) as beating:
        beating.beat("training", 1)
    assert not (tmp_path / "not").exists()
