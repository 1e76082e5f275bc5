"""The mesh of devices and how arrays lie on it: ("data", "fsdp"), batches split over both axes.

The devices of one group along "fsdp" share the state of training between them (`parallel.sharding`); along "data" every
group has the same. For batches there is no difference: each device works on pictures of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from s2rm_jax.errors import UserError

DATA_AXIS, FSDP_AXIS = "data", "fsdp"
BATCH_AXES = (DATA_AXIS, FSDP_AXIS)


def build_mesh(config: ConfigDict, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Returns the mesh that `config.mesh` asks for; see `make_mesh`."""
    return make_mesh(config.mesh.fsdp, devices)


def make_mesh(fsdp: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Returns the mesh [devices / fsdp, fsdp] over `devices`, by default all devices of all hosts.

    The devices of a process stand together, in the order of the processes, so that its pictures are consecutive in the
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
    """Returns the sharding of arrays whose axis number `axis` counts pictures."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, BATCH_AXES))


def put_batch(batch: Any, mesh: Mesh) -> Any:
    """Copies this process's part of a batch (a tree of NumPy arrays, pictures first) to the devices of the mesh."""
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
