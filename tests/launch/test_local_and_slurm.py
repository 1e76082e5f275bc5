"""Two processes of launch/local.sh or SLURM train as one does; a SLURM job stops, is requeued and continues."""

import json
import os
import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from PIL import Image

from tests import waiting

ROOT = Path(__file__).parents[2]
CLUSTER = Path(__file__).with_name("slurm_on_one_machine.sh")
wait_for = partial(waiting.wait_for, pause=0.2)  # some conditions start a command of SLURM


@pytest.fixture(scope="module")
def train_here(small_training):
    """Train with `processes` processes by launch/local.sh; return the lines of stdout."""
    environment, config = small_training

    def train(processes, workdir, *arguments):
        command = ["launch/local.sh", str(processes), f"--config={config}", f"--workdir={workdir}", *arguments]
        ended = subprocess.run(
            command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=waiting.TIMEOUT, check=False
        )
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return ended.stdout.splitlines()

    return train


@pytest.fixture(scope="module")
def one_process(train_here, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("one_process")
    train_here(1, workdir)
    return workdir


@pytest.fixture(scope="module")
def cluster(small_training):
    """Run commands beside a SLURM cluster on this machine, which ends when the test closes a pipe."""
    if not shutil.which("slurmctld") or not shutil.which("munged"):
        pytest.skip("needs SLURM: apt-get install slurm-wlm munge")
    environment, _ = small_training
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([CLUSTER, "sh", "-c", "echo $SLURM_CONF; cat"], **pipes) as daemons:
        conf = daemons.stdout.readline().strip()
        assert conf, daemons.stderr.read()
        inside = environment | {"SLURM_CONF": conf}

        def slurm(*command, **variables):
            ended = subprocess.run(
                command, env=inside | variables, cwd=ROOT, capture_output=True, text=True, check=False
            )
            assert ended.returncode == 0, ended.stdout + ended.stderr
            return ended.stdout + ended.stderr

        yield slurm
    assert daemons.returncode == 0
    assert not Path(conf).exists()


def test_two_processes_of_one_machine_train_as_one(train_here, one_process, read_trace, tmp_path):
    lines = train_here(2, tmp_path)
    assert read_trace(tmp_path) == pytest.approx(read_trace(one_process), rel=1e-5)
    assert len(read_trace(tmp_path)) == 12
    assert any(line.startswith("[0] Trained 12 steps") for line in lines)


@pytest.fixture
def end_with(make_executable, tmp_path):
    """Run a script for SLURM whose srun ends with `status`; return its exit status, the job requeued, and stderr."""

    def end_with(script, status, state="RUNNING", **variables):
        make_executable(tmp_path / "srun", f"#!/bin/sh\necho srun $*\nexit {status}\n")
        make_executable(tmp_path / "squeue", f'#!/bin/sh\n[ "$3" = --jobs="$EXPECTED" ] && echo {state}\n')
        make_executable(tmp_path / "scontrol", "#!/bin/sh\necho scontrol $*\n")
        environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"} | variables
        ended = subprocess.run(
            ["bash", f"launch/{script}"], env=environment, cwd=ROOT, capture_output=True, text=True, check=False
        )
        requeued = re.findall(r"^scontrol requeue (\S+)$", ended.stdout, re.M)
        return ended, requeued

    return end_with


@pytest.mark.parametrize(
    ("status", "tasks", "restarts", "requeued"),
    [
        *((0, 2, 0, False), (2, 2, 0, False), (1, 2, 0, False)),
        *((85, 1, 0, True), (85, 2, 99, True)),  # stopped, and saved
        *((75, 1, 0, True), (75, 2, 9, True), (75, 2, 10, False)),  # the storage
        *((143, 1, 9, True), (143, 2, 0, True), (143, 2, 10, False)),
        *((3, 2, 0, True), (134, 2, 0, True), (137, 2, 9, True), (137, 2, 10, False)),  # a lost task
        *((3, 1, 0, False), (134, 1, 0, False), (137, 1, 0, False)),
    ],
)
def test_a_run_that_can_continue_is_requeued(end_with, status, tasks, restarts, requeued):
    counts = {"SLURM_NTASKS": str(tasks), "SLURM_RESTART_COUNT": str(restarts), "EXPECTED": "7"}
    ended, jobs = end_with("slurm.sbatch", status, **counts)
    assert (ended.returncode, jobs) == ((0, ["7"]) if requeued else (status, []))
    assert (f"(exit status {status}): the job is requeued" in ended.stderr) == requeued
    assert "unbound" not in end_with("slurm.sbatch", status)[0].stderr


ARRAY = {"SLURM_ARRAY_JOB_ID": "7", "EXPECTED": "7_3"} | {
    f"SLURM_ARRAY_TASK_{name}": value for name, value in {"ID": "3", "MAX": "7", "COUNT": "8"}.items()
}


@pytest.mark.parametrize(
    ("status", "restarts", "requeued"),
    [(0, 0, False), (2, 0, False), (4, 0, False), (143, 99, True), (75, 9, True), (75, 10, False)],
)
def test_one_task_of_an_array_is_requeued(end_with, status, restarts, requeued):
    ended, jobs = end_with("predict.sbatch", status, SLURM_RESTART_COUNT=str(restarts), **ARRAY)
    assert (ended.returncode, jobs) == ((0, ["7_3"]) if requeued else (status, []))


@pytest.mark.parametrize(("script", "status"), [("slurm.sbatch", 85), ("slurm.sbatch", 143), ("predict.sbatch", 143)])
def test_a_cancelled_job_is_not_requeued(end_with, script, status):
    expected = {} if script == "predict.sbatch" else {"EXPECTED": "7"}
    ended, jobs = end_with(script, status, "COMPLETING", **ARRAY | expected)
    assert (ended.returncode, jobs) == (status, [])


@pytest.mark.parametrize(
    ("first", "last", "count", "variables", "status"),
    [(0, 7, 8, {}, 0), (1, 8, 8, {}, 2), (0, 6, 4, {}, 2), (3, 3, 1, {"SHARDS": "8"}, 0)],
)
def test_an_array_that_leaves_out_shares_is_refused(end_with, first, last, count, variables, status):
    array = {"ID": first, "MAX": last, "COUNT": count}
    numbers = {f"SLURM_ARRAY_TASK_{name}": str(number) for name, number in array.items()}
    ended, _ = end_with("predict.sbatch", 0, **ARRAY | numbers | variables)
    assert ended.returncode == status
    assert f"--shard={first}/8" in ended.stdout if status == 0 else "--array must be 0-N" in ended.stderr


def test_slurm_accepts_the_options_in_the_file(cluster):
    assert "to start at" in cluster("sbatch", "--test-only", "launch/slurm.sbatch")


@pytest.mark.long
@pytest.mark.parametrize(
    "signals",
    [("--batch", "--signal=USR1"), ("--signal=TERM",)],
    ids=["five minutes before the time limit", "preempted with a grace time"],
)
def test_two_slurm_tasks_train_as_one_and_continue_after_a_requeue(
    cluster, small_training, one_process, read_trace, tmp_path, signals
):
    _, config = small_training
    gate = tmp_path / "gate"
    gate.write_bytes(b"." * 4)  # batches that may be read; metrics are written one step late
    two_tasks = ["--ntasks-per-node=2", "--cpus-per-task=1", f"--output={tmp_path / 'log'}"]
    training = ["launch/slurm.sbatch", f"--config={config}", f"--workdir={tmp_path / 'run'}"]
    job = cluster("sbatch", "--parsable", *two_tasks, *training, GATE=str(gate)).strip()
    wait_for(lambda: len(read_trace(tmp_path / "run")) >= 3)
    cluster("scancel", *signals, job)
    wait_for(lambda: "SIGTERM: saving after this step" in (tmp_path / "log").read_text())
    gate.write_bytes(b"." * 100)
    wait_for(lambda: "JobState=COMPLETED" in cluster("scontrol", "show", "job", job))

    output = (tmp_path / "log").read_text()
    assert "Restarts=1" in cluster("scontrol", "show", "job", job), output
    assert "0: Continuing in" in output and "Trained" in output and "Traceback" not in output
    assert read_trace(tmp_path / "run") == pytest.approx(read_trace(one_process), rel=1e-5)


@pytest.mark.long
def test_an_array_of_slurm_segments_each_image_once(cluster, make_executable, tmp_path):
    """A task that gets the signal before its time limit is put back."""
    program = f"exec {sys.executable} {ROOT / 'tests' / 'system' / 'predict_with_standin.py'}"
    python = make_executable(tmp_path / "python", f'#!/bin/sh\nshift 2\n{program} "$@"\n')
    (tmp_path / "images").mkdir()
    for number in range(6):
        Image.new("RGB", (60, 40), (50 * number, 0, 0)).save(tmp_path / f"images/{number}.png")
    os.rename(tmp_path / "images/5.png", tmp_path / "later.png")
    os.mkfifo(tmp_path / "images/5.png")  # holds up the second task
    array = ["--array=0-1", "--cpus-per-task=1", f"--output={tmp_path}/log-%a"]
    predicting = ["launch/predict.sbatch", f"--images={tmp_path}/list.txt", "--text=it", f"--out={tmp_path / 'out'}"]
    (tmp_path / "list.txt").write_text("".join(f"images/{number}.png\n" for number in range(6)))
    job = cluster("sbatch", "--parsable", *array, *predicting, PYTHON=str(python)).strip()
    parts = [tmp_path / f"out/part-{index}-of-2.jsonl" for index in (0, 1)]
    wait_for(lambda: all(part.exists() for part in parts) and parts[0].read_text().count("\n") == 3)
    os.replace(tmp_path / "later.png", tmp_path / "images/5.png")
    cluster("scancel", "--batch", "--signal=USR1", f"{job}_1")
    wait_for(lambda: "COMPLETED" in cluster("scontrol", "show", "job", f"{job}_1"))
    assert "Restarts=1" in cluster("scontrol", "show", "job", f"{job}_1"), (tmp_path / "log-1").read_text()
    done = [json.loads(line)["image"] for part in parts for line in part.read_text().splitlines()]
    assert sorted(done) == [str(tmp_path / f"images/{number}.png") for number in range(6)]
