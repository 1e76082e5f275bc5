"""Ctrl-C and SIGTERM: after the first, a run saves and stops at its next step; a second Ctrl-C stops it at once.

Any of several processes may receive the signal: they exchange it at every step and stop after the same one.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from s2rm_jax.parallel import distributed


class Interrupted(Exception):
    """A run was stopped by the signal `signum`, and its state is saved."""

    def __init__(self, message: str, signum: signal.Signals):
        super().__init__(message)
        self.signum = signum


class StopRequest:
    """The signal that asks a run to stop; with several processes, the highest number that any of them received."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None  # by this process
        self._agreed = 0
        self._pending: Callable[[], int] | None = None

    @property
    def signum(self) -> signal.Signals | None:
        """The signal that all processes have agreed on; with several processes it changes only in `exchange`."""
        if distributed.is_alone():
            return self.received
        return signal.Signals(self._agreed) if self._agreed else None

    def exchange(self, wait: bool = False) -> None:
        """Exchange the signals of all processes, each of which must call this equally often.

        Without `wait`, the result of the call before takes effect, so that no process waits for the exchange.
        """
        if distributed.is_alone():
            return
        before, self._pending = self._pending, distributed.start_maximum(self.received or 0)
        self._agreed = self._agreed or (before() if before else 0)
        if wait:
            self._agreed, self._pending = self._agreed or self._pending(), None


@contextmanager
def listen_for_stop() -> Iterator[StopRequest]:
    """Within the context, turn the first SIGINT or SIGTERM into a request, which the caller honours at its next step.

    After that, SIGINT raises KeyboardInterrupt again. Python handles signals in the main thread only; in another thread
    nothing changes.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def handle(signum: int, _: FrameType | None) -> None:
        request.received = signal.Signals(signum)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        # os.write and not print: a handler may interrupt a print, which is not reentrant.
        with suppress(OSError):  # nobody reads stderr any more, as after a lost connection
            what = "saving after this step, or once it is compiled"
            os.write(2, f"\n{request.received.name}: {what}. Ctrl-C now stops at once.\n".encode())

    before = {signum: signal.signal(signum, handle) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
