"""Print the size of the synthetic benchmark and the scores of trivial answers to its expressions.

    python -m data.synthetic_baselines  # val, test and compositional; about 10 seconds
    python -m data.synthetic_baselines --config configs/synthetic_benchmark.py:far  # other scenes

Prints Markdown. docs/synthetic_benchmark.md has the result. No network is involved. Each row is the
expected score of an answer that is drawn at random from a set of masks:

empty          nothing
whole image    every pixel
random object  one of the objects
head noun      one of the objects that fit the first noun of the expression ("the second small ring from the left": one
               of the small rings), without the landmarks, as if they had been found. No method that ignores
               relations, superlatives and ordinals has a higher mean IoU: if n objects fit equally well, no mask scores
               above 1 / n on average, as its pixels on one object add to the unions with the others.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from absl import flags
from ml_collections.config_flags import config_flags

from s2rm_jax import command_line
from s2rm_jax.config import find_config
from s2rm_jax.errors import UserError
from s2rm_jax.evaluation.tables import Table, as_markdown
from s2rm_jax.input.sources import build_source
from s2rm_jax.input.synthetic import SyntheticSource
from s2rm_jax.input.synthetic.grammar import Reference
from s2rm_jax.input.synthetic.language import Noun, evaluate, landmarks_of
from s2rm_jax.input.synthetic.scene import Scene
from s2rm_jax.input.synthetic.source import Composition

FLAGS = flags.FlagValues()
CONFIG = config_flags.DEFINE_config_file(
    "config", None, "configuration with synthetic scenes; by default the benchmark", flag_values=FLAGS
)

SPLITS = ("val", "test", "compositional")
BASELINES = ("empty", "whole image", "random object", "head noun")


@dataclass(frozen=True)
class BaselineScores:
    """The kind of an expression and the IoU that each of BASELINES is expected to have on it, in [0, 1]."""

    kind: str
    ious: tuple[float, ...]


def main() -> None:
    """Print the tables of the configuration that the flags name."""
    config = CONFIG.value or config_flags.ConfigFileFlagParser("config").parse(find_config("synthetic_benchmark"))
    source_config = config.input.source
    if source_config.name != "synthetic":
        raise UserError(f"config.input.source.name is {source_config.name!r}; it must be 'synthetic'")
    for split in SPLITS:
        source = build_source(source_config, split)
        assert isinstance(source, SyntheticSource)
        compositions = [source.composition(index) for index in range(len(source))]
        print(f"## {split}\n\n{describe(compositions)}\n\n{as_markdown(baseline_table(compositions, split))}\n")


def score_baselines(composition: Composition) -> Iterator[BaselineScores]:
    """Yield the scores of the baselines on each expression of a scene."""
    areas = np.array([mask.sum() for mask in composition.masks])
    pixels = composition.masks[0].size
    for reference in composition.references:
        fitting = len(fits_head(reference, composition.scene))
        ious = (0.0, areas[reference.referent] / pixels, 1 / len(areas), 1 / fitting)
        yield BaselineScores(reference.kind, ious)


def fits_head(reference: Reference, scene: Scene) -> frozenset[int]:
    """Return the objects that fit the first noun of an expression, except its landmarks."""
    meaning = reference.meaning
    if isinstance(meaning, Noun):
        return evaluate(meaning, scene) or frozenset()
    return (evaluate(meaning.noun, scene) or frozenset()) - set(landmarks_of(meaning, scene) or ())


def baseline_table(compositions: Sequence[Composition], split: str) -> Table:
    """Return the mean IoU of the baselines in percent, by kind of expression and over all."""
    found = [scores for composition in compositions for scores in score_baselines(composition)]
    kinds = list(dict.fromkeys(scores.kind for scores in found))
    rows = [_row(kind, [scores for scores in found if scores.kind == kind]) for kind in kinds]
    caption = f"Expected mean IoU of trivial answers, {split}"
    return Table(caption, ("", *BASELINES, "expressions"), (*rows, _row("all", found)), rules=(len(rows),))


def _row(name: str, found: Sequence[BaselineScores]) -> tuple[str, ...]:
    means = 100 * np.mean([scores.ious for scores in found], axis=0)
    return (name, *(f"{mean:.2f}" for mean in means), f"{len(found):,}")


def describe(compositions: Sequence[Composition]) -> str:
    """Return the counts and the checksum of a split as a list."""
    references = [reference for composition in compositions for reference in composition.references]
    sizes = Counter(len(composition.masks) for composition in compositions)
    words = [len(reference.text.split()) for reference in references]
    lines = (
        f"scenes: {len(compositions):,}; with {_listed(sizes)} objects",
        f"expressions: {len(references):,}, different: {len({r.text for r in references}):,}; "
        f"{np.mean(words):.1f} words on average, {max(words)} at most",
        f"expressions by kind: {_listed(Counter(reference.kind for reference in references))}",
        f"checksum of expressions and masks: `{checksum(compositions)}`",
    )
    return "\n".join(f"- {line}" for line in lines)


def _listed(counts: Counter[Any]) -> str:
    return ", ".join(f"{name}: {count:,}" for name, count in sorted(counts.items()))


def checksum(compositions: Sequence[Composition]) -> str:
    """Return the SHA-256 of all expressions and of their masks, one bit a pixel, in order.

    Images are not included, since processors may round their noise differently.
    """
    digest = hashlib.sha256()
    for composition in compositions:
        for reference in composition.references:
            digest.update(reference.text.encode() + b"\n")
            digest.update(np.packbits(composition.masks[reference.referent]).tobytes())
    return digest.hexdigest()


if __name__ == "__main__":
    command_line.run_and_exit(main, FLAGS, __doc__)
