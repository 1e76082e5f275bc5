"""Reading pickles without running code.

A pickle can call any function while it loads. Files of referents need only lists, dicts, strings and numbers, so a
pickle that refers to anything else (a class, a function, an external object) is refused before it is called.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any, NoReturn

from s2rm_jax.errors import UserError

# Python 2 wrote byte strings. Non-ASCII ones are UTF-8 in newer files and Latin-1 (which never fails) in older ones.
_ENCODINGS = ("utf-8", "latin1")


class _PlainUnpickler(pickle.Unpickler):
    """Unpickler of lists, dicts, strings and numbers that refuses everything else."""

    def __init__(self, data: bytes, path: Path, encoding: str):
        super().__init__(io.BytesIO(data), encoding=encoding)
        self._path = path

    def find_class(self, module: str, name: str) -> NoReturn:
        raise UserError(_refusal(self._path, f"{module}.{name}"))

    def persistent_load(self, pid: Any) -> NoReturn:
        raise UserError(_refusal(self._path, f"the external object {pid!r:.60}"))


def _refusal(path: Path, what: str) -> str:
    return (
        f"{path} refers to {what}, which no list of referents needs and which could run code; "
        "the file was not loaded: download it from a source you trust, or convert it to .json"
    )


def load_plain_pickle(data: bytes, path: Path) -> Any:
    """Return what a pickle of lists, dicts, strings and numbers holds, of any protocol, including Python 2's.

    Args:
        data: the content of the file.
        path: the file, for error messages.

    Raises:
        UserError: the pickle is damaged, or refers to anything else.
    """
    for encoding in _ENCODINGS:
        try:
            return _PlainUnpickler(data, path, encoding).load()
        except UserError:
            raise
        except UnicodeDecodeError:
            continue
        except Exception as error:  # a damaged pickle can raise nearly anything
            raise UserError(f"{path} is damaged or not a pickle ({error}); download it again") from error
    raise UserError(f"{path} holds text that is neither UTF-8 nor Latin-1; download it again")
