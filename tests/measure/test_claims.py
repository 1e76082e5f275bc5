"""Processes share the runs of a suite: no run is done twice at a time or lost with a process that ends."""

import subprocess
import sys

import pytest
from filelock import Timeout

from s2rm_jax.config import default_config
from s2rm_jax.errors import UserError
from s2rm_jax.measure import ablation_runs
from s2rm_jax.measure.ablation_runs import Run, claim_runs, lock
from s2rm_jax.measure.ablation_suites import FULL

HOLD = """
import fcntl, sys, time
file = open(sys.argv[1], "a")
fcntl.flock(file, fcntl.LOCK_EX)
print("held", flush=True)
time.sleep(600)
"""


@pytest.fixture
def runs(tmp_path):
    config = default_config()
    return [Run(FULL, seed, config, tmp_path / f"full-seed-{seed}") for seed in range(3)]


@pytest.fixture
def other_process():
    """Start a process that holds the lock of a run until it is killed."""
    started = []

    def start(run: Run) -> subprocess.Popen:
        path = f"{run.workdir}.lock"
        process = subprocess.Popen([sys.executable, "-c", HOLD, path], stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_a_single_process_gets_the_runs_in_order(runs):
    assert list(claim_runs(runs)) == runs
    assert list(claim_runs(runs)) == runs, "each was released"


def test_runs_of_another_process_come_last_and_when_that_ends(runs, other_process, monkeypatch, capsys):
    holder = other_process(runs[0])
    coming = claim_runs(runs)
    assert [next(coming), next(coming)] == runs[1:]
    assert capsys.readouterr().out.count("another process is training full-seed-0;") == 1

    def end_it(_: float) -> None:
        holder.kill()
        holder.wait()

    monkeypatch.setattr(ablation_runs.time, "sleep", end_it)
    assert list(coming) == runs[:1]
    assert capsys.readouterr().out.count("waiting for other processes: full-seed-0") == 1


def test_a_run_that_fails_is_released(runs):
    coming = claim_runs(runs)
    assert next(coming) is runs[0]
    coming.close()  # as when its loop is left by an error
    assert next(claim_runs(runs)) is runs[0]


def test_a_folder_without_locks_is_named(runs, monkeypatch):
    def refuse(*_, **__):
        raise OSError(37, "No locks available")

    monkeypatch.setattr("s2rm_jax.io.FileLock.acquire", refuse)
    with pytest.raises(UserError, match=r"--out: .*full-seed-0\.lock cannot be locked .*another file system"):
        next(claim_runs(runs))


def test_waiting_for_a_lock_ends_with_its_holder(runs, other_process):
    holder = other_process(runs[0])
    with pytest.raises(Timeout), lock(runs[0].workdir, wait=False):
        pass
    holder.kill()
    with lock(runs[0].workdir):
        pass
