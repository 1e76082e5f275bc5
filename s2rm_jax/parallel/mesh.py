"""The mesh of devices and how arrays lie on it: ("data", "fsdp"), batches split over both axes.

The devices of one group along "fsdp" share the state of training between them (`parallel.sharding`); along "data" every
group has the same. For batches there is no difference: each device works on images of its own.

How the state of training is shared between the devices of a group: the rule, and putting arrays where it says.

The rule is a function of an array's shape alone, so a parameter, its gradient, its moments and its average are always
cut in the same way, and none of them ever has to move to meet another.

Random numbers for one device's part of a batch: exactly those that the whole batch would have had there.

Code that sees one device's images only (`jax.shard_map`) draws for those. With an ordinary key every device would
draw the same, and with a key of its own something else than on another number of devices.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import random as extend
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, UInt32
from ml_collections import ConfigDict

from s2rm_jax.errors import UserError

DATA_AXIS, FSDP_AXIS = "data", "fsdp"
BATCH_AXES = (DATA_AXIS, FSDP_AXIS)


def build_mesh(config: ConfigDict, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Returns the mesh that `config.mesh` asks for; see `make_mesh`."""
    return make_mesh(config.mesh.fsdp, devices)


def make_mesh(fsdp: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Returns the mesh [devices / fsdp, fsdp] over `devices`, by default all devices of all hosts.

    The devices of a process stand together, in the order of the processes, so that its images are consecutive in the
    batch, and so do those that share a state, as they talk the most. The axes are of type Auto: the compiler propagates
    shardings through reshapes such as window partitioning, which axes of type Explicit refuse.

    Raises:
        UserError: the devices do not fall into groups of `fsdp`.
    """
    chosen = sorted(jax.devices() if devices is None else devices, key=lambda device: (device.process_index, device.id))
    if fsdp < 1 or len(chosen) % fsdp:
        fitting = ", ".join(str(n) for n in range(1, len(chosen) + 1) if len(chosen) % n == 0)
        raise UserError(
            f"config.mesh.fsdp={fsdp} does not divide the {len(chosen)} device{'s' * (len(chosen) > 1)} of this run: "
            f"it must be one of {fitting}."
        )
    return Mesh(np.array(chosen).reshape(-1, fsdp), BATCH_AXES, axis_types=(AxisType.Auto, AxisType.Auto))


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of what every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """Returns the sharding of arrays whose axis number `axis` counts images."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, BATCH_AXES))


def put_batch(batch: Any, mesh: Mesh) -> Any:
    """Copies this process's part of a batch (a tree of NumPy arrays, images first) to the devices of the mesh."""
    sharding = batch_sharding(mesh)
    with jax.transfer_guard_host_to_device("allow"):  # of several processes, JAX counts this as an implicit transfer
        return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)


def take_batch(batch: Any) -> Any:
    """Copies this process's part of a batch back from the devices: undoes `put_batch`."""

    def rows(array: jax.Array) -> np.ndarray:
        parts = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}
        return np.concatenate(jax.device_get([parts[first] for first in sorted(parts)]))

    return jax.tree.map(rows, batch)


def on_this_process(tree: Any) -> Any:
    """Returns what every device holds whole as arrays of one device of this process, for work that it does alone."""
    return jax.tree.map(lambda array: array.addressable_data(0), tree)


SMALL = 2**14  # elements; below, sending pieces around costs more than a copy on every device


def shared_spec(shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """Says how an array of the state is cut: along the longest of the axes that the devices of a group divide evenly.

    An array that has no such axis, or fewer than `SMALL` elements, is whole on every device; with config.mesh.fsdp = 1
    that is every array. Of the 211 million parameters of configs/refcoco.py half a million stay whole: biases, norms
    and bias tables.
    """
    group = mesh.shape[FSDP_AXIS]
    divisible = [axis for axis, size in enumerate(shape) if size % group == 0]
    if group == 1 or not divisible or math.prod(shape) < SMALL:
        return PartitionSpec()
    longest = max(divisible, key=lambda axis: shape[axis])
    return PartitionSpec(*[None] * longest, FSDP_AXIS)


def shared_axis(spec: PartitionSpec) -> int | None:
    """Returns the axis that a spec of `shared_spec` cuts, None where it cuts none."""
    return spec.index(FSDP_AXIS) if FSDP_AXIS in spec else None


def with_shardings(tree: Any, mesh: Mesh) -> Any:
    """Returns a tree of shapes with the sharding that the rule gives to each."""

    def planned(x: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, shared_spec(x.shape, mesh)))

    return jax.tree.map(planned, tree)


def put_shards(x: np.ndarray, sharding: NamedSharding) -> jax.Array:
    """Puts an array that every process has whole on its devices; each device receives its own piece and no more."""
    return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])


_THREEFRY = extend.threefry_prng_impl


def per_device_key(key: jax.Array, position: jax.Array) -> jax.Array:
    """Returns a key that draws, for an array of any shape, part number `position` of what `key` draws for all parts.

    Parts are equal and lie along the first axis. Keys that are split or folded from it do the same. It takes up to
    2^32 numbers in a draw over all parts; beyond, the numbers repeat.

    Args:
        key: a key of JAX's default kind (threefry, partitionable).
        position: int scalar.
    """
    data = jnp.append(jax.random.key_data(key), position.astype(jnp.uint32))
    return jax.random.wrap_key_data(data, impl=_LOCAL_THREEFRY)


def _random_bits(key: UInt32[Array, 3], bit_width: int, shape: tuple[int, ...]) -> jax.Array:
    """What threefry computes of a key and the number of an element, for the elements of one part."""
    if bit_width != 32:
        raise NotImplementedError(f"random numbers of {bit_width} bits for a part of a batch")
    size = math.prod(shape)
    number = key[2] * jnp.uint32(size) + jnp.arange(size, dtype=jnp.uint32)
    high, low = extend.threefry2x32_p.bind(*jnp.broadcast_arrays(key[0], key[1], jnp.zeros_like(number), number))
    return (high ^ low).reshape(shape)


def _with_position(keys: UInt32[Array, "*shape 2"], position: UInt32[Array, ""]) -> UInt32[Array, "*shape 3"]:
    return jnp.concatenate([keys, jnp.broadcast_to(position, (*keys.shape[:-1], 1))], axis=-1)


_LOCAL_THREEFRY = extend.define_prng_impl(
    key_shape=(3,),  # the two words of threefry, and the position
    seed=lambda seed: _with_position(_THREEFRY.seed(seed), jnp.uint32(0)),
    split=lambda key, shape: _with_position(_THREEFRY.split(key[:2], shape), key[2]),
    random_bits=_random_bits,
    fold_in=lambda key, data: _with_position(_THREEFRY.fold_in(key[:2], data), key[2]),
    name="local_threefry",
    tag="lfry",
)
