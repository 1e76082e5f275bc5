"""What a training run leaves: a network and all that is needed to use it, without the data it was trained on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import flax.linen as nn
from etils import epath
from ml_collections import ConfigDict

from s2rm_jax.input.tokens import Tokenizer
from s2rm_jax.interop.layout import fill
from s2rm_jax.interop.torch_names import network_layout
from s2rm_jax.interop.weight_files import SAFETENSORS, read_weights
from s2rm_jax.models.network import build_network
from s2rm_jax.training.checkpoint import has_checkpoint, restore_params
from s2rm_jax.training.run_config import VOCAB_FILE, load_config
from s2rm_jax.training.state import parameter_shapes
from s2rm_jax.training.workdir_files import on_bucket


@dataclass(frozen=True)
class Trained:
    """A trained network, its parameters, and what pictures and sentences must go through to reach it."""

    network: nn.Module
    params: Any
    tokenizer: Tokenizer
    config: ConfigDict


def load_trained(workdir: epath.PathLike, which: Literal["best", "latest"] = "best") -> Trained:
    """Loads the best or the latest checkpoint of a training run, with the configuration that lies beside it.

    In place of a workdir there may be a folder that `convert to-pytorch` made, which holds the weights of one network.

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
        params = restore_params(workdir, which, shapes)
    return Trained(network, params, tokenizer, config)
