"""Finds what cannot work in a configuration, before data is read or anything is compiled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from s2rm_jax.errors import UserError
from s2rm_jax.input.sampling import SAMPLINGS
from s2rm_jax.models.casg import GUIDANCES, SEMANTICS
from s2rm_jax.models.coparse import RECURRENCES, ROTATIONS
from s2rm_jax.models.remat import POLICIES
from s2rm_jax.models.s2rm import BALANCES, LANGUAGES, MODES, PAIRS, RESIDUALS
from s2rm_jax.training.losses import KINDS

_CHOICES: dict[str, Sequence[Any]] = {
    "dtype": ("float32", "bfloat16"),
    "remat": POLICIES,
    "fusion.language": LANGUAGES,
    "fusion.mode": MODES,
    "fusion.recurrence": RECURRENCES,
    "fusion.balance": BALANCES,
    "fusion.residual": RESIDUALS,
    "decoder.guidance": GUIDANCES,
    "loss.kind": KINDS,
    "input.sampling": SAMPLINGS,
    "mesh.step": ("jit", "shard_map"),
}
_SUBSETS: dict[str, Sequence[Any]] = {
    "fusion.rotations": ROTATIONS,
    "fusion.pairs": PAIRS,
    "decoder.semantics": SEMANTICS,
}
_AT_LEAST_ONE = (
    *("batch_size", "log_every", "checkpoint_every", "input.expressions_per_image", "eval.batch_size"),
    *("vision.embed_dim", "vision.window_size", "text.num_layers", "fusion.width", "fusion.recurrent_width"),
    *("text.hidden_size", "text.vocab_size", "optimizer.accumulate", "input.augment.patch", "mesh.fsdp"),
)
_AT_LEAST_ZERO = (
    *("steps", "epochs", "eval.every", "eval.limit", "eval.expressions_per_image", "input.workers"),
    *("decoder.no_target_width", "loss.coarse_weight", "loss.no_target_weight"),
)
_SHARES = tuple(f"input.augment.{field}" for field in ("flip", "crop", "crop_smallest", "hide_patches", "hide_words"))


def check_config(config: ConfigDict) -> None:
    """Checks the values of a configuration, and that those of different sections fit each other.

    Raises:
        UserError: names the first field that cannot work, its value, and what it must be.
    """
    for field, choices in _CHOICES.items():
        _require(_get(config, field) in choices, config, field, f"one of: {', '.join(map(str, choices))}")
    for field, choices in _SUBSETS.items():
        chosen = _get(config, field)
        fits = len(chosen) > 0 and set(chosen) <= set(choices) and len(set(chosen)) == len(chosen)
        _require(fits, config, field, f"one or more of: {', '.join(map(str, choices))}")
    for field in _AT_LEAST_ONE:
        _require(_get(config, field) >= 1, config, field, "at least 1")
    if config.steps == 0 and config.epochs == 0:
        raise UserError("config.steps and config.epochs are both 0: say how long to train by one of them.")
    for field in _AT_LEAST_ZERO:
        _require(_get(config, field) >= 0, config, field, "at least 0")
    for field in _SHARES:
        _require(0 <= _get(config, field) <= 1, config, field, "from 0 to 1")

    size = config.input.image_size
    sides_fit = isinstance(size, list | tuple) and len(size) == 2 and all(isinstance(side, int) for side in size)
    _require(sides_fit and min(size) >= 8, config, "input.image_size", "(height, width) in pixels, each at least 8")
    depths = config.vision.depths
    _require(len(depths) >= 2 and min(depths) >= 1, config, "vision.depths", "two or more stages of at least 1 block")
    for field in ("vision.num_heads", "decoder.widths"):
        wanted = f"{len(depths)} numbers, one per stage of config.vision.depths={tuple(depths)}"
        _require(len(_get(config, field)) == len(depths), config, field, wanted)
    for stage, heads in enumerate(config.vision.num_heads):
        _require_heads(config, "vision.num_heads", heads, config.vision.embed_dim * 2**stage)
    _require_heads(config, "text.num_heads", config.text.num_heads, config.text.hidden_size)
    _require_heads(config, "fusion.num_heads", config.fusion.num_heads, config.fusion.width)
    longest = config.text.max_positions
    words_fit = 3 <= config.text.max_tokens <= longest
    _require(words_fit, config, "text.max_tokens", f"from 3 to config.text.max_positions={longest}")
    for field in ("optimizer.ema_decay", "vision.drop_path_rate", "text.dropout_rate"):
        _require(0 <= _get(config, field) < 1, config, field, "at least 0 and less than 1")


def _get(config: ConfigDict, field: str) -> Any:
    for name in field.split("."):
        config = config[name]
    return config


def _require(condition: bool, config: ConfigDict, field: str, wanted: str) -> None:
    if not condition:
        raise UserError(f"config.{field} is {_get(config, field)!r}; it must be {wanted}.")


def _require_heads(config: ConfigDict, field: str, heads: int, width: int) -> None:
    _require(heads >= 1 and width % heads == 0, config, field, f"such that {width} channels divide by {heads} heads")
