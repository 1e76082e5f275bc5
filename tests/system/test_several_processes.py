"""Several processes on the CPU train, evaluate, save and stop as one does; only the network is a stand-in."""

import os
import re
import shutil
import signal
from pathlib import Path

import pytest

from tests.waiting import read_metrics

CONFIG = '''
"""Very small scenes."""
from ml_collections import ConfigDict
from s2rm_jax.config import default_config

def get_config():
    config = default_config()
    config.steps, config.batch_size = 12, 8
    config.log_every, config.checkpoint_every = 1, 4
    config.eval.update({"every": 12, "limit": 7, "batch_size": 4})
    config.input.source = ConfigDict({"name": "synthetic", "image_size": (48, 64), "expressions_per_scene": 3})
    config.input.image_size = (16, 16)
    config.input.expressions_per_image = 2
    config.input.augment.flip = 0.5
    config.text.update({"vocab_size": 128, "max_tokens": 18})
    config.optimizer.update({"ema_decay": 0.9, "clip_norm": 1.0, "learning_rate": 0.01})
    return config
'''
STEPS, EVERY = 12, 4
COMMANDS_SCRIPT = Path(__file__).with_name("small_commands.py")
NOT_OURS = re.compile(r"\[Gloo\]|[WIEF]\d{4} \d\d:\d\d:")  # lines that JAX prints begin with the month and the day


@pytest.fixture(scope="module")
def start(processes, warm, tmp_path_factory):
    """Start `count` processes of a command with `devices` devices each on a workdir."""
    shared = tmp_path_factory.mktemp("shared")
    (shared / "small.py").write_text(CONFIG)
    environment = {
        "PYTHONPATH": str(processes.ROOT),
    }

    def start(workdir, count, devices=1, *, command="train", arguments=(), gate=None, forked=True, **variables):
        configured = [f"--config={shared / 'small.py'}"] if command == "train" else []
        words = [str(COMMANDS_SCRIPT), command, f"--workdir={workdir}", *configured, *arguments]
        return processes.Processes(warm if forked else None, count, words, environment | variables, devices, gate)

    return start


def long_case(*values):
    return pytest.param(*values, marks=pytest.mark.long)


def trace(workdir):
    """Return the training metrics of each step, except those that depend on the clock."""
    return {line["step"]: line for line in read_metrics(workdir) if "train/loss" in line}


def assert_same_trace(workdir, other, steps=range(1, STEPS + 1)):
    found, expected = trace(workdir), trace(other)
    assert set(steps) <= found.keys() and set(steps) <= expected.keys()
    for step in steps:
        assert found[step] == pytest.approx(expected[step], rel=1e-5), step


def saved(workdir):
    return sorted(int(path.name) for path in (workdir / "checkpoints").glob("[0-9]*") if path.name.isdigit())


def own_lines(text):
    return [line for line in text.splitlines() if line and not NOT_OURS.match(line)]


@pytest.mark.parametrize("date", ["0101", "0930", "1231"])
def test_lines_of_jax_are_told_from_ours_in_every_month(date):
    lines = ["[Gloo] Rank 0 is connected", f"W{date} 00:00:01.5 7 coordination.cc:1] slow", "W1 is a word"]
    assert own_lines("\n".join(lines)) == lines[2:]


@pytest.fixture(scope="module")
def straight(start, tmp_path_factory):
    """The workdir of one process with eight devices that was not interrupted."""
    workdir = tmp_path_factory.mktemp("straight")
    with start(workdir, 1, 8) as running:
        running.succeed()
    return workdir


@pytest.fixture(scope="module")
def stopped(start, tmp_path_factory):
    """The workdir of two processes that were stopped by a SIGTERM to one, and again by a Ctrl-C to the other."""
    folder = tmp_path_factory.mktemp("stopped")
    workdir, steps = folder / "run", [0]
    for index, signum, status in ((1, signal.SIGTERM, 143), (0, signal.SIGINT, 0)):
        with start(workdir, 2, gate=folder / signum.name, S2RM_STOPPED_STATUS=str(status)) as running:
            running.allow(2)  # the metrics of the first are written after the second step
            running.wait_for(lambda: max(trace(workdir), default=0) > steps[-1])
            running.signal(index, signum)
            request = f"{signum.name}: saving after this step"
            running.wait_for(lambda index=index, request=request: request in running.running[index].output())
            running.allow()
            ended = running.finish()
        stopped = [[line for line in err.splitlines() if line.startswith("Stopped after step")] for _, _, err in ended]
        assert [one for one, _, _ in ended] == [status, status], ended
        assert len(stopped[0]) == 1 and stopped[0] == stopped[1]  # the same step
        assert all("Traceback" not in err for _, _, err in ended)
        steps.append(int(stopped[0][0].split()[3]))
        assert steps[-1] == max(saved(workdir))
    assert 1 <= steps[1] < steps[2] < STEPS
    return workdir


@pytest.mark.parametrize(("count", "devices", "fsdp"), [(2, 2, 4), long_case(4, 1, 1)])
def test_several_processes_log_the_metrics_of_one(start, straight, tmp_path, count, devices, fsdp):
    """These are started by Python itself."""
    with start(tmp_path, count, devices, arguments=[f"--config.mesh.fsdp={fsdp}"], forked=False) as running:
        first, *others = running.succeed()
    assert_same_trace(tmp_path, straight)
    assert f"{count * devices} x cpu of {count} processes" in first
    assert "Trained 12 steps" in first
    assert [line for out in others for line in own_lines(out)] == []  # only the first prints
    assert saved(tmp_path) == saved(straight) == [8, 12]


