"""Run commands in this process, which saves the time of the imports, or in a separate process."""

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
# Of programs with a limit on the size of files: they may read the programs that all tests share, but what they write
# there would be cut off.
LIMITED = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "1e9"}
CompletedCommand = subprocess.CompletedProcess[str]  # returncode, stdout, stderr


def run_command(name: str, *arguments: object, cwd: Path | str = ROOT) -> CompletedCommand:
    """Run `python -m s2rm_jax.NAME` in this process: run_command("train", "--help").

    A name with a dot is a full module name. The module is executed anew, so its flags have their defaults. The modules
    that it imports are shared with the tests, which may have patched them.
    """
    module = name if "." in name else f"s2rm_jax.{name}"
    sys.modules.pop("config_config", None)  # ml_collections stores the configuration of the previous command there
    return run_function(lambda: runpy.run_module(module, run_name="__main__", alter_sys=True), *arguments, cwd=cwd)


def run_function(function: Callable[[], object], *arguments: object, cwd: Path | str = ROOT) -> CompletedCommand:
    """Call a function as the main function of a program; return its exit status and output.

    Output is captured from the file descriptors, because a failing command redirects file descriptor 2.
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
        # The command predict sets the level of this logger for its process.
        stack.callback(logging.getLogger("s2rm_jax.input.tokens").setLevel, logging.NOTSET)
        try:
            function()
            status = 0
        except SystemExit as error:
            assert isinstance(error.code, int)
            status = error.code
    return subprocess.CompletedProcess(argv, status, *output)


@contextlib.contextmanager
def _captured() -> Iterator[list[str]]:
    """Redirect stdout and stderr to files; append the contents of both to the yielded list on exit."""
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


def run_process(*arguments: object, cwd: Path | str = ROOT, blocks: int | None = None) -> CompletedCommand:
    """Run Python with these arguments in a separate process.

    `blocks` limits the size of the files that it writes, in blocks of 1,024 bytes, to simulate a full disk.
    """
    command = [sys.executable, *map(str, arguments)]
    if blocks is not None:
        command = ["bash", "-c", f'ulimit -f {blocks}; exec "$@"', "bash", *command]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    if blocks is not None:
        environment |= LIMITED
    return subprocess.run(command, check=False, capture_output=True, text=True, cwd=cwd, env=environment)
