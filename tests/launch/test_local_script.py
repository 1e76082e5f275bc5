"""launch/local.sh with processes that end in known ways."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

LAUNCH = Path(__file__).parents[2] / "launch"
# Prints its number, waits for a signal if an argument is "wait", and ends with three times its number as status.
PROCESS = f"""#!{sys.executable} -u
import os, signal, sys, time
if sys.argv[1] == "-c":
    exec(sys.argv[2])
    sys.exit()
index, received = int(os.environ["S2RM_PROCESS_ID"]), []
for signum in (signal.SIGINT, signal.SIGTERM):
    signal.signal(signum, lambda signum, _: received.append(signal.Signals(signum).name))
print(index, "of", os.environ["S2RM_NUM_PROCESSES"], sys.argv[1:], os.environ.get("CUDA_VISIBLE_DEVICES"), "ready")
end = time.monotonic() + 60
while "wait" in sys.argv and not received and time.monotonic() < end:
    time.sleep(0.01)
time.sleep(0.3)  # in which a second signal would come
print("received", *received, file=sys.stderr)
sys.stdout.write("half a line")
sys.exit(3 * index)
"""


@pytest.fixture
def environment(make_executable, tmp_path):
    gone = {"CUDA_VISIBLE_DEVICES", "JAX_PLATFORMS"}
    kept = {name: value for name, value in os.environ.items() if name not in gone}
    return kept | {"PYTHON": str(make_executable(tmp_path / "python", PROCESS))}


def run(command, environment):
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


def test_each_line_is_labelled_and_the_worst_status_counts(environment):
    ended = run([LAUNCH / "local.sh", "3", "--a", "b c"], environment)
    arguments = ["-m", "s2rm_jax.train", "--a", "b c"]
    expected = [
        f"[{i}] {line}" for i in range(3) for line in (f"{i} of 3 {arguments} None ready", "received", "half a line")
    ]
    assert sorted(ended.stdout.splitlines()) == sorted(expected)
    assert (ended.returncode, ended.stderr) == (6, "")


def test_after_a_lost_process_it_prints_how_to_continue(environment):
    """If process 0 is lost, JAX aborts the others without advice."""
    messages = []
    for number in (signal.SIGABRT, signal.SIGKILL):
        environment["PYTHON"] = str(Path(environment["PYTHON"]).with_name(f"dies_by_{number}"))
        Path(environment["PYTHON"]).write_text(
            f'#!/bin/sh\n[ "$1" = -c ] && exec {sys.executable} "$@"\nkill -{number} $$\n'
        )
        Path(environment["PYTHON"]).chmod(0o755)
        ended = run([LAUNCH / "local.sh", "2"], environment)
        assert ended.returncode == 128 + number
        messages.append(ended.stderr.splitlines()[-1])
    assert all(line.startswith("error: ") and "continues from the last checkpoint." in line for line in messages), (
        messages
    )


def test_each_process_gets_its_own_gpu(environment, make_executable, tmp_path):
    make_executable(tmp_path / "nvidia-smi", "#!/bin/sh\nprintf '0\\n1\\n'\n")
    environment["PATH"] = f"{tmp_path}:{environment['PATH']}"
    for visible, expected in ((None, ("0", "1")), ("4,7", ("4", "7"))):
        chosen = environment | ({"CUDA_VISIBLE_DEVICES": visible} if visible else {})
        lines = run([LAUNCH / "local.sh", "2"], chosen).stdout.splitlines()
        assert sorted(line.split()[-2] for line in lines if line.endswith("ready")) == sorted(expected)
    too_many = run([LAUNCH / "local.sh", "3"], environment)
    assert too_many.returncode == 2 and "3 processes need a GPU each and there are 2" in too_many.stderr


@pytest.mark.parametrize(
    ("nvidia_smi", "visible", "expected"),
    [("echo NVIDIA-SMI has failed; exit 9", None, "None"), ("exit 0", None, "None"), ("echo 0; echo 1", "", "")],
)
def test_without_a_gpu_none_is_given_out(environment, make_executable, tmp_path, nvidia_smi, visible, expected):
    make_executable(tmp_path / "nvidia-smi", f"#!/bin/sh\n{nvidia_smi}\n")
    environment |= {"PATH": f"{tmp_path}:{environment['PATH']}"} | (
        {} if visible is None else {"CUDA_VISIBLE_DEVICES": ""}
    )
    ended = run([LAUNCH / "local.sh", "2"], environment)
    ready = sorted(line for line in ended.stdout.splitlines() if line.endswith("ready"))
    assert ready == [f"[{i}] {i} of 2 ['-m', 's2rm_jax.train'] {expected} ready" for i in range(2)], ended.stderr


def test_sigterm_is_forwarded_once_and_all_processes_are_waited_for(environment):
    with subprocess.Popen(
        [LAUNCH / "local.sh", "2", "wait"], env=environment, stdout=subprocess.PIPE, text=True
    ) as running:
        ready = [running.stdout.readline() for _ in range(2)]
        assert all(line.endswith("ready\n") for line in ready)
        running.send_signal(signal.SIGTERM)
        rest = running.stdout.read().splitlines()
    received = [f"[{i}] {line}" for i in range(2) for line in ("received SIGTERM", "half a line")]
    assert sorted(rest) == sorted(received)
    assert running.returncode == 3


# Starts a command that Ctrl-C reaches, also where the tests run in the background of a shell, which ignores it there.
WITH_CTRL_C = "import os, pty, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); "


def test_ctrl_c_reaches_each_process_once(environment):
    # A separate process opens the terminal, because JAX forbids this one to fork.
    spawn = WITH_CTRL_C + "sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))"
    command = [sys.executable, "-c", spawn, LAUNCH / "local.sh", "2", "wait"]
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as running:
        output = b""
        while output.count(b"ready") < 2:
            output += os.read(running.stdout.fileno(), 1000)
        os.write(running.stdin.fileno(), b"\x03")
        output += running.stdout.read()
    assert output.count(b"received SIGINT\r\n") == 2, output
    assert running.returncode == 3


def test_a_signal_before_the_processes_start_ends_them(environment, make_executable):
    stand_in = Path(environment["PYTHON"])
    interrupt = 'if sys.argv[1] == "-c":\n    os.kill(os.getsid(0), signal.SIGINT)\n'
    make_executable(stand_in, PROCESS.replace('if sys.argv[1] == "-c":\n', interrupt))
    command = [sys.executable, "-c", WITH_CTRL_C + "os.execv(sys.argv[1], sys.argv[1:])"]
    command += [LAUNCH / "local.sh", "2", "wait"]
    ended = subprocess.run(
        command, env=environment, capture_output=True, timeout=30, check=False, start_new_session=True
    )
    assert ended.returncode in (3, 130)  # 130: it came before the process had its handlers


@pytest.mark.parametrize("arguments", [(), ("0",), ("--config", "x")])
def test_the_number_of_processes_must_come_first(environment, arguments):
    ended = run([LAUNCH / "local.sh", *arguments], environment)
    assert ended.returncode == 2 and ended.stderr.startswith("error: the first argument must be")
