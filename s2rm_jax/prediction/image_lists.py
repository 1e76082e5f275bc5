"""The images of a job: a folder, a pattern, or a list with expressions; and the folder of the results of each."""

from __future__ import annotations

import glob
import json
import logging
import os
import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePath
from typing import Any, TypeVar

from etils import epath
from PIL import Image

from s2rm_jax.errors import UserError, explaining, first_of, one_line
from s2rm_jax.input.example import near_miss
from s2rm_jax.input.images import FORMATS, read_header
from s2rm_jax.input.web import is_url
from s2rm_jax.io import on_bucket
from s2rm_jax.prediction.files import NAMES_OF_JOB, has_prediction, is_result

_LOG = logging.getLogger(__name__)

_Path = TypeVar("_Path", bound=PurePath)


@dataclass(frozen=True)
class Item:
    """An image of a job: its file or address, its expressions, and the folder of its results below that of the job.

    `number` is its place in the list, from 1.
    """

    image: str
    expressions: tuple[str, ...]
    folder: str
    number: int = 1


def list_items(images: str, expressions: Sequence[str], out: Path, explain: str = "") -> list[Item]:
    """Return the images of a job with their expressions.

    An image that is listed several times is segmented once, with the expressions of all its entries. Masks and overlays
    under `out` are not images of a folder or a pattern: a job that continues would find its own results. A warning
    counts them.

    Args:
        images: a folder; a pattern; or a list: a text file (.txt) with an image per line, JSON lines (.jsonl) with
            "image" and optionally "expressions", or a Parquet file (.parquet) with such columns. Other fields are
            ignored, unless one seems to be meant as "expressions", such as "expression" or "caption". Paths in a list
            are relative to its folder, and a leading ~ is the home folder. All may be on a bucket.
        expressions: those of images without expressions in the list.
        out: the folder of the results.
        explain: the name of the figures in it; "" if none are drawn.

    Raises:
        UserError: there are no images, the list has a mistake, or an image has no expressions.
    """
    images = os.path.expanduser(images)
    if is_url(images):
        raise UserError(f"--images: {images} is an address; give a folder, a pattern or a list, or use --image")
    read, hint = _LISTS.get(os.path.splitext(images)[1].lower()), ""
    found: dict[str, dict[str, None]] = {}  # ordered sets
    if read is None and on_bucket(images):
        found = {os.fspath(path): {} for path in _list_bucket(images)}
    elif read is None or not (on_bucket(images) or os.path.isfile(images)):
        _require_image(images)
        paths = list_images(images, out)
        found = {os.fspath(path): {} for path in paths if not is_result(path, out, explain)}
        if left_out := [path.name for path in paths if os.fspath(path) not in found]:
            hint = f" apart from {len(left_out)} named like results in --out ({first_of(left_out, ', ')})"
            _LOG.warning(
                "%s: left out because they are in --out and named like its results: %d (%s)",
                *(images, len(left_out), first_of(left_out, ", ")),
            )
    else:
        folder = os.path.dirname(images)
        with reading(images):
            listed = list(read(epath.Path(images)))
        for image, own in listed:
            name = image if on_bucket(image) else os.path.join(folder, os.path.expanduser(image))
            name = name if on_bucket(name) else os.path.normpath(name)
            found.setdefault(name, {}).update(dict.fromkeys(own))
    if not found:
        raise UserError(f"--images: {images} has no images{hint}; give {_KINDS}")
    if not expressions and (missing := next((name for name, own in found.items() if not own), None)):
        raise UserError(f"--text is missing, and {missing} has no expressions of its own; give --text (see --help)")
    folders = result_folders([Path(name) for name in found], taken=NAMES_OF_JOB)
    return [
        Item(name, tuple(own or expressions), folder.as_posix(), number)
        for number, ((name, own), folder) in enumerate(zip(found.items(), folders, strict=True), start=1)
    ]


def _require_image(path: str) -> None:
    """Raise UserError for a file that is neither a list nor an image by its name or its content."""
    suffix = os.path.splitext(path)[1].lower()
    if os.path.isfile(path) and suffix not in _SUFFIXES | _OTHER_SUFFIXES and read_header(Path(path)).problem:
        raise UserError(f"--images: {path} is neither an image nor a list; give {_KINDS}")