def test_evaluation_by_several_processes_writes_the_files_of_one(start, straight, tmp_path, long):
    """7 images in batches of 4 and 8 fill no batch evenly."""
    outputs = []
    for count, devices in ((1, 1), (2, 2), *([(4, 1)] if long else [])):
        folder = tmp_path / str(count)
        flags = (f"--out={folder}", "--limit=7", "--gallery=2", "--explain", "--coco", "--save_masks")
        flags = (*flags, "--label_studio=/images")
        with start(straight, count, devices, command="evaluate", arguments=flags) as running:
            first, *others = running.succeed()
        assert "over 21 expressions of val" in first
        assert [line for out in others for line in own_lines(out)] == []
        outputs.append(folder)
    one, *several = outputs
    names = sorted(str(path.relative_to(one)) for path in one.rglob("*") if path.is_file())
    assert {"gallery/explained.txt", "expressions.csv", "metrics.json"} <= set(names)
    assert len([name for name in names if "gallery" in name]) >= 5
    assert len([name for name in names if name.startswith("vis/") and "-iou=" in name]) == 21
    rows = (one / "expressions.csv").read_text().splitlines()
    assert len(rows) == 1 + 21
    for other in several:
        assert sorted(str(path.relative_to(other)) for path in other.rglob("*") if path.is_file()) == names
        assert (other / "expressions.csv").read_text().splitlines() == rows
        assert (other / "metrics.json").read_text() == (one / "metrics.json").read_text()
        masks = [name for name in names if name.startswith(("vis/", "images/"))]
        for name in ("table.md", "coco_results.json", "label_studio/tasks-0001.json", *masks):
            assert (other / name).read_bytes() == (one / name).read_bytes(), name


@pytest.mark.parametrize(("count", "devices"), [(1, 1), long_case(4, 1)])
def test_a_run_of_two_processes_continues_on_other_numbers_of_processes(
    start, straight, stopped, tmp_path, count, devices
):
    workdir = tmp_path / "run"
    shutil.copytree(stopped, workdir)
    with start(workdir, count, devices) as running:
        first = running.succeed()[0]
    assert own_lines(first)[0].startswith(f"Continuing in {workdir} from step {max(saved(stopped))} of 12")
    assert_same_trace(workdir, straight)


@pytest.mark.parametrize(("count", "devices"), [long_case(2, 1), long_case(4, 1), (1, 4)])
def test_a_run_of_one_process_continues_on_other_numbers_of_processes(start, straight, tmp_path, count, devices):
    workdir = tmp_path / "run"
    shutil.copytree(straight, workdir)
    shutil.rmtree(workdir / "checkpoints" / "12")
    with start(workdir, count, devices) as running:
        first = running.succeed()[0]
    assert own_lines(first)[0].startswith(f"Continuing in {workdir} from step 8 of 12")
    assert_same_trace(workdir, straight)


def test_when_one_process_is_killed_the_other_reports_it_and_the_next_start_continues(start, straight, tmp_path, long):
    workdir, begin = tmp_path / "run", 0
    for victim, expected in ((1, 4), (0, 8)) if long else ((1, 4),):
        survivor = 1 - victim
        with start(workdir, 2, gate=tmp_path / f"gate{victim}") as running:
            running.allow(EVERY + 2)
            running.wait_for(lambda expected=expected: max(trace(workdir), default=0) > expected)
            running.wait_for(lambda expected=expected: max(saved(workdir), default=0) == expected)
            running.signal(victim, signal.SIGKILL)
            running.allow()
            ended = running.finish()  # also of the survivor, which waits for no step of the other
        status, _, err = ended[survivor]
        assert ended[victim][0] == -signal.SIGKILL and status != 0
        assert "another process of this run has ended" in err or "another task died" in err
        begin = max(saved(workdir))
        assert begin == expected
    with start(workdir, 2) as running:
        first = running.succeed()[0]
    assert own_lines(first)[0].startswith(f"Continuing in {workdir} from step {begin} of 12")
    assert_same_trace(workdir, straight)


@pytest.mark.parametrize(
    ("index", "reason"), [(0, "not all processes connected"), (1, "coordinator could not be reached")]
)
def test_joining_times_out(processes, warm, tmp_path, index, reason):
    flags = ("--num_processes=2", f"--process_id={index}", "--join_timeout=1")
    reserved, port = processes.reserve_port()
    address = f"--coordinator_address=127.0.0.1:{port}"
    command = [str(COMMANDS_SCRIPT), "train", f"--workdir={tmp_path}", address, *flags]
    with reserved, processes.Processes(warm, 1, command, {"PYTHONPATH": str(processes.ROOT)}) as running:
        ((status, _, err),) = running.finish()
    assert status == 2
    (line,) = own_lines(err)
    assert line.startswith(f"error: process {index} of 2 (") and reason in line and line.endswith("(--join_timeout)")


def test_every_process_reports_a_common_mistake(start, tmp_path):
    with start(tmp_path, 2, command="evaluate") as running:
        ended = running.finish()
    for index, (status, _, err) in enumerate(ended):
        assert status == 2, err
        (line,) = own_lines(err)
        assert line.startswith(f"error (process {index} of 2): {tmp_path / 'config.json'} not found")


def test_an_error_in_one_process_ends_both(start, tmp_path):
    with start(tmp_path, 2, FAIL_AT="3", FAILS="1") as running:
        (first, _, err), (second, _, traceback) = running.finish()
    assert second == 1 and "OSError: the disk is gone" in traceback
    assert first == 3 or "another task died" in err
    assert os.listdir(tmp_path / "checkpoints") == []
