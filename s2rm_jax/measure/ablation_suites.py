"""The suites of ablations: named changes to one configuration. The first variant of each suite changes nothing."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from s2rm_jax.errors import UserError

if TYPE_CHECKING:
    from ml_collections import ConfigDict


@dataclass(frozen=True)
class Variant:
    """A change to the configuration; one row of a table.

    name         of its runs; unique over all suites
    what         a short description of the change
    changes      {field of the configuration: value}
    expressions  expressions per image, if not those of the configuration; the batch size is then chosen to keep the
                 FLOPs of a forward pass
    """

    name: str
    what: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    expressions: int = 0


FULL = Variant("full", "S2RM and CASG, unchanged")


def _scans(name: str, what: str, *rotations: int) -> Variant:
    return Variant(name, what, {"fusion.rotations": rotations})


def _width(width: int) -> Variant:
    changes = {"fusion.width": width, "fusion.recurrent_width": width // 2}
    return Variant(f"width_{width}", f"fused width {width}, recurrent {width // 2}", changes)


SUITES: dict[str, tuple[Variant, ...]] = {
    "steps": (
        FULL,
        Variant("no_distribution", "the whole expression at every position", {"fusion.language": "sentence"}),
        Variant("sum", "V + T + W T, no coparsing", {"fusion.mode": "sum"}),
        Variant("product", "V x T as pixel-word attention, no coparsing", {"fusion.mode": "product"}),
        Variant("concat", "[V; T] and a 3 x 3 convolution, no coparsing", {"fusion.mode": "concat"}),
        Variant("attention", "self-attention with as many parameters, no coparsing", {"fusion.mode": "attention"}),
        Variant("vision_residual", "the residual keeps V alone, not V + T", {"fusion.residual": "vision"}),
    ),
    "recurrence": (
        FULL,
        Variant("no_recurrence", "slices are independent", {"fusion.recurrence": "none"}),
        Variant("linear", "gates do not depend on the state", {"fusion.recurrence": "linear"}),
        _scans("one_direction", "down only", 0),
        _scans("two_directions", "down and up", 0, 180),
        _scans("two_axes", "down and left", 0, 90),
        Variant("only_vision_parsed", "language parses vision only", {"fusion.pairs": ("language_parses_vision",)}),
        Variant("only_language_parsed", "vision parses language only", {"fusion.pairs": ("vision_parses_language",)}),
    ),
    "balance": (
        FULL,
        Variant("balance_channel", "weights per channel", {"fusion.balance": "channel"}),
        Variant("balance_mean", "mean of the directions", {"fusion.balance": "mean"}),
    ),
    "casg": (
        FULL,
        Variant("guided_maps", "semantics guide the feature maps, not the masks", {"decoder.guidance": "maps"}),
        Variant("sentence_only", "guided by the expression alone", {"decoder.semantics": ("sentence",)}),
        Variant("stages_only", "guided by the previous stages alone", {"decoder.semantics": ("stages",)}),
        Variant("plain_fpn", "no guidance: a plain FPN", {"decoder.guidance": "none"}),
    ),
    "width": (FULL, _width(64), _width(256)),
    "expressions": (
        FULL,
        Variant("two_expressions", "2 expressions per image, more images", expressions=2),
        Variant("one_expression", "1 expression per image, more images", expressions=1),
    ),
}


def variants_of(suite: str) -> tuple[Variant, ...]:
    """Return the variants of a suite, or those of all suites for "all", each once."""
    if suite != "all":
        return SUITES[suite]
    return tuple({variant.name: variant for variants in SUITES.values() for variant in variants}.values())


def apply_variant(base: ConfigDict, variant: Variant) -> ConfigDict:
    """Return the configuration of a variant with the same seed; the result is not checked."""
    config = copy.deepcopy(base)
    for name, value in variant.changes.items():
        section, _, leaf = name.partition(".")
        config[section][leaf] = value
    if variant.expressions:
        from s2rm_jax.models.cost import network_cost

        parts = network_cost(base).values()
        before, after = (
            sum(part.flops(expressions) for part in parts)
            for expressions in (base.input.expressions_per_image, variant.expressions)
        )
        config.batch_size = round(base.batch_size * before / after)
        config.input.expressions_per_image = variant.expressions
    return config


def with_steps(base: ConfigDict, steps: int) -> ConfigDict:
    """Return the configuration with another number of steps; warm-up and all intervals scale with it.

    Raises:
        UserError: config.steps is 0, so there is nothing to scale.
    """
    if base.steps == 0:
        raise UserError(
            "config.steps is 0, but ablations need a fixed number of steps; give --config.steps=N (--steps scales it)."
        )
    config = copy.deepcopy(base)
    config.steps = steps

    def scale(interval: int) -> int:  # 0 means never
        return min(steps, max(1, round(interval * steps / base.steps))) if interval else 0

    config.optimizer.warmup_steps = round(base.optimizer.warmup_steps * steps / base.steps)
    config.eval.every = scale(base.eval.every)
    config.checkpoint_every = scale(base.checkpoint_every)
    config.log_every = scale(base.log_every)
    return config
