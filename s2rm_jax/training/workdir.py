"""Whether a folder may be the workdir of a run, so that nobody's own files get a run among them or are written over.

What a training run leaves: a network and all that is needed to use it, without the data it was trained on.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import flax.linen as nn
import jax
from etils import epath
from ml_collections import ConfigDict

from s2rm_jax.errors import UserError
from s2rm_jax.input.tokens import Tokenizer
from s2rm_jax.interop.layout import fill
from s2rm_jax.interop.parameter_names import network_layout
from s2rm_jax.interop.weight_files import SAFETENSORS, read_weights
from s2rm_jax.io import on_bucket, workdir_path
from s2rm_jax.models.network import build_network
from s2rm_jax.training.checkpoint import CHECKPOINT_DIRECTORY, has_checkpoint, restore_params
from s2rm_jax.training.compile import COMPILATION_CACHE_DIRECTORY, PROFILE_DIRECTORY
from s2rm_jax.training.heartbeat import HEARTBEAT_FILE
from s2rm_jax.training.logging import LOG_DIRECTORY
from s2rm_jax.training.run import CONFIG_FILE, VOCAB_FILE, load_config
from s2rm_jax.training.state import parameter_shapes
from s2rm_jax.training.writers import ID_FILE, METRICS_FILE, TENSORBOARD_DIRECTORY, WANDB_DIRECTORY

_OF_A_START = {
    *(CONFIG_FILE, "config.tmp", VOCAB_FILE, CHECKPOINT_DIRECTORY, METRICS_FILE, TENSORBOARD_DIRECTORY),
    *(COMPILATION_CACHE_DIRECTORY, PROFILE_DIRECTORY, LOG_DIRECTORY, HEARTBEAT_FILE, "heartbeat.tmp"),
    *(WANDB_DIRECTORY, ID_FILE, "wandb_run.tmp"),
}
_LOGS = {".log", ".out", ".err"}  # a job's own record of the run is often put beside it


def require_workdir(workdir: epath.PathLike) -> None:
    """Checks that a run can begin or go on in `workdir`: a new or empty folder, that of a run, or of a failed start.

    Raises:
        UserError: it is a file, or a folder that holds something else.
    """
    workdir = workdir_path(workdir)
    try:
        exists = workdir.exists()
    except Exception as error:  # whatever those who reach buckets raise: no credentials, no such bucket, no network
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"--workdir {workdir} cannot be reached: {reason}") from error
    if exists and not workdir.is_dir():
        raise UserError(f"--workdir {workdir} is a file; give a folder: a new one, or that of a run to be continued.")
    if not workdir.is_dir() or has_checkpoint(workdir):
        return
    names = sorted(
        path.name for path in workdir.iterdir() if not path.name.startswith(".") and path.suffix not in _LOGS
    )
    strange = [name for name in names if name not in _OF_A_START]
    if strange and not _has_config(workdir):
        raise UserError(
            f"--workdir {workdir} holds files that are not of a run, such as {strange[0]}; give a new folder, or that "
            "of a run to be continued."
        )


def _has_config(workdir: epath.Path) -> bool:
    """Whether there is the configuration of a run; other programs have a config.json, too."""
    try:
        load_config(workdir)
    except UserError:
        return False
    return True


@dataclass(frozen=True)
class LoadedRun:
    """A trained network, its parameters, and what images and expressions must go through to reach it."""

    network: nn.Module
    params: Any
    tokenizer: Tokenizer
    config: ConfigDict


def load_run(
    workdir: epath.PathLike, which: Literal["best", "latest"] = "best", sharding: jax.sharding.Sharding | None = None
) -> LoadedRun:
    """Loads the best or the latest checkpoint of a training run, with the configuration that lies beside it.

    In place of a workdir there may be a folder that `convert to-pytorch` made, which holds the weights of one network.
    `sharding` places each parameter of a checkpoint; see `restore_params`.

    Raises:
        UserError: no training run or no checkpoint there, its vocabulary is gone, or its configuration was changed.
    """
    config = load_config(workdir)
    # The run keeps its own copy of the vocabulary.
    tokenizer = Tokenizer(epath.Path(workdir) / VOCAB_FILE, config.text.max_tokens)
    network = build_network(config)
    shapes = parameter_shapes(network, config)
    weights = Path(workdir) / SAFETENSORS
    if not on_bucket(workdir) and weights.is_file() and not has_checkpoint(workdir):
        params = fill(network_layout(shapes), read_weights(weights), shapes, str(weights)).params
    else:
        params = restore_params(workdir, which, shapes, sharding)
    return LoadedRun(network, params, tokenizer, config)
