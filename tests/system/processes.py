"""Run N processes of one program that train together on the CPU, and collect their output."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tests.waiting import TIMEOUT, wait_for
from tests.warm import WarmProcess, WarmStart

ROOT = Path(__file__).parents[2]


class Processes:
    """`count` processes with `devices` devices each, as a context manager that kills what still runs at its end.

    They are forked from a process that has imported JAX, or, without `warm`, started by Python itself. With a `gate`,
    they read the batches of training that `allow` allows (`wait_at` of tests/training/standin.py).
    """

    def __init__(
        self,
        warm: WarmStart | None,
        count: int,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        devices: int = 1,
        gate: Path | None = None,
    ):
        self.reserved, port = reserve_port()
        self.gate = gate
        if gate:
            gate.touch()
            environment = {**environment, "GATE": str(gate)}
        self.running = []
        for index in range(count):
            several = {
                "S2RM_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
                "S2RM_NUM_PROCESSES": str(count),
                "S2RM_PROCESS_ID": str(index),
            }
            mine = {
                "JAX_PLATFORMS": "cpu",
                "JAX_NUM_CPU_DEVICES": str(devices),
                **(several if count > 1 else {}),
            }
            variables = {**os.environ, **environment, **mine}
            if warm:
                self.running.append(_Running(warm(*arguments, env=variables, server=index % 2)))  # other hashes
            else:
                pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
                self.running.append(
                    _Running(subprocess.Popen([sys.executable, *arguments], env=variables, cwd=ROOT, **pipes))
                )

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.running:
            process.end()
        self.reserved.close()

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Wait until a condition holds, while all processes run."""

        def require_running() -> None:
            for process in self.running:
                assert process.status() is None, process.output()

        wait_for(condition, require_running)

    def signal(self, index: int, signum: signal.Signals) -> None:
        """Send a signal to one process."""
        self.running[index].popen.send_signal(signum)

    def allow(self, count: int = 1000) -> None:
        """Allow every process to read `count` more batches."""
        assert self.gate is not None
        with self.gate.open("ab") as file:
            file.write(b"." * count)

    def finish(self) -> list[tuple[int, str, str]]:
        """Wait for the end of all processes; return (status, stdout, stderr) of each."""
        return [process.finish() for process in self.running]

    def succeed(self) -> list[str]:
        """Wait for the end of all processes, which must have status 0; return the stdout of each."""
        ended = self.finish()
        assert [status for status, _, _ in ended] == [0] * len(ended), "\n".join(err for _, _, err in ended)
        return [out for _, out, _ in ended]


class _Running:
    """A process whose pipes are read while it runs, so that it never waits for a reader."""

    def __init__(self, started: WarmProcess | subprocess.Popen[str]):
        self.popen = started
        self._output: dict[str, list[str]] = {"stdout": [], "stderr": []}
        self._readers = [threading.Thread(target=self._read, args=(name,)) for name in self._output]
        for reader in self._readers:
            reader.start()

    def _read(self, name: str) -> None:
        with getattr(self.popen, name) as stream:
            for line in stream:
                self._output[name].append(line)

    def status(self) -> int | None:
        return self.popen.poll()

    def output(self) -> str:
        return "".join(self._output["stdout"] + self._output["stderr"])

    def finish(self) -> tuple[int, str, str]:
        status = self.popen.wait(TIMEOUT)
        for reader in self._readers:
            reader.join(TIMEOUT)
        return status, "".join(self._output["stdout"]), "".join(self._output["stderr"])

    def end(self) -> None:
        if self.popen.poll() is None:
            self.popen.kill()
        self.finish()


def reserve_port() -> tuple[socket.socket, int]:
    """Return a socket that keeps a free port from others until it is closed, and the port.

    It does not listen. A coordinator can, because gRPC sets the option on its socket too.
    """
    reserved = socket.socket()
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    reserved.bind(("127.0.0.1", 0))
    return reserved, reserved.getsockname()[1]
