"""Files on disks and buckets (gs://...): atomic writes, locks, JSON lines, and the folders and files of results."""

from __future__ import annotations

import errno
import hashlib
import importlib.util
import json
import math
import os
import re
import shutil
import time
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any
from uuid import uuid4

from etils import epath
from filelock import BaseFileLock, FileLock

from s2rm_jax.errors import UserError, find_full_disk, is_temporary

REWRITE_EVERY = 60.0  # seconds between rewrites of a growing file on a bucket, which cannot append


def on_bucket(path: epath.PathLike) -> bool:
    """Return whether a path is in an object store."""
    return "://" in os.fspath(path)


def workdir_path(workdir: epath.PathLike) -> epath.Path:
    """Return a workdir as a path on a disk or a bucket.

    Raises:
        UserError: this kind of bucket is not supported, or the client for buckets is not installed.
    """
    if on_bucket(workdir):
        if not os.fspath(workdir).startswith("gs://"):  # Orbax marks complete checkpoints on these only
            raise UserError(f"--workdir {workdir}: only buckets of Google Cloud Storage are supported (gs://...)")
        if importlib.util.find_spec("gcsfs") is None:  # comes with google-cloud-storage, which Orbax needs
            raise UserError(f"--workdir {workdir}: gcsfs is not installed: pip install -e '.[gcs]'")
    if not os.fspath(workdir):
        raise UserError("the workdir is empty; give the folder of a run")
    return epath.Path(workdir)


def write_atomically(
    path: epath.Path | Path, text: str | bytes | Iterable[str], errors: str = "strict", *, durable: bool = True
) -> None:
    """Write a file atomically, even if several processes write it at the same time.

    At any moment the file has its old or its new content; writes to buckets are atomic anyway.

    Args:
        path: the file.
        text: the content or the parts of it.
        errors: what to do with text that is not valid Unicode, as for `open`.
        durable: whether this holds after a loss of power too. It takes milliseconds on a disk, too long for thousands
            of small files.
    """
    parts = [text] if isinstance(text, str | bytes) else text
    content = (part.encode(errors=errors) if isinstance(part, str) else part for part in parts)
    if on_bucket(path):
        path.write_bytes(b"".join(content))
        return
    temporary = path.with_name(f".{uuid4().hex}")  # without the name of the file, which may be as long as is allowed
    try:
        with open(temporary, "wb") as file:
            file.writelines(content)
            if durable:
                flush_to_disk(file)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def flush_to_disk(file: IO[bytes]) -> None:
    """Wait until the content of an open file is on the disk; a file renamed earlier may be empty after a crash."""
    file.flush()
    os.fsync(file.fileno())


def file_identity(path: str | Path) -> tuple[int, int] | None:
    """Return what identifies an existing file or folder whatever its path or link; None if there is none."""
    with suppress(OSError, ValueError):  # ValueError: a null character, which no path has
        status = os.stat(path)
        return status.st_dev, status.st_ino
    return None


def lock_file(path: Path, wait: bool = True) -> BaseFileLock:
    """Return a context manager that holds the lock of a file, which is released however the process ends.

    Entering it raises Timeout if another process holds the lock and `wait` is False, and OSError if the file system
    does not support locks or the file cannot be created.
    """
    return FileLock(path, blocking=wait, fallback_to_soft=False)  # the file of a soft lock would remain after a kill


def make_cache_folder(name: str) -> Path:
    """Return the folder s2rm_jax/`name` in ~/.cache or XDG_CACHE_HOME, for files that can be made again.

    Folders that do not exist are created, open to this user only.

    Raises:
        UserError: XDG_CACHE_HOME is not set, and the user has no home.
        OSError: the folder cannot be created.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not cache.is_absolute():  # such paths are to be ignored, says the XDG specification
        try:
            cache = Path.home() / ".cache"
        except RuntimeError as error:
            raise UserError("there is no home folder for ~/.cache; set XDG_CACHE_HOME to another folder") from error
    folder = cache / "s2rm_jax" / name
    for place in (*reversed(folder.parents), folder):
        place.mkdir(mode=0o700, exist_ok=True)
    return folder


@contextmanager
def naming_full_workdir(workdir: epath.Path) -> Iterator[None]:
    """Raise UserError with the name of the workdir if a file cannot be written because a disk is full."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        full = find_full_disk(error)
        if full is None:
            raise
        raise UserError(
            f"--workdir {workdir} cannot be written ({full.strerror}): free space there and run the command again"
        ) from error


def copy_files(folder: Path, to: epath.Path) -> None:
    """Copy all files under a local folder into a folder that may be on a bucket, replacing files there."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            target = to / path.relative_to(folder).as_posix()
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())


class JsonLines:
    """A file of JSON objects, one per line, that can be appended to, even on a bucket.

    On a disk each object is written at once. On a bucket the file is rewritten every REWRITE_EVERY seconds at most, and
    when it is closed; a killed run loses the objects added since then.

    `keep` selects the objects of an existing file that are kept; by default all. `clock` returns seconds.
    """

    def __init__(
        self,
        path: epath.Path,
        keep: Callable[[dict[str, Any]], bool] = lambda _: True,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._path, self._clock, self._written = path, clock, clock()
        text = path.read_bytes().decode(errors="replace") if path.exists() else ""
        self._lines = [line + "\n" for line in text.split("\n") if (values := json_object(line)) and keep(values)]
        self._stream: Any = None
        if not on_bucket(path):
            if "".join(self._lines) != text:
                write_atomically(path, "".join(self._lines))
            self._stream, self._lines = path.open("a"), []

    def write(self, values: Mapping[str, Any]) -> None:
        """Append an object."""
        line = json.dumps(values) + "\n"
        if self._stream:
            self._stream.write(line)
            self._stream.flush()
            return
        self._lines.append(line)
        if self._clock() - self._written >= REWRITE_EVERY:
            self._written = self._clock()
            with ignoring_temporary():  # the lines are kept, and written the next time
                self._rewrite()

    def close(self) -> None:
        """Write what is not written yet, and close the file."""
        if self._stream:
            self._stream.close()
        else:
            self._rewrite()

    def _rewrite(self) -> None:
        write_atomically(self._path, "".join(self._lines))


def json_object(text: str | bytes) -> dict[str, Any] | None:
    """Return the object that is written as JSON; None for other text, such as what a killed process left incomplete."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return values if isinstance(values, dict) else None


