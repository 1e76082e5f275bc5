"""A file by which something outside sees whether a run lives, and what it does."""

from __future__ import annotations

import json
import os
import socket
import time
from contextlib import suppress
from datetime import UTC, datetime
from typing import Literal

from etils import epath

from s2rm_jax.io import write_atomically
from s2rm_jax.parallel import distributed
from s2rm_jax.training.interrupt import Interrupted

HEARTBEAT_FILE = "heartbeat.json"
EVERY = 10.0  # seconds

Doing = Literal["starting", "compiling", "training", "evaluating", "saving"]
State = Doing | Literal["finished", "stopped", "failed"]


class Heartbeat:
    """Keeps <workdir>/heartbeat.json: time, state, step of steps, host and pid; of several processes, the first does.

    The file is written when the state changes, and else at most every EVERY seconds, by the thread that trains: when
    that hangs, the time in the file stands still. Use it as a context manager: how the run ended is the last state.
    """

    def __init__(self, workdir: epath.Path, steps: int):
        self._path, self._steps = workdir / HEARTBEAT_FILE, steps
        self._step = 0
        self._state: State | None = None
        self._written = 0.0

    def beat(self, state: Doing, step: int | None = None) -> None:
        """Hears what the run does; the step is the last one given, where it is not."""
        self._step = self._step if step is None else step
        if state != self._state or time.monotonic() - self._written >= EVERY:
            self._write(state)

    def _write(self, state: State, message: str | None = None) -> None:
        self._state, self._written = state, time.monotonic()
        if not distributed.is_first():
            return
        content = {
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "state": state,
            "step": self._step,
            "steps": self._steps,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            **({"message": message} if message else {}),
        }
        # Whatever a disk or a bucket's client raises, the run goes on; the time in the file stands still then.
        with suppress(Exception):
            write_atomically(self._path, json.dumps(content) + "\n")

    def __enter__(self) -> Heartbeat:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if self._state is None:
            return  # the run did not even begin: the workdir may be another's
        if kind is None:
            self._write("finished")
        elif issubclass(kind, Interrupted | KeyboardInterrupt):
            self._write("stopped")
        else:
            self._write("failed", (str(error).strip().splitlines() or [kind.__name__])[0])
