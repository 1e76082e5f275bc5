"""Keep the output of other libraries off stderr, so that the messages of a command are found there."""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections import deque
from contextlib import suppress
from pathlib import Path

from s2rm_jax.io import on_bucket
from s2rm_jax.parallel import distributed
from s2rm_jax.training.logging import LOG_DIRECTORY

# JAX reports in its log which devices it could not use, and nowhere else. Our own logger has a handler of its own.
_SHOWN, _OURS = "jax", "s2rm_jax"
_KEPT = 1000  # records that are kept until the folder for them exists


class LibraryOutput(logging.Handler):
    """While inside, hide what other libraries log, their warnings, and the tracebacks of their threads.

    When a disk is full, Orbax and asyncio print thousands of lines about it. What matters is raised in the main thread
    as well, and the command reports it in one line. The rest goes to <workdir>/log/libraries_N.log, N being the number
    of the process.

    What C++ code writes to file descriptor 2 is not hidden before `say_last`: it is little, and where a signal ends
    the process, as after an abort in XLA, it is all that is known of the reason.
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._verbose = False
        self._folder: Path | None = None
        self._file: int | None = None
        self._before: deque[str] = deque(maxlen=_KEPT)

    def set_up(self, verbose: bool, workdir: str | None) -> None:
        """Show everything if `verbose`; else write what is hidden to the log folder of `workdir`, once it has one."""
        self._verbose = verbose
        # A bucket cannot append, and its client would be called from within its own threads.
        self._folder = Path(workdir) / LOG_DIRECTORY if workdir and not on_bucket(workdir) else None
        if not verbose:
            # Input workers leave shared memory behind when they are ended. Python's resource tracker, a process of
            # its own, frees it, with a warning after the last message of this process.
            os.environ.setdefault("PYTHONWARNINGS", "ignore:resource_tracker:UserWarning")

    def emit(self, record: logging.LogRecord) -> None:
        """Show a record, or write it to the file for hidden output."""
        library = record.name.split(".")[0]
        if library == _OURS:
            return
        shown = library == _SHOWN
        text = self.format(record) if shown else f"{record.levelname}:{record.name}: {self.format(record)}"
        with suppress(OSError):  # such as a full disk, of which the command itself speaks
            if shown or self._verbose:
                print(text, file=sys.stderr)
            elif self._folder:
                self._before.append(text + "\n")
                self._write(self._folder)

    def _write(self, folder: Path) -> None:
        if self._file is None and folder.is_dir():
            name = f"libraries_{distributed.process()[0]}.log"
            self._file = os.open(folder / name, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        while self._file is not None and self._before:
            # os.write, because a record may come while another is written: from a destructor, in the same thread.
            os.write(self._file, self._before.popleft().encode(errors="backslashreplace"))

    def say_last(self, message: str) -> None:
        """Write a message to stderr that stays the last one there, unless everything is shown.

        From then on, file descriptor 2 leads to the file for hidden output or nowhere, for C++ code too, until the
        process ends: threads that are still running and the exit handlers of libraries print after any message.
        """
        with suppress(OSError, AttributeError):  # stderr may be full, or closed and None; the exit status stays right
            sys.stderr.flush()
            screen = os.dup(2)
            if not self._verbose:
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere if self._file is None else self._file, 2)
                os.close(nowhere)
            with open(screen, "w", encoding=sys.stderr.encoding, errors="backslashreplace") as stream:
                print(message, file=stream)

    def __enter__(self) -> LibraryOutput:
        self._hooks = sys.excepthook, threading.excepthook, sys.unraisablehook
        # C++ code that calls back into Python reports errors to sys.excepthook, from threads of its own.
        sys.excepthook = lambda kind, error, trace: _log("sys.excepthook", error)
        threading.excepthook = lambda args: _log("threading.excepthook", args.exc_value, f"in {args.thread}")
        sys.unraisablehook = lambda args: _log("sys.unraisablehook", args.exc_value, f"{args.err_msg}: {args.object!r}")
        logging.captureWarnings(True)
        logging.getLogger().addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        logging.getLogger().removeHandler(self)
        logging.captureWarnings(False)
        sys.excepthook, threading.excepthook, sys.unraisablehook = self._hooks
        if self._file is not None:
            os.close(self._file)


def _log(hook: str, error: BaseException | None, message: str = "") -> None:
    """Log an error, with its traceback, that Python reports to `hook`."""
    if not isinstance(error, SystemExit):
        logging.getLogger(hook).error(message, exc_info=error)
