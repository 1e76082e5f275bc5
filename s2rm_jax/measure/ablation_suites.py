"""Which variants are compared: suites of changes to one configuration, the first of each being no change at all."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from s2rm_jax.errors import UserError

if TYPE_CHECKING:
    from ml_collections import ConfigDict


@dataclass(frozen=True)
class Variant:
    """One row of a table.

    name         of its runs; the same name is the same variant in all suites
    what         what is different, in a few words
    changes      {field of the configuration: value}
    expressions  K, the expressions with each image, if not those of the configuration; the batch then has as many
                 images as keep the FLOPs of a forward pass
    """

    name: str
    what: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    expressions: int = 0


FULL = Variant("full", "S2RM and CASG as they are")


def _scans(name: str, what: str, *rotations: int) -> Variant:
    return Variant(name, what, {"fusion.rotations": rotations})


def _width(width: int) -> Variant:
    changes = {"fusion.width": width, "fusion.recurrent_width": width // 2}
    return Variant(f"width_{width}", f"fused width {width}, recurrent {width // 2}", changes)


SUITES: dict[str, tuple[Variant, ...]] = {
    "steps": (
        FULL,
        Variant(
            "no_distribution", "the expression at every position in place of words", {"fusion.language": "sentence"}
        ),
        Variant("sum", "V + T + W T, no coparsing", {"fusion.mode": "sum"}),
        Variant("product", "V x T, as pixel-word attention, no coparsing", {"fusion.mode": "product"}),
        Variant("concat", "[V; T] and a 3 x 3 convolution, no coparsing", {"fusion.mode": "concat"}),
        Variant("attention", "self-attention of as many parameters, no coparsing", {"fusion.mode": "attention"}),
        Variant("vision_residual", "the residual keeps V alone, not V + T", {"fusion.residual": "vision"}),
    ),
    "recurrence": (
        FULL,
        Variant("no_recurrence", "each slice by itself", {"fusion.recurrence": "none"}),
        Variant("linear", "no gate reads the state", {"fusion.recurrence": "linear"}),
        _scans("one_direction", "downwards only", 0),
        _scans("two_directions", "downwards and upwards", 0, 180),
        _scans("two_axes", "downwards and leftwards", 0, 90),
        Variant("only_vision_parsed", "language parses vision only", {"fusion.pairs": ("language_parses_vision",)}),
        Variant("only_language_parsed", "vision parses language only", {"fusion.pairs": ("vision_parses_language",)}),
    ),
    "balance": (
        FULL,
        Variant("balance_channel", "weights per channel", {"fusion.balance": "channel"}),
        Variant("balance_mean", "plain mean of the directions", {"fusion.balance": "mean"}),
    ),
    "casg": (
        FULL,
        Variant("guided_maps", "semantics guide the maps, not the masks", {"decoder.guidance": "maps"}),
        Variant("sentence_only", "guided by the expression alone", {"decoder.semantics": ("sentence",)}),
        Variant("stages_only", "guided by the stages before alone", {"decoder.semantics": ("stages",)}),
        Variant("plain_fpn", "no guidance: a plain FPN", {"decoder.guidance": "none"}),
    ),
    "width": (FULL, _width(64), _width(256)),
    "expressions": (
        FULL,
        Variant("two_expressions", "2 expressions an image, more images", expressions=2),
        Variant("one_expression", "1 expression an image, more images", expressions=1),
    ),
}


def variants_of(suite: str) -> tuple[Variant, ...]:
    """Returns the variants of a suite, or of all of them, each once, for "all"."""
    if suite != "all":
        return SUITES[suite]
    return tuple({variant.name: variant for variants in SUITES.values() for variant in variants}.values())


def configured(base: ConfigDict, variant: Variant) -> ConfigDict:
    """Returns the configuration of a variant, of the same seed; whether it can work is yet to be checked."""
    config = copy.deepcopy(base)
    for name, value in variant.changes.items():
        section, _, leaf = name.partition(".")
        config[section][leaf] = value
    if variant.expressions:
        own, other = _costs(base, (base.input.expressions_per_image, variant.expressions))
        config.batch_size = round(base.batch_size * own / other)
        config.input.expressions_per_image = variant.expressions
    return config


def with_steps(base: ConfigDict, steps: int) -> ConfigDict:
    """Returns the configuration with another budget; warm-up, evaluations and lines keep their share of it."""
    if base.steps == 0:
        raise UserError(
            "config.steps is 0: an ablation compares at equal budgets; give --config.steps=N (--steps scales from it)."
        )
    config = copy.deepcopy(base)
    config.steps = steps

    def share(before: int) -> int:  # 0 is never
        return min(steps, max(1, round(before * steps / base.steps))) if before else 0

    config.optimizer.warmup_steps = round(base.optimizer.warmup_steps * steps / base.steps)
    config.eval.every, config.checkpoint_every = share(base.eval.every), share(base.checkpoint_every)
    config.log_every = share(base.log_every)
    return config


def _costs(config: ConfigDict, expressions: Sequence[int]) -> list[int]:
    """FLOPs of a forward pass of one image, with each number of expressions."""
    from s2rm_jax.models.cost import network_cost

    parts = network_cost(config).values()
    return [sum(part.flops(count) for part in parts) for count in expressions]
