"""Write pickles with byte strings, as Python 2 did; Python 3's pickle module cannot."""

from __future__ import annotations

import io
import pickle
import struct
from typing import Any


def dumps(value: Any, protocol: int) -> bytes:
    """Pickles lists, dicts, numbers and texts; `protocol` is 0, 1 or 2, those that Python 2 has.

    Texts become byte strings (UTF-8), as they are in the files of the REFER datasets. Repeated ones are written once
    and looked up after, as Python 2 does.
    """
    file = io.BytesIO()
    _Pickler(file, protocol).dump(value)
    return file.getvalue()


class _Pickler(pickle._Pickler):
    """The standard library's pickler in Python, with the three opcodes of Python 2's strings."""

    def _save_byte_string(self, text: str) -> None:
        data = text.encode()
        if self.proto == 0:
            escaped = repr(data).removeprefix("b").encode()
            self.write(pickle.STRING + escaped + b"\n")
        elif len(data) < 256:
            self.write(pickle.SHORT_BINSTRING + bytes([len(data)]) + data)
        else:
            self.write(pickle.BINSTRING + struct.pack("<i", len(data)) + data)
        self.memoize(text)

    dispatch = {**pickle._Pickler.dispatch, str: _save_byte_string}  # noqa: RUF012