def reading(name: str) -> AbstractContextManager[None]:
    """Raise UserError if a file or folder cannot be read in the block; clients of buckets raise any exception."""

    def describe(error: Exception) -> str:
        if isinstance(error, KeyError) and on_bucket(name):  # epath looks the kind of address up
            return (
                f"{name} cannot be read: addresses of its kind are not supported; give a path, https://... or gs://..."
            )
        return f"{name} cannot be read ({one_line(error)}); check it and its permissions"

    return explaining(describe)


def list_images(pattern: str, out: Path | None = None) -> list[Path]:
    """Return the images in a folder, or the files that match a pattern such as frames/*.jpg; `**` matches subfolders.

    They are in natural order: frame9.jpg before frame10.jpg. In a folder, images are recognized by their suffix; those
    that cannot be read (another format, a broken link) are counted in a warning, as are subfolders, which are not
    searched. Hidden files are passed over unless the pattern names them, and `**` follows no links to folders, which
    may form loops. The name of an existing file is never read as a pattern.

    Raises:
        UserError: there are none.
    """
    folder = Path(pattern).expanduser()
    if folder.is_dir():
        return choose_images(pattern, folder.iterdir(), out)
    paths = [folder] if folder.is_file() else [path for path in _matches(folder) if path.is_file()]
    if not paths:
        raise UserError(f"no file matches {pattern}; check the pattern, and put it into quotes")
    return sorted(set(paths), key=_natural_order)  # a pattern with two ** finds a file more than once


def _holds(folder: Path, out: Path | None) -> bool:
    """Return whether `out` is the folder or lies in it."""
    return out is not None and out.resolve().is_relative_to(folder.resolve())


def choose_images(folder: str, files: Iterable[_Path], out: Path | None = None) -> list[_Path]:
    """Return the images among the files of a folder on a disk or a bucket, as `list_images` does; `folder` names it."""
    visible = sorted((path for path in files if not path.name.startswith(".")), key=_natural_order)
    folders = {path for path in visible if os.path.isdir(path)}  # none on a bucket
    found = [path for path in visible if path.suffix.lower() in _SUFFIXES | _OTHER_SUFFIXES and path not in folders]
    paths = [path for path in found if path.suffix.lower() in _SUFFIXES and not _is_broken_link(path)]
    unread = [path for path in found if path not in paths]
    names = first_of([path.name for path in unread], ", ")
    # Those of results are not meant.
    searched = [] if has_prediction(Path(folder)) else [path for path in visible if path in folders]
    deeper = [path.name for path in searched if not (has_prediction(Path(path)) or _holds(Path(path), out))]
    pattern = shlex.quote(f"{glob.escape(folder.rstrip('/'))}/**/*.jpg")
    not_searched = f"subfolders are not searched: {len(deeper)} ({first_of(deeper, ', ')})"
    if not paths:
        passed_over = f"; {len(unread)} that cannot be read: {names}" if unread else ""
        advice = (
            f"; {not_searched}; give a pattern such as {pattern}" if deeper else "; give another folder, or a pattern"
        )
        raise UserError(f"the folder {folder} has no images ({', '.join(FORMATS)}){passed_over}{advice}")
    if deeper:
        _LOG.warning("%s: %s; to include them, give a pattern such as %s", folder, not_searched, pattern)
    if unread:
        reason = "their format is not supported or their link is broken"
        _LOG.warning("%s: left out because %s: %d (%s)", folder, reason, len(unread), names)
    return paths


def _matches(pattern: Path) -> Iterator[Path]:
    """Yield the paths that match a pattern. Unlike glob.glob, pathlib does not follow links below `**`."""
    base = Path(pattern.anchor)
    parts = pattern.parts[bool(pattern.anchor) :]
    if parts and parts[-1] == "**":
        parts += ("*",)  # before Python 3.13, ** at the end matches folders only
    named = [part for part in parts if part.startswith(".")]
    try:
        if any("**" in part and part != "**" for part in parts):  # Python 3.13 takes it for *
            raise ValueError("'**' is only a part of a name")
        for path in base.glob(str(Path(*parts))):
            hidden = (part for part in path.parts if part.startswith("."))
            if all(any(fnmatch(part, name) for name in named) for part in hidden):
                yield path
    except (ValueError, IndexError, NotImplementedError) as error:
        raise UserError(f"{pattern} is not a pattern of file names ({error}); ** stands for folders alone") from error


