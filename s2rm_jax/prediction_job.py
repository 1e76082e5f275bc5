"""Segment many images: the list of images, the share of a process, and the threads that read and write.

A job writes the files of `prediction_files` for each image. Several processes share the list; each has a part file of
its own and needs no connection to the others.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from itertools import islice
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from etils import epath
from PIL import Image
from tqdm import tqdm

from s2rm_jax.errors import UserError, explaining, first_of, one_line
from s2rm_jax.evaluation.calibration import Calibration
from s2rm_jax.evaluation.result_files import find_naming
from s2rm_jax.input.images import FORMATS, is_url, load_image
from s2rm_jax.io import figure_paths, make_output_folder, on_bucket
from s2rm_jax.parallel.cluster import find_cluster
from s2rm_jax.prediction_files import (
    RESULT_FILE,
    Options,
    Part,
    is_result,
    open_part,
    remove_job,
    write_exports_of,
    write_prediction,
    write_result_of,
)

if TYPE_CHECKING:
    from s2rm_jax.segmenter import Result, Segmenter

_LOG = logging.getLogger(__name__)

_T = TypeVar("_T")
_R = TypeVar("_R")
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
    under `out` are not images of a pattern: a job that continues would find its own results.

    Args:
        images: a folder; a pattern; or a list: a text file (.txt) with an image per line, JSON lines (.jsonl) with
            "image" and optionally "expressions", or a Parquet file (.parquet) with such columns. Paths in a list are
            relative to its folder. All may be on a bucket.
        expressions: those of images without expressions in the list.
        out: the folder of the results.
        explain: the name of the figures in it; "" if none are drawn.

    Raises:
        UserError: there are no images, the list has a mistake, or an image has no expressions.
    """
    images = os.path.expanduser(images)
    if is_url(images):
        raise UserError(f"--images: {images} is an address; give a folder, a pattern or a list, or use --image")
    read = _LISTS.get(os.path.splitext(images)[1].lower())
    found: dict[str, dict[str, None]] = {}  # ordered sets
    if read is None and on_bucket(images):
        found = {os.fspath(path): {} for path in _list_bucket(images)}
    elif read is None or not (on_bucket(images) or os.path.isfile(images)):
        found = {os.fspath(path): {} for path in list_images(images) if not is_result(path, out, explain)}
    else:
        folder = os.path.dirname(images)
        with _reading(images):
            listed = list(read(epath.Path(images)))
        for image, own in listed:
            name = image if on_bucket(image) else os.path.join(folder, image)
            name = name if on_bucket(name) else os.path.normpath(name)
            found.setdefault(name, {}).update(dict.fromkeys(own))
    if not found:
        raise UserError(f"--images: {images} has no images; give a folder or pattern with images, or a list of them")
    if not expressions and (missing := next((name for name, own in found.items() if not own), None)):
        raise UserError(f"--text is missing, and {missing} has no expressions of its own; give --text (see --help)")
    folders = result_folders([Path(name) for name in found], taken=RESULT_FILE)
    return [
        Item(name, tuple(own or expressions), folder.as_posix(), number)
        for number, ((name, own), folder) in enumerate(zip(found.items(), folders, strict=True), start=1)
    ]


def find_share(given: str | None) -> tuple[int, int]:
    """Return the index of this process and the number of processes, which share the images.

    Args:
        given: "I/N", or None to take them from the environment, as `train` does; then this process also sees only its
            share of the accelerators of its host.

    Raises:
        UserError: `given` is not of that form, or the environment describes other processes incompletely.
    """
    if given is not None:
        index, slash, number = given.partition("/")
        if not (slash and index.isdecimal() and number.isdecimal() and int(index) < int(number)):
            raise UserError(f"--shard: {given} is not I/N with I from 0 to N - 1, such as 0/4")
        return int(index), int(number)
    if "JOB_COMPLETION_INDEX" in os.environ:  # the number of its processes is not in the environment
        raise UserError("--shard is missing: in an indexed job, give --shard=$(JOB_COMPLETION_INDEX)/N")
    try:
        cluster = find_cluster(os.environ, coordinated=False)
    except UserError as error:
        raise UserError(
            "--shard is missing, and the variables of the launcher do not describe all processes: give --shard=I/N, or "
            "--shard=0/1 for this process alone"
        ) from error
    if cluster is None:
        return 0, 1
    import jax

    if cluster.devices is not None:
        for platform in ("cuda", "rocm"):
            jax.config.update(f"jax_{platform}_visible_devices", ",".join(map(str, cluster.devices)))
    if cluster.index is None or cluster.processes is None:
        return jax.process_index(), jax.process_count()  # a TPU knows its place in the pod
    return cluster.index, cluster.processes


