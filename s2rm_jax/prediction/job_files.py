"""The records of a job on many images: JSON lines, in a part file of each process."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from s2rm_jax.errors import UserError
from s2rm_jax.io import flush_to_disk, json_object, writing


class RecordFile:
    """The records of one process of a job on many images: JSON lines, one per image.

    A record is written when all files of its image are; so after a kill, an image without a record is segmented again.
    Records of images that failed have an "error" and are written last: a new process drops them and tries again.

    Attributes:
        path: the file; one process at a time can open it.
        done: the images of the records that an earlier process wrote.
        count: the number of records of images that did not fail.
        failed: the records of those that did.
    """

    def __init__(self, path: Path):
        self.path, self.failed = path, list[dict[str, Any]]()
        with writing(path), ExitStack() as stack:
            self._file = stack.enter_context(path.open("a+b"))
            self._lock()
            end, self.done = 0, set[str]()
            self._file.seek(0)
            for line, record in complete_lines(self._file):
                if "error" in record:
                    break
                self.done.add(record["image"])
                end += len(line)
            self.count = len(self.done)
            self._file.truncate(end)
            stack.pop_all()  # nothing failed, and `__exit__` closes the file

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"--out: another process is writing {self.path}; wait until it has finished, or give another --out"
            ) from error
        except OSError as error:
            raise UserError(
                f"--out: {self.path} cannot be locked ({error.strerror}); give a folder on another file system"
            ) from error

    def __enter__(self) -> RecordFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, record: dict[str, Any]) -> None:
        """Append the record of an image, or keep it until `finish` if it has an "error".

        Raises:
            UserError: the file cannot be written.
        """
        if "error" in record:
            self.failed.append(record)
        else:
            self._append(record)
            self.count += 1

    def finish(self) -> None:
        """Append the records of images that failed, and wait until other hosts can read all records."""
        for record in self.failed:
            self._append(record)
        with writing(self.path):
            flush_to_disk(self._file)

    def records(self) -> Iterator[dict[str, Any]]:
        """Yield all records of the file."""
        self._file.seek(0)
        return (record for _, record in complete_lines(self._file))

    def clear(self) -> None:
        """Remove all records."""
        with writing(self.path):
            self._file.truncate(0)
        self.done, self.count = set(), 0

    def _append(self, record: dict[str, Any]) -> None:
        with writing(self.path):
            self._file.write(json.dumps(record).encode() + b"\n")  # ASCII: names that are not UTF-8 are escaped
            self._file.flush()


def complete_lines(file: Iterable[bytes]) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Yield lines with their records, up to one that a killed process left incomplete."""
    for line in file:
        record = json_object(line)
        if record is None or "image" not in record or not line.endswith(b"\n"):
            return
        yield line, record


def part_path(out: Path, index: int, number: int) -> Path:
    """Return the part file of a process: its index and the number of processes."""
    return out / f"part-{index}-of-{number}.jsonl"


def records_of(paths: Iterable[Path]) -> Iterator[dict[str, Any]]:
    """Yield all records of part files; those that do not exist have none."""
    for path in paths:
        with suppress(FileNotFoundError, NotADirectoryError), path.open("rb") as file:
            yield from (record for _, record in complete_lines(file))


def good_records(records: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Return the records of images that did not fail."""
    return (record for record in records if "error" not in record)
