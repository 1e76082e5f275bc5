"""Ctrl-C and SIGTERM: asked once, a run saves and stops at its next step; Ctrl-C twice stops it at once.

Of several processes any may be asked: they tell each other at every step and stop after the same one.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from s2rm_jax.parallel import distributed


class Interrupted(Exception):
    """A run was asked to stop, saved its state and stopped; `signum` is the signal that asked."""

    def __init__(self, message: str, signum: signal.Signals):
        super().__init__(message)
        self.signum = signum


class StopRequest:
    """Holds the signal by which somebody asked the run to stop, or None."""

    def __init__(self) -> None:
        self.heard: signal.Signals | None = None  # by this process

    @property
    def signum(self) -> signal.Signals | None:
        """The signal that asked; between two calls of `exchange` it is the same for all processes, unless only one."""
        return self.heard

    def exchange(self, wait: bool = False) -> None:
        """Tells the other processes and hears from them; all must call it equally often.

        Without `wait` it hears what they said at the call before, so that nobody waits for the exchange.
        """


class SharedStopRequest(StopRequest):
    """The same of several processes."""

    def __init__(self) -> None:
        super().__init__()
        self._agreed = 0
        self._under_way: distributed.Maximum | None = None

    @property
    def signum(self) -> signal.Signals | None:
        """The signal that asked one of the processes, once all know."""
        return signal.Signals(self._agreed) if self._agreed else None

    def exchange(self, wait: bool = False) -> None:
        """See StopRequest; the greatest number of a signal counts."""
        before, self._under_way = self._under_way, distributed.Maximum(self.heard or 0)
        self._agreed = self._agreed or (before.value() if before else 0)
        if wait:
            self._agreed, self._under_way = self._agreed or self._under_way.value(), None


@contextmanager
def listen_for_stop() -> Iterator[StopRequest]:
    """While inside, turns the first SIGINT or SIGTERM into a request, which the caller honours when it is ready.

    After the first, SIGINT raises KeyboardInterrupt again. Only the main thread can listen; elsewhere nothing changes.
    """
    request = StopRequest() if distributed.is_alone() else SharedStopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def ask(signum: int, _: FrameType | None) -> None:
        request.heard = signal.Signals(signum)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        # os.write and not print: a handler may interrupt a print, which cannot be entered twice.
        os.write(2, f"\n{request.heard.name}: saving after this step. Ctrl-C now stops at once.\n".encode())

    before = {signum: signal.signal(signum, ask) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
