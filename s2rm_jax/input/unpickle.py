"""Reads the `refs(...).p` files of the REFER datasets without running what a pickle may carry."""

from __future__ import annotations

import io
import json
import pickle
from pathlib import Path
from typing import Any, NoReturn

from s2rm_jax.errors import UserError

# Python 2 wrote byte strings; those that are not ASCII are UTF-8 in newer files and Latin-1 (which never fails) in old.
_ENCODINGS = ("utf-8", "latin1")


def load_refs(path: str | Path) -> list[dict[str, Any]]:
    """Reads the referents of a REFER dataset: a pickle of any protocol, Python 2's among them, or a `.json` file.

    A pickle can call any function while it loads. A file of referents needs only lists, dicts, strings and numbers, so
    a pickle that names anything else (a class, a function, an external object) is refused before it can be called.

    Args:
      path: `refs(SPLITBY).p` or the same list as JSON.

    Returns:
      One dict for each referent.

    Raises:
      UserError: the file is missing, damaged, refused, or not a list of dicts.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    refs = _from_json(data, path) if path.suffix == ".json" else _from_pickle(data, path)
    if not isinstance(refs, list) or not all(isinstance(ref, dict) for ref in refs):
        raise UserError(f"{path} does not hold a list of referents (one dict each); is it a file of the REFER layout?")
    return refs


class _PlainUnpickler(pickle.Unpickler):
    """Builds lists, dicts, strings and numbers; whatever would lead to a callable is refused."""

    def __init__(self, data: bytes, path: Path, encoding: str):
        super().__init__(io.BytesIO(data), encoding=encoding)
        self._path = path

    def find_class(self, module: str, name: str) -> NoReturn:
        raise UserError(_refusal(self._path, f"{module}.{name}"))

    def persistent_load(self, pid: Any) -> NoReturn:
        raise UserError(_refusal(self._path, f"the external object {pid!r:.60}"))


def _refusal(path: Path, what: str) -> str:
    return (
        f"{path} refers to {what}, which a list of referents never needs and which could run code: "
        "the file was not loaded; get it again from a source you trust, or convert it to .json"
    )


def _from_pickle(data: bytes, path: Path) -> Any:
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


def _from_json(data: bytes, path: Path) -> Any:
    try:
        return json.loads(data)
    except ValueError as error:
        raise UserError(f"{path} is damaged or not JSON ({error}); download it again") from error
