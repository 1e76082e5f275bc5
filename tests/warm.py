"""Start programs in processes forked from one that has imported JAX, which saves each of them the time of the imports.

Run as a program, this file is the process that imports the modules and forks one process for each request. It uses no
device, so JAX has no threads when it forks.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import resource
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
MODULES = (
    *("s2rm_jax.command_line", "s2rm_jax.prediction_job", "s2rm_jax.training.loop"),
    *("s2rm_jax.evaluation.evaluator", "s2rm_jax.evaluation.gallery", "s2rm_jax.input.pipeline"),
    *("grain", "jaxlib.mlir.dialects.mhlo", "optax", "orbax.checkpoint", "tensorboardX"),
)


class WarmStart:
    """Starts programs in forked processes; a context manager."""

    def __init__(self) -> None:
        self._servers: dict[int, tuple[socket.socket, subprocess.Popen[str]]] = {}

    def __enter__(self) -> WarmStart:
        return self

    def __exit__(self, *_: object) -> None:
        for requests, server in self._servers.values():
            requests.close()
            server.communicate()

    def __call__(
        self,
        *arguments: object,
        env: Mapping[str, str] = os.environ,
        cwd: Path | str = ROOT,
        blocks: int | None = None,
        server: int = 0,
    ) -> WarmProcess:
        """Start `python PROGRAM ...`, `python -m MODULE ...` or `python -c CODE ...`.

        `blocks` limits the size of files, as in `command.run_process`. Processes of different servers have different
        hashes of strings, as processes have that are not forked from one.
        """
        if server not in self._servers:
            ours, theirs = socket.socketpair()
            with theirs:
                # Pipes, because the forked processes use the objects sys.stdout and sys.stderr of the server.
                pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
                command, environment = [sys.executable, __file__, str(theirs.fileno())], {"PYTHONPATH": str(ROOT)}
                started = subprocess.Popen(
                    command, pass_fds=[theirs.fileno()], env=os.environ | environment, text=True, **pipes
                )
            self._servers[server] = ours, started
        requests, process = self._servers[server]
        try:
            return WarmProcess(requests, [[*map(str, arguments)], {**env}, str(cwd), blocks])
        except EOFError:
            raise RuntimeError(process.communicate()[1]) from None

    def run(self, *arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
        """Start a program and wait for its end."""
        process = self(*arguments, **options)
        output = process.communicate(600)
        return subprocess.CompletedProcess(process.args, process.wait(), *output)


class WarmProcess:
    """A forked process, with what the tests use of subprocess.Popen."""

    def __init__(self, requests: socket.socket, request: list[Any]):
        pipes = [os.pipe() for _ in range(3)]
        socket.send_fds(requests, [json.dumps(request).encode() + b"\n"], [end for _, end in pipes])
        for _, end in pipes:
            os.close(end)
        self.stdout, self.stderr, self._news = (open(begin, encoding="utf-8") for begin, _ in pipes)  # noqa: SIM115
        self.args, self.returncode = request[0], None
        if not (line := self._news.readline()):
            raise EOFError
        self.pid = int(line)

    def __enter__(self) -> WarmProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.stdout.close()
        self.stderr.close()
        self.wait()

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            if not select.select([self._news], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
            with self._news:
                self.returncode = int(self._news.readline())
        return self.returncode

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def send_signal(self, signum: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, signum)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        texts = ["", ""]

        def read(index: int) -> None:
            with (self.stdout, self.stderr)[index] as stream:
                texts[index] = stream.read()

        readers = [threading.Thread(target=read, args=(index,), daemon=True) for index in (0, 1)]
        for reader in readers:
            reader.start()
        self.wait(timeout)
        for reader in readers:
            reader.join()
        return texts[0], texts[1]


def serve(requests: socket.socket) -> tuple[list[Any], list[int]]:
    """Fork for each request; in the forked process, return the request and the descriptors of its output.

    Its parent is a process forked for this request, too, which reports its id and its status.
    """
    waiting = []
    while True:
        message, descriptors, _, _ = socket.recv_fds(requests, 2**16, 3)
        while message and not message.endswith(b"\n"):
            message += requests.recv(2**16)
        if not message:
            for process in waiting:
                os.waitpid(process, 0)
            sys.exit()
        waiting.append(process := os.fork())
        if process == 0:
            *output, news = descriptors
            requests.close()
            if (program := os.fork()) == 0:
                os.close(news)
                return json.loads(message), output
            for descriptor in output:
                os.close(descriptor)
            os.write(news, b"%d\n" % program)
            status = os.waitstatus_to_exitcode(os.waitpid(program, 0)[1])
            os.write(news, b"%d\n" % status)
            os._exit(0)
        for descriptor in descriptors:
            os.close(descriptor)


def become(
    arguments: list[str],
    environment: dict[str, str],
    cwd: str,
    blocks: int | None,
    output: list[int],
    status: list[int],
) -> None:
    """Run a program as Python does with these arguments; append its exit status to `status`."""
    for standard, descriptor in enumerate(output, start=1):
        os.dup2(descriptor, standard)
        os.close(descriptor)
    os.chdir(cwd)
    if blocks is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1024 * blocks, 1024 * blocks))
        environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "1e9"  # a program cut off helps nobody
    changed = {name: value for name, value in environment.items() if os.environ.get(name) != value}
    os.environ.clear()
    os.environ.update(environment)
    for name, value in changed.items():
        if name.startswith("JAX_"):  # JAX read them when it was imported
            kind = type(jax.config.values[name.lower()])
            jax.config.update(name.lower(), kind(value))
    try:
        if arguments[0] == "-m":
            sys.argv, sys.path[0] = arguments[1:], cwd
            runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        elif arguments[0] == "-c":
            sys.argv, sys.path[0] = ["-c", *arguments[2:]], ""
            exec(arguments[1], {"__name__": "__main__"})
        else:
            sys.argv, sys.path[0] = arguments, str(Path(arguments[0]).parent)
            runpy.run_path(arguments[0], run_name="__main__")
        status.append(0)
    except SystemExit as error:
        if error.code is None or isinstance(error.code, int):
            status.append(error.code or 0)
        raise


def leave(status: list[int]) -> None:
    """Exit without freeing every object of the imported modules, unless Python is to choose the exit status."""
    if status:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status[0])


if __name__ == "__main__":
    exit_status: list[int] = []
    atexit.register(leave, exit_status)  # called last, because it is the first
    import jax

    for module in MODULES:
        importlib.import_module(module)
    gc.freeze()
    request, output = serve(socket.socket(fileno=int(sys.argv[1])))
    become(*request, output, exit_status)
