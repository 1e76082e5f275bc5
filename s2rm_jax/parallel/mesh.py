"""The mesh of devices and how arrays lie on it: batches are split over "data", everything else is replicated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

DATA_AXIS = "data"


def data_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Returns the mesh with the one axis "data" over `devices`, by default all devices of all hosts.

    The axis is of type Auto: the compiler propagates shardings through reshapes such as window partitioning, which
    axes of type Explicit refuse.
    """
    chosen = np.asarray(jax.devices() if devices is None else list(devices))
    return Mesh(chosen, (DATA_AXIS,), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of what every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """Returns the sharding of arrays whose axis number `axis` counts pictures."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, DATA_AXIS))


def put_batch(batch: Any, mesh: Mesh) -> Any:
    """Copies this process's part of a batch (a tree of NumPy arrays, pictures first) to the devices of the mesh."""
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)
