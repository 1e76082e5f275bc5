"""Stderr of a command that fails while libraries print, with and without --verbose."""

import logging
import os
import sys
import textwrap
import threading
import warnings

import pytest
from absl import flags

from s2rm_jax import command_line
from s2rm_jax.errors import UserError
from tests.command import run_function, run_process


class Library:
    """Print as Orbax, asyncio, TensorStore and JAX do, in other threads; every text contains "noise"."""

    def __init__(self):
        for what in (self.log, self.raise_in_thread, self.report_from_cpp, self.raise_in_destructor, self.warn):
            thread = threading.Thread(target=what, name="noise")
            thread.start()
            thread.join()

    def log(self):
        try:
            raise ValueError("noise of a log")
        except ValueError:
            logging.getLogger("asyncio").exception("future: exception was never retrieved")

    def raise_in_thread(self):
        raise ValueError("noise of a thread")

    def report_from_cpp(self):
        try:
            raise ValueError("noise of C++")
        except ValueError:
            sys.excepthook(*sys.exc_info())

    def raise_in_destructor(self):
        class Handle:
            def __del__(self):
                raise ValueError("noise of a destructor")

        Handle()

    def warn(self):
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn("noise of a warning", stacklevel=1)


SOURCES = ("a log", "a thread", "C++", "a destructor", "a warning")


def run(main, *arguments):
    values = flags.FlagValues()
    flags.DEFINE_string("workdir", None, "the directory of the run", flag_values=values)
    return run_function(lambda: command_line.run_and_exit(main, values, "Does things."), *arguments)


def fail():
    Library()
    raise UserError("the disk is full: make room.")


def test_an_error_is_the_only_line():
    done = run(fail)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "error: the disk is full: make room.\n")


def test_verbose_shows_the_output_of_libraries_too():
    done = run(fail, "--verbose")
    assert done.returncode == 2
    assert all(f"noise of {source}\n" in done.stderr for source in SOURCES)
    assert done.stderr.count("Traceback") == len(SOURCES) - 1
    assert done.stderr.endswith("\nerror: the disk is full: make room.\n")


def test_hidden_output_is_written_to_the_workdir(tmp_path):
    def begin_and_fail():
        logging.getLogger("orbax").warning("noise before the run has a folder")
        (tmp_path / "log").mkdir()
        fail()

    for _ in range(2):
        done = run(begin_and_fail if not (tmp_path / "log").exists() else fail, f"--workdir={tmp_path}")
        assert done.stderr == "error: the disk is full: make room.\n"
    kept = (tmp_path / "log" / "libraries_0.log").read_text()
    assert kept.startswith("WARNING:orbax: noise before the run has a folder\n")
    assert all(kept.count(f"noise of {source}\n") == 2 for source in SOURCES)


def test_nothing_is_written_to_a_folder_that_is_not_a_run(tmp_path):
    run(fail, f"--workdir={tmp_path}")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_reported_once(tmp_path):
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "libraries_0.log").symlink_to("/dev/full")
    assert run(fail, f"--workdir={tmp_path}").stderr == "error: the disk is full: make room.\n"


def test_a_defect_shows_its_own_traceback_and_no_other():
    def main():
        Library()
        raise ZeroDivisionError("ours")

    done = run(main)
    assert done.returncode == 1 and "noise" not in done.stderr
    assert done.stderr.count("Traceback") == 1
    assert done.stderr.splitlines()[-1].startswith("error: a defect in this program (ZeroDivisionError: ours);")


def test_warnings_of_this_package_and_of_jax_are_shown():
    def main():
        Library()
        logging.getLogger("s2rm_jax.input.tokens").warning("an expression is cut")
        logging.getLogger("jax._src.xla_bridge").warning("falling back to cpu")

    done = run(main)
    assert (done.returncode, done.stderr) == (0, "an expression is cut\nfalling back to cpu\n")


def test_a_handler_of_a_library_is_silent_and_everything_is_restored_afterwards():
    def surroundings():
        hooks = (sys.excepthook, threading.excepthook, sys.unraisablehook, warnings.showwarning)
        return hooks, list(logging.getLogger().handlers)

    def run_beside_a_handler():
        handler = logging.StreamHandler()  # as absl adds it while Orbax is imported
        logging.getLogger().addHandler(handler)
        seen.append(surroundings())
        try:
            command_line.run_and_exit(fail, flags.FlagValues(), "Does things.")
        finally:
            seen.append(surroundings())
            logging.getLogger().removeHandler(handler)

    seen = []
    assert run_function(run_beside_a_handler).stderr == "error: the disk is full: make room.\n"
    assert seen[0] == seen[1]


@pytest.mark.parametrize("arguments", [(), ("--verbose",)])
def test_output_during_the_exit_is_hidden(tmp_path, arguments):
    """After the message, running threads, exit handlers, destructors and C++ code print."""
    program = tmp_path / "program.py"
    program.write_text(
        textwrap.dedent("""
            import atexit, os, sys, threading
            from absl import flags
            from s2rm_jax import command_line
            from s2rm_jax.errors import UserError

            def go_on():
                threading.main_thread().join()
                print("noise of a thread", file=sys.stderr)
                os.write(2, b"noise of C++\\n")
                raise ValueError("noise of its end")

            class Handle:
                def __del__(self):
                    raise ValueError("noise of a destructor")

            def main():
                threading.Thread(target=go_on).start()
                raise UserError("the disk is full: make room.")

            handle = Handle()
            atexit.register(print, "noise of an exit handler", file=sys.stderr)
            command_line.run_and_exit(main, flags.FlagValues(), "Does things.")
        """)
    )
    done = run_process(program, *arguments)
    assert done.returncode == 2 and done.stdout == ""
    error, *noise = done.stderr.splitlines()
    assert error == "error: the disk is full: make room."
    assert bool(noise) == bool(arguments)
    if arguments:
        sources = ("a thread", "C++", "its end", "a destructor", "an exit handler")
        assert all(any(f"noise of {source}" in line for line in noise) for source in sources)


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_the_status_is_right_if_stdout_or_stderr_is_full(stream):
    def main():
        print("a result")
        raise UserError("the disk is full: make room.")

    def run_on_full():
        number = {"stdout": 1, "stderr": 2}[stream]
        os.dup2(os.open("/dev/full", os.O_WRONLY), number)
        command_line.run_and_exit(main, flags.FlagValues(), "Does things.")

    done = run_function(run_on_full)
    assert done.returncode == 2
    assert (done.stdout, done.stderr) == (
        ("", "error: the disk is full: make room.\n") if stream == "stdout" else ("a result\n", "")
    )
