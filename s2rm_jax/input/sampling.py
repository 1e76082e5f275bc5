"""What an epoch shows: which expressions of an image share a row of a batch, and which of them are drawn.

    image      every image once, with K of its expressions, drawn anew every time
    expression   every expression once
    referent   every referent once, with one of its expressions, drawn anew every time: the rule of LAVT, CARIS and CRIS

The last two put up to K expressions of an image into a row, so that the image is encoded once for them all; with K = 1
a row is an expression, as it is with everyone else. Whatever the rule, what is counted as seen are expressions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from s2rm_jax.errors import UserError
from s2rm_jax.input.example import Example, Source

SAMPLINGS = ("image", "sentence", "referent")

_LONGEST_LIST = 10_000_000  # images; a source with more is made up as it goes along, and has no epochs

Groups = tuple[tuple[int, ...], ...]


class Row(NamedTuple):
    """An image and the groups of its expressions from each of which one is drawn; None: K are drawn from all."""

    example: Example
    groups: Groups | None

    def draw(self, k: int, rng: np.random.Generator) -> list[int]:
        """Return the positions of at most `k` expressions."""
        if self.groups is None:
            return rng.permutation(len(self.example.expressions))[:k].tolist()
        return [group[rng.integers(len(group))] for group in self.groups]


@dataclass(frozen=True)
class Rows:
    """Random access to the rows of an epoch, in the order of the source."""

    source: Source
    spans: Sequence[tuple[int, Groups]] | None  # (image, groups); None: every image is a row

    def __len__(self) -> int:
        return len(self.source) if self.spans is None else len(self.spans)

    def __getitem__(self, position: int) -> Row:
        if self.spans is None:
            return Row(self.source[position], None)
        index, groups = self.spans[position]
        return Row(self.source[index], groups)


class EpochSize(NamedTuple):
    """What an epoch holds: rows of a batch (images with their expressions) and expressions."""

    rows: int
    expressions: int


def rows_of(source: Source, config: ConfigDict) -> Rows:
    """Return the rows of an epoch by the rule config.input.sampling.

    Raises:
        UserError: the rule lists every expression, and the source has more images than can be listed.
    """
    k = config.input.expressions_per_image
    if config.input.sampling == "image":
        return Rows(source, None)
    if len(source) > _LONGEST_LIST:
        raise UserError(
            f"config.input.sampling={config.input.sampling!r} lists every expression, and this source has "
            f"{len(source):,} images: take config.input.sampling='image' or a shorter source."
        )
    spans = []
    for index in range(len(source)):
        groups = source.referents(index)
        if config.input.sampling == "sentence":
            groups = tuple((position,) for position in sorted(chain.from_iterable(groups)))
        spans += [(index, part) for part in _parts(groups, k)]
    return Rows(source, tuple(spans))


def epoch_size(source: Source, config: ConfigDict) -> EpochSize | None:
    """Count an epoch; None where the source is too long to have any."""
    if len(source) > _LONGEST_LIST:
        return None
    spans = rows_of(source, config).spans
    if spans is not None:
        return EpochSize(len(spans), sum(len(groups) for _, groups in spans))
    k = config.input.expressions_per_image
    return EpochSize(len(source), sum(min(k, source.expression_count(index)) for index in range(len(source))))


def steps_for(epochs: int | float, epoch: EpochSize | None, batch_size: int) -> int:
    """Return the steps of so many epochs of whole batches, as the peers count: what is left over is not a step.

    (Of their 42,404 referents of RefCOCO, 32 at a time, they take 1,325 steps an epoch. Here nothing is left out: the
    next epoch begins within a batch.)

    Raises:
        UserError: the source has no epochs, or an epoch has no whole batch.
    """
    if epoch is None:
        raise UserError("config.epochs: this source has no end and so no epochs; set config.steps instead.")
    steps = int(epochs * (epoch.rows // batch_size))
    if steps < 1:
        raise UserError(
            f"config.epochs={epochs:g} of {epoch.rows} images, {batch_size} a step, are less than one step: set "
            "config.steps, or a smaller config.batch_size."
        )
    return steps


def _parts(groups: Groups, k: int) -> list[Groups]:
    """Cut groups into as few parts of at most `k` as will do, of nearly equal length."""
    count = -(-len(groups) // k)
    cuts = [len(groups) * part // count for part in range(count + 1)] if count else []
    return [groups[first:last] for first, last in pairwise(cuts)]
