"""How the state of training is shared between the devices of a group: the rule, and putting arrays where it says.

The rule is a function of an array's shape alone, so a parameter, its gradient, its moments and its average are always
cut in the same way, and none of them ever has to move to meet another.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from s2rm_jax.parallel.mesh import FSDP_AXIS

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


def put_shares(x: np.ndarray, sharding: NamedSharding) -> jax.Array:
    """Puts an array that every process has whole on its devices; each device receives its own piece and no more."""
    return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])
