"""Several processes share the runs of a suite: none is done twice at a time, none is lost with a process that ends."""

import subprocess
import sys

import pytest

from s2rm_jax.config import default_config
from s2rm_jax.measure import ablation_runs
from s2rm_jax.measure.ablation_runs import Run, claimed
from s2rm_jax.measure.ablation_suites import FULL

HOLD = """
import sys, time, filelock
lock = filelock.FileLock(sys.argv[1])
lock.acquire()
print("held", flush=True)
time.sleep(600)
"""


@pytest.fixture
def runs(tmp_path):
    config = default_config()
    return [Run(FULL, seed, config, tmp_path / f"full-seed-{seed}") for seed in range(3)]


@pytest.fixture
def other_process():
    """Starts a process that has a run, until it is killed."""
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


def test_alone_they_come_in_their_order(runs):
    assert list(claimed(runs)) == runs
    assert list(claimed(runs)) == runs, "each was given back"


def test_what_another_process_has_comes_last_and_when_that_ends(runs, other_process, monkeypatch, capsys):
    holder = other_process(runs[0])
    coming = claimed(runs)
    assert [next(coming), next(coming)] == runs[1:]
    assert capsys.readouterr().out.count("another process trains full-seed-0;") == 1

    def end_it(_: float) -> None:
        holder.kill()
        holder.wait()

    monkeypatch.setattr(ablation_runs.time, "sleep", end_it)
    assert list(coming) == runs[:1]
    assert capsys.readouterr().out.count("waiting for what other processes train: full-seed-0") == 1


def test_a_run_that_fails_is_given_back(runs):
    coming = claimed(runs)
    assert next(coming) is runs[0]
    coming.close()  # as when its loop is left by an error
    assert next(claimed(runs)) is runs[0]
