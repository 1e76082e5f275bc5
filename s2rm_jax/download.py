"""Download a dataset's annotations, or COCO's images, into a folder in the REFER layout, and check them.

    python data/download.py refcoco --root DIR     # or: s2rm download refcoco --root DIR
    python data/download.py images --root DIR

The datasets are refcoco, refcoco+, refcocog, refclef (with its images) and grefcoco; `images` are COCO's train2014
(13 GB), which all but refclef need. The addresses are those of data/README.md, tried in order. An interrupted download
continues where it stopped when the same command is run again. Size and checksum are compared with the known ones, or
recorded in DIR/downloads.json. Only files of the dataset are unpacked, and files with their final names are complete.
Then the data check runs.

Exit status: 0 no problems, except images that are not there yet; 1 the data has problems; 2 download failed.
"""

from __future__ import annotations

import fcntl
import hashlib
import http.client
import json
import os
import re
import shlex
import shutil
import stat
import time
import urllib.error
import urllib.parse
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any

from absl import flags
from etils import epath
from tqdm import tqdm

from s2rm_jax import command_line
from s2rm_jax.errors import UserError, find_full_disk, one_line
from s2rm_jax.input.check.report import MISSING_IMAGES, STAMPS, UNC, format_report
from s2rm_jax.input.images import is_url, web_opener
from s2rm_jax.input.refer_annotations import read_json
from s2rm_jax.io import read_object, require_space, write_atomically

FLAGS = flags.FlagValues()
ROOT = flags.DEFINE_string("root", None, "folder of the data, see data/README.md", flag_values=FLAGS)
MIRROR = flags.DEFINE_multi_string(
    "mirror",
    [],
    "http:// or https:// address of a folder that has the files under their own names; used instead of the addresses "
    "of data/README.md",
    flag_values=FLAGS,
)
QUICK = flags.DEFINE_bool("quick", False, "read only the headers of images in the data check", flag_values=FLAGS)

RECORD = "downloads.json"
_TIMEOUT = 60.0  # seconds without data after which a connection is given up
_TRIES = 3  # in a row without any progress, for each address
_PAUSE = 1.0  # seconds before the second try, doubled each time
_CHUNK = 1 << 20
_MAX_RATIO = 50  # of unpacked to packed size; JSON shrinks to a tenth
_ANNOTATIONS = r"g?refs\(\w+\)\.(p|json)|instances\.json"


@dataclass(frozen=True)
class Download:
    """A file to download: a zip archive, or a file that is stored as it is.

    file      its name
    mirrors   its addresses, in order
    folder    the folder of its content, under the root
    wanted    a regular expression for the names of the files to unpack
    size      bytes, 0 if unknown
    checksum  "sha256:..." or "md5:...", "" if unknown
    expands   unpacked size / packed size, roughly, to ask for enough disk space
    """

    file: str
    mirrors: tuple[str, ...]
    folder: str
    wanted: str = _ANNOTATIONS
    size: int = 0
    checksum: str = ""
    expands: float = 8.0

    @property
    def is_zip(self) -> bool:
        """Whether it is to be unpacked."""
        return self.file.endswith(".zip")


def _unc(dataset: str, size: int = 0, checksum: str = "") -> Download:
    """Return the annotations of a dataset on the server of REFER, and their copy in the Internet Archive."""
    return Download(f"{dataset}.zip", _of_unc(f"{dataset}.zip", STAMPS[dataset]), dataset, size=size, checksum=checksum)


def _of_unc(file: str, stamp: str) -> tuple[str, str]:
    return f"https://web.archive.org/web/{stamp}id_/{UNC}/{file}", f"{UNC}/{file}"


def _grefcoco(file: str) -> Download:
    address = f"https://huggingface.co/datasets/FudanCVL/gRefCOCO/resolve/main/{urllib.parse.quote(file)}"
    return Download(file, (address,), "grefcoco", expands=0.0)


