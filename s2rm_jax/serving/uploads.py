"""The files that visitors may name: those in one folder of this process, under names that cannot be guessed."""

from __future__ import annotations

import os
import secrets
import stat
import threading
from collections import deque
from http import HTTPStatus
from pathlib import Path

from s2rm_jax.serving.limits import Refused


class Uploads:
    """A folder of uploaded images. Whoever knows a file's path may read it, and only its uploader is told the path.

    Args:
        folder: belongs to this process alone; the images of the examples may lie in it, too.
        kept: the number of uploaded files; beyond it the oldest are removed, so that the disk does not fill up.
    """

    def __init__(self, folder: Path, kept: int = 100):
        self._folder = folder.resolve()
        self._kept = kept
        self._added: deque[Path] = deque()  # the oldest first
        self._lock = threading.Lock()

    @property
    def folder(self) -> Path:
        """The folder, without symbolic links on the way."""
        return self._folder

    def add(self, content: bytes) -> Path:
        """Write an uploaded file and return its path."""
        path = self._folder / secrets.token_hex(16)
        with path.open("xb") as file:
            file.write(content)
        with self._lock:
            self._added.append(path)
            oldest = self._added.popleft() if len(self._added) > self._kept else None
        if oldest is not None:
            oldest.unlink(missing_ok=True)
        return path

    def holds(self, path: str) -> bool:
        """Return whether a path leads into the folder, with symbolic links resolved; the file may be gone."""
        return self._resolved(path) is not None

    def read(self, path: str, limit: int) -> bytes:
        """Return the first `limit` bytes of a file in the folder.

        Raises:
            Refused: there is no such file, or it lies elsewhere.
        """
        real = self._resolved(path)
        try:
            if real is not None and stat.S_ISREG((expected := real.lstat()).st_mode):
                with real.open("rb") as file:
                    # Not the same if a link took the place of the file after its path was resolved.
                    if os.path.samestat(os.fstat(file.fileno()), expected):
                        return file.read(limit)
        except OSError:
            pass  # there is none, or it was removed meanwhile
        raise Refused("the image is not on this server, or no longer; upload it again", HTTPStatus.NOT_FOUND)

    def _resolved(self, path: str) -> Path | None:
        try:
            real = Path(os.path.realpath(path))
        except (OSError, ValueError):  # too long, or with a null byte
            return None
        return real if real.is_relative_to(self._folder) and real != self._folder else None
