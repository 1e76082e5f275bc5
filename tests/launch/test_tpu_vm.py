"""launch/tpu_vm.sh with a stand-in for gcloud that runs its commands here, in one directory per host."""

import os
import signal
import subprocess
import threading
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "launch" / "tpu_vm.sh"
# Keeps the state of the slice in a file, with later states on further lines, and runs commands or copies files on each
# of two hosts.
GCLOUD = """#!/usr/bin/env bash
repository=$PWD
cd "$CLOUD" && echo "$4" >> calls
[[ "$1 $2 $3" == "compute tpus tpu-vm" ]] || exit 2
case $4 in
  describe) head -n 1 state && { [[ $(wc -l < state) == 1 ]] || sed -i 1d state; } ;;
  start) echo READY > state ;;
  create) [[ $* == *--accelerator-type=v5litepod-8\\ --version=v2-alpha-tpuv5-lite\\ --spot* ]] && echo READY > state ;;
  delete) rm state ;;
  scp) for host in host0 host1; do (cd "$repository" && cp -r "${@:7:2}" "$CLOUD/$host/s2rm/") || exit; done ;;
  ssh)
    worst=0 command=${*: -1}
    for host in host0 host1; do
      (cd "$host" && HOME=$PWD PATH=$CLOUD/bin:$PATH bash -c "${command#--command=}") || worst=$?
    done
    exit "$worst" ;;
esac
"""
# Stands for python3 on a host, which creates the environment. Training ends with the statuses in `ends`, in turn.
HOST_PYTHON = """#!/usr/bin/env bash
[[ $* == *venv* && $* != *install* ]] || exit 0
mkdir -p venv/bin && cp "$CLOUD/bin/train" venv/bin/python
"""
TRAIN = """#!/usr/bin/env bash
echo "$S2RM_STOPPED_STATUS" > "$CLOUD/stopped_status"
printf '%s|' "$@" >> "$CLOUD/trained"; echo >> "$CLOUD/trained"
read -r status < "$CLOUD/ends"; sed -i 1d "$CLOUD/ends"
exit "$status"
"""


@pytest.fixture
def cloud(make_executable, tmp_path):
    for directory in ("bin", "host0", "host1", "scratch"):
        (tmp_path / directory).mkdir()
    make_executable(tmp_path / "bin" / "python3", HOST_PYTHON)
    make_executable(tmp_path / "bin" / "train", TRAIN)
    local = tmp_path / "local"
    local.mkdir()
    make_executable(local / "gcloud", GCLOUD)
    make_executable(local / "python", '#!/bin/sh\ntouch "$7/s2rm_jax-0.1.0-py3-none-any.whl"\n')
    return tmp_path


