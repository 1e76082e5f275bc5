"""Store the uploads of visitors in one folder of this process, under names that cannot be guessed."""

from __future__ import annotations

import os
import secrets
import stat
import threading
from collections import deque
from http import HTTPStatus
from pathlib import Path

from s2rm_jax.serving.limits import RequestError


class Uploads:
    """A folder of uploaded images. Anyone who knows the path of a file can read it; only its uploader gets the path.

    Args:
        folder: a folder that belongs to this process alone; it may also hold the example images.
        max_files: the number of uploads to keep; beyond it the oldest are removed, which bounds the use of the disk.
    """

    def __init__(self, folder: Path, max_files: int = 100):
        self._folder = folder.resolve()
        self._max_files = max_files
        self._added: deque[Path] = deque()  # oldest first
        self._lock = threading.Lock()

    @property
    def folder(self) -> Path:
        """The folder, with symbolic links resolved."""
        return self._folder

    def add(self, content: bytes) -> Path:
        """Write an uploaded file and return its path."""
        path = self._folder / secrets.token_hex(16)
        with path.open("xb") as file:
            file.write(content)
        with self._lock:
            self._added.append(path)
            oldest = self._added.popleft() if len(self._added) > self._max_files else None
        if oldest is not None:
            oldest.unlink(missing_ok=True)
        return path

    def contains(self, path: str) -> bool:
        """Return whether a path, with symbolic links resolved, is inside the folder; the file need not exist."""
        return self._resolved(path) is not None

    def read(self, path: str, limit: int) -> bytes:
        """Return the first `limit` bytes of a file in the folder.

        Raises:
            RequestError: the file does not exist or is outside the folder.
        """
        real = self._resolved(path)
        try:
            if real is not None and stat.S_ISREG((expected := real.lstat()).st_mode):
                with real.open("rb") as file:
                    # The files differ if a link has replaced the file since its path was resolved.
                    if os.path.samestat(os.fstat(file.fileno()), expected):
                        return file.read(limit)
        except OSError:
            pass  # the file does not exist, or was removed meanwhile
        raise RequestError("image not found on this server; upload it again", HTTPStatus.NOT_FOUND)

    def _resolved(self, path: str) -> Path | None:
        try:
            real = Path(os.path.realpath(path))
        except (OSError, ValueError):  # the path is too long or has a null byte
            return None
        return real if real.is_relative_to(self._folder) and real != self._folder else None