def run_job(
    segmenter: Segmenter,
    items: Sequence[Item],
    share: tuple[int, int],
    out: Path,
    options: Options,
    *,
    batch_size: int | None = None,
    quiet: bool = False,
) -> Part:
    """Segment this process's share of the images and write their files and records; continue an unfinished job.

    Threads read images and write results while the device works. An image that cannot be read is reported on stderr;
    its record has an "error". The only process of a job writes result.json, even if it is interrupted, and removes its
    part file when it is done. Part files of several processes stay. Files for other programs are written at the end.

    Args:
        segmenter: the network.
        items: the images of all processes.
        share: the result of `find_share`.
        out: the folder for all results.
        options: which files to write.
        batch_size: the number of images that the device processes together; by default 1 on a CPU, which gains little
            from more, and 8 on other devices.
        quiet: whether to hide the progress bar.

    Returns:
        The records of this process; the file is closed.

    Raises:
        UserError: `out` belongs to another job, or a file cannot be written.
    """
    index, number = share
    if batch_size is None:
        import jax

        batch_size = 1 if jax.default_backend() == "cpu" else 8
    with open_part(out, share, _settings(segmenter, items, options)) as part:
        left = [item for item in items[index::number] if item.image not in part.done]
        try:
            records = _records(segmenter, left, out, options, batch_size)
            for record in tqdm(records, "segmenting images", len(left), disable=quiet or None, leave=False):
                part.write(record)
                if "error" in record:
                    tqdm.write(f"warning: skipped: {record['error']}", file=sys.stderr)
        except BaseException:
            with suppress(UserError):  # a full disk fails twice, and the first error counts
                part.finish()
                if number == 1:
                    write_result_of(part, out)
            raise
        part.finish()
        if number == 1:
            write_result_of(part, out)
        if options.exports:
            naming = find_naming({"image": item.image} for item in items)
            write_exports_of(part, out, options, share=share, images=len(items), naming=naming)
        if number == 1:  # last: until then, the same command continues the job
            remove_job(part, out)
    return part


def _settings(segmenter: Segmenter, items: Sequence[Item], options: Options) -> dict[str, Any]:
    """Return all that the results of a job depend on, as plain values, to tell jobs apart."""
    digest = hashlib.sha256()
    for item in items:
        digest.update(json.dumps([item.image, item.expressions]).encode())
    settings: dict[str, Any] = {"network": segmenter.fingerprint(), "images": [len(items), digest.hexdigest()]}
    settings["calibration"] = Calibration.of(segmenter.config).fields()  # of the scores; not part of the parameters
    written = {"overlay": options.overlay, "masks": options.masks, "explain": options.explain}
    # The records depend on whether there are exports, and not on which: these are written from them at each end.
    return settings | written | {"exports": options.exports}


def _records(
    segmenter: Segmenter, items: Sequence[Item], out: Path, options: Options, batch_size: int
) -> Iterator[dict[str, Any]]:
    """Segment images and write their files; yield their records, in order."""

    def read(item: Item) -> tuple[Item, np.ndarray | UserError]:
        try:
            for expression in item.expressions:
                segmenter.remarks(expression)
            return item, _load(item.image)
        except UserError as error:
            return item, error

    def segment(batch: list[tuple[Item, Any]]) -> list[tuple[Item, Any, Result | None]]:
        good = [(item, image) for item, image in batch if not isinstance(image, UserError)]
        full = good
        if len(items) > batch_size and not options.explain:  # no program for the last images alone
            full = good + good[:1] * (batch_size - len(good))
        images, expressions = [image for _, image in full], [item.expressions for item, _ in full]
        results = iter(segmenter.segment(images, expressions, explain=bool(options.explain)))
        return [(item, image, None if isinstance(image, UserError) else next(results)) for item, image in batch]

    def write(done: tuple[Item, Any, Result | None]) -> dict[str, Any]:
        item, image, result = done
        if result is None:
            return {"image": item.image, "error": str(image)}
        return _write(item, image, result, out, options)

    workers = (os.cpu_count() or 1) + 1
    hosts, devices = ThreadPoolExecutor(workers), ThreadPoolExecutor(2)  # two: the device works on one batch meanwhile
    try:
        images = _ahead(hosts, read, items, batch_size + workers)
        batches = iter(lambda: list(islice(images, batch_size)), [])
        results = (one for batch in _ahead(devices, segment, batches, 1) for one in batch)
        yield from _ahead(hosts, write, results, workers)
    finally:
        for pool in (hosts, devices):
            pool.shutdown(cancel_futures=True)


def _load(image: str) -> np.ndarray:
    if is_url(image) or not on_bucket(image):
        return load_image(image, apply_exif=True)
    with _reading(image):
        content = epath.Path(image).read_bytes()
    try:
        return load_image(content, apply_exif=True)
    except UserError as error:
        raise UserError(f"{image}: {error}") from error


def _reading(name: str) -> AbstractContextManager[None]:
    """Raise UserError if a file or folder cannot be read in the block; clients of buckets raise any exception."""
    return explaining(lambda error: f"{name} cannot be read ({one_line(error)}); check it and its permissions")


