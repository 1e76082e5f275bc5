"""Measure the cost of each stage of the input pipeline, and compare the whole pipeline with plain JPEG decoding.

    python -m data.input_speed                                      # 200 generated images of 640 x 480
    python -m data.input_speed --root DATA --split_by mini          # the training images of refcoco in that folder

Prints Markdown and, with --json_file FILE, writes the same as JSON. docs/results/input_speed.md has the result. Files
come from the page cache. All times are processor time including workers, so "per core" means a core that does nothing
else. Each round measures everything once, so that other load on the machine affects all measurements alike; the medians
over the rounds are reported. With the extra [hf], the source hf is measured too, on the same images in the rows of
Parquet files (four times their size, in the folder for temporary files).
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import io
import json
import multiprocessing
import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib.metadata import version
from itertools import chain, islice
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import numpy as np
from absl import flags
from ml_collections import ConfigDict

from data.measure import write_images
from s2rm_jax import command_line
from s2rm_jax.config import default_config
from s2rm_jax.input.encode import pack_mask, view_of
from s2rm_jax.input.example import Example, Groups, Source
from s2rm_jax.input.huggingface import HuggingFaceSource
from s2rm_jax.input.images import load_image, resize_fast, resize_image
from s2rm_jax.input.pipeline import build_encoder, build_tokenizer, train_batches
from s2rm_jax.input.refer import ReferSource
from s2rm_jax.io import writing

FLAGS = flags.FlagValues()
ROOT = flags.DEFINE_string("root", "", "folder in the REFER layout; by default images are generated", flag_values=FLAGS)
SPLIT_BY = flags.DEFINE_string("split_by", "unc", "who made the splits, such as unc or umd", flag_values=FLAGS)
IMAGES = flags.DEFINE_integer("images", 200, "number of generated images", lower_bound=1, flag_values=FLAGS)
EXPRESSIONS = flags.DEFINE_integer("expressions", 4, "expressions per image (K)", lower_bound=1, flag_values=FLAGS)
ROUNDS = flags.DEFINE_integer("rounds", 5, "number of rounds; medians are reported", lower_bound=1, flag_values=FLAGS)
BATCHES = flags.DEFINE_integer(
    "batches", 16, "batches of the whole pipeline per round", lower_bound=1, flag_values=FLAGS
)
JSON = flags.DEFINE_string("json_file", "", "file to write the results to as JSON", flag_values=FLAGS)

BATCH_SIZE = 16
WORKERS = (0, 1, 2)
DECODERS: dict[str, tuple[str, Callable[[Any, bytes], Any]]] = {  # module, and its decoding to RGB
    "pillow": ("PIL.Image", lambda module, data: module.open(io.BytesIO(data)).load()),
    "simplejpeg": ("simplejpeg", lambda module, data: module.decode_jpeg(data)),
    "opencv-python-headless": (
        "cv2",
        lambda module, data: module.imdecode(np.frombuffer(data, np.uint8), module.IMREAD_COLOR_RGB),
    ),
}


def main() -> None:
    """Measure with the settings of the flags."""
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(ROOT.value) if ROOT.value else write_images(Path(scratch), IMAGES.value or 0)
        source = ReferSource("train", root=root, split_by=SPLIT_BY.value or "")
        config = default_config()
        config.batch_size, config.input.expressions_per_image = BATCH_SIZE, EXPRESSIONS.value
        config.text.vocab = str(_write_vocabulary(source, Path(scratch)))
        decoders, stages = _decoders(source), _stages(source, config)
        sources: dict[str, Callable[[], Any]] = {
            "refer": lambda: ReferSource("train", root=root, split_by=SPLIT_BY.value or "")
        }
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(ImportError):
                sources |= stack.enter_context(_hub_source(source, Path(scratch)))
            pipelines = {
                f"the whole, {n or 'no'} workers": stack.enter_context(_pipeline(source, config, n)) for n in WORKERS
            }
            rounds = [_round(len(source), sources, decoders, stages, pipelines) for _ in range(ROUNDS.value or 0)]
        milliseconds = {name: median(times[name] for times in rounds) for name in rounds[0]}
        limit = min(decoders, key=lambda name: milliseconds[name])
        shares = {name: median(times[limit] / times[name] for times in rounds) for name in rounds[0]}
        _print(source, milliseconds, shares, limit)
        if JSON.value:
            results = {"images": len(source), "limit": limit, "milliseconds": milliseconds, "share_of_limit": shares}
            path = Path(JSON.value)
            with writing(path, "--json_file"):
                path.write_text(json.dumps(results, indent=2) + "\n")


@dataclass(frozen=True)
class _Repeated:
    """The images repeated to the length of RefCOCO; Grain takes a millisecond to shuffle a few dozen images."""

    source: ReferSource

    def __len__(self) -> int:
        return 16_994

    def __getitem__(self, index: int) -> Example:
        return self.source[index % len(self.source)]

    def expression_count(self, index: int) -> int:
        return self.source.expression_count(index % len(self.source))

    def referents(self, index: int) -> Groups:
        return self.source.referents(index % len(self.source))


@contextlib.contextmanager
def _hub_source(source: ReferSource, scratch: Path) -> Iterator[dict[str, Callable[[], HuggingFaceSource]]]:
    """Write Parquet files as on the Hub, one row for each referent, and yield how to open them.

    The first opening has an empty cache folder, so it unpacks the images; the second finds them there.
    """
    import pyarrow
    from pyarrow import parquet

    def rows(index: int) -> Iterator[dict[str, Any]]:
        example = source[index]
        path = Path(str(example.image))
        for group in source.referents(index):
            expressions = [example.expressions[position] for position in group]
            polygons = expressions[0].segmentation
            polygon = polygons[0] if isinstance(polygons, list) else [0, 0, 9, 0, 9, 9]
            yield {
                "image": {"bytes": path.read_bytes(), "path": path.name},
                "answer": [expression.text for expression in expressions],
                "segmentation": [float(value) for value in polygon],
                "file_name": path.name,
            }

    def open_hub() -> HuggingFaceSource:
        return HuggingFaceSource("train", path=scratch / "train.parquet")

    def unpack() -> HuggingFaceSource:
        shutil.rmtree(scratch / "s2rm_jax", ignore_errors=True)
        return open_hub()

    all_rows = chain.from_iterable(rows(index) for index in range(len(source)))
    with contextlib.ExitStack() as stack:
        writer = None
        while group := list(islice(all_rows, 100)):  # rows a group, as the library datasets wrote images for years
            table = pyarrow.Table.from_pylist(group)
            writer = writer or stack.enter_context(parquet.ParquetWriter(scratch / "train.parquet", table.schema))
            writer.write_table(table)
    with mock.patch.dict(os.environ, {"XDG_CACHE_HOME": str(scratch)}):
        yield {"hf, unpacking the images": unpack, "hf": open_hub}


def _decoders(source: ReferSource) -> dict[str, Callable[[int], Any]]:
    """Return plain JPEG decoding by each installed library."""
    files = [Path(str(example.image)).read_bytes() for example in source]

    def decoder(module: Any, decode: Callable[[Any, bytes], Any]) -> Callable[[int], Any]:
        return lambda i: decode(module, files[i])

    found = {}
    for name, (module_name, decode) in DECODERS.items():
        with contextlib.suppress(ImportError):
            found[f"plain decoding, {name} {version(name)}"] = decoder(importlib.import_module(module_name), decode)
    return found


def _stages(source: ReferSource, config: ConfigDict) -> dict[str, Callable[[int], Any]]:
    """Return the stages of the pipeline; each starts from the result of the previous one."""
    encoder = replace(build_encoder(build_tokenizer(config, source), config), resize=resize_fast)
    rng = np.random.default_rng(0)
    size, examples = encoder.image_size, list(source)
    files = [Path(str(example.image)).read_bytes() for example in examples]
    chosen = [rng.permutation(len(example.expressions))[: encoder.expressions].tolist() for example in examples]
    views = [view_of(example, numbers) for example, numbers in zip(examples, chosen, strict=True)]
    return {
        "reading the file": lambda i: Path(str(examples[i].image)).read_bytes(),
        "decoding it": lambda i: load_image(files[i]),
        "resizing the image": lambda i: resize_fast(views[i].image, size),
        "resizing it by Pillow, as in evaluation": lambda i: resize_image(views[i].image, size),
        "making the masks": lambda i: [pack_mask(mask) for mask in views[i].masks(size)],
        "tokenizing": lambda i: [encoder.tokenizer.encode(expression) for expression in views[i].texts],
        "all of it, one after the other": lambda i: encoder(examples[i], chosen[i]),
    }


@contextlib.contextmanager
def _pipeline(source: ReferSource, config: ConfigDict, workers: int) -> Iterator[Callable[[], float]]:
    """Yield a function that takes BATCHES batches from Grain and returns the seconds of processor time used."""
    config = copy.deepcopy(config)
    config.input.workers = workers
    before = set(multiprocessing.active_children())
    batches: Any = train_batches(_Repeated(source), build_tokenizer(config, source), config)
    next(batches)  # starts the workers
    children = set(multiprocessing.active_children()) - before

    def clock() -> float:
        return time.process_time() + sum(_processor_time(child.pid) for child in children)

    def settle() -> float:
        """Wait until the buffers are full and the workers idle; return the clock."""
        now, earlier = clock(), -1.0
        while now - earlier > 0.02:
            time.sleep(0.5)
            now, earlier = clock(), now
        return now

    def take() -> float:
        began = settle()
        for _ in range(BATCHES.value or 0):
            next(batches)
        return settle() - began  # as many batches were made as taken

    yield take
    batches.close()


def _processor_time(pid: int | None) -> float:
    """Return the seconds of processor time of a running process; Linux only."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _round(
    images: int,
    sources: dict[str, Callable[[], Any]],
    decoders: dict[str, Callable[[int], Any]],
    stages: dict[str, Callable[[int], Any]],
    pipelines: dict[str, Callable[[], float]],
) -> dict[str, float]:
    """Measure everything once; return milliseconds per image."""
    times = {}
    for name, take in pipelines.items():
        times[name] = 1000 * take() / (BATCHES.value or 0) / BATCH_SIZE
    order = random.sample(range(images), images)
    reading = {}
    for name, open_source in sources.items():
        began = time.process_time()
        source = open_source()
        times[f"opening {name}"] = 1000 * (time.process_time() - began) / images
        reading[f"reading the file by {name.partition(',')[0]}"] = _reader(source, order)
    for name, work in (reading | decoders | stages).items():
        began = time.process_time()
        for index in range(images):
            work(index)
        times[name] = 1000 * (time.process_time() - began) / images
    return times


