"""Programs in forked processes behave as those that Python starts."""

import os
import signal

import pytest

from tests.command import run_process

SHOWS = """
import os, signal, sys
import jax
print(__name__, sys.argv, sys.path[0], os.getcwd(), os.environ["NAME"].encode(errors="surrogateescape"))
print(len(jax.devices()), signal.getsignal(signal.SIGINT).__name__)
print("to stderr", file=sys.stderr)
"""


def test_a_program_has_its_arguments_environment_and_output(warm, monkeypatch):
    environment = {"NAME": "caf\udce9", "JAX_NUM_CPU_DEVICES": "3"}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    found, expected = (run("-c", SHOWS, "an argument", 2) for run in (warm.run, run_process))
    assert (found.returncode, found.stdout, found.stderr) == (0, expected.stdout, expected.stderr)


@pytest.mark.parametrize(
    ("code", "status"), [("pass", 0), ("raise SystemExit(3)", 3), ("raise SystemExit('no')", 1), ("1 / 0", 1)]
)
def test_the_exit_status(warm, code, status):
    done = warm.run("-c", f"import atexit; atexit.register(print, 'handled'); print('begun'); {code}")
    assert (done.returncode, done.stdout) == (status, "begun\nhandled\n")
    assert ("no" in done.stderr, "ZeroDivisionError" in done.stderr) == ("no" in code, "/" in code)


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it(warm, signum):
    with warm("-c", "import os, time; print(os.getpid(), flush=True); time.sleep(60)") as process:
        assert int(process.stdout.readline()) == process.pid
        assert process.poll() is None
        process.send_signal(signum)
        assert process.wait() == process.poll() == -signum
    with pytest.raises(ProcessLookupError):
        os.kill(process.pid, 0)


def test_processes_of_two_servers_hash_strings_differently(warm):
    one, same, other = (warm.run("-c", "print(hash('a'))", server=server).stdout for server in (0, 0, 1))
    assert one == same != other
