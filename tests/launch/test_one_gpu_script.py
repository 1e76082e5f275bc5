"""launch/refcoco_on_one_gpu.sh: which steps run, in which order, and which are skipped when it is started again."""

import os
import subprocess
import sys

import pytest

from tests.command import ROOT

# Records its arguments, with _ for a space inside of one, and writes the files by which the script sees that a step is
# done. $CHECK runs the Python code of the script.
STAND_IN = """#!/bin/sh
printf '%s\\n' "$@" | tr ' ' _ | paste -sd ' ' >> "$CALLS"
[ "$2" != "$FAIL" ] || eval "exit ${STATUS:-3}"
[ "$1" != - ] || [ -z "$CHECK" ] || exec "$CHECK" "$@"
case "$2" in
  s2rm_jax.train) # times of files have ticks of 10 ms
    sleep 0.05 && mkdir -p "$WORKDIR/checkpoints/$TRAINED" && touch "$WORKDIR/config.json" && sleep 0.05
    ;;
  s2rm_jax.evaluate) mkdir -p "$WORKDIR/eval-$6-$8" && touch "$WORKDIR/eval-$6-$8/index.html" ;;
  s2rm_jax.convert) mkdir "$7" ;; # convert refuses a folder that exists
esac
"""


@pytest.fixture
def run(make_executable, tmp_path):
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    make_executable(tmp_path / "venv" / "bin" / "python", STAND_IN)
    places = {"VENV": tmp_path / "venv", "WORKDIR": tmp_path / "run", "DATA": tmp_path / "data"}
    calls = tmp_path / "calls"

    def run(*arguments, **variables):
        """Return the exit status, the calls of Python and the last line on stderr."""
        calls.write_text("")
        own = ("S2RM_DATA", "S2RM_BERT_VOCAB", "CONFIG", "SPLITS", "JAX", "MIRROR")
        kept = {name: value for name, value in os.environ.items() if name not in own}
        environment = kept | {name: str(path) for name, path in places.items()}
        environment |= {"CALLS": str(calls), "FAIL": "", "CHECK": "", "TRAINED": "3", "PYTHONPATH": str(ROOT)}
        command = ["launch/refcoco_on_one_gpu.sh", *arguments]
        ended = subprocess.run(command, cwd=ROOT, env=environment | variables, capture_output=True, check=False)
        last = (ended.stderr.decode().splitlines() or [""])[-1]
        return ended.returncode, calls.read_text().splitlines(), last

    return run


def test_all_steps_run_once_in_their_order(run, tmp_path):
    status, calls, _ = run("--config.steps=3")
    assert status == 0
    flags = f"--config configs/refcoco.py:one_gpu --workdir {tmp_path / 'run'} --config.steps=3"
    devices, check, train = "-c import_jax;_print(*jax.devices())", f"- {flags}", f"-m s2rm_jax.train {flags}"
    downloads = [f"-m s2rm_jax.download {name} --root {tmp_path / 'data'} --quick" for name in ("refcoco", "images")]
    evaluations = [
        f"-m s2rm_jax.evaluate --workdir {tmp_path / 'run'} --split {split} --protocol lavt480"
        for split in ("val", "testA", "testB")
    ]
    convert = f"-m s2rm_jax.convert to-pytorch --workdir {tmp_path / 'run'} --out {tmp_path / 'run' / 'pytorch.new'}"
    install = "-m pip install --quiet --editable . jax[cuda12]"
    assert calls == [install, devices, check, *downloads, train, *evaluations, convert]

    # Downloads and training find out by themselves that they are done.
    assert run("--config.steps=3") == (0, [devices, *downloads, train], "")


def test_a_stopped_training_is_neither_evaluated_nor_exported(run):
    status, calls, error = run(FAIL="s2rm_jax.train", STATUS="$S2RM_STOPPED_STATUS")
    assert status == 143 and calls[-1].startswith("-m s2rm_jax.train ")
    assert error == "error: the training was stopped; start this script again to continue"


def test_results_of_an_earlier_state_of_the_run_are_replaced(run, tmp_path):
    assert run()[0] == 0
    (tmp_path / "run" / "pytorch" / "old").touch()
    status, calls, _ = run(TRAINED="6")
    assert status == 0
    assert [call.split()[1] for call in calls[-5:]] == [
        "s2rm_jax.train",
        *["s2rm_jax.evaluate"] * 3,
        "s2rm_jax.convert",
    ]
    assert not (tmp_path / "run" / "pytorch" / "old").exists()


def test_the_environment_of_make_or_of_a_trial_on_a_cpu_gets_jax_for_the_gpu(run, tmp_path):
    (tmp_path / "venv" / ".installed").touch()  # by `make demo`
    for name in ("jax", "jax[cuda12]"):
        _, calls, _ = run(JAX=name)
        assert calls[0] == f"-m pip install --quiet --editable . {name}"
        assert not any("pip" in call for call in run(JAX=name)[1])


def test_a_missing_vocabulary_is_reported_before_the_download(run, tmp_path):
    small = {"CONFIG": "configs/refcoco.py:small", "CHECK": sys.executable}
    status, calls, error = run(**small)
    assert status == 2 and "config.text.vocab is empty" in error and "S2RM_BERT_VOCAB" in error
    assert not any("download" in call for call in calls)
    status, _, error = run(**small, S2RM_BERT_VOCAB=str(tmp_path / "vocab.txt"))
    assert status == 2 and "vocab.txt" in error
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\nleft\n")
    assert run(**small, S2RM_BERT_VOCAB=str(tmp_path / "vocab.txt"))[0] == 0


def test_missing_weights_are_reported_before_the_download(run, tmp_path):
    status, calls, error = run(CHECK=sys.executable, S2RM_SWIN=str(tmp_path / "swin.pth"))
    assert status == 2 and "swin.pth" in error and not any("download" in call for call in calls)


@pytest.mark.parametrize("failing", ["s2rm_jax.download", "s2rm_jax.train", "s2rm_jax.evaluate", "s2rm_jax.convert"])
def test_a_failure_stops_and_the_next_start_continues(run, failing):
    status, calls, _ = run(FAIL=failing)
    assert status == 3 and calls[-1].startswith(f"-m {failing} ")
    status, calls, _ = run()
    assert status == 0 and calls[-1].startswith("-m s2rm_jax.convert ")


def test_the_download_may_be_from_another_server(run):
    _, calls, _ = run(MIRROR="http://server/my files")
    downloads = [call for call in calls if "s2rm_jax.download" in call]
    assert len(downloads) == 2 and all(call.endswith(" --quick --mirror http://server/my_files") for call in downloads)


def test_data_that_is_there_is_not_downloaded(run):
    status, calls, _ = run(S2RM_DATA="/data", CONFIG="configs/refcoco.py:small", SPLITS="val")
    assert status == 0 and not any("download" in call for call in calls)
    assert sum("evaluate" in call for call in calls) == 1 and any("refcoco.py:small" in call for call in calls)
