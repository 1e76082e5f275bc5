"""Exceptions with a message for the user."""

from __future__ import annotations

import errno
from typing import Any


class UserError(Exception):
    """An error that the user can correct: a wrong path, flag, field or file.

    The message is one line that says what is wrong, where, and what to do. Commands print it without a traceback and
    exit with status 2.
    """


class PartlyDone(UserError):
    """Some of many items failed, each with a message of its own; `result` is the result of the others."""

    def __init__(self, message: str, result: dict[str, Any]):
        super().__init__(message)
        self.result = result


def find_full_disk(error: BaseException | None) -> OSError | None:
    """Return the OSError that says that a disk or quota is full, where `error` is one or was raised because of one."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return error
        error = error.__cause__ or error.__context__
    return None