# Sizes and checksums are those that several users of the files report independently of each other.
SOURCES: dict[str, tuple[Download, ...]] = {
    "refcoco": (
        _unc("refcoco", 53_993_993, "sha256:7f924bb7ed8dc4568058e4ff626281918d56e5206f4c868c5a80f088f38c8bf0"),
    ),
    "refcoco+": (
        _unc("refcoco+", 45_613_210, "sha256:5f1238112d63199e68da54a28f201471909b21ded7ed79a57d51b4c1443c6b45"),
    ),
    "refcocog": (
        _unc("refcocog", 56_712_951, "sha256:3d1f7e5b2ff2205940bf59de55f861f5f2cc1403fb980669933a7f9af1aa8211"),
    ),
    "refclef": (
        _unc("refclef"),
        Download(
            "saiapr_tc-12.zip",
            _of_unc("images/saiapr_tc-12.zip", "20220515000000"),
            "images/saiapr_tc-12",
            wanted=r"[\w.-]+\.jpg",
            expands=1.1,
        ),
    ),
    "grefcoco": (_grefcoco("grefs(unc).json"), _grefcoco("instances.json")),
    "images": (
        Download(
            "train2014.zip",
            ("http://images.cocodataset.org/zips/train2014.zip",),
            "images/mscoco/images/train2014",
            wanted=r"COCO_train2014_\d{12}\.jpg",
            size=13_510_573_713,
            checksum="md5:0da8c0bd3d6becc4dcb32757491aca88",
            expands=1.1,
        ),
    ),
}


class _Failed(Exception):
    """An address does not have the file; the next one may."""


class _Interrupted(Exception):
    """A download stopped, and may go on if it is tried again."""


def main(name: str) -> None:
    """Download the files of SOURCES[name] and check the data."""
    assert ROOT.value is not None  # required
    for base in MIRROR.value or ():
        if not is_url(base):
            raise UserError(f"--mirror: {base} is not a web address; it must begin with http:// or https://")
    root = Path(ROOT.value).expanduser()
    is_new = not root.exists()
    try:
        root.mkdir(parents=True, exist_ok=True)
        for source in SOURCES[name]:
            mirrors = [f"{base.rstrip('/')}/{urllib.parse.quote(source.file)}" for base in MIRROR.value or ()]
            get(source, root, mirrors or source.mirrors)
    except OSError as error:
        where, why = error.filename or root, error.strerror or error
        raise UserError(
            f"--root: {where} cannot be written ({why}); free space there, or give another --root"
        ) from error
    finally:
        if is_new:
            with suppress(OSError):  # not empty: there is something to continue from
                root.rmdir()
    check(name, root, MIRROR.value or ())


COMMANDS = {name: command_line.Command(partial(main, name), ("root",)) for name in SOURCES}


def check(name: str, root: Path, bases: Sequence[str] = ()) -> None:
    """Run the data check for what was downloaded; raise SystemExit if it finds problems.

    `bases` are the values of --mirror, for the command that is shown as the next one.
    """
    from s2rm_jax.input.check.examine import discover, examine

    same_flags = shlex.join(["--root", str(root), *(word for base in bases for word in ("--mirror", base))])
    try:
        discover(root, "" if name == "images" else name)
    except UserError:
        if name != "images":
            raise
        print(f"{root} has no annotations yet; download them next, for example: s2rm download refcoco {same_flags}")
        return
    report = examine(root, "" if name == "images" else name, quick=bool(QUICK.value))
    without_images = [dataset for dataset in report.datasets if not dataset.images and name != "images"]
    for dataset in without_images:  # they are the next download, so their absence is no problem yet
        dataset.problems = [problem for problem in dataset.problems if problem.kind != MISSING_IMAGES]
    print(format_report(report))
    if not report.ok:
        raise SystemExit(1)
    if without_images:
        print(f"The annotations of {name} are complete. Download the images next: s2rm download images {same_flags}")


