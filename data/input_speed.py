"""Measure the input pipeline: what each stage of it costs, and how near the whole comes to plain JPEG decoding.

    python -m data.input_speed                                      # 200 generated images of 640 x 480
    python -m data.input_speed --root REFER_DIR --split-by mini     # the training images of refcoco as it is there

Prints Markdown, and with --json FILE writes the same as JSON; docs/results/input_speed.md keeps it. Files come from the
page cache. All times are processor time, those of workers included, so that "per core" means a core that does nothing
else. Everything is measured in turn, round by round, and medians over the rounds are told: what else the machine does
then weighs on all sides alike.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import io
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from absl import flags
from ml_collections import ConfigDict

from data.measure import write_images
from s2rm_jax import command_line
from s2rm_jax.config import default_config
from s2rm_jax.input.encode import pack_mask, view_of
from s2rm_jax.input.example import Example, Groups
from s2rm_jax.input.images import load_image, resize_fast, resize_image
from s2rm_jax.input.pipeline import build_encoder, build_tokenizer, train_batches
from s2rm_jax.input.refer import ReferSource

FLAGS = flags.FlagValues()
ROOT = flags.DEFINE_string("root", "", "a folder in REFER's layout; by default images are made", flag_values=FLAGS)
SPLIT_BY = flags.DEFINE_string("split-by", "unc", "who made its splits", flag_values=FLAGS)
IMAGES = flags.DEFINE_integer("images", 200, "how many are made", lower_bound=1, flag_values=FLAGS)
EXPRESSIONS = flags.DEFINE_integer(
    "expressions", 4, "expressions with each image (K)", lower_bound=1, flag_values=FLAGS
)
ROUNDS = flags.DEFINE_integer("rounds", 5, "of which medians are told", lower_bound=1, flag_values=FLAGS)
BATCHES = flags.DEFINE_integer("batches", 16, "of the whole pipeline in a round", lower_bound=1, flag_values=FLAGS)
JSON = flags.DEFINE_string("json", "", "a file for the results", flag_values=FLAGS)

BATCH_SIZE = 16
WORKERS = (0, 1, 2)
DECODERS: dict[str, tuple[str, Callable[[Any, bytes], Any]]] = {  # module, and how it decodes to RGB
    "pillow": ("PIL.Image", lambda module, data: module.open(io.BytesIO(data)).load()),
    "simplejpeg": ("simplejpeg", lambda module, data: module.decode_jpeg(data)),
    "opencv-python-headless": (
        "cv2",
        lambda module, data: module.imdecode(np.frombuffer(data, np.uint8), module.IMREAD_COLOR_RGB),
    ),
}


def main() -> None:
    """Measure as the flags say."""
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(ROOT.value) if ROOT.value else write_images(Path(scratch), IMAGES.value or 0)
        source = ReferSource("train", root=root, split_by=SPLIT_BY.value or "")
        config = default_config()
        config.batch_size, config.input.expressions_per_image = BATCH_SIZE, EXPRESSIONS.value
        config.text.vocab = str(_write_vocabulary(source, Path(scratch)))
        decoders, stages = _decoders(source), _stages(source, config)
        with contextlib.ExitStack() as stack:
            pipelines = {
                f"the whole, {n or 'no'} workers": stack.enter_context(_pipeline(source, config, n)) for n in WORKERS
            }
            rounds = [_round(len(source), decoders, stages, pipelines) for _ in range(ROUNDS.value or 0)]
        milliseconds = {name: median(times[name] for times in rounds) for name in rounds[0]}
        limit = min(decoders, key=lambda name: milliseconds[name])
        shares = {name: median(times[limit] / times[name] for times in rounds) for name in rounds[0]}
        _print(source, milliseconds, shares, limit)
        if JSON.value:
            results = {"images": len(source), "limit": limit, "milliseconds": milliseconds, "share_of_limit": shares}
            Path(JSON.value).write_text(json.dumps(results, indent=2) + "\n")


@dataclass(frozen=True)
class _Repeated:
    """The images again and again, as many as RefCOCO has: Grain needs a millisecond to shuffle a few dozen."""

    source: ReferSource

    def __len__(self) -> int:
        return 16_994

    def __getitem__(self, index: int) -> Example:
        return self.source[index % len(self.source)]

    def expression_count(self, index: int) -> int:
        return self.source.expression_count(index % len(self.source))

    def referents(self, index: int) -> Groups:
        return self.source.referents(index % len(self.source))


def _decoders(source: ReferSource) -> dict[str, Callable[[int], Any]]:
    """Plain JPEG decoding by each library that is there."""
    files = [Path(str(example.image)).read_bytes() for example in source]

    def decoder(module: Any, decode: Callable[[Any, bytes], Any]) -> Callable[[int], Any]:
        return lambda i: decode(module, files[i])

    found = {}
    for name, (module_name, decode) in DECODERS.items():
        with contextlib.suppress(ImportError):
            found[f"plain decoding, {name} {version(name)}"] = decoder(importlib.import_module(module_name), decode)
    return found


def _stages(source: ReferSource, config: ConfigDict) -> dict[str, Callable[[int], Any]]:
    """What is done for an image, one after the other; each stage begins with what the one before it made."""
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
        "tokenising": lambda i: [encoder.tokenizer.encode(expression) for expression in views[i].texts],
        "all of it, one after the other": lambda i: encoder(examples[i], chosen[i]),
    }


@contextlib.contextmanager
def _pipeline(source: ReferSource, config: ConfigDict, workers: int) -> Iterator[Callable[[], float]]:
    """Give what takes BATCHES batches from Grain and returns the seconds of processor time that this took in all."""
    config = copy.deepcopy(config)
    config.input.workers = workers
    before = set(multiprocessing.active_children())
    batches: Any = train_batches(_Repeated(source), build_tokenizer(config, source), config)
    next(batches)  # starts everything
    children = set(multiprocessing.active_children()) - before

    def clock() -> float:
        return time.process_time() + sum(_processor_time(child.pid) for child in children)

    def settle() -> float:
        """Wait until the buffers are full and all is quiet; returns the clock."""
        now, earlier = clock(), -1.0
        while now - earlier > 0.02:
            time.sleep(0.5)
            now, earlier = clock(), now
        return now

    def take() -> float:
        began = settle()
        for _ in range(BATCHES.value or 0):
            next(batches)
        return settle() - began  # as much was made as was taken

    yield take
    batches.close()


def _processor_time(pid: int | None) -> float:
    """The seconds of processor time that a running process has taken so far; Linux only."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _round(
    images: int,
    decoders: dict[str, Callable[[int], Any]],
    stages: dict[str, Callable[[int], Any]],
    pipelines: dict[str, Callable[[], float]],
) -> dict[str, float]:
    """Measure everything once; returns milliseconds an image."""
    times = {}
    for name, take in pipelines.items():
        times[name] = 1000 * take() / (BATCHES.value or 0) / BATCH_SIZE
    for name, work in (decoders | stages).items():
        began = time.process_time()
        for index in range(images):
            work(index)
        times[name] = 1000 * (time.process_time() - began) / images
    return times


def _print(source: ReferSource, milliseconds: dict[str, float], shares: dict[str, float], limit: str) -> None:
    size = sum(Path(str(example.image)).stat().st_size for example in source) / len(source)
    pixels = sum(example.height * example.width for example in source) / len(source)
    versions = ", ".join(f"{name} {version(name)}" for name in ("grain", "numpy", "pillow", "pycocotools"))
    print(f"{len(source)} images, {pixels:,.0f} pixels and {size / 1e3:.0f} kB on average; {versions}\n")
    print(f"| | ms an image | images/s a core | of {limit} |\n|---|---|---|---|")
    for name, time_ in sorted(milliseconds.items(), key=lambda item: item[0].startswith("the whole")):
        print(f"| {name} | {time_:.3f} | {1000 / time_:,.0f} | {100 * shares[name]:.0f} % |")


def _write_vocabulary(source: ReferSource, folder: Path) -> Path:
    """Write a BERT vocabulary of all words of the expressions."""
    words = {word for example in source for e in example.expressions for word in e.text.lower().split()}
    path = folder / "vocab.txt"
    path.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *sorted(words)]) + "\n", encoding="utf-8")
    return path


if __name__ == "__main__":
    command_line.run(main, FLAGS, __doc__)
