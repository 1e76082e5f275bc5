"""Batches from any source by one Grain pipeline.

The order of operations makes the stream independent of the numbers of processes and workers: shuffling, repetition and
every random choice come before the split over processes, and batches are formed on the MapDataset. The row at a
position is a pure function of (seed, position), so a run resumes exactly by starting at the number of rows seen so far.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import grain
import numpy as np
from absl import flags
from ml_collections import ConfigDict

from s2rm_jax.errors import UserError, first_of
from s2rm_jax.input.augment import Augmentation, build_augmentation
from s2rm_jax.input.encode import Encoder, view_of
from s2rm_jax.input.example import Batch, Example, Source
from s2rm_jax.input.images import map_files, resize_fast
from s2rm_jax.input.sampling import MAX_LISTED, Row, Rows, rows_of
from s2rm_jax.input.tokens import Tokenizer
from s2rm_jax.io import file_identity

_LOG = logging.getLogger(__name__)

READ_THREADS = 2
READ_AHEAD = 4  # batches per process
_MOST_BAD = 100  # bad examples in a row, after which the data as a whole is at fault


@dataclass
class LeftOut:
    """The bad examples that were left out because config.input.on_bad_example is "skip"; each is logged once."""

    problems: set[str] = field(default_factory=set)

    def add(self, problems: Iterable[str]) -> None:
        """Note the problems of examples that were left out."""
        for problem in problems:
            if problem not in self.problems:
                self.problems.add(problem)
                _LOG.warning("left out: %s", problem)


def require_images(source: Source, config: ConfigDict, limit: int = 0) -> None:
    """Check that the first `limit` images of a source (0: all) are there and of the annotated size, by their headers.

    The sources of custom data check this while they are read; images in rows or records of other files are not
    checked. Nothing is checked if bad examples are skipped.

    Raises:
        UserError: images cannot be used; names the first of them.
    """
    find = getattr(source, "image_problems", None)
    problems = find(limit or len(source)) if find and config.input.on_bad_example == "stop" else []
    if problems:
        raise UserError(
            f"images that cannot be used: {len(problems)}: {first_of(problems)}. Correct them, or set "
            "config.input.on_bad_example=skip to leave them out"
        )


def warn_of_shared_images(source: Source, held_out: Source, config: ConfigDict) -> None:
    """Warn if images of the training split are also in the evaluated one, even under another path or link.

    Images that are not files of their own are not compared, nor those of Google's splits, which share images.
    """
    trained, evaluated = (
        {identity: path for path, identity in map_files(file_identity, getattr(one, "image_files", list)()).items()}
        for one in (source, held_out)
    )
    if shared := (trained.keys() & evaluated.keys()) - {None}:
        _LOG.warning(
            "images of %s that are also in %s: %d, such as %s; scores on them are not scores on unseen images",
            *(config.eval.split, config.input.train_split, len(shared), min(evaluated[one] for one in shared)),
        )


def build_tokenizer(config: ConfigDict, source: Source, pretrained: Sequence[str] | None = None) -> Tokenizer:
    """Build the tokenizer from config.text.vocab, or from the vocabulary `pretrained` beside the text weights.

    Without either, the source's own vocabulary is used, but not for pretrained weights: their embeddings belong to
    other words.
    """
    own = None if config.text.pretrained else getattr(source, "vocabulary", None)
    vocabulary = config.text.vocab or pretrained or own
    if vocabulary is None:
        why = "config.text.pretrained is set" if config.text.pretrained else "this source has no vocabulary"
        raise UserError(
            f"config.text.vocab is empty and {why}: give the path of a BERT vocab.txt there, or in S2RM_BERT_VOCAB for "
            "a recipe that reads it; to download one, run "
            "curl -LO https://huggingface.co/google-bert/bert-base-uncased/resolve/main/vocab.txt"
        )
    tokenizer = Tokenizer(vocabulary, config.text.max_tokens, config.text.lower_case)
    if tokenizer.size > config.text.vocab_size:
        raise UserError(
            f"the vocabulary has {tokenizer.size} words but config.text.vocab_size is {config.text.vocab_size}: "
            f"set config.text.vocab_size={tokenizer.size} or give another config.text.vocab"
        )
    if config.text.pretrained and tokenizer.size < config.text.vocab_size:
        _LOG.warning(
            "the vocabulary has %d words, but the pretrained text encoder has embeddings for %d: check that the file "
            "of config.text.vocab is complete",
            *(tokenizer.size, config.text.vocab_size),
        )
    return tokenizer


class _Read(NamedTuple):
    """Arrays, and the problems of the examples that were left out in reading them."""

    batch: Batch
    problems: tuple[str, ...]


@dataclass(frozen=True)
class _ReadRow(grain.transforms.RandomMap):
    """Read the row at a position, draw expressions of it, augment the view, and encode it.

    With `skip`, the next good row takes the place of a bad one, so the result stays a function of the position.
    """

    rows: Rows
    encoder: Encoder
    augmentation: Augmentation
    skip: bool

    def random_map(self, element: int, rng: np.random.Generator) -> _Read:
        """Return the encoded draw."""
        problems: list[str] = []
        for position in range(element, element + _MOST_BAD):
            try:
                return _Read(self._draw(self.rows[position % len(self.rows)], rng), tuple(problems))
            except UserError as error:
                if not self.skip:
                    raise
                problems.append(str(error))
        raise UserError(f"{_MOST_BAD} examples in a row cannot be used, the last one because: {problems[-1]}")

    def _draw(self, row: Row, rng: np.random.Generator) -> Batch:
        chosen = row.draw(self.encoder.expressions, rng)
        view = self.augmentation.move(view_of(row.example, chosen), row.example, rng)
        return self.augmentation.hide(self.encoder.arrays(view), rng)


def _stack(rows: list[_Read]) -> _Read:
    return _Read(_stack_batch([row.batch for row in rows]), tuple(problem for row in rows for problem in row.problems))


def _stack_batch(rows: list[Batch]) -> Batch:
    return Batch(*(np.stack(column) for column in zip(*rows, strict=True)))


def build_encoder(tokenizer: Tokenizer, config: ConfigDict, expressions: int = 0) -> Encoder:
    """Build the encoder for K = `expressions`, by default config.input.expressions_per_image."""
    height, width = config.input.image_size
    return Encoder(tokenizer, (height, width), expressions or config.input.expressions_per_image)


def train_batches(
    source: Source,
    tokenizer: Tokenizer,
    config: ConfigDict,
    start: int = 0,
    process: tuple[int, int] = (0, 1),
    *,
    left_out: LeftOut | None = None,
) -> Iterator[Batch]:
    """Yield an endless stream of shuffled batches; an epoch consists of the rows of `sampling.rows_of`.

    Args:
        source: the training split.
        tokenizer: see `build_tokenizer`.
        config: the configuration.
        start: number of rows already read by all processes together, `Checkpoint.rows_seen`.
        process: (index, count). Each process gets consecutive rows of every global batch, so that concatenated they are
            the batch that a single process would read.
        left_out: receives the bad examples that are left out, when their batch is yielded.
    """
    index, count = process
    if config.batch_size % count:
        raise UserError(f"config.batch_size={config.batch_size} must be a multiple of the {count} processes")
    rows = rows_of(source, config)
    dataset = grain.MapDataset.range(len(rows)).seed(config.seed).shuffle().repeat()
    augmentation = build_augmentation(config.input.augment, tokenizer)
    encoder = replace(build_encoder(tokenizer, config), resize=resize_fast)
    dataset = dataset.random_map(_ReadRow(rows, encoder, augmentation, config.input.on_bad_example == "skip"))
    dataset = dataset[start:].batch(config.batch_size // count, drop_remainder=True, batch_fn=_stack)[index::count]
    options = grain.ReadOptions(num_threads=READ_THREADS, prefetch_buffer_size=READ_AHEAD)
    stream = dataset.to_iter_dataset(options)
    if config.input.workers:
        if not flags.FLAGS.is_parsed():  # Grain reads absl's flags, which may not be parsed
            flags.FLAGS.mark_as_parsed()
        options = grain.MultiprocessingOptions(num_workers=config.input.workers)
        stream = stream.mp_prefetch(options, worker_init_fn=_ignore_stop_signals)
    return _batches(iter(stream), left_out or LeftOut())


def _batches(stream: Iterator[_Read], left_out: LeftOut) -> Iterator[Batch]:
    for batch, problems in stream:
        left_out.add(problems)
        yield batch


def _ignore_stop_signals(_: int, __: int) -> None:
    """Leave Ctrl-C and SIGTERM to the main process, which saves and ends the workers.

    Terminals send Ctrl-C, and `timeout` and systemd SIGTERM, to every process of a group. SIGTERM still ends a worker
    whose main process was killed.
    """
    parent = os.getppid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: None if os.getppid() == parent else os._exit(128 + signal.SIGTERM))


class EvalItem(NamedTuple):
    """The expressions at some positions of an example, which fill one image of a batch."""

    example: Example
    positions: list[int]


class EvalBatch(NamedTuple):
    """A batch and the origin of its images; `items` is shorter than the batch if that was padded.

    `problems` has the reason for each expression that was left out.
    """

    batch: Batch
    items: list[EvalItem]
    problems: list[str]


class _EvalRow(NamedTuple):
    """The arrays of an image, their origin (None for padding), and the reason for each expression left out."""

    batch: Batch
    item: EvalItem | None
    problems: list[str]


@dataclass(frozen=True)
class _EvalItems:
    """Random access to the evaluation items of a source: (example index, first expression, count)."""

    source: Source
    encoder: Encoder
    spans: tuple[tuple[int, int, int], ...]
    skip: bool

    def __len__(self) -> int:
        return len(self.spans)

    def __getitem__(self, position: int) -> _EvalRow:
        index, first, count = self.spans[position]
        positions = list(range(first, first + count))
        try:
            example = self.source[index]
        except UserError as error:
            if not self.skip:
                raise
            return _EvalRow(self.encoder.empty(), None, [str(error)] * count)
        problems: list[str] = []
        try:
            batch = self.encoder(example, positions)
        except UserError:
            if not self.skip:
                raise
            positions, problems = self._good(example, positions)
            batch = self.encoder(example, positions) if positions else self.encoder.empty()
        return _EvalRow(batch, EvalItem(example, positions) if positions else None, problems)

    def _good(self, example: Example, positions: list[int]) -> tuple[list[int], list[str]]:
        """Return the positions of the expressions that can be read, and the problems of the others."""
        good, problems = [], []
        for position in positions:
            try:
                self.encoder(example, [position])
                good.append(position)
            except UserError as error:
                problems.append(str(error))
        return good, problems


@dataclass(frozen=True)
class EvalBatches:
    """Batches with every expression of every example exactly once, in order; can be iterated repeatedly."""

    dataset: Any

    def __len__(self) -> int:
        return len(self.dataset)

    def __iter__(self) -> Iterator[EvalBatch]:
        options = grain.ReadOptions(num_threads=READ_THREADS, prefetch_buffer_size=READ_AHEAD)
        return iter(self.dataset.to_iter_dataset(options))


def eval_batches(
    source: Source,
    tokenizer: Tokenizer,
    config: ConfigDict,
    batch_size: int = 0,
    process: tuple[int, int] = (0, 1),
) -> EvalBatches:
    """Return the batches of an evaluation of `source`, or of its first config.eval.limit images.

    An image with more than K expressions is split into several items, so that every expression is scored once. If
    config.input.on_bad_example is "skip", the expressions that cannot be read are left out and named in the batches.

    Args:
        source: the split to evaluate.
        tokenizer: of the expressions.
        config: the configuration.
        batch_size: of all processes together; by default config.eval.batch_size.
        process: (index, count). Each process gets consecutive rows of every batch, and all get the same number of
            batches.

    Raises:
        UserError: the source is endless, and config.eval.limit is 0.
    """
    index, count = process
    batch_size = batch_size or config.eval.batch_size
    if batch_size % count:
        raise ValueError(f"a batch of {batch_size} cannot be split into {count} equal parts")
    images = min(len(source), config.eval.limit or len(source))
    if images > MAX_LISTED:
        raise UserError(f"the split has {images:,} images; evaluate the first N of them: --limit N (config.eval.limit)")
    encoder = build_encoder(tokenizer, config, config.eval.expressions_per_image)
    spans = []
    for image in range(images):
        total = source.expression_count(image)
        spans += [
            (image, first, min(encoder.expressions, total - first)) for first in range(0, total, encoder.expressions)
        ]
    share = batch_size // count
    while count > 1 and spans and -(-len(spans) // share) % count:
        spans.append((spans[0][0], 0, 0))  # the last batch needs rows for every process
    items = grain.MapDataset.source(_EvalItems(source, encoder, tuple(spans), config.input.on_bad_example == "skip"))
    padding = encoder.empty()

    def collate(rows: list[_EvalRow]) -> EvalBatch:
        filled = [row.batch for row in rows if row.item]
        batch = _stack_batch(filled + [padding] * (share - len(filled)))
        items = [row.item for row in rows if row.item]
        return EvalBatch(batch, items, [problem for row in rows for problem in row.problems])

    return EvalBatches(items.batch(share, drop_remainder=False, batch_fn=collate)[index::count])
