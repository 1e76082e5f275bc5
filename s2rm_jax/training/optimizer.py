"""AdamW with groups of parameters, selected by path: learning-rate multipliers, no weight decay, frozen."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from etils import epy
from ml_collections import ConfigDict

from s2rm_jax.config import choose
from s2rm_jax.errors import UserError

with epy.lazy_imports():  # prediction never needs it
    import optax

Schedule = Callable[[Any], jax.Array]


@dataclass(frozen=True)
class Group:
    """How a parameter is trained: its factor on the learning rate, and whether it decays or is frozen."""

    multiplier: float = 1.0
    decay: bool = True
    frozen: bool = False


def build_optimizer(config: ConfigDict, params: Any) -> optax.GradientTransformation:
    """Build the optimizer that `config.optimizer` describes for parameters with the structure of `params`.

    A gradient passes through these steps: clip by the global norm, Adam, decay (decoupled: learning rate x weight
    decay, as in PyTorch), factor of the group, learning rate. Frozen parameters have no moments, update or decay.

    Raises:
        UserError: a pattern is malformed or (of multipliers and frozen) matches no parameter; a factor is negative or
            not finite; nothing is left to train.
    """
    settings = config.optimizer
    groups = parameter_groups(config, params)
    if all(group.frozen for group in jax.tree.leaves(groups)):
        raise UserError("config.optimizer.frozen matches every parameter: nothing is left to train")
    steps = [
        optax.clip_by_global_norm(settings.clip_norm) if settings.clip_norm else optax.identity(),
        optax.scale_by_adam(settings.b1, settings.b2),
        optax.add_decayed_weights(settings.weight_decay, jax.tree.map(lambda group: group.decay, groups)),
        _scale_by_factors(jax.tree.map(lambda group: group.multiplier, groups)),
        optax.scale_by_learning_rate(learning_rate_schedule(config)),
    ]
    labels = jax.tree.map(lambda group: "frozen" if group.frozen else "trained", groups)
    return optax.partition({"trained": optax.chain(*steps), "frozen": optax.set_to_zero()}, labels)


def learning_rate_schedule(config: ConfigDict) -> Schedule:
    """Return the learning rate as a function of the number of steps taken.

    A linear warm-up starts at 1 / (warmup_steps + 1) of the full rate and reaches it at step `warmup_steps`. Then the
    rate decays to zero at config.steps: as (1 - t)^power ("polynomial"), or as half a cosine ("cosine").

    Raises:
        UserError: the schedule is none of these, or the warm-up does not end before the run does.
    """
    settings, steps = config.optimizer, config.steps
    decay = choose("optimizer.schedule", settings.schedule, _SCHEDULES)
    warmup = settings.warmup_steps
    if not 0 <= warmup < steps:
        raise UserError(
            f"config.optimizer.warmup_steps={warmup} must be less than config.steps={steps}: "
            "train longer, or shorten the warm-up: --config.optimizer.warmup_steps=0"
        )

    def schedule(step: Any) -> jax.Array:
        rising = (step + 1) / (warmup + 1)
        done = jnp.clip((step - warmup) / (steps - warmup), 0.0, 1.0)
        return settings.learning_rate * jnp.where(step < warmup, rising, decay(done, settings))

    return schedule


# The share of the full rate at each share of the steps after the warm-up; the names are config.SCHEDULES.
_SCHEDULES: dict[str, Callable[[jax.Array, ConfigDict], jax.Array]] = {
    "polynomial": lambda done, settings: (1 - done) ** settings.power,
    "cosine": lambda done, _: (1 + jnp.cos(jnp.pi * done)) / 2,
}


def parameter_groups(config: ConfigDict, params: Any) -> Any:
    """Return a tree like `params` with the Group of every parameter."""
    settings = config.optimizer
    multipliers = [
        (_compile(pattern, "multipliers"), float(factor)) for pattern, factor in _pairs(settings.multipliers)
    ]
    frozen = [_compile(pattern, "frozen") for pattern in settings.frozen]
    no_decay = [_compile(pattern, "no_decay") for pattern in settings.no_decay]
    paths = [_path(keys) for keys, _ in jax.tree_util.tree_leaves_with_path(params)]
    # The default no_decay patterns match parts that not every network has, so only the others are checked for typos.
    _require_matches((pattern for pattern, _ in multipliers), paths, "multipliers")
    _require_matches(frozen, paths, "frozen")

    def group(keys: Any, _: Any) -> Group:
        path = _path(keys)
        multiplier = next((factor for pattern, factor in multipliers if pattern.search(path)), 1.0)
        if any(pattern.search(path) for pattern in frozen):
            return Group(multiplier=0.0, decay=False, frozen=True)
        return Group(multiplier, decay=not any(pattern.search(path) for pattern in no_decay))

    return jax.tree_util.tree_map_with_path(group, params)


def freeze(params: Any, groups: Any) -> Any:
    """Stop the gradient at frozen parameters, so that nothing is computed or stored for them."""
    return jax.tree.map(lambda p, group: jax.lax.stop_gradient(p) if group.frozen else p, params, groups)


def describe_groups(config: ConfigDict, params: Any) -> str:
    """Return a table of the groups for the log: learning rate, decay, numbers of tensors and parameters."""
    sizes: dict[Group, list[int]] = {}
    groups = jax.tree.leaves(parameter_groups(config, params))
    for group, leaf in zip(groups, jax.tree.leaves(params), strict=True):
        sizes.setdefault(group, []).append(leaf.size)
    rate, decay = config.optimizer.learning_rate, config.optimizer.weight_decay
    lines = [f"{'learning rate':>13}  {'weight decay':>12}  {'tensors':>7}  {'parameters':>12}"]
    for group, members in sorted(sizes.items(), key=lambda item: (item[0].frozen, -item[0].multiplier, -item[0].decay)):
        shown = "frozen" if group.frozen else f"{rate * group.multiplier:.3g}"
        lines.append(f"{shown:>13}  {decay if group.decay else 0.0:>12.3g}  {len(members):>7}  {sum(members):>12,}")
    return "\n".join(lines)


def _scale_by_factors(factors: Any) -> optax.GradientTransformation:
    # The trees are matched by path, because frozen parameters are missing from the tree of updates.
    by_path = {_path(keys): factor for keys, factor in jax.tree_util.tree_leaves_with_path(factors)}
    return optax.stateless(
        lambda updates, _: jax.tree_util.tree_map_with_path(lambda keys, u: by_path[_path(keys)] * u, updates)
    )


def _path(keys: Any) -> str:
    return jax.tree_util.keystr(keys, simple=True, separator="/")


def _pairs(multipliers: Any) -> Iterable[tuple[str, float]]:
    if not all(isinstance(item, (tuple, list)) and len(item) == 2 for item in multipliers):
        raise UserError(
            f"config.optimizer.multipliers is {tuple(multipliers)!r}; it must be pairs of a pattern and a factor, "
            "such as (('^vision', 0.1), ('^text', 0.1))"
        )
    for pattern, factor in multipliers:
        if not (isinstance(factor, int | float) and math.isfinite(factor) and factor >= 0):
            raise UserError(
                f"config.optimizer.multipliers: the factor of {pattern!r} is {factor!r}; "
                "it must be a finite number, at least 0"
            )
    return multipliers


def _compile(pattern: str, field: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except (re.error, TypeError) as error:
        raise UserError(
            f"config.optimizer.{field} holds {pattern!r}, which is not a regular expression: {error}"
        ) from error


def _require_matches(patterns: Iterable[re.Pattern[str]], paths: list[str], field: str) -> None:
    for pattern in patterns:
        if not any(pattern.search(path) for path in paths):
            parts = sorted({path.split("/")[0] for path in paths})
            raise UserError(
                f"config.optimizer.{field}: {pattern.pattern!r} matches no parameter; "
                f"paths begin with {', '.join(parts)}, for example {paths[0]}"
            )