def run(cloud, ends, *arguments, **variables):
    (cloud / "ends").write_text("".join(f"{status}\n" for status in ends))
    environment = os.environ | {
        "PATH": f"{cloud / 'local'}:{os.environ['PATH']}",
        "CLOUD": str(cloud),
        "TMPDIR": str(cloud / "scratch"),
        **{"TPU": "s2rm", "ZONE": "us-west4-a", "TYPE": "v5litepod-8", "CREATE_FLAGS": "--spot", "PAUSE": "0"},
        **variables,
    }
    ended = subprocess.run(
        [SCRIPT, *arguments], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    calls = (cloud / "calls").read_text().splitlines() if (cloud / "calls").exists() else []
    return ended, calls


def test_a_slice_is_created_and_trains_on_all_hosts(cloud):
    arguments = ["--config", "configs/refcoco.py", "--config.input.source={'name': \"it's\"}"]
    ended, calls = run(cloud, [0, 0], *arguments)
    assert ended.returncode == 0, ended.stderr
    assert calls == ["describe", "create", "ssh", "scp", "ssh", "ssh"]
    expected = "|".join(["-m", "s2rm_jax.train", *arguments]) + "|"
    assert (cloud / "trained").read_text().splitlines() == [expected, expected]
    assert (cloud / "host1" / "s2rm" / "configs" / "refcoco.py").exists()
    assert (cloud / "stopped_status").read_text() == "143\n"  # a run that SIGTERM stops is started again
    assert list((cloud / "scratch").iterdir()) == []


def test_a_failed_run_restarts_on_the_existing_slice(cloud):
    (cloud / "state").write_text("READY\n")
    ended, calls = run(cloud, [143, 0, 0, 0])
    assert ended.returncode == 0, ended.stderr
    assert "try 1 of 20 ended with an error" in ended.stderr
    assert calls == ["describe", "ssh", "scp", "ssh", "ssh"] * 2


def test_an_earlier_run_on_the_slice_is_stopped_first(cloud):
    with subprocess.Popen(["sleep", "60"]) as old:
        threading.Thread(target=old.wait).start()  # so that it does not stay a zombie, which looks alive
        (cloud / "host1" / "train.pid").write_text(f"{old.pid}\n")
        ended, _ = run(cloud, [0, 0])
    assert ended.returncode == 0, ended.stderr
    assert old.returncode == -signal.SIGTERM


@pytest.mark.parametrize("state", ["PREEMPTED", "TERMINATED"])
def test_a_preempted_slice_is_recreated(cloud, state):
    (cloud / "state").write_text(f"{state}\n")
    ended, calls = run(cloud, [0, 0])
    assert ended.returncode == 0, ended.stderr
    assert calls[:3] == ["describe", "delete", "create"]


def test_a_stopped_slice_is_started(cloud):
    (cloud / "state").write_text("STOPPED\n")
    ended, calls = run(cloud, [0, 0])
    assert ended.returncode == 0, ended.stderr
    assert calls[:3] == ["describe", "start", "ssh"]


@pytest.mark.parametrize("state", ["CREATING", "STARTING", "RESTARTING", "REPAIRING", "STOPPING"])
def test_a_slice_that_may_be_ready_soon_is_waited_for(cloud, state):
    (cloud / "state").write_text(f"{state}\n")
    ended, calls = run(cloud, [], WAITS="2")
    assert ended.returncode == 1 and f"the slice is {state}" in ended.stderr and "after 2 attempts" in ended.stderr
    assert calls == ["describe"] * 2


def test_waiting_for_a_slice_uses_up_no_try(cloud):
    (cloud / "state").write_text("CREATING\nCREATING\nREADY\n")
    ended, calls = run(cloud, [0, 0], TRIES="1")
    assert ended.returncode == 0, ended.stderr
    assert calls == ["describe"] * 3 + ["ssh", "scp", "ssh", "ssh"]


def test_each_host_is_prepared_before_the_run(cloud):
    ended, _ = run(cloud, [143, 0, 0, 0], PREPARE="ls -d venv >> prepared && [ ! -e trained ]")
    assert ended.returncode == 0, ended.stderr
    for host in ("host0", "host1"):
        assert (cloud / host / "prepared").read_text() == "venv\n" * 2
    ended, _ = run(cloud, [], PREPARE="exit 2", TRIES="3")
    assert ended.returncode == 1 and "try 3 of 3" in ended.stderr  # such as a network that is down


@pytest.mark.parametrize(("status", "expected", "starts"), [(2, 2, 1), (1, 1, 3), (75, 1, 3)])
def test_it_gives_up_after_all_tries_and_at_once_on_a_mistake(cloud, status, expected, starts):
    ended, _ = run(cloud, [status] * 6, TRIES="3")
    assert ended.returncode == expected
    assert len((cloud / "trained").read_text().splitlines()) == 2 * starts
    assert ended.stderr.count("the next starts in a minute") == starts - 1
    assert ("try 3 of 3 ended with an error; run the same command again" in ended.stderr) == (starts == 3)


def test_missing_variables_are_named(cloud):
    ended, calls = run(cloud, [], ZONE="")
    assert ended.returncode != 0 and "ZONE: such as us-west4-a" in ended.stderr and calls == []
