"""Download a dataset's annotations, or COCO's images, into a folder in the REFER layout, and check them.

    python -m s2rm_jax.download refcoco --root DATA
    python -m s2rm_jax.download images --root DATA

The datasets are refcoco, refcoco+, refcocog, refclef (with its images) and grefcoco; `images` are COCO's train2014
(13 GB), which all but refclef need. The addresses are those of data/README.md, tried in order. An interrupted download
continues where it stopped when the same command is run again. Size and checksum are compared with the known ones, if
there are any, and recorded in DATA/downloads.json. Only files of the dataset are unpacked, and files with their final
names are complete. Then the data check runs.

Exit status: 0 no problems, except images that are not there yet; 1 the data has problems; 2 download failed.
"""

from __future__ import annotations

import fcntl
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
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any

from absl import flags
from etils import epath
from tqdm import tqdm

from s2rm_jax import command_line
from s2rm_jax.errors import UserError, find_full_disk, one_line
from s2rm_jax.input.check.report import MISSING_IMAGES, STAMPS, UNC, format_report
from s2rm_jax.input.transfer import CHUNK, DOWNLOADS_FILE, Download, SourceUnavailable, remove, transfer, verify
from s2rm_jax.input.web import is_url
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

_MAX_RATIO = 50  # of unpacked to packed size; JSON shrinks to a tenth


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
    record = read_object(root / DOWNLOADS_FILE)
    if key in record and len(there) >= record[key]["files"]:
        print(f"{source.file}: already downloaded ({DOWNLOADS_FILE}); remove {folder} to download it again")
        with suppress(OSError):  # the root may be for reading only
            remove(_part(source, root))  # left by a killed process
        return
    if there and key not in record:
        raise UserError(
            f"--root: {there[0]} exists, but {DOWNLOADS_FILE} does not list {source.file}; use the existing files, or "
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
            transfer(url, part, source)
            sums = verify(part, source)
            # In the folder itself, because that may be on a disk other than the root's.
            with _temporary_folder(folder / f".{source.file}.unpacked") as temporary:
                names = _unpack(part, source, temporary) if source.is_zip else _move(part, source, temporary)
                # Recorded before the files have their names, so that another run continues if this one is killed here.
                now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
                _add_to_record(root, key, {"url": url, **sums, "files": len(names), "time": now})
                for name in names:
                    os.replace(temporary / name, folder / name)
        except SourceUnavailable as error:
            reasons.append(f"{url}: {error}")
            continue
        remove(part)
        how = "as known" if source.checksum else f"recorded in {DOWNLOADS_FILE}"
        print(f"{folder}: {source.file}, {sums['size']:,} bytes, sha256 {sums['sha256']} ({how})")
        return
    other = "--mirror" if tuple(mirrors) == source.mirrors else "another --mirror or none"
    raise UserError(
        f"{source.file} could not be downloaded: {'; '.join(reasons)}; run the same command again to continue, give "
        f"{other}, or get the file as data/README.md says"
    )


@contextmanager
def _lock(path: Path, busy: str = "") -> Iterator[None]:
    """Hold a lock file, which is removed at the end. On a file system without locks, continue without one.

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
    with _lock(root / f".{DOWNLOADS_FILE}.lock"):
        record = read_object(root / DOWNLOADS_FILE) | {key: entry}
        write_atomically(epath.Path(root) / DOWNLOADS_FILE, json.dumps(record, indent=2) + "\n")


def _part(source: Download, root: Path) -> Path:
    """Return the file that a download is written to."""
    return root / f".{source.file}.part"


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
            require_space(temporary, total)
            bar = tqdm(total=total, desc=f"unpacking {source.file}", unit="B", unit_scale=True, disable=None)
            with bar:
                for name, info in members.items():
                    with archive.open(info) as packed, (temporary / name).open("wb") as file:
                        shutil.copyfileobj(packed, file, CHUNK)
                    bar.update(info.file_size)
        return list(members)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        remove(part)
        raise SourceUnavailable(f"is a damaged archive ({one_line(error)})") from error
    except SourceUnavailable:
        remove(part)
        raise
    except OSError as error:
        if find_full_disk(error) is None and error.errno is None:  # raised by a decompressor
            remove(part)
            raise SourceUnavailable(f"is a damaged archive ({error})") from error
        raise


def _members(archive: zipfile.ZipFile, source: Download, size: int) -> dict[str, zipfile.ZipInfo]:
    """Return the members to unpack, by their names without folders."""
    members: dict[str, zipfile.ZipInfo] = {}
    for info in archive.infolist():
        name = PurePosixPath(info.filename.replace("\\", "/")).name
        if info.is_dir() or not re.fullmatch(source.wanted, name):
            continue
        if stat.S_ISLNK(info.external_attr >> 16):
            raise SourceUnavailable(f"has a link in place of {name}")
        if name in members:
            raise SourceUnavailable(f"has {name} twice")
        members[name] = info
    if not members:
        raise SourceUnavailable("has none of the files of the dataset")
    unpacked = sum(info.file_size for info in members.values())
    if unpacked > _MAX_RATIO * size:
        raise SourceUnavailable(
            f"would unpack from {size:,} to {unpacked:,} bytes, far more than any of these datasets"
        )
    return members


if __name__ == "__main__":
    command_line.run_command(COMMANDS, FLAGS, __doc__, noun="dataset")