def read_object(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; an empty one if the file is missing, unreadable or damaged."""
    try:
        return json_object(path.read_bytes()) or {}
    except OSError:
        return {}


@contextmanager
def ignoring_temporary() -> Iterator[None]:
    """Ignore a temporary error, for example of a bucket that cannot be reached now."""
    try:
        yield
    except Exception as error:
        if not is_temporary(error):
            raise


@contextmanager
def atomic_folder(out: str | Path, flag: str) -> Iterator[Path]:
    """Yield a temporary folder, which becomes `out` if the block succeeds and is removed if it fails.

    `out` may exist if it is empty; `flag` is the flag that names it. The temporary folder is beside `out`, with a name
    of its own (.OUT.*.partial), so that two processes do not share it. A killed process leaves it there.

    Raises:
        UserError: `out` exists and is not empty, or cannot be written (no space, no permission).
    """
    given = _on_disk(out, flag).expanduser()
    out = Path(os.path.realpath(given))  # of a link, the folder that it points to is replaced
    if out.is_mount():
        raise UserError(f"{flag}: {given} is a mount point, which cannot be replaced; give a folder in it")
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"{flag}: {given} already exists; give another {flag}, or remove it first")
    partial = out.parent / f".{out.name}.{uuid4().hex[:8]}.partial"
    with writing(given, flag):
        partial.mkdir(parents=True)
    try:
        yield partial
        partial.replace(out)
    except OSError as error:
        # An error that names another file is of reading what is written here, such as a checkpoint. Errors of writing
        # to an open file name none.
        if error.filename and str(partial) not in str(error.filename):
            raise
        full = "free space there, or " if find_full_disk(error) else ""
        raise UserError(
            f"{flag}: {given} cannot be written ({error.strerror or error}); {full}give another {flag}"
        ) from error
    finally:
        if partial.exists():
            _remove(partial)


def _remove(folder: Path) -> None:
    """Remove a folder, also while threads of Orbax, which outlive an error, still write files into it."""
    for wait in (0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2):
        shutil.rmtree(folder, ignore_errors=True)
        time.sleep(wait)
        if not folder.exists():
            return


def _on_disk(path: epath.PathLike, flag: str) -> Path:
    if on_bucket(path):
        raise UserError(f"{flag}: {path} is on a bucket; give a folder of this machine, then copy that to the bucket")
    return Path(path)


def require_space(folder: Path, size: int) -> None:
    """Raise OSError, with the name of the folder, unless `size` bytes are free on its disk."""
    free = shutil.disk_usage(folder).free
    if free < size:
        missing = f"{math.ceil(size / 1e6):,} MB are needed, {free / 1e6:,.0f} MB are free"
        raise OSError(errno.ENOSPC, missing, str(folder))


def make_output_folder(path: epath.PathLike) -> Path:
    """Create the folder with its parents if it does not exist, and return it.

    Raises:
        UserError: there is a file at the path, or the folder cannot be created or written to.
    """
    path = _on_disk(path, "--out")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        existing = next(one for one in (path, *path.parents) if os.path.lexists(one))
        raise UserError(
            f"--out: {existing} is an existing file, so no folder can be created there; give another --out"
        ) from error
    except OSError as error:
        raise UserError(f"--out: {path} cannot be created ({error.strerror}); give another --out") from error
    if not os.access(path, os.W_OK | os.X_OK):
        raise UserError(f"--out: {path} is not writable; give another --out")
    return path


def remove_earlier(folder: Path, name: str) -> None:
    """Remove the files whose whole name matches a regular expression: old results, which would mix with new ones."""
    for path in folder.iterdir():
        if re.fullmatch(name, path.name) and path.is_file():
            path.unlink()


@contextmanager
def writing(path: Path, flag: str = "--out") -> Iterator[None]:
    """Raise UserError if `path`, which `flag` names, cannot be written in the block."""
    try:
        yield
    except OSError as error:
        space = ", or free space" if find_full_disk(error) else ""
        raise UserError(
            f"{flag}: {path} cannot be written ({error.strerror or error}); give another {flag}{space}"
        ) from error


def safe_name(text: str, longest: int) -> str:
    """Return a text as a part of a file name: at most `longest` bytes, plus a 9-byte checksum if it had to be changed.

    Different texts have different names.
    """
    name = re.sub(r'[\x00-\x1f/\\:*?"<>|\x7f\ud800-\udfff]', "_", text)
    while len(name.encode()) > longest:
        name = name[:-1]
    if name == text and text not in (".", ".."):
        return name
    return f"{name}~{hashlib.blake2b(text.encode(errors='surrogateescape'), digest_size=4).hexdigest()}"


_LONGEST_SLUG = 40


def slug(text: str) -> str:
    """Return `text` as lower-case ASCII letters, digits and underscores: at most 40 of them, never empty."""
    ascii_text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]+", "_", ascii_text.lower()).strip("_")[:_LONGEST_SLUG].rstrip("_") or "untitled"
