"""Keep the output of other libraries off stderr, so that only the messages of the command appear there."""

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

# JAX reports the devices that it cannot use only in its log. The logger of this package has its own handler.
_SHOWN, _OWN = "jax", "s2rm_jax"
_MAX_PENDING = 1000  # records that are kept in memory until the log folder exists


class LibraryOutput(logging.Handler):
    """Context manager that hides the log records, warnings and thread tracebacks of other libraries.

    When a disk is full, for example, Orbax and asyncio print thousands of lines. The same error is raised in the main
    thread, and the command reports it in one line. Hidden output is written to <workdir>/log/libraries_N.log, where N
    is the index of the process.

    Output of C++ code to file descriptor 2 is not hidden before `print_last`: it is short, and if a signal ends the
    process, as after an abort in XLA, it is the only description of the cause.
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._verbose = False
        self._folder: Path | None = None
        self._file: int | None = None
        self._pending: deque[str] = deque(maxlen=_MAX_PENDING)

    def set_up(self, verbose: bool, workdir: str | None) -> None:
        """Show all output if `verbose`; otherwise write hidden output to the log folder of `workdir` once it exists."""
        self._verbose = verbose
        # Files in a bucket cannot be appended to, and its client would be called from its own threads.
        self._folder = Path(workdir) / LOG_DIRECTORY if workdir and not on_bucket(workdir) else None
        if not verbose:
            # Input workers that are terminated leave shared memory behind. Python's resource tracker, a separate
            # process, frees it and prints a warning after the last message of this process.
            os.environ.setdefault("PYTHONWARNINGS", "ignore:resource_tracker:UserWarning")

    def emit(self, record: logging.LogRecord) -> None:
        """Show a record, or write it to the file for hidden output."""
        library = record.name.split(".")[0]
        if library == _OWN:
            return
        shown = library == _SHOWN
        text = self.format(record) if shown else f"{record.levelname}:{record.name}: {self.format(record)}"
        with suppress(OSError):  # such as a full disk, which the command itself reports
            if shown or self._verbose:
                print(text, file=sys.stderr)
            elif self._folder:
                self._pending.append(text + "\n")
                self._write(self._folder)

    def _write(self, folder: Path) -> None:
        if self._file is None and folder.is_dir():
            name = f"libraries_{distributed.process()[0]}.log"
            self._file = os.open(folder / name, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        while self._file is not None and self._pending:
            # os.write is reentrant: a destructor may log a record while this thread writes another.
            os.write(self._file, self._pending.popleft().encode(errors="backslashreplace"))

    def print_last(self, message: str) -> None:
        """Print a message to stderr as the last output of the process, unless all output is shown.

        Running threads and the exit handlers of libraries may print afterwards, from C++ code too. Therefore file
        descriptor 2 is redirected to the file of hidden output, or to the null device, until the process ends.
        """
        with suppress(OSError, AttributeError):  # stderr may be full, or closed and None; the exit status is unaffected
            sys.stderr.flush()
            stderr = os.dup(2)
            if not self._verbose:
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null if self._file is None else self._file, 2)
                os.close(null)
            with open(stderr, "w", encoding=sys.stderr.encoding, errors="backslashreplace") as stream:
                print(message, file=stream)

    def __enter__(self) -> LibraryOutput:
        self._previous_hooks = sys.excepthook, threading.excepthook, sys.unraisablehook
        # Errors in Python callbacks of C++ code are reported to sys.excepthook, from C++ threads.
        sys.excepthook = lambda kind, error, trace: _log("sys.excepthook", error)
        threading.excepthook = lambda args: _log("threading.excepthook", args.exc_value, f"in {args.thread}")
        sys.unraisablehook = lambda args: _log("sys.unraisablehook", args.exc_value, f"{args.err_msg}: {args.object!r}")
        logging.captureWarnings(True)
        root = logging.getLogger()
        # absl adds a handler if it is used before there is one, as it is while Orbax is imported.
        self._replaced = [handler for handler in root.handlers if getattr(handler, "stream", None) is sys.stderr]
        for handler in self._replaced:
            root.removeHandler(handler)
        root.addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        root = logging.getLogger()
        root.removeHandler(self)
        for handler in self._replaced:
            root.addHandler(handler)
        logging.captureWarnings(False)
        sys.excepthook, threading.excepthook, sys.unraisablehook = self._previous_hooks
        if self._file is not None:
            os.close(self._file)


def _log(hook: str, error: BaseException | None, message: str = "") -> None:
    """Log an error that Python reports to `hook`, with its traceback."""
    if not isinstance(error, SystemExit):
        logging.getLogger(hook).error(message, exc_info=error)