def _write(item: Item, image: np.ndarray, result: Result, out: Path, options: Options) -> dict[str, Any]:
    """Write the files of an image and return its record."""
    height, width = image.shape[:2]
    record: dict[str, Any] = {"image": item.image, "width": width, "height": height}
    if options.exports:
        record["number"] = item.number
    folder = out / item.folder
    if options.overlay or options.explain or options.masks == "png":
        make_output_folder(folder)
        record["folder"] = item.folder
    figures = figure_paths(folder / options.explain, len(item.expressions), folder) if options.explain else []
    # Labels without scores: a legend that changes from frame to frame would change the size of the overlay.
    labels = [f"{number}. {expression}" for number, expression in enumerate(item.expressions, start=1)]
    return record | {"results": write_prediction(folder, image, result, options, figures=figures, labels=labels)}


def _ahead(pool: Executor, function: Callable[[_T], _R], items: Iterable[_T], count: int) -> Iterator[_R]:
    """Yield the function of each item, in order, computed by threads at most `count` items ahead."""
    waiting: deque[Future[_R]] = deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) > count:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def list_images(pattern: str) -> list[Path]:
    """Return the images in a folder, or the files that match a pattern such as frames/*.jpg; `**` matches subfolders.

    They are in natural order: frame9.jpg before frame10.jpg. In a folder, images are recognized by their suffix; those
    that cannot be read (another format, a broken link) are counted in a warning. Hidden files are passed over unless
    the pattern names them, and `**` follows no links to folders, which may form loops. The name of an existing file is
    never read as a pattern.

    Raises:
        UserError: there are none.
    """
    folder = Path(pattern).expanduser()
    if folder.is_dir():
        return choose_images(pattern, folder.iterdir())
    paths = [folder] if folder.is_file() else [path for path in _matches(folder) if path.is_file()]
    if not paths:
        raise UserError(f"no file matches {pattern}; check the pattern, and put it into quotes")
    return sorted(set(paths), key=_natural_order)  # a pattern with two ** finds a file more than once


def choose_images(folder: str, files: Iterable[_Path]) -> list[_Path]:
    """Return the images among the files of a folder on a disk or a bucket, as `list_images` does; `folder` names it."""
    visible = sorted((path for path in files if not path.name.startswith(".")), key=_natural_order)
    found = [path for path in visible if path.suffix.lower() in _SUFFIXES | _OTHER_SUFFIXES and not os.path.isdir(path)]
    paths = [path for path in found if path.suffix.lower() in _SUFFIXES and not _is_broken_link(path)]
    unread = [path for path in found if path not in paths]
    names = first_of([path.name for path in unread], ", ")
    if not paths:
        passed_over = f"; {len(unread)} that cannot be read: {names}" if unread else ""
        raise UserError(
            f"the folder {folder} has no images ({', '.join(FORMATS)}){passed_over}; give another folder, or a pattern"
        )
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
    with _reading(pattern):
        return choose_images(pattern, epath.Path(root).glob(name) if "*" in name else epath.Path(pattern).iterdir())


def _read_text(path: epath.Path) -> Iterator[tuple[str, list[str]]]:
    for line in path.read_bytes().decode("utf-8-sig", "surrogateescape").split("\n"):
        if line.strip():
            yield line.rstrip("\r"), []


def _read_json_lines(path: epath.Path) -> Iterator[tuple[str, list[str]]]:
    for number, line in enumerate(path.read_bytes().decode("utf-8-sig", "surrogateescape").split("\n"), start=1):
        if line.strip():
            try:
                entry = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise UserError(f"{path}: line {number} is not JSON ({error}); write one object per line") from error
            yield _checked(entry, f"{path}: line {number}")


def _read_parquet(path: epath.Path) -> Iterator[tuple[str, list[str]]]:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise UserError(f"{path}: pyarrow is not installed: pip install -e '.[parquet]'") from error
    with path.open("rb") as file:
        table = parquet.ParquetFile(file)
        columns = [name for name in ("image", "expressions") if name in table.schema_arrow.names]
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


_LISTS = {".txt": _read_text, ".jsonl": _read_json_lines, ".parquet": _read_parquet}


def result_folders(paths: Sequence[Path], taken: str) -> list[Path]:
    """Return a relative path for the results of each image: its path below the folder that contains all of them.

    Suffixes are removed if all paths still differ, differ from the file name `taken`, and no name becomes "..".
    """
    absolute = [Path(os.path.abspath(path)) for path in paths]  # without "..", which would lead out of the results
    common = os.path.commonpath([path.parent for path in absolute])
    relative = [path.relative_to(common) for path in absolute]
    if not all(path.stem.strip(".") for path in relative):  # the stem of "...png" is ".."
        return relative
    bare = [path.with_suffix("") for path in relative]
    return bare if len({*bare, Path(taken)}) == len(bare) + 1 else relative