def get(source: Download, root: Path, mirrors: Sequence[str]) -> None:
    """Download a file and unpack it, unless that was done before and all of its files are still there.

    Raises:
      UserError: no mirror has the file; gives the reason for each. Or the folder has files from elsewhere, which are
        not replaced; or another process is downloading the same file to `root`.
      OSError: the disk is full or cannot be written.
    """
    key, folder = f"{source.folder}/{source.file}", root / source.folder
    wanted = source.wanted if source.is_zip else re.escape(source.file)
    there = [path for path in folder.glob("*") if re.fullmatch(wanted, path.name)]
    record = read_object(root / RECORD)
    if key in record and len(there) >= record[key]["files"]:
        print(f"{source.file}: already downloaded ({RECORD}); remove {folder} to download it again")
        with suppress(OSError):  # the root may be for reading only
            _remove(_part(source, root))  # left by a killed process
        return
    if there and key not in record:
        raise UserError(
            f"--root: {there[0]} exists, but {RECORD} does not list {source.file}; use the files that are there, or "
            f"remove {folder} to download them"
        )
    busy = f"--root: another process is downloading {source.file} to {root}; wait until it has finished"
    with _lock(root / f".{source.file}.lock", busy):
        _get(source, root, mirrors, key)


def _get(source: Download, root: Path, mirrors: Sequence[str], key: str) -> None:
    """Download a file, unpack it and record it under `key`."""
    folder, part = root / source.folder, _part(source, root)
    reasons = []
    for url in mirrors:
        try:
            _download(url, part, source)
            sums = _verify(part, source)
            # In the folder itself, because that may be on another disk than the root.
            with _temporary_folder(folder / f".{source.file}.unpacked") as temporary:
                names = _unpack(part, source, temporary) if source.is_zip else _move(part, source, temporary)
                # Recorded before the files have their names, so that another run continues if this one is killed here.
                now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
                _add_to_record(root, key, {"url": url, **sums, "files": len(names), "time": now})
                for name in names:
                    os.replace(temporary / name, folder / name)
        except _Failed as error:
            reasons.append(f"{url}: {error}")
            continue
        _remove(part)
        how = "as known" if source.checksum else f"recorded in {RECORD}"
        print(f"{folder}: {source.file}, {sums['size']:,} bytes, sha256 {sums['sha256']} ({how})")
        return
    other = "--mirror" if tuple(mirrors) == source.mirrors else "another --mirror or none"
    raise UserError(
        f"{source.file} could not be downloaded: {'; '.join(reasons)}; run the same command again to continue, give "
        f"{other}, or get the file as data/README.md says"
    )


