"""The training state: planned abstractly with its shardings, then created in place on the devices."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from etils import epy
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh
from ml_collections import ConfigDict

from s2rm_jax.models.network import keep_for_equal_networks
from s2rm_jax.parallel.mesh import put_shards, with_shardings
from s2rm_jax.training.optimizer import build_optimizer, parameter_groups

with epy.lazy_imports():  # prediction never needs it
    import optax


@flax.struct.dataclass
class TrainState:
    """The state that a training step reads and writes."""

    step: Any  # int32 scalar, optimizer steps taken
    params: Any  # float32
    opt_state: Any  # of the optimizer
    ema_params: Any  # the averaged parameters, or None if config.optimizer.ema_decay is 0
    rng: Any  # key data of the run's random key; it is constant, and every step folds its number into it

    @property
    def eval_params(self) -> Any:
        """The parameters for evaluation and prediction: the average if there is one."""
        return self.params if self.ema_params is None else self.ema_params


@dataclass(frozen=True)
class StatePlan:
    """The structure of a state before it is created."""

    optimizer: optax.GradientTransformation
    groups: Any  # the Group of every parameter
    abstract: TrainState  # of ShapeDtypeStructs with shardings, with which checkpoints are restored
    # create(given=None) returns the initial state with these shardings. Parameters that are `given` (nested NumPy
    # arrays, some or all) are taken, the others drawn from the seed. No device holds more of an array than its shard.
    create: Callable[..., TrainState]


def initial_params(network: nn.Module, config: ConfigDict, key: jax.Array) -> Any:
    """Draw the parameters of `network` for images and expressions of the sizes in `config`."""
    return _initializer(network, *_input_sizes(config))(key)


def parameter_shapes(network: nn.Module, config: ConfigDict) -> Any:
    """Return the parameters of `network` as ShapeDtypeStructs, without computing them."""
    return jax.eval_shape(lambda: initial_params(network, config, jax.random.key(0)))


def _input_sizes(config: ConfigDict) -> tuple[tuple[int, int], int]:
    height, width = config.input.image_size
    return (height, width), config.text.max_tokens


@keep_for_equal_networks(4)  # tracing takes a second and more, and a command needs shapes and values
def _initializer(network: nn.Module, image_size: tuple[int, int], max_tokens: int) -> Callable[[jax.Array], Any]:
    """Return the function that draws the parameters of `network` with a key; it is traced once."""

    @jax.jit
    def draw(key: jax.Array) -> Any:
        tokens = jnp.zeros((1, 1, max_tokens), jnp.int32)
        images = jnp.zeros((1, *image_size, 3))
        return network.init({"params": key}, images, tokens, jnp.ones_like(tokens, bool), train=False)["params"]

    return draw


def plan_state(network: nn.Module, config: ConfigDict, mesh: Mesh) -> StatePlan:
    """Plan the state for training `network` with `config` on the devices of `mesh`.

    Raises:
        UserError: the configuration of the optimizer does not fit the parameters.
    """
    shapes = parameter_shapes(network, config)
    optimizer = build_optimizer(config, shapes)

    def initial_state(given: Any = None) -> TrainState:
        init_key, run_key = jax.random.split(jax.random.key(config.seed))
        flat = flatten_dict(given or {})
        if len(flat) < len(jax.tree.leaves(shapes)):  # otherwise nothing is drawn, or compiled for it
            flat = flatten_dict(initial_params(network, config, init_key)) | flat
        params = unflatten_dict(flat)
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            opt_state=optimizer.init(params),
            ema_params=params if config.optimizer.ema_decay else None,
            rng=jax.random.key_data(run_key),
        )

    abstract = with_shardings(jax.eval_shape(initial_state, shapes), mesh)  # given, so that nothing is traced again
    made_in_place = jax.jit(initial_state, out_shardings=jax.tree.map(lambda x: x.sharding, abstract))

    def create(given: Any = None) -> TrainState:
        planned = flatten_dict(abstract.params)
        arrays = {path: put_shards(x, planned[path].sharding) for path, x in flatten_dict(given or {}).items()}
        return made_in_place(unflatten_dict(arrays))

    return StatePlan(optimizer, parameter_groups(config, shapes), abstract, create)
