"""launch/refcoco_on_one_gpu.sh: which steps run, in which order, and which are skipped when it is started again."""

import os
import subprocess

import pytest

from tests.command import ROOT

# Records its arguments and writes the files by which the script sees that a step is done.
STAND_IN = """#!/bin/sh
echo "$@" >> "$CALLS"
[ "$2" != "$FAIL" ] || exit 3
case "$2" in
  s2rm_jax.evaluate) mkdir -p "$WORKDIR/eval-$6" && touch "$WORKDIR/eval-$6/index.html" ;;
  s2rm_jax.convert) mkdir -p "$WORKDIR/pytorch" ;;
esac
"""


@pytest.fixture
def run(make_executable, tmp_path):
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    make_executable(tmp_path / "venv" / "bin" / "python", STAND_IN)
    places = {"VENV": tmp_path / "venv", "WORKDIR": tmp_path / "run", "DATA": tmp_path / "data"}
    calls = tmp_path / "calls"

    def run(*arguments, **variables):
        """Return the exit status and the calls of Python."""
        calls.write_text("")
        kept = {name: value for name, value in os.environ.items() if name not in ("S2RM_DATA", "CONFIG", "SPLITS")}
        environment = kept | {name: str(path) for name, path in places.items()} | {"CALLS": str(calls), "FAIL": ""}
        command = ["launch/refcoco_on_one_gpu.sh", *arguments]
        ended = subprocess.run(command, cwd=ROOT, env=environment | variables, capture_output=True, check=False)
        return ended.returncode, calls.read_text().splitlines()

    return run


def test_all_steps_run_once_in_their_order(run, tmp_path):
    status, calls = run("--config.steps=3")
    assert status == 0
    train = f"-m s2rm_jax.train --config configs/refcoco.py:one_gpu --workdir {tmp_path / 'run'} --config.steps=3"
    downloads = [f"-m s2rm_jax.download {name} --root {tmp_path / 'data'} --quick" for name in ("refcoco", "images")]
    evaluations = [
        f"-m s2rm_jax.evaluate --workdir {tmp_path / 'run'} --split {split}" for split in ("val", "testA", "testB")
    ]
    convert = f"-m s2rm_jax.convert to-pytorch --workdir {tmp_path / 'run'} --out {tmp_path / 'run' / 'pytorch'}"
    install = "-m pip install --quiet --editable . jax[cuda12]"
    assert calls == [install, *downloads, train, *evaluations, convert]

    # Downloads and training find out by themselves that they are done.
    assert run("--config.steps=3") == (0, [*downloads, train])


@pytest.mark.parametrize("failing", ["s2rm_jax.download", "s2rm_jax.train", "s2rm_jax.evaluate", "s2rm_jax.convert"])
def test_a_failure_stops_and_the_next_start_continues(run, failing):
    status, calls = run(FAIL=failing)
    assert status == 3 and calls[-1].startswith(f"-m {failing} ")
    status, calls = run()
    assert status == 0 and calls[-1].startswith("-m s2rm_jax.convert ")


def test_data_that_is_there_is_not_downloaded(run):
    status, calls = run(S2RM_DATA="/data", CONFIG="configs/refcoco.py:small", SPLITS="val")
    assert status == 0 and not any("download" in call for call in calls)
    assert sum("evaluate" in call for call in calls) == 1 and any("refcoco.py:small" in call for call in calls)
