"""Segment many images: the share of a process, and the threads that read and write.

A job writes the files of files.py for each image, and those of job_files.py. Several processes share the list; each has
a part file of its own and needs no connection to the others.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
from etils import epath
from tqdm import tqdm

from s2rm_jax.errors import UserError, counted
from s2rm_jax.evaluation.calibration import Calibration
from s2rm_jax.evaluation.exchange_formats import find_naming
from s2rm_jax.input.images import load_image, map_ahead
from s2rm_jax.input.web import is_url
from s2rm_jax.io import make_output_folder, on_bucket
from s2rm_jax.parallel.cluster import find_cluster
from s2rm_jax.prediction.files import (
    Options,
    figure_paths,
    has_prediction,
    outputs_of,
    require_inputs_kept,
    require_own_result,
    write_prediction,
)
from s2rm_jax.prediction.image_lists import Item, reading
from s2rm_jax.prediction.job_files import (
    RecordFile,
    begins_anew,
    earlier_files,
    open_part,
    remove_job,
    write_exports_of,
    write_result_of,
)

if TYPE_CHECKING:
    from s2rm_jax.segmenter import Result, Segmenter

_TRIED = 100  # images, to find one that can be read


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
    source: str = "",
) -> RecordFile:
    """Segment this process's share of the images and write their files and records; continue an unfinished job.

    Threads read images and write results while the device works. An image that cannot be read is reported on stderr;
    its record has an "error". The only process of a job writes result.json, even if it is interrupted, and removes its
    part file when it is done. Part files of several processes stay. Files for other programs are written at the end.
    An earlier prediction in the folder is kept if not a single image can be segmented.

    Args:
        segmenter: the network.
        items: the images of all processes.
        share: the result of `find_share`.
        out: the folder for all results.
        options: which files to write.
        batch_size: the number of images that the device processes together; by default 1 on a CPU, which gains little
            from more, and 8 on other devices.
        quiet: whether to hide the progress bar.
        source: the file from which `items` was read, which may be a list.

    Returns:
        The records of this process; the file is closed.

    Raises:
        UserError: `out` belongs to another job or has an image of this one among the files to be written, a file cannot
            be written, or no image can be segmented and there is an earlier prediction.
    """
    index, number = share
    if batch_size is None:
        import jax

        batch_size = 1 if jax.default_backend() == "cpu" else 8
    settings = _settings(segmenter, items, options)
    if begins_anew(out, share, settings):
        require_own_result(out)
        outputs = chain(earlier_files(out), _outputs(items, out, options))
        require_inputs_kept([source, *(item.image for item in items)], outputs)
        if number == 1 and has_prediction(out):
            _require_readable_image(segmenter, items, out)
    with open_part(out, share, settings) as part:
        left = [item for item in items[index::number] if item.image not in part.done]
        try:
            records = _records(segmenter, left, out, options, batch_size)
            for record in tqdm(records, "segmenting images", len(left), disable=quiet or None, leave=False):
                part.write(record)
                if "error" in record:
                    _report(record["error"])
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


def _report(error: object) -> None:
    tqdm.write(f"warning: skipped: {error}", file=sys.stderr)


def _outputs(items: Iterable[Item], out: Path, options: Options) -> Iterator[Path]:
    """Yield the files of the images whose folders exist already."""
    present = {path.name for path in out.iterdir()} if out.is_dir() else set()
    for item in items:
        folder = out / item.folder
        if Path(item.folder).parts[0] in present and folder.is_dir():
            yield from outputs_of(folder, item.expressions, options)
            yield from _figures(item, folder, options)


def _figures(item: Item, folder: Path, options: Options) -> list[Path]:
    return figure_paths(folder / options.explain, len(item.expressions), folder) if options.explain else []


def _require_readable_image(segmenter: Segmenter, items: Sequence[Item], out: Path) -> None:
    """Check that one of the first images can be segmented, before an earlier prediction is removed."""
    errors = []
    for item in items[:_TRIED]:
        _, image = _read(segmenter, item)
        if not isinstance(image, UserError):
            return
        errors.append(image)
    for error in errors:
        _report(error)
    first = "the first " if len(items) > _TRIED else ""
    raise_none_segmented(
        first + counted(len(errors), "image"), f", and {out} keeps its earlier results", ", or give another --out"
    )


def raise_none_segmented(images: str, kept: str = "", advice: str = "") -> NoReturn:
    """Raise the UserError for a job of which no image could be segmented; all have been reported on stderr."""
    raise UserError(f"none of {images} could be segmented{kept}; see the warnings above{advice}")


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
        images = map_ahead(hosts, partial(_read, segmenter), items, batch_size + workers)
        batches = iter(lambda: list(islice(images, batch_size)), [])
        results = (one for batch in map_ahead(devices, segment, batches, 1) for one in batch)
        yield from map_ahead(hosts, write, results, workers)
    finally:
        for pool in (hosts, devices):
            pool.shutdown(cancel_futures=True)


def _read(segmenter: Segmenter, item: Item) -> tuple[Item, np.ndarray | UserError]:
    """Return an image, or why it cannot be segmented."""
    try:
        for expression in item.expressions:
            segmenter.remarks(expression)
    except UserError as error:
        return item, UserError(f"{item.image}: {error}")
    try:
        return item, _load(item.image)
    except UserError as error:
        return item, error


def _load(image: str) -> np.ndarray:
    if is_url(image) or not on_bucket(image):
        return load_image(image, apply_exif=True)
    with reading(image):
        content = epath.Path(image).read_bytes()
    try:
        return load_image(content, apply_exif=True)
    except UserError as error:
        raise UserError(f"{image}: {error}") from error


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
    figures = _figures(item, folder, options)
    # Labels without scores: a legend that changes from frame to frame would change the size of the overlay.
    labels = [f"{number}. {expression}" for number, expression in enumerate(item.expressions, start=1)]
    return record | {"results": write_prediction(folder, image, result, options, figures=figures, labels=labels)}