def _natural_order(path: PurePath) -> tuple[list[tuple[int, str]], str]:
    parts = re.split(r"(\d+)", str(path).lower())
    numbered = [(int(part), "") if place % 2 else (-1, part) for place, part in enumerate(parts)]
    return numbered, str(path)


def _is_broken_link(path: PurePath) -> bool:
    return os.path.islink(path) and not os.path.exists(path)


_SUFFIXES = {suffix for suffix, name in Image.registered_extensions().items() if name in (*FORMATS, "MPO")}
# Of images that are not read, or only with a decoder that is not installed. Files with other suffixes are no images.
_OTHER_SUFFIXES = {".heic", ".heif", ".avif", ".jp2", ".j2k", ".jxl", ".tga", ".dng", ".cr2", ".nef", ".arw", ".psd"}


def _list_bucket(pattern: str) -> list[epath.Path]:
    """Return the images in a folder of a bucket, or those that match a pattern, in natural order."""
    root, _, name = pattern.rpartition("/")
    with reading(pattern):
        return choose_images(pattern, epath.Path(root).glob(name) if "*" in name else epath.Path(pattern).iterdir())


def _read_text(path: epath.Path) -> Iterator[tuple[str, list[str]]]:
    for line in _lines(path):
        if line.strip():
            yield line.rstrip("\r"), []


def _read_json_lines(path: epath.Path) -> Iterator[tuple[str, list[str]]]:
    for number, line in enumerate(_lines(path), start=1):
        if line.strip():
            try:
                entry = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise UserError(f"{path}: line {number} is not JSON ({error}); write one object per line") from error
            if isinstance(entry, dict):
                _require_no_near_miss(entry, f"{path}: line {number}:")
            yield _checked(entry, f"{path}: line {number}")


def _lines(path: epath.Path) -> list[str]:
    content = path.read_bytes()
    if b"\0" in content:  # all other bytes may be part of a file name
        raise UserError(f"{path} is not UTF-8 text (it has null bytes, as UTF-16 has); save it as UTF-8")
    return content.decode("utf-8-sig", "surrogateescape").split("\n")


def _read_parquet(path: epath.Path) -> Iterator[tuple[str, list[str]]]:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise UserError(f"{path}: pyarrow is not installed: pip install -e '.[parquet]'") from error
    with path.open("rb") as file:
        table = parquet.ParquetFile(file)
        names = table.schema_arrow.names
        _require_no_near_miss(names, f"{path}: column")
        columns = [name for name in ("image", "expressions") if name in names]
        rows = (row for batch in table.iter_batches(columns=columns) for row in batch.to_pylist())
        for number, row in enumerate(rows, start=1):
            yield _checked(row, f"{path}: row {number}")


def _checked(entry: Any, where: str) -> tuple[str, list[str]]:
    """Return the image and the expressions of an entry of a list; raise UserError if it has mistakes."""
    if not isinstance(entry, dict) or not isinstance(entry.get("image"), str) or not entry["image"]:
        raise UserError(f"{where} needs 'image', the path or address of an image")
    own = entry.get("expressions") or []
    if not isinstance(own, list) or not all(isinstance(expression, str) for expression in own):
        raise UserError(f"{where}: 'expressions' must be a list of strings")
    return entry["image"], own


def _require_no_near_miss(names: Iterable[str], where: str) -> None:
    """Raise UserError if no field is "expressions" but one seems to be meant as it, such as "caption"."""
    if problem := near_miss("expressions", tuple(names)):
        raise UserError(f"{where} {problem}")


_LISTS = {".txt": _read_text, ".jsonl": _read_json_lines, ".parquet": _read_parquet}


_KINDS = "a folder or a pattern with images, or a list of them (.txt, .jsonl or .parquet)"


def result_folders(paths: Sequence[Path], taken: re.Pattern[str]) -> list[Path]:
    """Return a relative path for the results of each image: its path below the folder that contains all of them.

    Suffixes are removed if all paths still differ, none is a name that is `taken`, and no name becomes "..".
    """
    absolute = [Path(os.path.abspath(path)) for path in paths]  # without "..", which would lead out of the results
    common = os.path.commonpath([path.parent for path in absolute])
    relative = [path.relative_to(common) for path in absolute]
    if not all(path.stem.strip(".") for path in relative):  # the stem of "...png" is ".."
        return relative
    bare = [path.with_suffix("") for path in relative]
    is_taken = any(taken.fullmatch(str(path)) for path in bare)
    return relative if is_taken or len(set(bare)) < len(bare) else bare
