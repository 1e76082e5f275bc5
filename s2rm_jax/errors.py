"""The exceptions that speak to the person at the keyboard."""

from __future__ import annotations

from typing import Any


class UserError(Exception):
    """Something the user can put right: a wrong path, flag, field or file.

    The message is one line that says what is wrong, where, and what to do. The command-line doors print it without a
    traceback and exit with status 2; from Python it is an ordinary exception.
    """


class PartlyDone(UserError):
    """Some of many things could not be done, each of which was told; the others are done, and `result` says how."""

    def __init__(self, message: str, result: dict[str, Any]):
        super().__init__(message)
        self.result = result
