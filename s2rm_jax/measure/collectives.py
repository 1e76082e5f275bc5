"""What a compiled program sends between devices."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from s2rm_jax.measure.hlo import ArrayType, HloModule, Instruction

KINDS = (
    *("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "ragged-all-to-all"),
    *("collective-permute", "collective-broadcast"),
)


@dataclass(frozen=True)
class Collective:
    """One exchange between devices.

    kind    one of KINDS
    arrays  what it is about, whole: of a gather what comes out, of a scatter what goes in
    group   how many devices exchange with each other
    times   how often the program does it (more than once inside a loop)
    place   where in the program it comes from
    """

    kind: str
    arrays: tuple[ArrayType, ...]
    group: int
    times: int
    place: str

    @property
    def bytes(self) -> int:
        """Size of `arrays`, all times together."""
        return self.times * sum(array.bytes for array in self.arrays)

    @property
    def sent_bytes(self) -> float:
        """What each device must send at least: 2 (n - 1) / n of the size for an all-reduce, else (n - 1) / n."""
        if self.kind in ("collective-permute", "collective-broadcast"):
            return float(self.bytes)
        share = (self.group - 1) / self.group
        return self.bytes * share * (2 if self.kind == "all-reduce" else 1)


def read_collectives(module: HloModule) -> list[Collective]:
    """Returns every exchange of the module once, the largest first.

    A TPU program names an asynchronous exchange in each of the fusions that go on beside it: these are taken as one.
    """
    fused = module.fused()
    found: dict[Any, Collective] = {}
    for computation, instructions in module.computations.items():
        times = module.runs[computation]
        for instruction in instructions:
            kind = instruction.opcode.removesuffix("-start")
            if kind not in KINDS or times == 0:
                continue
            group = group_size(instruction.rest, module.partitions)
            if group == 1:
                continue  # it exchanges nothing
            arrays, place = _whole_arrays(kind, instruction, group), instruction.place
            channel = re.search(r"channel_id=(\d+)", instruction.rest)
            types = tuple(map(str, arrays))  # the parts differ in layout
            key: Any = instruction.name
            if computation in fused:
                key = (kind, types, group, place, channel and channel.group(1))
            times_here = min(times, found[key].times) if key in found else times
            found[key] = Collective(kind, arrays, group, times_here, place)
    return sorted(found.values(), key=lambda one: -one.bytes)


def group_size(attributes: str, partitions: int) -> int:
    """Returns how many devices take part in an exchange together, from the attributes of its instruction.

    Replica groups are written as {{0,1},{2,3}}, as [groups,size]<=[...], or as axes of a mesh; {} is all devices.

    Raises:
        ValueError: they are written in yet another way.
    """
    if pairs := re.search(r"source_target_pairs=\{(\{.*?\})\}", attributes):
        return max(2, pairs.group(1).count("{"))
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", attributes):
        return len(listed.group(1).split(","))
    if iota := re.search(r"replica_groups=\[\d+,(\d+)\]", attributes):
        return int(iota.group(1))
    if mesh := re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", attributes):
        sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", mesh.group(1))}
        axes = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", mesh.group(2))
        return math.prod(int(part) if part else sizes[name] for name, part in axes)
    if "replica_groups=" in attributes and "replica_groups={}" not in attributes:
        raise ValueError(f"replica groups of an unknown form: {attributes[:200]}")
    return partitions


def is_gradient_like(collective: Collective, shapes: set[tuple[int, ...]]) -> bool:
    """Says whether an exchange is a sum of scalars and of arrays whose shapes are among `shapes`."""
    return collective.kind == "all-reduce" and all(
        array.shape == () or array.shape in shapes for array in collective.arrays
    )


def total_by_kind(collectives: Sequence[Collective]) -> dict[str, tuple[int, int]]:
    """Returns {kind: (how many exchanges in one run, bytes)}, in the order of KINDS."""
    totals = {}
    for kind in KINDS:
        ours = [one for one in collectives if one.kind == kind]
        if ours:
            totals[kind] = (sum(one.times for one in ours), sum(one.bytes for one in ours))
    return totals


def _whole_arrays(kind: str, instruction: Instruction, group: int) -> tuple[ArrayType, ...]:
    arrays = instruction.results
    if instruction.opcode.endswith("-start") and kind == "all-gather":
        arrays = arrays[len(arrays) // 2 :]  # the operands come first
    elif instruction.opcode.endswith("-start") and kind == "collective-permute":
        arrays = arrays[:1]
    if kind == "reduce-scatter":
        axis = re.search(r"dimensions=\{(\d+)\}", instruction.rest)
        place = int(axis.group(1)) if axis else 0
        arrays = tuple(
            ArrayType(a.dtype, (*a.shape[:place], a.shape[place] * group, *a.shape[place + 1 :]), a.layout)
            for a in arrays
        )
    return arrays