@contextmanager
def _lock(path: Path, busy: str = "") -> Iterator[None]:
    """Hold the lock of a file, which exists only meanwhile. File systems without locks are used without.

    Wait for another process that holds it, or raise a UserError with the message `busy` if that is given.
    """
    while True:
        with path.open("wb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (fcntl.LOCK_NB if busy else 0))
            except BlockingIOError:
                raise UserError(busy) from None
            except OSError:  # no locks here
                pass
            if _is_at(file, path):
                try:
                    yield
                finally:
                    path.unlink(missing_ok=True)
                return
            # The process that held the lock has removed this file: lock the next one.


def _is_at(file: IO[bytes], path: Path) -> bool:
    with suppress(FileNotFoundError):
        return os.path.samefile(path, file.fileno())
    return False


def _add_to_record(root: Path, key: str, entry: dict[str, Any]) -> None:
    """Add an entry to the record, which the downloads of other files change at the same time."""
    with _lock(root / f".{RECORD}.lock"):
        record = read_object(root / RECORD) | {key: entry}
        write_atomically(epath.Path(root) / RECORD, json.dumps(record, indent=2) + "\n")


def _part(source: Download, root: Path) -> Path:
    """Return the file that a download is written to."""
    return root / f".{source.file}.part"


def _state_of(part: Path) -> Path:
    """Return the file that says where the beginning of a download is from: address, ETag or date, and total size."""
    return part.with_name(f"{part.name}.json")


def _remove(part: Path) -> None:
    part.unlink(missing_ok=True)
    _state_of(part).unlink(missing_ok=True)


def _download(url: str, part: Path, source: Download) -> None:
    """Download a file completely, continuing after interruptions as long as there is progress."""
    tries, most = 0, _size(part)
    while not part.exists() or read_object(_state_of(part)).get("total") != _size(part):
        try:
            return _receive(url, part, source)
        except _Interrupted as error:
            tries, most = 1 if _size(part) > most else tries + 1, max(most, _size(part))
            if tries >= _TRIES:
                raise _Failed(str(error)) from error
            print(f"{source.file}: {error}; trying again", flush=True)
        time.sleep(_PAUSE * 2 ** (tries - 1))


def _receive(url: str, part: Path, source: Download) -> None:
    start, headers = _resume(url, part, source)
    try:
        response = web_opener().open(urllib.request.Request(url, headers=headers), timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            _remove(part)
        if error.code in (408, 416, 429) or error.code >= 500:
            raise _Interrupted(f"HTTP {error.code}") from error
        raise _Failed(f"HTTP {error.code}") from error
    except (http.client.HTTPException, OSError, ValueError) as error:
        raise _Interrupted(_reason(error)) from error
    with response:
        start, total = _span(response, start, source)
        validator = response.headers.get("ETag") or response.headers.get("Last-Modified")
        state = {"url": url, "validator": validator, "total": total}
        if total:
            _require_space(part.parent, source, total - start, total)
        _state_of(part).write_text(json.dumps(state))
        bar = tqdm(total=total, initial=start, desc=source.file, unit="B", unit_scale=True, disable=None)
        with part.open("ab" if start else "wb") as file, bar:
            received = start
            while chunk := _read(response):
                received += len(chunk)
                if received > (total or source.size or received):
                    raise _Failed(f"sends more than the {total or source.size:,} bytes that it should have")
                file.write(chunk)
                bar.update(len(chunk))
    if total and received < total:
        raise _Interrupted(f"stopped after {received:,} of {total:,} bytes")


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _resume(url: str, part: Path, source: Download) -> tuple[int, dict[str, str]]:
    """Return the number of bytes that are there already, and the headers that ask for the rest.

    The file of a server may have changed meanwhile. The validator, or else the known checksum, shows it.
    """
    headers = {"User-Agent": "s2rm-jax", "Accept-Encoding": "identity"}
    state, start = read_object(_state_of(part)), _size(part)
    validator = str(state.get("validator") or "")
    if not start or state.get("url") != url or not (validator or source.checksum):
        return 0, headers
    headers["Range"] = f"bytes={start}-"
    if validator and not validator.startswith("W/"):  # a weak one is not allowed there
        headers["If-Range"] = validator
    return start, headers


def _span(response: Any, start: int, source: Download) -> tuple[int, int | None]:
    """Return where the answer begins in the file and the size of the whole file, None if unknown."""
    if response.status == http.HTTPStatus.PARTIAL_CONTENT:
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
        if match is None or int(match[1]) != start:
            raise _Failed("answers with other bytes than it was asked for")
        total: int | None = int(match[2])
    else:
        start, total = 0, response.length
    if source.size and total not in (None, source.size):
        raise _Failed(f"has {total:,} bytes instead of {source.size:,}")
    return start, total


def _read(response: Any) -> bytes:
    try:
        return response.read(_CHUNK)
    except http.client.IncompleteRead as error:
        return error.partial
    except (http.client.HTTPException, OSError) as error:
        raise _Interrupted(_reason(error)) from error


def _reason(error: BaseException) -> str:
    reason = getattr(error, "reason", error)
    if isinstance(reason, TimeoutError):
        return f"no data for {_TIMEOUT:g} seconds"
    return one_line(reason or error)


def _verify(part: Path, source: Download) -> dict[str, Any]:
    """Return size and sha256 of a file; raise _Failed, and remove the file, if they are not the known ones."""
    kind, _, expected = (source.checksum or "sha256:").partition(":")
    digests = {name: hashlib.new(name, usedforsecurity=False) for name in {kind, "sha256"}}
    with part.open("rb") as file:
        while chunk := file.read(_CHUNK):
            for digest in digests.values():
                digest.update(chunk)
    size, found = part.stat().st_size, digests[kind].hexdigest()
    problem = ""
    if source.size and size != source.size:
        problem = f"has {size:,} bytes instead of {source.size:,}"
    elif expected and found != expected:
        problem = f"has another {kind} ({found}) than the known one ({expected})"
    elif source.is_zip and not zipfile.is_zipfile(part):
        problem = "is not a zip archive"
    elif not source.is_zip:
        problem = _json_problem(part)
    if problem:
        _remove(part)
        raise _Failed(problem)
    return {"size": size, "sha256": digests["sha256"].hexdigest()}


def _json_problem(part: Path) -> str:
    try:
        read_json(part)
    except UserError:
        return "is not JSON"
    return ""


def _require_space(root: Path, source: Download, missing: int, total: int) -> None:
    """Raise OSError unless the disks have room for the bytes of a download that are missing, and for its files."""
    folder = root / source.folder
    while not folder.exists():
        folder = folder.parent
    if folder.stat().st_dev == root.stat().st_dev:
        _require_free(root, int(missing + source.expands * total))
    else:
        _require_free(root, missing)
        _require_free(folder, int(max(source.expands, 1.0) * total))


def _require_free(folder: Path, size: int) -> None:
    try:
        require_space(folder, size)
    except OSError as error:
        error.filename = str(folder)
        raise


@contextmanager
def _temporary_folder(path: Path) -> Iterator[Path]:
    """Make a folder, and remove it at the end, with those of its parents that had to be made and are empty then."""
    shutil.rmtree(path, ignore_errors=True)  # left by a killed process
    made = [parent for parent in path.parents if not parent.exists()]
    path.mkdir(parents=True)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        with suppress(OSError):  # not empty
            for parent in made:
                parent.rmdir()


def _move(part: Path, source: Download, temporary: Path) -> list[str]:
    shutil.move(part, temporary / source.file)
    return [source.file]


def _unpack(part: Path, source: Download, temporary: Path) -> list[str]:
    """Unpack the wanted files of an archive into a temporary folder, which checks them, and return their names.

    Only the last part of a member's path is used, so that no member is written elsewhere.
    """
    try:
        with zipfile.ZipFile(part) as archive:
            members = _members(archive, source, part.stat().st_size)
            total = sum(info.file_size for info in members.values())
            _require_free(temporary, total)
            bar = tqdm(total=total, desc=f"unpacking {source.file}", unit="B", unit_scale=True, disable=None)
            with bar:
                for name, info in members.items():
                    with archive.open(info) as packed, (temporary / name).open("wb") as file:
                        shutil.copyfileobj(packed, file, _CHUNK)
                    bar.update(info.file_size)
        return list(members)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        _remove(part)
        raise _Failed(f"is a damaged archive ({one_line(error)})") from error
    except _Failed:
        _remove(part)
        raise
    except OSError as error:
        if find_full_disk(error) is None and error.errno is None:  # raised by a decompressor
            _remove(part)
            raise _Failed(f"is a damaged archive ({error})") from error
        raise


def _members(archive: zipfile.ZipFile, source: Download, size: int) -> dict[str, zipfile.ZipInfo]:
    """Return the members to unpack, by their names without folders."""
    members: dict[str, zipfile.ZipInfo] = {}
    for info in archive.infolist():
        name = PurePosixPath(info.filename.replace("\\", "/")).name
        if info.is_dir() or not re.fullmatch(source.wanted, name):
            continue
        if stat.S_ISLNK(info.external_attr >> 16):
            raise _Failed(f"has a link in place of {name}")
        if name in members:
            raise _Failed(f"has {name} twice")
        members[name] = info
    if not members:
        raise _Failed("is an archive of something else: it has none of the files of the dataset")
    unpacked = sum(info.file_size for info in members.values())
    if unpacked > _MAX_RATIO * size:
        raise _Failed(f"would grow from {size:,} to {unpacked:,} bytes, which no such dataset does")
    return members


if __name__ == "__main__":
    command_line.run_command(COMMANDS, FLAGS, __doc__)
