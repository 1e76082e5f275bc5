"""Ctrl-C and SIGTERM: asked once, a run saves and stops at its next step; Ctrl-C twice stops it at once."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType


class Interrupted(Exception):
    """A run was asked to stop, saved its state and stopped; `signum` is the signal that asked."""

    def __init__(self, message: str, signum: signal.Signals):
        super().__init__(message)
        self.signum = signum


@dataclass
class StopRequest:
    """Holds the signal by which somebody asked the run to stop, or None."""

    signum: signal.Signals | None = None


@contextmanager
def listen_for_stop() -> Iterator[StopRequest]:
    """While inside, turns the first SIGINT or SIGTERM into a request, which the caller honours when it is ready.

    After the first, SIGINT raises KeyboardInterrupt again. Only the main thread can listen; elsewhere nothing changes.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def ask(signum: int, _: FrameType | None) -> None:
        request.signum = signal.Signals(signum)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        # os.write and not print: a handler may interrupt a print, which cannot be entered twice.
        os.write(2, f"\n{request.signum.name}: saving after this step. Ctrl-C now stops at once.\n".encode())

    before = {signum: signal.signal(signum, ask) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
