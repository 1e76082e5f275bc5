"""The contents of an epoch: how expressions of an image are grouped into rows of a batch and drawn.

config.input.sampling is one of:

    image       every image once, with K of its expressions, drawn anew each time
    expression  every expression once
    referent    every referent once, with one of its expressions, drawn anew each time: the rule of LAVT, CARIS and CRIS

The last two put up to K expressions of an image into a row, so that the image is encoded once for all of them; with
K = 1 a row is one expression, as in other projects. Under every rule a row is one image of a batch: config.batch_size,
epochs and the position of the input (`Checkpoint.rows_seen`) count rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from s2rm_jax.config import choose
from s2rm_jax.errors import UserError, counted
from s2rm_jax.input.example import Example, Groups, Source

MAX_LISTED = 10_000_000  # images; a longer source is generated and has no epochs


class Row(NamedTuple):
    """An image and groups of its expressions; one is drawn from each group, or K from all if `groups` is None."""

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
    spans: Sequence[tuple[int, Groups]] | None  # (image, groups) of each row; None if every image is a row

    def __len__(self) -> int:
        return len(self.source) if self.spans is None else len(self.spans)

    def __getitem__(self, position: int) -> Row:
        if self.spans is None:
            return Row(self.source[position], None)
        index, groups = self.spans[position]
        return Row(self.source[index], groups)


class EpochSize(NamedTuple):
    """The number of rows (images with their expressions) and of expressions in an epoch."""

    rows: int
    expressions: int


def rows_of(source: Source, config: ConfigDict) -> Rows:
    """Return the rows of an epoch under config.input.sampling.

    Raises:
        UserError: the rule is unknown, or it lists every expression and the source has too many images.
    """
    k = config.input.expressions_per_image
    regroup = choose("input.sampling", config.input.sampling, _RULES)
    if regroup is None:
        return Rows(source, None)
    if len(source) > MAX_LISTED:
        raise UserError(
            f"config.input.sampling={config.input.sampling!r} lists every expression, and this source has "
            f"{len(source):,} images: set config.input.sampling='image' or use a shorter source"
        )
    spans = []
    for index in range(len(source)):
        spans += [(index, part) for part in _parts(regroup(source.referents(index)), k)]
    return Rows(source, tuple(spans))


def _one_by_one(groups: Groups) -> Groups:
    return tuple((position,) for position in sorted(chain.from_iterable(groups)))


# How each rule of config.SAMPLINGS groups the expressions of an image by referent; None if it draws from all of them.
_RULES: dict[str, Callable[[Groups], Groups] | None] = {
    "image": None,
    "expression": _one_by_one,
    "referent": lambda groups: groups,
}


def epoch_size(source: Source, config: ConfigDict) -> EpochSize | None:
    """Return the size of an epoch, or None if the source is too long to have epochs."""
    if len(source) > MAX_LISTED:
        return None
    spans = rows_of(source, config).spans
    if spans is not None:
        return EpochSize(len(spans), sum(len(groups) for _, groups in spans))
    k = config.input.expressions_per_image
    return EpochSize(len(source), sum(min(k, source.expression_count(index)) for index in range(len(source))))


def steps_for(epochs: int | float, epoch: EpochSize | None, batch_size: int) -> int:
    """Return the number of steps in `epochs`, counted in whole batches as in LAVT: the remainder is dropped.

    For 42,404 referents of RefCOCO in batches of 32 this gives 1,325 steps per epoch. No row is skipped: the next
    epoch begins within a batch.

    Raises:
        UserError: the source has no epochs, or an epoch is shorter than a batch.
    """
    if epoch is None:
        raise UserError("config.epochs: this source is endless and has no epochs; set config.steps instead")
    if epoch.rows < batch_size:
        raise UserError(
            f"config.epochs: an epoch has {counted(epoch.rows, 'row')}, fewer than config.batch_size={batch_size}: set "
            "config.steps instead, or a smaller batch"
        )
    steps = int(epochs * (epoch.rows // batch_size))
    if steps < 1:
        raise UserError(
            f"config.epochs={epochs:g} of {epoch.rows} rows, {batch_size} per step, is less than one step: set "
            "config.steps, or more epochs"
        )
    return steps


def _parts(groups: Groups, k: int) -> list[Groups]:
    """Split groups into as few parts of at most `k` as possible, of nearly equal length."""
    count = -(-len(groups) // k)
    cuts = [len(groups) * part // count for part in range(count + 1)] if count else []
    return [groups[first:last] for first, last in pairwise(cuts)]
