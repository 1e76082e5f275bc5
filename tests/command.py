"""Runs commands: in this process, which spares the imports, or in one of their own."""

from __future__ import annotations

import contextlib
import logging
import os
import runpy
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).parents[1]
Done = subprocess.CompletedProcess[str]  # returncode, stdout, stderr


def run_command(name: str, *arguments: object, cwd: Path | str = ROOT) -> Done:
    """Run a command in this process as `python -m s2rm_jax.NAME` would in its own: run_command("train", "--help").

    A name with a dot is that of the whole module. The module is executed anew, so that its flags are fresh; the modules
    that it imports are those of the tests, which may have patched them.
    """
    module = name if "." in name else f"s2rm_jax.{name}"
    sys.modules.pop("config_config", None)  # ml_collections leaves the configuration of the command before there
    return run_here(lambda: runpy.run_module(module, run_name="__main__", alter_sys=True), *arguments, cwd=cwd)


def run_here(function: Callable[[], object], *arguments: object, cwd: Path | str = ROOT) -> Done:
    """Call a function as a program with these arguments, and return how it exited and what it printed.

    Output is captured from the file descriptors, because a command that fails closes that of stderr to other libraries.
    """
    argv = ["command", *map(str, arguments)]
    with contextlib.ExitStack() as stack:
        output = stack.enter_context(_captured())
        stack.enter_context(contextlib.chdir(cwd))
        stack.enter_context(mock.patch.object(sys, "argv", argv))
        stack.enter_context(mock.patch.object(sys, "path", list(sys.path)))
        stack.enter_context(mock.patch.dict(os.environ))
        stack.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", ".* found in sys.modules after import of package", RuntimeWarning)
        warnings.filterwarnings("ignore", r"the load_module\(\) method is deprecated", DeprecationWarning)
        # predict quietens it for its process.
        stack.callback(logging.getLogger("s2rm_jax.input.tokens").setLevel, logging.NOTSET)
        try:
            function()
            status = 0
        except SystemExit as end:
            assert isinstance(end.code, int)
            status = end.code
    return subprocess.CompletedProcess(argv, status, *output)


@contextlib.contextmanager
def _captured() -> Iterator[list[str]]:
    """While inside, stdout and stderr go to files; the list receives what is in them."""
    texts: list[str] = []
    streams, descriptors = (sys.stdout, sys.stderr), (os.dup(1), os.dup(2))
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        os.dup2(out.fileno(), 1)
        os.dup2(err.fileno(), 2)
        sys.stdout, sys.stderr = (open(number, "w", encoding="utf-8", closefd=False) for number in (1, 2))  # noqa: SIM115
        try:
            yield texts
        finally:
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
            sys.stdout, sys.stderr = streams
            for number, descriptor in enumerate(descriptors, start=1):
                os.dup2(descriptor, number)
                os.close(descriptor)
            for file in (out, err):
                file.seek(0)
                texts.append(file.read().decode())


def run_process(*arguments: object, cwd: Path | str = ROOT, blocks: int | None = None) -> Done:
    """Run Python with these arguments in a process of its own.

    `blocks` is the size of the largest file that it may write, in blocks of 1,024 bytes, as if its disk were full then.
    """
    command = [sys.executable, *map(str, arguments)]
    if blocks is not None:
        command = ["bash", "-c", f'ulimit -f {blocks}; exec "$@"', "bash", *command]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    return subprocess.run(command, check=False, capture_output=True, text=True, cwd=cwd, env=environment)
