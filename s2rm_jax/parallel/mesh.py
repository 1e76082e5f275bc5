"""The mesh of devices ("data", "fsdp"), the shardings of arrays on it, and random keys per device.

Batches are split over both axes: each device processes its own images. The training state is sharded over the devices
along "fsdp" and replicated along "data". The sharding of an array depends on its shape alone, so a parameter, its
gradient, its moments and its average are always sharded alike and never move.

In per-device code (`jax.shard_map`), one JAX key draws the same numbers on every device. A separate key per device
makes the numbers depend on the number of devices. `per_device_key` avoids both: each device draws its part of the
numbers that one device would draw for the whole batch.
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
    """Return the mesh described by config.mesh; see `make_mesh`."""
    return make_mesh(config.mesh.fsdp, devices)


def make_mesh(fsdp: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Return the mesh [devices / fsdp, fsdp] over `devices`, by default all devices of all hosts.

    The devices of a process are adjacent, in the order of the processes, so that its images are consecutive in the
    batch. Devices that share a state are adjacent too, because they communicate most. The axes are of type Auto: the
    compiler propagates shardings through reshapes such as window partitioning, which type Explicit does not support.

    Raises:
        UserError: `fsdp` does not divide the number of devices.
    """
    chosen = sorted(jax.devices() if devices is None else devices, key=lambda device: (device.process_index, device.id))
    if fsdp < 1 or len(chosen) % fsdp:
        fitting = ", ".join(str(n) for n in range(1, len(chosen) + 1) if len(chosen) % n == 0)
        raise UserError(
            f"config.mesh.fsdp={fsdp} does not divide the number of devices, {len(chosen)}; possible values: {fitting}"
        )
    return Mesh(np.array(chosen).reshape(-1, fsdp), BATCH_AXES, axis_types=(AxisType.Auto, AxisType.Auto))


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the sharding of an array that is replicated on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """Return the sharding of arrays whose axis number `axis` is the batch."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, BATCH_AXES))


def put_batch(batch: Any, mesh: Mesh) -> Any:
    """Copy this process's part of a batch (a tree of NumPy arrays, batch axis first) to the devices of the mesh."""
    sharding = batch_sharding(mesh)
    with jax.transfer_guard_host_to_device("allow"):  # with several processes, JAX counts this as an implicit transfer
        arrays = jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)
    # On a CPU, a program whose inputs are still being copied runs in another thread (see `keep_freed_memory`).
    return jax.block_until_ready(arrays) if jax.default_backend() == "cpu" else arrays


def take_batch(batch: Any) -> Any:
    """Copy this process's part of a batch back from the devices; the inverse of `put_batch`."""

    def rows(array: jax.Array) -> np.ndarray:
        parts = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}
        return np.concatenate(jax.device_get([parts[first] for first in sorted(parts)]))

    return jax.tree.map(rows, batch)


def on_this_process(tree: Any) -> Any:
    """Return replicated arrays as arrays on one device of this process, for work that it does alone."""
    return jax.tree.map(lambda array: array.addressable_data(0), tree)


SMALL = 2**14  # elements; for smaller arrays, communication costs more than a copy on every device


def state_spec(shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """Return how an array of the state is sharded: along the longest axis that "fsdp" divides evenly.

    An array without such an axis, or with fewer than `SMALL` elements, is replicated; with config.mesh.fsdp = 1 every
    array is. Of the 211 million parameters of configs/refcoco.py, half a million are replicated: biases, norms and bias
    tables.
    """
    group = mesh.shape[FSDP_AXIS]
    divisible = [axis for axis, size in enumerate(shape) if size % group == 0]
    if group == 1 or not divisible or math.prod(shape) < SMALL:
        return PartitionSpec()
    longest = max(divisible, key=lambda axis: shape[axis])
    return PartitionSpec(*[None] * longest, FSDP_AXIS)


def sharded_axis(spec: PartitionSpec) -> int | None:
    """Return the axis that a spec of `state_spec` shards, None if it is replicated."""
    return spec.index(FSDP_AXIS) if FSDP_AXIS in spec else None


def with_shardings(tree: Any, mesh: Mesh) -> Any:
    """Return a tree of ShapeDtypeStructs with the shardings of `state_spec`."""

    def planned(x: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, state_spec(x.shape, mesh)))

    return jax.tree.map(planned, tree)


def put_shards(x: np.ndarray, sharding: NamedSharding) -> jax.Array:
    """Put an array that every process has in full on its devices; each device receives its own shard only."""
    return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])


_THREEFRY = extend.threefry_prng_impl


def per_device_key(key: jax.Array, position: jax.Array) -> jax.Array:
    """Return a key that draws, for an array of any shape, part number `position` of what `key` draws for all parts.

    Parts have equal sizes along the first axis. Keys that are split or folded from it do the same. A draw over all
    parts may have up to 2^32 numbers; beyond, the numbers repeat. `key` is of JAX's default kind (threefry,
    partitionable), `position` an integer scalar.
    """
    data = jnp.append(jax.random.key_data(key), position.astype(jnp.uint32))
    return jax.random.wrap_key_data(data, impl=_LOCAL_THREEFRY)


def _random_bits(key: UInt32[Array, 3], bit_width: int, shape: tuple[int, ...]) -> jax.Array:
    """Compute threefry of the key and the index of each element, for the elements of one part."""
    if bit_width != 32:
        raise NotImplementedError(f"per-device keys draw numbers of 32 bits, not {bit_width}")
    size = math.prod(shape)
    index = key[2] * jnp.uint32(size) + jnp.arange(size, dtype=jnp.uint32)
    high, low = extend.threefry2x32_p.bind(*jnp.broadcast_arrays(key[0], key[1], jnp.zeros_like(index), index))
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
