"""The files of a job on many images: its settings, the records in a part file of each process, and the results of all.

The files of each image are those of prediction/files.py.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, suppress
from itertools import chain
from pathlib import Path
from typing import Any

from s2rm_jax.errors import UserError
from s2rm_jax.evaluation.exchange_formats import (
    IMAGES_FILE,
    LABEL_STUDIO,
    RESULTS_FILE,
    Naming,
    write_coco,
    write_label_studio,
)
from s2rm_jax.io import flush_to_disk, json_object, make_output_folder, read_object, writing
from s2rm_jax.prediction.files import (
    JOB_FILE,
    RESULT_FILE,
    Options,
    earlier_images,
    listed_files,
    remove_earlier_prediction,
    remove_listed,
    write_json,
)


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


def open_part(out: Path, share: tuple[int, int], settings: dict[str, Any]) -> RecordFile:
    """Open the part of a process, whose records are those of an unfinished job with the same settings or none.

    The only process of a job removes an earlier prediction with other settings. Several processes do not, because
    others may be at work.

    Args:
        out: the folder of the job; it is created.
        share: the index of the process and the number of processes.
        settings: all that the results depend on, as plain values; job.json keeps them.

    Raises:
        UserError: the folder belongs to another job of several processes, or another process has the same share.
    """
    index, number = share
    settings = {**settings, "processes": number}
    earlier = _read_job(make_output_folder(out))
    if earlier is None and number > 1 and (out / RESULT_FILE).exists():
        raise UserError(f"--out: {out} has an earlier prediction; give another --out, or remove it")
    if earlier not in (None, settings) and number * earlier.get("processes", 1) > 1:
        different = ", ".join(name for name in settings if settings[name] != earlier.get(name))
        raise UserError(f"--out: {out} has the results of another job ({different}); give another --out, or remove it")
    with ExitStack() as stack:
        part = stack.enter_context(RecordFile(part_path(out, index, number)))
        if earlier != settings:
            if number == 1:
                remove_listed(out, part.records())
                part.clear()
                remove_earlier_prediction(out)
                with suppress(OSError):
                    (out / RESULT_FILE).unlink()
            write_json(out / JOB_FILE, [json.dumps(settings, indent=2), "\n"])
        stack.pop_all()  # nothing failed, and the caller closes the part
    return part


def begins_anew(out: Path, share: tuple[int, int], settings: dict[str, Any]) -> bool:
    """Return whether `open_part` with these arguments would begin a new job."""
    return _read_job(out) != {**settings, "processes": share[1]}


def earlier_files(out: Path) -> Iterator[Path]:
    """Yield the files of an earlier prediction in the folder, and those of every prediction whatever its images."""
    yield from (out / name for name in (RESULT_FILE, JOB_FILE, RESULTS_FILE, IMAGES_FILE))
    yield from out.glob("part-*-of-*.jsonl")
    yield from (out / LABEL_STUDIO).glob("tasks-*.json")
    yield from listed_files(out, earlier_images(out))
    yield from listed_files(out, records_of([part_path(out, 0, 1)]))


def replace_earlier(out: Path) -> None:
    """Remove the earlier prediction in the folder of one image; the result of an unfinished job is one too.

    Otherwise the same command would continue the job, and list files that are gone.

    Raises:
        UserError: the folder belongs to a job of several processes or to one that runs, or a file cannot be removed.
    """
    job = _read_job(out)
    if job is None:
        remove_earlier_prediction(out)
        return
    if job.get("processes", 1) > 1:
        raise UserError(f"--out: {out} has the results of a job of several processes; give another --out, or remove it")
    with RecordFile(part_path(out, 0, 1)) as part:  # locked, so the job does not run
        remove_listed(out, part.records())
        remove_earlier_prediction(out)
        with writing(part.path):
            remove_job(part, out)


def write_result_of(part: RecordFile, out: Path) -> None:
    """Write result.json from the records of the only process of a job, without holding them in memory.

    Raises:
        UserError: it cannot be written.
    """

    def items(records: Iterable[dict[str, Any]]) -> Iterator[str]:
        separator = "\n    "
        for record in records:
            yield separator + json.dumps(record, indent=2, ensure_ascii=False).replace("\n", "\n    ")
            separator = ",\n    "
        yield "\n  ]" if separator[0] == "," else "]"

    text = chain(
        ['{\n  "images": ['], items(good_records(part.records())), [',\n  "failed": ['], items(part.failed), ["\n}\n"]
    )
    write_json(out / RESULT_FILE, text)


def write_exports_of(
    part: RecordFile, out: Path, options: Options, *, share: tuple[int, int], images: int, naming: Naming
) -> None:
    """Write the files of a job for other programs.

    Each process writes the tasks of its share for Label Studio. The process that ends last writes COCO's results; any
    other says so.

    Args:
        part: the finished part of this process.
        out: the folder of the job.
        options: which files to write.
        share: the index of the process and the number of processes.
        images: the number of images of all processes.
        naming: the names and ids of all images.

    Raises:
        UserError: a file cannot be written.
    """
    index, number = share
    if options.label_studio:
        name = f"{index}-of-{number}" if number > 1 else ""
        write_label_studio(out, good_records(part.records()), naming, options.label_studio, name)
    if not options.coco:
        return
    paths = [part_path(out, one, number) for one in range(number)]
    # `RecordFile.finish` of this process comes before this count, as in all processes, so the last one counts all
    # records.
    if number > 1 and sum(1 for _ in records_of(paths)) < images:
        print(f"{RESULTS_FILE} is written when all shares are done; run any share again to write it")
        return
    write_coco(out, lambda: good_records(records_of(paths)), naming)


def remove_job(part: RecordFile, out: Path) -> None:
    """Remove the files of a job of one process, whose records are in result.json."""
    for path in (out / JOB_FILE, part.path):
        path.unlink(missing_ok=True)


def _read_job(out: Path) -> dict[str, Any] | None:
    """Return the settings in job.json, {} if it cannot be read; None if there is none."""
    path = out / JOB_FILE
    return read_object(path) if path.exists() else None
