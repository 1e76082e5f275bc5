"""Transfer a file over HTTP: continue after interruptions, check the disk space first, verify size and checksum.

`download` of the command line uses it for the files of datasets.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import re
import time
import urllib.error
import urllib.request
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from s2rm_jax.errors import UserError, one_line
from s2rm_jax.input.refer_annotations import read_json
from s2rm_jax.input.web import web_opener
from s2rm_jax.io import read_object, require_space

ANNOTATIONS = r"g?refs\(\w+\)\.(p|json)|instances\.json"
CHUNK = 1 << 20
DOWNLOADS_FILE = "downloads.json"  # the record of the downloads in a folder
_TIMEOUT = 60.0  # seconds without data after which a connection is given up
_TRIES = 3  # in a row without any progress, for each address
_PAUSE = 1.0  # seconds before the second try, doubled each time


@dataclass(frozen=True)
class Download:
    """A file to download: a zip archive, or a file that is stored as it is.

    Attributes:
        file: its name
        mirrors: its addresses, in order
        folder: the folder of its content, under the root
        wanted: a regular expression for the names of the files to unpack
        size: bytes, 0 if unknown
        checksum: "sha256:..." or "md5:...", "" if unknown
        expands: unpacked size / packed size, roughly, to check for enough disk space
    """

    file: str
    mirrors: tuple[str, ...]
    folder: str
    wanted: str = ANNOTATIONS
    size: int = 0
    checksum: str = ""
    expands: float = 8.0

    @property
    def is_zip(self) -> bool:
        """Whether it is to be unpacked."""
        return self.file.endswith(".zip")


class SourceUnavailable(Exception):
    """An address does not have the file; the next one may."""


class _Interrupted(Exception):
    """A download stopped, and may go on if it is tried again."""


def _state_of(part: Path) -> Path:
    """Return the sidecar file of a partial download: its URL, ETag or date, and total size."""
    return part.with_name(f"{part.name}.json")


def remove(part: Path) -> None:
    """Remove the file of a download and what is known about it."""
    part.unlink(missing_ok=True)
    _state_of(part).unlink(missing_ok=True)


def transfer(url: str, part: Path, source: Download) -> None:
    """Download the file at `url` to `part`, continuing after interruptions as long as there is progress.

    Raises:
        SourceUnavailable: the address does not have the file.
        OSError: the disk is full or cannot be written.
    """
    tries, most = 0, _size(part)
    while not part.exists() or read_object(_state_of(part)).get("total") != _size(part):
        try:
            return _receive(url, part, source)
        except _Interrupted as error:
            tries, most = 1 if _size(part) > most else tries + 1, max(most, _size(part))
            if tries >= _TRIES:
                raise SourceUnavailable(str(error)) from error
            print(f"{source.file}: {error}; trying again", flush=True)
        time.sleep(_PAUSE * 2 ** (tries - 1))


def _receive(url: str, part: Path, source: Download) -> None:
    start, headers = _resume(url, part, source)
    try:
        response = web_opener().open(urllib.request.Request(url, headers=headers), timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            remove(part)
        if error.code in (408, 416, 429) or error.code >= 500:
            raise _Interrupted(f"HTTP {error.code}") from error
        raise SourceUnavailable(f"HTTP {error.code}") from error
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
                    raise SourceUnavailable(f"sends more than the expected {total or source.size:,} bytes")
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
            raise SourceUnavailable("sent a different byte range than requested")
        total: int | None = int(match[2])
    else:
        start, total = 0, response.length
    if source.size and total not in (None, source.size):
        raise SourceUnavailable(f"has {total:,} bytes instead of {source.size:,}")
    return start, total


def _read(response: Any) -> bytes:
    try:
        return response.read(CHUNK)
    except http.client.IncompleteRead as error:
        return error.partial
    except (http.client.HTTPException, OSError) as error:
        raise _Interrupted(_reason(error)) from error


def _reason(error: BaseException) -> str:
    reason = getattr(error, "reason", error)
    if isinstance(reason, TimeoutError):
        return f"no data for {_TIMEOUT:g} seconds"
    return one_line(reason or error)


def verify(part: Path, source: Download) -> dict[str, Any]:
    """Check a downloaded file and return its size in bytes and its sha256.

    Raises:
        SourceUnavailable: the size, checksum or format is wrong; the file is removed.
    """
    kind, _, expected = (source.checksum or "sha256:").partition(":")
    digests = {name: hashlib.new(name, usedforsecurity=False) for name in {kind, "sha256"}}
    with part.open("rb") as file:
        while chunk := file.read(CHUNK):
            for digest in digests.values():
                digest.update(chunk)
    size, found = part.stat().st_size, digests[kind].hexdigest()
    problem = ""
    if source.size and size != source.size:
        problem = f"has {size:,} bytes instead of {source.size:,}"
    elif expected and found != expected:
        problem = f"has the {kind} {found} instead of {expected}"
    elif source.is_zip and not zipfile.is_zipfile(part):
        problem = "is not a zip archive"
    elif not source.is_zip:
        problem = _json_problem(part)
    if problem:
        remove(part)
        raise SourceUnavailable(problem)
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
        require_space(root, int(missing + source.expands * total))
    else:
        require_space(root, missing)
        require_space(folder, int(max(source.expands, 1.0) * total))
