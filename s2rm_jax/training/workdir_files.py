"""Files of a workdir, which may lie on a disk or on a bucket (gs://...): made whole, or growing by lines."""

from __future__ import annotations

import importlib.util
import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from etils import epath

from s2rm_jax.errors import UserError

REWRITE_EVERY = 60.0  # seconds; a bucket cannot append


def on_bucket(path: epath.PathLike) -> bool:
    """Says whether a path is of an object store and not of a file system."""
    return "://" in os.fspath(path)


def workdir_path(workdir: epath.PathLike) -> epath.Path:
    """Returns a workdir as a path by which files can be reached, wherever it is.

    Raises:
        UserError: it is on a kind of bucket that is not known here, or what reaches buckets is not installed.
    """
    if on_bucket(workdir):
        if not os.fspath(workdir).startswith("gs://"):  # Orbax knows only of these when a checkpoint is whole
            raise UserError(f"--workdir {workdir}: of buckets, only those of Google Cloud Storage will do (gs://...).")
        if importlib.util.find_spec("gcsfs") is None:  # it brings google-cloud-storage, which Orbax needs
            raise UserError(f"--workdir {workdir}: what reaches buckets is not installed: pip install -e '.[gcs]'.")
    return epath.Path(workdir)


def write_whole(path: epath.Path, text: str) -> None:
    """Writes a file so that at any moment there is the old one or the new one; a bucket does that by itself."""
    if on_bucket(path):
        path.write_text(text)
        return
    fresh = path.with_suffix(".tmp")
    fresh.write_text(text)
    fresh.replace(path)


def copy_files(folder: Path, to: epath.Path) -> None:
    """Copies all files under a folder of this machine into one that may be on a bucket, over those there."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            target = to / path.relative_to(folder).as_posix()
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())


class JsonLines:
    """A file to which JSON objects are added, one a line, behind those of its earlier life that `keep` wants.

    On a disk each is there at once. On a bucket the file is written anew at most every REWRITE_EVERY seconds, and when
    it is closed: what a run that was killed added since then is lost.
    """

    def __init__(
        self,
        path: epath.Path,
        keep: Callable[[dict[str, Any]], bool] = lambda _: True,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._path, self._clock, self._written = path, clock, clock()
        text = path.read_text() if path.exists() else ""
        # A run that was killed may have left half a line behind.
        whole = [line for line in text.splitlines() if line.startswith("{") and line.endswith("}")]
        self._lines = [line + "\n" for line in whole if keep(json.loads(line))]
        self._stream: Any = None
        if not on_bucket(path):
            if "".join(self._lines) != text:
                write_whole(path, "".join(self._lines))
            self._stream, self._lines = path.open("a"), []

    def write(self, values: Mapping[str, Any]) -> None:
        """Adds an object."""
        line = json.dumps(values) + "\n"
        if self._stream:
            self._stream.write(line)
            self._stream.flush()
            return
        self._lines.append(line)
        if self._clock() - self._written >= REWRITE_EVERY:
            self._rewrite()

    def close(self) -> None:
        """Writes what is not written yet."""
        if self._stream:
            self._stream.close()
        else:
            self._rewrite()

    def _rewrite(self) -> None:
        write_whole(self._path, "".join(self._lines))
        self._written = self._clock()
