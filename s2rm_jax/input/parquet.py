"""Rows of Parquet files, and the images in them, which are unpacked into the cache folder.

Parquet compresses a row group of images, up to 100 MB, as one: to read an image, it decompresses all of them. Each
image is therefore written to a file where it can be read by itself.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Int64

from s2rm_jax.errors import UserError, explaining, one_line, reason_of
from s2rm_jax.input.images import read_size
from s2rm_jax.io import flush_to_disk, lock_file, make_cache_folder

if TYPE_CHECKING:
    import pyarrow.parquet as pq

_LOG = logging.getLogger(__name__)

_ROWS_AT_A_TIME = 8  # with their images in memory
_INDEX = np.dtype("<i8")  # of files of unpacked images
_LAYOUT = 2  # of these files; increase it when their content changes


class Place(NamedTuple):
    """The place of a row: the number of the file, of the row group in it, and of the row in that."""

    file: int
    group: int
    row: int


@dataclass(frozen=True)
class ParquetFiles:
    """Parquet files with the same columns. None stays open, so that processes and threads can share this."""

    paths: list[Path]

    @cached_property
    def columns(self) -> frozenset[str]:
        """The columns that all files have."""
        return frozenset.intersection(*(frozenset(_open(path).schema_arrow.names) for path in self.paths))

    @property
    def have_images(self) -> bool:
        """Whether the images are in the rows."""
        return "image" in self.columns

    def rows(self, names: Sequence[str]) -> Iterator[tuple[Place, dict[str, Any]]]:
        """Yield some columns of every row, with its place."""
        for number, path in enumerate(self.paths):
            file = _open(path)
            for group in range(file.num_row_groups):
                with _reading(path):
                    values = file.read_row_group(group, columns=list(names)).to_pylist()
                yield from ((Place(number, group, row), value) for row, value in enumerate(values))

    def images(self, places: Iterable[Place]) -> Iterator[bytes]:
        """Yield the image files of rows, byte for byte, empty where there is none; the rows are in order."""
        for (number, group), rows in groupby(places, key=lambda place: (place.file, place.group)):
            yield from _read_images(self.paths[number], group, {place.row for place in rows})

    def describe(self, place: Place) -> str:
        """Return the place of a row as text."""
        return f"row {place.row} of row group {place.group} of {self.paths[place.file]}"


@dataclass(frozen=True)
class UnpackedImages:
    """The images of rows in one file, where each is read by itself. The file does not stay open, see ParquetFiles.

    `index` has for each row the first byte of its image, the number of bytes (0: no image), and the height and width in
    pixels by its header (0: damaged). Rows with the same image, byte for byte, share it.
    """

    path: Path
    index: Int64[np.ndarray, "rows 4"]

    def of(self, numbers: Sequence[int]) -> UnpackedImages:
        """Return the images of some of the rows."""
        return UnpackedImages(self.path, self.index[list(numbers)])

    def read(self, number: int) -> bytes:
        """Return the file of an image; raise a UserError if it cannot be read."""
        start, size, _, _ = self.index[number].tolist()
        with (
            explaining(
                lambda error: f"{self.path} cannot be read ({reason_of(error)}); run the command again to recreate it"
            ),
            open(self.path, "rb") as file,
        ):
            file.seek(start)
            image = file.read(size)
            if len(image) < size:
                raise EOFError("it is incomplete")
            return image


def unpack_images(files: ParquetFiles, places: Sequence[Place], name: str) -> UnpackedImages:
    """Return the images of rows, unpacked into the cache folder unless an earlier process did so.

    Args:
        files: the Parquet files.
        places: the rows.
        name: of the dataset and its split, for messages.

    Raises:
        UserError: the cache folder cannot be written, or a file cannot be read.
    """
    versions = [(path.resolve(), path.stat().st_size, path.stat().st_mtime_ns) for path in files.paths]
    key = hashlib.sha256(repr((_LAYOUT, versions, places)).encode()).hexdigest()
    try:
        path = make_cache_folder("images") / key
        index = _read_index(path, len(places))
        if index is None:
            with lock_file(path.with_suffix(".lock")):  # one process unpacks, the others wait
                index = _read_index(path, len(places))
                if index is None:
                    _LOG.info("%s: unpacking the images of %d rows into %s", name, len(places), path)
                    index = _write_images(files, places, path)
    except OSError as error:
        raise UserError(
            f"the images of {name} cannot be unpacked into the user's cache folder ({one_line(error)}); free space "
            "there, or set XDG_CACHE_HOME to a writable folder with enough space"
        ) from error
    return UnpackedImages(path, index)


def _read_index(path: Path, count: int) -> Int64[np.ndarray, "rows 4"] | None:
    """Return the index at the end of a file of images; None if there is no such file, or if it is incomplete."""
    try:
        with open(path, "rb") as file:
            start = os.fstat(file.fileno()).st_size - count * 4 * _INDEX.itemsize
            if start < 0:
                return None
            file.seek(start)
            index = np.frombuffer(file.read(), _INDEX).reshape(count, 4)
    except FileNotFoundError:
        return None
    return index if np.unique(index[:, :2], axis=0)[:, 1].sum() == start else None


def _write_images(files: ParquetFiles, places: Sequence[Place], path: Path) -> Int64[np.ndarray, "rows 4"]:
    """Write the different images of rows one after the other, and their index; return the index."""
    index = np.zeros((len(places), 4), _INDEX)
    order = sorted(range(len(places)), key=places.__getitem__)
    written: dict[bytes, tuple[int, int, int, int]] = {}  # by digest
    part = path.with_suffix(".part")  # always the same, so that the next process replaces what a killed one left
    try:
        with open(part, "wb") as file:
            for number, image in zip(order, files.images(places[one] for one in order), strict=True):
                digest = hashlib.sha256(image).digest()
                if digest not in written:
                    width, height = 0, 0
                    with suppress(UserError):  # raised when the image is read
                        width, height = read_size(image, "the image")
                    written[digest] = file.tell(), len(image), height, width
                    file.write(image)
                index[number] = written[digest]
            file.write(index.tobytes())
            flush_to_disk(file)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return index


def _open(path: Path) -> pq.ParquetFile:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise UserError(f"reading {path} needs pyarrow; install it with: pip install -e '.[hf]'") from error
    with _reading(path):
        return parquet.ParquetFile(path, memory_map=True)


def _reading(path: Path) -> AbstractContextManager[None]:
    """Raise a UserError if pyarrow cannot read a file; most of its errors are of kinds of its own."""
    return explaining(lambda error: f"{path} cannot be read as Parquet ({one_line(error)}); download or copy it again")


def _read_images(path: Path, group: int, wanted: set[int]) -> Iterator[bytes]:
    """Yield the image files of the wanted rows of a row group, in order."""
    with _reading(path):
        file = _open(path)
        is_struct = file.schema_arrow.field("image").type.num_fields > 0
        name = "image.bytes" if is_struct else "image"  # the Hub stores a struct of bytes and path
        batches = file.iter_batches(_ROWS_AT_A_TIME, row_groups=[group], columns=[name], use_threads=False)
        columns = (batch.column("image").field("bytes") if is_struct else batch.column("image") for batch in batches)
        for row, image in enumerate(chain.from_iterable(columns)):
            if row in wanted:
                content = image.as_py() or b""
                if not isinstance(content, bytes):
                    raise UserError(
                        f"the column image of {path} has {content!r:.60}; only the bytes of image files are read there"
                    )
                yield content
