"""The suites of ablations: named changes to one configuration. The first variant of each suite changes nothing.

Each variant is compared with the first one or with its `reference`; in the suites of STEPWISE, with the one before it.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from s2rm_jax.config import leaf_names, unknown_field
from s2rm_jax.errors import UserError, one_line, reason_of

if TYPE_CHECKING:
    from ml_collections import ConfigDict


@dataclass(frozen=True)
class Variant:
    """A change to the configuration; one row of a table.

    Attributes:
        name: of its runs; unique over all suites
        what: a short description of the change
        changes: {dotted name of a field of the configuration: value}
        expressions: expressions per image, if not those of the configuration; the batch size is then chosen to keep the
            FLOPs of a forward pass
        reference: the variant it is compared with, if not the first of the suite
    """

    name: str
    what: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    expressions: int = 0
    reference: str = ""


FULL = Variant("full", "S2RM and CASG, unchanged")


def _scans(name: str, what: str, *rotations: int) -> Variant:
    return Variant(name, what, {"fusion.rotations": rotations})


def _width(width: int) -> Variant:
    changes = {"fusion.width": width, "fusion.recurrent_width": width // 2}
    return Variant(f"width_{width}", f"fused width {width}, recurrent {width // 2}", changes)


def _plain(name: str, what: str, **fusion: Any) -> Variant:
    changes = {f"fusion.{field}": value for field, value in fusion.items()}
    return Variant(f"plain_{name}", f"plain FPN, {what}", {"decoder.guidance": "none"} | changes, reference="plain_fpn")


def _stages(mode: str) -> Variant:
    changes = {"decoder.semantics": ("stages",), "fusion.mode": mode}
    return Variant(f"stages_{mode}", f"guided by the previous stages alone, {mode}", changes, reference="stages_only")


SUM = Variant("sum", "V + T_dist + dense(T_dist), no coparsing", {"fusion.mode": "sum"})
ATTENTION = Variant("attention", "self-attention with as many parameters, no coparsing", {"fusion.mode": "attention"})
GUIDED_MAPS = Variant("guided_maps", "semantics guide the feature maps, not the masks", {"decoder.guidance": "maps"})
STAGES_ONLY = Variant("stages_only", "guided by the previous stages alone", {"decoder.semantics": ("stages",)})
PLAIN_FPN = Variant("plain_fpn", "no guidance: a plain FPN", {"decoder.guidance": "none"})
NO_RECURRENCE = Variant("no_recurrence", "slices are independent", {"fusion.recurrence": "none"})
PLAIN_SUM = _plain("sum", "no coparsing", mode="sum")
ONE_PAIR = ("language_parses_vision",)

CROSS_ENTROPY = {"loss.kind": "weighted_ce", "loss.coarse_weight": 0.0}
NOT_AVERAGED = {"optimizer.ema_decay": 0.0}

STEPWISE = ("cumulative",)
FAR = ("far", "far_long")  # on the variants of configs/synthetic_benchmark.py with these names; others on the benchmark

SUITES: dict[str, tuple[Variant, ...]] = {
    "cumulative": (  # each row removes one more part
        FULL,
        GUIDED_MAPS,
        PLAIN_FPN,
        _plain("mean", "mean of the directions", balance="mean"),
        _plain("one_pair", "also language parses vision only", balance="mean", pairs=ONE_PAIR),
        _plain("one_direction", "also down only", balance="mean", pairs=ONE_PAIR, rotations=(0,)),
        PLAIN_SUM,
        _plain("sentence", "also the whole expression at every position", mode="sum", language="sentence"),
    ),
    "fusion_by_decoder": (
        *(FULL, SUM, ATTENTION),
        *(STAGES_ONLY, _stages("sum"), _stages("attention")),
        *(PLAIN_FPN, PLAIN_SUM, _plain("attention", "attention, no coparsing", mode="attention")),
    ),
    "leave_one_out": (  # of the parts of the fusion
        FULL,
        SUM,
        ATTENTION,
        Variant("concat", "[V; T_dist] and a 3 x 3 convolution, no coparsing", {"fusion.mode": "concat"}),
        Variant("product", "T_dist times V, no coparsing", {"fusion.mode": "product"}),
        NO_RECURRENCE,
        Variant("linear", "gates do not depend on the state", {"fusion.recurrence": "linear"}),
        _scans("one_direction", "down only", 0),
        _scans("two_directions", "down and up", 0, 180),
        _scans("two_axes", "down and left", 0, 90),
        Variant("only_vision_parsed", "language parses vision only", {"fusion.pairs": ONE_PAIR}),
        Variant("only_language_parsed", "vision parses language only", {"fusion.pairs": ("vision_parses_language",)}),
        Variant("balance_channel", "weights per channel", {"fusion.balance": "channel"}),
        Variant("balance_mean", "mean of the directions", {"fusion.balance": "mean"}),
        Variant("no_distribution", "the whole expression at every position", {"fusion.language": "sentence"}),
        Variant("vision_residual", "the residual is V alone, not V + T_dist", {"fusion.residual": "vision"}),
    ),
    "casg": (
        FULL,
        GUIDED_MAPS,
        Variant("sentence_only", "guided by the expression alone", {"decoder.semantics": ("sentence",)}),
        STAGES_ONLY,
        PLAIN_FPN,
    ),
    "width": (FULL, _width(64), _width(256)),
    **dict.fromkeys(FAR, (FULL, SUM, ATTENTION, NO_RECURRENCE)),
    "expressions": (
        FULL,
        Variant("two_expressions", "2 expressions per image, more images", expressions=2),
        Variant("one_expression", "1 expression per image, more images", expressions=1),
    ),
    "recipe": (  # what the recipe `ours` of recipes.py changes, and all of it together, at equal cost
        FULL,
        Variant("cross_entropy", "weighted cross-entropy, no coarse losses", CROSS_ENTROPY),
        Variant("not_averaged", "the parameters of the last step", NOT_AVERAGED),
        Variant("lavt_recipe", "both, with 1 expression per image", CROSS_ENTROPY | NOT_AVERAGED, expressions=1),
    ),
}


def variants_of(suite: str, names: Collection[str] = ()) -> tuple[Variant, ...]:
    """Return the variants of a suite, or those of all suites but far and far_long for "all", each once.

    Args:
        suite: a name of SUITES, "all", or a file as `read_suite` reads it.
        names: of the variants to return, in the order of the suite; empty for all of them.

    Raises:
        UserError: there is no such suite, it has no variant of a name, or as `read_suite`.
    """
    if suite.endswith(".json"):
        suites = [read_suite(Path(suite))]
    elif suite != "all" and suite not in SUITES:
        raise UserError(f"--suite is {suite!r}; it must be one of: {', '.join(SUITES)}, all; or FILE.json")
    else:
        suites = [SUITES[suite]] if suite != "all" else [SUITES[name] for name in SUITES if name not in FAR]
    variants = {variant.name: variant for of_suite in suites for variant in of_suite}
    unknown = [name for name in names if name not in variants]
    if unknown:
        raise UserError(f"suite {suite} has no variant {', '.join(unknown)}; it has {', '.join(variants)}")
    return tuple(variant for variant in variants.values() if not names or variant.name in names)


def read_suite(path: Path) -> tuple[Variant, ...]:
    """Return the variants of a JSON file, {variant: {field: value}}, after `full`, the unchanged configuration.

    Raises:
        UserError: the file cannot be read, has another form, or has the name of a suite of the package.
    """
    if path.stem in (*SUITES, "all"):
        raise UserError(f"--suite: {path} has the name of a suite of the package; rename it")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"--suite: {path} cannot be read: {reason_of(error)}") from error
    if not (isinstance(content, dict) and content and all(isinstance(one, dict) and one for one in content.values())):
        raise UserError(f'--suite: {path} must have the form {{"sum": {{"fusion.mode": "sum"}}, ...}}')
    wrong = [name for name in content if name == FULL.name or not re.fullmatch(r"\w+", name)]
    if wrong:
        raise UserError(
            f"--suite: {path}: a variant cannot be named {wrong[0]!r}; use letters, digits and _, but not "
            f"{FULL.name!r}, which is the unchanged configuration"
        )
    described = {name: ", ".join(f"{field}={value}" for field, value in one.items()) for name, one in content.items()}
    own = [Variant(name, described[name], changes) for name, changes in content.items()]
    return (Variant(FULL.name, "the unchanged configuration"), *own)


def apply_variant(base: ConfigDict, variant: Variant) -> ConfigDict:
    """Return the configuration of a variant with the same seed; its values are not checked.

    Raises:
        UserError: there is no such field, it is the seed, or its value has another type.
    """
    config = copy.deepcopy(base)
    fields = leaf_names(config)
    for name in variant.changes:
        if name == "seed":
            raise UserError("config.seed is set by --seeds; leave it out")
        if name not in fields and not name.startswith("input.source."):
            raise UserError(unknown_field(name, fields))
    try:
        config.update_from_flattened_dict(dict(variant.changes))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(one_line(error)) from error
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
            "config.steps is 0, but ablations need a fixed number of steps; give --config.steps=N (--steps scales it)"
        )
    config = copy.deepcopy(base)
    config.steps = steps

    def scale(interval: int) -> int:  # 0 means never
        return min(steps, max(1, round(interval * steps / base.steps))) if interval else 0

    config.optimizer.warmup_steps = round(base.optimizer.warmup_steps * steps / base.steps)
    config.eval.every = scale(base.eval.every)
    config.checkpoint_every = scale(base.checkpoint_every)
    config.keep_every = scale(base.keep_every)
    config.log_every = scale(base.log_every)
    return config
