"""The configuration as a run keeps it: config.json and vocab.txt in its workdir."""

from __future__ import annotations

import copy
import json
import re
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from s2rm_jax.config import default_config
from s2rm_jax.errors import UserError
from s2rm_jax.io import workdir_path, write_atomically
from s2rm_jax.training.logging import counted, log

CONFIG_FILE = "config.json"
VOCAB_FILE = "vocab.txt"

# What may change when a run goes on: how long it is, how often it tells, tests and saves, where and how it reads, and
# what it computes twice to save memory.
MAY_CHANGE = (
    *("steps", "epochs", "log_every", "checkpoint_every", "eval.every", "eval.batch_size", "remat"),
    *("compilation_cache", "tensorboard", "wandb_project"),
    "eval.expressions_per_image",
    *("mesh.fsdp", "mesh.step"),  # a run may go on on other devices
    *("input.workers", "text.vocab", "input.source.root", "input.source.image_root"),
    *("vision.pretrained", "text.pretrained"),  # read before the first step only, see keep_pretrained
)
_PART_MOVED = re.compile(r"input\.source\.parts\..*\.(image_)?root")  # the same, of a part of a mixture
_BEFORE = {"fusion": {"residual": "vision"}}  # what runs did before the field came, where its default is not that


def save_config(workdir: epath.PathLike, config: ConfigDict) -> None:
    """Writes the resolved configuration to <workdir>/config.json, whole or not at all."""
    write_atomically(epath.Path(workdir) / CONFIG_FILE, json.dumps(config.to_dict(), indent=2) + "\n")


def load_config(workdir: epath.PathLike) -> ConfigDict:
    """Returns the configuration of the run in `workdir`, locked, with the run's own copy of the vocabulary.

    Raises:
        UserError: there is no run in `workdir`, or its config.json cannot be read.
    """
    workdir = workdir_path(workdir)
    config = ConfigDict(_with_tuples(_read_json(workdir)))
    vocab = workdir / VOCAB_FILE
    if vocab.exists():
        config.text.vocab = str(vocab)
    return config.lock()


def require_same_config(workdir: epath.PathLike, config: ConfigDict) -> None:
    """Checks that the run in `workdir` can go on with `config`.

    Raises:
        UserError: a field other than those in MAY_CHANGE differs from what the run began with.
    """
    old, new = _flatten(_read_json(workdir)), _flatten(json.loads(json.dumps(config.to_dict())))
    differing = [name for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name)]
    refused = [name for name in differing if name not in MAY_CHANGE and not _PART_MOVED.fullmatch(name)]
    if refused:
        shown = ", ".join(f"{name} (was {old.get(name)!r}, now {new.get(name)!r})" for name in refused[:5])
        more = f" and {len(refused) - 5} more" if len(refused) > 5 else ""
        raise UserError(
            f"the run in {workdir} was begun with another configuration: {shown}{more}. "
            "Start another --workdir, or give the same configuration to continue this run."
        )


def keep_pretrained(workdir: epath.PathLike, config: ConfigDict) -> ConfigDict:
    """Returns `config` with the pretrained weights that the run in `workdir` began with, and tells of others."""
    began = load_config(workdir)
    kept = copy.deepcopy(config)
    for part in ("vision", "text"):
        asked, had = config[part].pretrained, began[part].pretrained
        kept[part].pretrained = had
        if asked not in ("", had):
            log(f"ignored: config.{part}.pretrained={asked}, as the run in {workdir} goes on from its checkpoint")
    return kept


def tell_of_other_length(workdir: epath.PathLike, config: ConfigDict, step: int) -> None:
    """Says what another end than before means for the learning rate of the run in `workdir`, which is at `step`."""
    before = load_config(workdir).steps
    if before != config.steps and step < config.steps:
        log(
            f"The run was of {counted(before, 'step')} and is now of {config.steps:,}: from step {step:,} on the "
            f"learning rate is that of a run of {counted(config.steps, 'step')}."
        )


def _read_json(workdir: epath.PathLike) -> dict[str, Any]:
    path = epath.Path(workdir) / CONFIG_FILE
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path} not found: {workdir} is not the workdir of a training run.") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): restore it, or train into another --workdir.") from error
    sections = {name for name, value in default_config().items() if isinstance(value, ConfigDict)}
    later = {"mesh"}  # sections that came after the first runs
    if not (isinstance(content, dict) and all(isinstance(content.get(name), dict) for name in sections - later)):
        raise UserError(f"{path} is not of this program: {workdir} is not the workdir of a training run.")
    return _with_defaults(_with_defaults(content, _BEFORE), json.loads(json.dumps(default_config().to_dict())))


def _with_defaults(content: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """Adds the fields that there were not yet when the run began; `defaults` mean what the program did then."""
    filled = {
        name: _with_defaults(value, defaults.get(name, {})) if isinstance(value, dict) else value
        for name, value in content.items()
    }
    return defaults | filled


def _with_tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _with_tuples(item) for name, item in value.items()}
    return tuple(_with_tuples(item) for item in value) if isinstance(value, list) else value


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat |= _flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat
