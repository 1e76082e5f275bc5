"""Batches from any source by one Grain pipeline.

The order of operations makes the stream independent of the numbers of processes and workers: shuffling, repetition and
every random choice come before the split over processes, and batches are formed on the MapDataset. The row at a
position is a pure function of (seed, position), so a run resumes exactly by starting at the number of rows seen so far.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import grain
import numpy as np
from absl import flags
from ml_collections import ConfigDict

from s2rm_jax.errors import UserError
from s2rm_jax.input.augment import Augmentation, build_augmentation
from s2rm_jax.input.encode import Encoder, view_of
from s2rm_jax.input.example import Batch, Example, Source
from s2rm_jax.input.images import resize_fast
from s2rm_jax.input.sampling import Row, rows_of
from s2rm_jax.input.tokens import Tokenizer

READ_THREADS = 2
READ_AHEAD = 4  # batches per process


def build_tokenizer(config: ConfigDict, source: Source, pretrained: Sequence[str] | None = None) -> Tokenizer:
    """Build the tokenizer from config.text.vocab, or from the vocabulary of the pretrained text weights or the source.

    Args:
        config: the configuration.
        source: its own vocabulary is not used for pretrained weights, whose embeddings belong to other words.
        pretrained: the vocabulary beside the pretrained text weights, None if there is none.
    """
    own = None if config.text.pretrained else getattr(source, "vocabulary", None)
    vocabulary = config.text.vocab or pretrained or own
    if vocabulary is None:
        why = "config.text.pretrained is set" if config.text.pretrained else "this source has no vocabulary"
        raise UserError(
            f"config.text.vocab is empty and {why}: "
            "give the path of a BERT vocab.txt (https://huggingface.co/google-bert/bert-base-uncased has one)."
        )
    tokenizer = Tokenizer(vocabulary, config.text.max_tokens, config.text.lower_case)
    if tokenizer.size > config.text.vocab_size:
        raise UserError(
            f"the vocabulary has {tokenizer.size} words but config.text.vocab_size is {config.text.vocab_size}: "
            f"set config.text.vocab_size={tokenizer.size} or give another config.text.vocab."
        )
    return tokenizer


@dataclass(frozen=True)
class _DrawAndEncode(grain.transforms.RandomMap):
    """Draw expressions of a row, augment the view, and encode it."""

    encoder: Encoder
    augmentation: Augmentation

    def random_map(self, element: Row, rng: np.random.Generator) -> Batch:
        """Return the encoded draw."""
        chosen = element.draw(self.encoder.expressions, rng)
        view = self.augmentation.move(view_of(element.example, chosen), element.example, rng)
        return self.augmentation.hide(self.encoder.arrays(view), rng)


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
) -> Iterator[Batch]:
    """Yield shuffled batches without end; an epoch consists of the rows of `sampling.rows_of`.

    Args:
      source: the training split.
      tokenizer: of the expressions.
      config: the configuration.
      start: number of rows (images) already seen by all processes together.
      process: (index, count). Each process gets consecutive rows of every global batch, so that concatenated they are
        the batch that a single process would read.
    """
    index, count = process
    if config.batch_size % count:
        raise UserError(f"config.batch_size={config.batch_size} must be a multiple of the {count} processes.")
    dataset = grain.MapDataset.source(rows_of(source, config)).seed(config.seed).shuffle().repeat()
    augmentation = build_augmentation(config.input.augment, tokenizer)
    encoder = replace(build_encoder(tokenizer, config), resize=resize_fast)
    dataset = dataset.random_map(_DrawAndEncode(encoder, augmentation))
    dataset = dataset[start:].batch(config.batch_size // count, drop_remainder=True)[index::count]
    options = grain.ReadOptions(num_threads=READ_THREADS, prefetch_buffer_size=READ_AHEAD)
    stream = dataset.to_iter_dataset(options)
    if config.input.workers:
        if not flags.FLAGS.is_parsed():  # Grain reads absl's flags, which may not be parsed
            flags.FLAGS.mark_as_parsed()
        options = grain.MultiprocessingOptions(num_workers=config.input.workers)
        stream = stream.mp_prefetch(options, worker_init_fn=_ignore_ctrl_c)
    return iter(stream)


def _ignore_ctrl_c(_: int, __: int) -> None:
    """Leave Ctrl-C, which a terminal sends to every process, to the main process, which ends the workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class EvalItem(NamedTuple):
    """The expressions first ... first + number - 1 of an example, which fill one image of a batch; 0 for padding."""

    example: Example
    first: int
    number: int


class EvalBatch(NamedTuple):
    """A batch and the origin of its images; `items` is shorter than the batch if that was padded."""

    batch: Batch
    items: list[EvalItem]


@dataclass(frozen=True)
class _EvalItems:
    """Random access to the evaluation items of a source: (example index, first expression, count)."""

    source: Source
    encoder: Encoder
    spans: tuple[tuple[int, int, int], ...]

    def __len__(self) -> int:
        return len(self.spans)

    def __getitem__(self, position: int) -> tuple[Batch, EvalItem]:
        index, first, count = self.spans[position]
        example = self.source[index]
        return self.encoder(example, list(range(first, first + count))), EvalItem(example, first, count)


@dataclass(frozen=True)
class _CollateFilled:
    """Stack items into a batch of fixed size, padded with invalid copies."""

    batch_size: int

    def __call__(self, pairs: list[tuple[Batch, EvalItem]]) -> EvalBatch:
        rows = [row for row, _ in pairs]
        nothing = np.zeros_like(rows[0].valid)
        filler = rows[0]._replace(valid=nothing, has_target=nothing)
        rows += [filler] * (self.batch_size - len(rows))
        items = [item for _, item in pairs if item.number]
        return EvalBatch(Batch(*(np.stack(column) for column in zip(*rows, strict=True))), items)


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

    An image with more than K expressions is split into several items, so that every expression is scored once.

    Args:
      source: the split to evaluate.
      tokenizer: of the expressions.
      config: the configuration.
      batch_size: of all processes together; by default config.eval.batch_size.
      process: (index, count). Each process gets consecutive rows of every batch, and all get the same number of
        batches.
    """
    index, count = process
    batch_size = batch_size or config.eval.batch_size
    if batch_size % count:
        raise ValueError(f"a batch of {batch_size} cannot be split into {count} equal parts")
    images = min(len(source), config.eval.limit or len(source))
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
    items = grain.MapDataset.source(_EvalItems(source, encoder, tuple(spans)))
    return EvalBatches(items.batch(share, drop_remainder=False, batch_fn=_CollateFilled(share))[index::count])
