"""Exceptions with a message for the user, and what the errors of disks, networks and buckets mean."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

# What to do if a training step needs more memory than a device has: the list in docs/training.md, Out of memory.
LESS_MEMORY = (
    "use --config.dtype=bfloat16 (not for a run that resumes), --config.remat=dense or "
    "--config.optimizer.accumulate=N, in this order, or more devices; in an evaluation, reduce "
    "--config.eval.batch_size (docs/training.md, Out of memory)"
)


class UserError(Exception):
    """An error that the user can correct: a wrong path, flag, field or file.

    The message is one line that says what is wrong, where, and what to do. Commands print it without a traceback and
    exit with status 2.
    """


@contextmanager
def explaining(describe: Callable[[Exception], str]) -> Iterator[None]:
    """Raise a UserError with the message that `describe` returns for any other exception in the block."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(describe(error)) from error


class PartlyDone(UserError):
    """Some of many items failed, each with a message of its own; `result` is the result of the others."""

    def __init__(self, message: str, result: dict[str, Any]):
        super().__init__(message)
        self.result = result


class TemporaryFailure(UserError):
    """A temporary error, such as a bucket that cannot be reached now.

    Commands exit with status 75, at which the scripts of launch/ start a run again.
    """


Fault = Literal["full", "denied", "temporary", "other"]

_ERRNOS: dict[Fault, tuple[int, ...]] = {
    "full": (errno.ENOSPC, errno.EDQUOT, errno.EFBIG),
    "denied": (errno.EACCES, errno.EPERM, errno.EROFS),
    # File systems over a network return EIO for lost connections too.
    "temporary": (
        *(errno.EAGAIN, errno.EBUSY, errno.EINTR, errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN),
        *(errno.ECONNREFUSED, errno.ECONNRESET, errno.ECONNABORTED, errno.EPIPE, errno.EHOSTUNREACH),
        *(errno.EHOSTDOWN, errno.ENETDOWN, errno.ENETUNREACH, errno.ENETRESET),
    ),
}
# TensorStore and the clients of buckets put the cause into the text: a status of Abseil, or the error of the system.
_WORDS: dict[Fault, tuple[str, ...]] = {
    "full": (),
    "denied": (r"\bPERMISSION_DENIED\b", r"\bUNAUTHENTICATED\b"),
    "temporary": (r"\bUNAVAILABLE\b", r"\bDEADLINE_EXCEEDED\b", r"\bABORTED\b", r"[Tt]imed out"),
}
_TEXTS = {
    fault: re.compile("|".join([*words, *(re.escape(os.strerror(number)) for number in _ERRNOS[fault])]))
    for fault, words in _WORDS.items()
}
# Parts of the names of exceptions that clients of buckets raise, some without a common base class.
_TEMPORARY_NAMES = re.compile(r"Timeout|Connection|Disconnected|TransportError|gaierror")


def find_fault(error: BaseException) -> Fault:
    """Return why a file could not be read or written: no room, no permission, a temporary error, or other.

    The errors that caused `error` are considered too.
    """
    faults = [_fault_of(one) for one in _chain(error)]
    return next((fault for fault in faults if fault != "other"), "other")


def is_temporary(error: BaseException) -> bool:
    """Return whether an error may be temporary; see `find_fault`."""
    return find_fault(error) == "temporary"


def _fault_of(error: BaseException) -> Fault:
    status = getattr(error, "code", None) or getattr(error, "status", None)  # of HTTP
    if isinstance(status, int):
        if status in (401, 403):
            return "denied"
        if status in (408, 429) or 500 <= status < 600:
            return "temporary"
    for fault, numbers in _ERRNOS.items():
        if isinstance(error, OSError) and error.errno in numbers:
            return fault
    if any(_TEMPORARY_NAMES.search(kind.__name__) for kind in type(error).__mro__):
        return "temporary"
    return next((fault for fault, text in _TEXTS.items() if text.search(str(error))), "other")


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def find_full_disk(error: BaseException | None) -> OSError | None:
    """Return the OSError that says that a disk or quota is full, where `error` is one or was raised because of one."""
    return next((one for one in _chain(error) if isinstance(one, OSError) and one.errno in _ERRNOS["full"]), None)


def storage_error(what: str, error: BaseException) -> UserError | None:
    """Return the UserError for a failed access to a disk or a bucket, or None if the storage is not the cause.

    Args:
        what: what cannot be done and where, such as "a checkpoint cannot be written to DIR".
        error: the exception.
    """
    explained = known_storage_error(what, error)
    if explained is None and isinstance(error, OSError):
        explained = UserError(f"{what} ({reason_of(error)}): check the path")
    return explained


def known_storage_error(what: str, error: BaseException) -> UserError | None:
    """Return the same as `storage_error`, but None for what `find_fault` does not know, such as a missing file."""
    fault = find_fault(error)
    what = f"{what} ({reason_of(error)})"
    if fault == "full":
        return UserError(f"{what}: free space there and run the command again")
    if fault == "denied":
        return UserError(f"{what}: correct the permissions or give another folder, and run the command again")
    if fault == "temporary":
        return TemporaryFailure(f"{what}: the storage cannot be reached now; run the same command again later")
    return None


def counted(number: int, thing: str) -> str:
    """Return a number with its noun: "1 image", "2 images"."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def first_of(cases: Sequence[object], separator: str = "; ", most: int = 5) -> str:
    """Return the first cases of a list for a message, and how many more there are."""
    more = [f"and {len(cases) - most:,} more"] if len(cases) > most else []
    return separator.join([*map(str, cases[:most]), *more])


def one_line(error: BaseException | str) -> str:
    """Return the whole message of an error in one line, or its type if it has none."""
    return " ".join(str(error).split()) or type(error).__name__


def reason_of(error: BaseException) -> str:
    """Return the first line of an error's message, or its type if it has none."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
