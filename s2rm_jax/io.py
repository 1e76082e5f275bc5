"""Files of a workdir, which may lie on a disk or on a bucket (gs://...): made whole, or growing by lines.

Writes a folder whole or not at all.

Where results go: folders that can be written to, and file names made of free text.
"""

from __future__ import annotations

import errno
import importlib.util
import json
import os
import re
import shutil
import time
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from etils import epath
from PIL import Image

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


def write_atomically(path: epath.Path, text: str) -> None:
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
                write_atomically(path, "".join(self._lines))
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
        write_atomically(self._path, "".join(self._lines))
        self._written = self._clock()


@contextmanager
def atomic_folder(out: str | Path, flag: str) -> Iterator[Path]:
    """Gives a fresh folder beside `out` to write to, and puts it in the place of `out` when all went well.

    If anything fails, whatever was written is removed. A folder that has something in it is never touched.

    Args:
        out: the folder to be made; an empty one may be there already.
        flag: what the person called it, for the error: "--out".

    Raises:
        UserError: there is something at `out`, or it cannot be written to (no space, no permission).
    """
    if on_bucket(out):
        raise UserError(f"{flag}: {out} is on a bucket; give a folder of this machine, and copy it from there")
    out = Path(out).expanduser()
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"{flag}: {out} is already there; give another {flag}, or remove it first")
    partial = out.absolute().parent / f".{out.name}.partial"
    try:
        shutil.rmtree(partial, ignore_errors=True)  # of an earlier try that was killed
        partial.mkdir(parents=True)
        yield partial
        partial.replace(out)
    except OSError as error:
        raise UserError(
            f"{flag}: {out} cannot be written ({error.strerror or error}); nothing was left there"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def require_space(folder: Path, size: int) -> None:
    """Raises OSError unless `size` bytes fit on the disk of `folder`, so that a long work does not begin in vain."""
    free = shutil.disk_usage(folder).free
    if free < size:
        raise OSError(errno.ENOSPC, f"it takes {size / 1e6:,.0f} MB, and {free / 1e6:,.0f} MB are free")


def make_output_folder(path: epath.PathLike) -> Path:
    """Makes the folder with its parents, unless it is there already, and returns it.

    Raises:
        UserError: a file is in the way, or the folder may not be made or written to.
    """
    if on_bucket(path):
        raise UserError(f"--out: {path} is on a bucket; give a folder of this machine, and copy it from there")
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise UserError(f"--out: {path} cannot be a folder, a file is in the way; give another --out") from error
    except OSError as error:
        raise UserError(f"--out: {path} cannot be made ({error.strerror}); give another --out") from error
    if not os.access(path, os.W_OK | os.X_OK):
        raise UserError(f"--out: {path} may not be written to; give another --out")
    return path


def remove_earlier(folder: Path, name: str) -> None:
    """Removes what an earlier run of the same command left in its folder, so that old results do not mix with new ones.

    Args:
        folder: the folder of the results.
        name: a regular expression for the whole name of the files that the command writes; no others are touched.
    """
    for path in folder.iterdir():
        if re.fullmatch(name, path.name) and path.is_file():
            path.unlink()


def figure_paths(given: str | Path, count: int) -> list[Path]:
    """Returns the path itself for one figure, NAME_1.png, NAME_2.png and so on for several.

    Raises:
        UserError: it is no PNG, or its folder is not there.
    """
    path = Path(given)
    if path.suffix.lower() != ".png" or path.is_dir() or not path.parent.is_dir():
        raise UserError(
            f"--explain: {given} must be the path of a PNG in a folder that is there; give another --explain"
        )
    numbered = [path.with_name(f"{path.stem}_{number}{path.suffix}") for number in range(1, count + 1)]
    return [path] if count == 1 else numbered


@contextmanager
def writing(path: Path, flag: str = "--out") -> Iterator[None]:
    """While inside, `path` is written, which `flag` has named; raises UserError where that is not possible."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{flag}: {path} cannot be written ({error.strerror or error}); give another {flag}") from error


def save_image(image: Image.Image, path: Path, flag: str = "--out") -> None:
    """Writes an image, mask or figure; raises UserError where that is not possible."""
    with writing(path, flag):
        image.save(path)


def slug(text: str, limit: int = 40) -> str:
    """Returns `text` as lower-case ASCII letters, digits and underscores, at most `limit` of them, never empty."""
    ascii_text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]+", "_", ascii_text.lower()).strip("_")[:limit].rstrip("_") or "untitled"
