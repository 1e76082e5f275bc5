"""Start programs in processes forked from one that has imported JAX, which saves each of them the time of the imports.

Run as a program, this file is the process that imports the modules and forks. It uses no device, so JAX has no threads
when it forks.
"""

from __future__ import annotations

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

from tests.command import LIMITED, ROOT

MODULES = (
    *("jax", "s2rm_jax.command_line", "s2rm_jax.prediction.job", "s2rm_jax.training.loop", "s2rm_jax.input.pipeline"),
    *("s2rm_jax.evaluation.evaluator", "s2rm_jax.evaluation.gallery", "orbax.checkpoint", "optax", "grain"),
    *("tensorboardX", "jaxlib.mlir.dialects.mhlo"),
)


class WarmStart:
    """Starts programs; a context manager that ends the processes from which they are forked."""

    def __init__(self) -> None:
        self._environment = os.environ | {"PYTHONPATH": str(ROOT)}  # of the session, not of a test that changes it
        self._environment.pop("PYTHONHASHSEED", None)
        self._servers: dict[int, tuple[socket.socket, subprocess.Popen[str]]] = {}
        self._started: list[WarmProcess] = []

    def __enter__(self) -> WarmStart:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._started:  # those that a failed test left behind
            process.kill()
        for requests, server in self._servers.values():
            requests.close()
            server.communicate()

    def __call__(
        self,
        *arguments: object,
        env: Mapping[str, str] = os.environ,
        blocks: int | None = None,
        server: int = 0,
    ) -> WarmProcess:
        """Start `python PROGRAM ...`, `python -m MODULE ...` or `python -c CODE ...`.

        `blocks` is as in `command.run_process`. Programs of one server have the same hashes of strings, programs of two
        servers do not.
        """
        if server not in self._servers:
            ours, theirs = socket.socketpair()
            with theirs:
                # Pipes, because sys.stdout and sys.stderr of the server become those of the programs.
                pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
                command = [sys.executable, "-P", __file__, str(theirs.fileno())]
                process = subprocess.Popen(
                    command, pass_fds=[theirs.fileno()], env=self._environment, text=True, **pipes
                )
            self._servers[server] = ours, process
        requests, process = self._servers[server]
        try:
            environment = {**env} if blocks is None else {**env, **LIMITED}
            self._started.append(WarmProcess(requests, [*map(str, arguments)], environment, blocks))
        except (ValueError, OSError):  # the server has ended
            raise RuntimeError(process.communicate(timeout=10)[1]) from None
        return self._started[-1]

    def run(self, *arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
        """Start a program and wait for its end."""
        process = self(*arguments, **options)
        try:
            output = process.communicate(600)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        return subprocess.CompletedProcess(process.args, process.wait(), *output)


class WarmProcess:
    """A started program, with what the tests use of subprocess.Popen."""

    def __init__(self, requests: socket.socket, *request: Any):
        pipes = [os.pipe() for _ in range(3)]
        socket.send_fds(requests, [json.dumps(request).encode() + b"\n"], [end for _, end in pipes])
        for _, end in pipes:
            os.close(end)
        self.stdout, self.stderr, self._news = (open(begin, encoding="utf-8") for begin, _ in pipes)  # noqa: SIM115
        self.args, self.pid, self.returncode = request[0], int(self._news.readline()), None
        self._texts: dict[str, str] = {}
        self._readers: list[threading.Thread] = []

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
                self._news.read()  # ends when the process is gone
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
        """Return the rest of stdout and stderr, read by threads, so that the program never waits for a reader."""

        def read(name: str) -> None:
            with getattr(self, name) as stream:
                self._texts[name] = stream.read()

        if not self._readers:
            self._readers = [threading.Thread(target=read, args=(name,), daemon=True) for name in ("stdout", "stderr")]
            for reader in self._readers:
                reader.start()
        self.wait(timeout)
        for reader in self._readers:
            reader.join(timeout)
        return self._texts["stdout"], self._texts["stderr"]


def serve(requests: socket.socket) -> tuple[list[Any], list[int]]:
    """Fork for each request; in the forked process only, return the request and the descriptors of its output.

    The parent of that process is also forked for the request. It reports the id and the exit status of its child.
    """
    reporters: list[int] = []
    while True:
        message, descriptors, _, _ = socket.recv_fds(requests, 2**16, 3)
        while message and not message.endswith(b"\n") and (more := requests.recv(2**16)):
            message += more
        reporters = [reporter for reporter in reporters if os.waitpid(reporter, os.WNOHANG) == (0, 0)]  # not ended
        if not message:
            for reporter in reporters:
                os.waitpid(reporter, 0)
            sys.exit()
        reporters.append(os.fork())
        if reporters[-1] == 0:
            *output, news = descriptors
            requests.close()
            if (program := os.fork()) == 0:
                os.close(news)
                return json.loads(message), output
            for descriptor in output:
                os.close(descriptor)
            os.write(news, b"%d\n" % program)
            # The status is reported before the id is free for another process, which a signal would then reach.
            ended = os.waitid(os.P_PID, program, os.WEXITED | os.WNOWAIT)
            assert ended is not None
            os.write(news, b"%d\n" % (ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status))
            os.waitpid(program, 0)
            os._exit(0)
        for descriptor in descriptors:
            os.close(descriptor)


def become(arguments: list[str], environment: dict[str, str], blocks: int | None, output: list[int]) -> None:
    """Run a program as `python ARGUMENTS` does."""
    import jax

    for standard, descriptor in enumerate(output, start=1):
        os.dup2(descriptor, standard)
        os.close(descriptor)
    os.chdir(ROOT)
    if blocks is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1024 * blocks, 1024 * blocks))
    assert {name for name in os.environ if name.startswith("JAX_")} <= environment.keys()
    for name in [name for name, value in environment.items() if name[:4] == "JAX_" and os.environ.get(name) != value]:
        kind = type(jax.config.values[name.lower()])  # JAX reads these variables when it is imported
        assert kind in (int, float, str), name  # others need another conversion
        jax.config.update(name.lower(), kind(environment[name]))
    os.environ.clear()
    os.environ.update(environment)
    first, sys.argv = arguments[0], arguments[1:] if arguments[0] == "-m" else arguments
    sys.path.insert(0, {"-m": str(ROOT), "-c": ""}.get(first, str(Path(first).parent)))
    if first == "-m":
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    elif first == "-c":
        exec(sys.argv.pop(1), {"__name__": "__main__"})
    else:
        runpy.run_path(first, run_name="__main__")


if __name__ == "__main__":
    for module in MODULES:
        importlib.import_module(module)
    gc.freeze()  # so that programs neither search what is imported for garbage nor copy its memory
    request, output = serve(socket.socket(fileno=int(sys.argv[1])))
    # Python exits as usual and frees all objects: the destructor of JAX's client is what leaves other processes.
    become(*request, output)