def _reader(source: Source, order: list[int]) -> Callable[[int], Any]:
    """Return a function that reads the file of the image at a place of an order."""

    def read(place: int) -> Any:
        image = source[order[place]].image
        return image.read_bytes() if isinstance(image, Path) else image

    return read


def _print(source: ReferSource, milliseconds: dict[str, float], shares: dict[str, float], limit: str) -> None:
    size = sum(Path(str(example.image)).stat().st_size for example in source) / len(source)
    pixels = sum(example.height * example.width for example in source) / len(source)
    versions = ", ".join(f"{name} {version(name)}" for name in ("grain", "numpy", "pillow", "pycocotools"))
    print(f"{len(source)} images, {pixels:,.0f} pixels and {size / 1e3:.0f} kB on average; {versions}\n")
    print(f"| | ms per image | images/s per core | of {limit} |\n|---|---|---|---|")
    for name, time_ in sorted(milliseconds.items(), key=lambda item: item[0].startswith("the whole")):
        print(f"| {name} | {time_:.3f} | {1000 / time_:,.0f} | {100 * shares[name]:.0f} % |")


def _write_vocabulary(source: ReferSource, folder: Path) -> Path:
    """Write a BERT vocabulary of all words of the expressions."""
    words = {word for example in source for e in example.expressions for word in e.text.lower().split()}
    path = folder / "vocab.txt"
    path.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *sorted(words)]) + "\n", encoding="utf-8")
    return path


if __name__ == "__main__":
    command_line.run_and_exit(main, FLAGS, __doc__)
