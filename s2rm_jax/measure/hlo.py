"""Optimized HLO modules: parsing their text, and reading collectives from it.

Only the text is read; nothing of JAX is needed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

_ARRAY = re.compile(r"\b(pred|(?:bf|[a-z])\d+[a-z0-9]*)\[([\d,]*)\]")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^  (?:ROOT )?%?([\w.\-]+) = (.*?[)\]}]) ([a-z][\w\-]*)\((.*)$")
_CALLED = re.compile(r"\b(calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)")
_STRUCTURE = ("checkpoint", "rematted_computation", "shard_map", "while", "body", "cond", "closed_call")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")


@dataclass(frozen=True)
class ArrayType:
    """The type of an array on one device."""

    dtype: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.shape))}]"

    @property
    def bytes(self) -> int:
        """Size of the values, without padding."""
        return math.ceil(math.prod(self.shape) * _bits(self.dtype) / 8)


@dataclass(frozen=True)
class Instruction:
    """One line of a computation: name, types of its results, opcode, and the rest of the line."""

    name: str
    results: tuple[ArrayType, ...]
    opcode: str
    rest: str

    @property
    def place(self) -> str:
        """The module path of its origin, such as "decoder/stage1_block/conv, backward"; empty if unknown."""
        name = re.search(r'op_name="([^"]*)"', self.rest)
        return readable_place(name.group(1)) if name else ""


@dataclass(frozen=True)
class HloModule:
    """The computations of a module by name, each a tuple of instructions in order."""

    computations: Mapping[str, tuple[Instruction, ...]]
    entry: str
    partitions: int

    @cached_property
    def runs(self) -> dict[str, int]:
        """The number of times each computation runs when the module runs once.

        The body of a loop counts once if the number of iterations depends on data. Every branch of a conditional
        counts.
        """
        runs = dict.fromkeys(self.computations, 0)

        def visit(computation: str, times: int) -> None:
            runs[computation] += times
            for instruction in self.computations[computation]:
                for role, called in _called(instruction):
                    if called in runs:
                        visit(called, times * (self._loop_length(instruction) if role == "body" else 1))

        visit(self.entry, 1)
        return runs

    def fused(self) -> set[str]:
        """Return the names of the computations that are executed as one fusion."""
        return {
            called
            for instructions in self.computations.values()
            for instruction in instructions
            if instruction.opcode == "fusion"
            for _, called in _called(instruction)
        }

    def _loop_length(self, loop: Instruction) -> int:
        known = re.search(r'known_trip_count[^\d]*"?(\d+)', loop.rest)
        if known:
            return int(known.group(1))
        condition = next((called for role, called in _called(loop) if role == "condition"), None)
        instructions = self.computations.get(condition or "", ())
        limits = [
            int(number.group(1))
            for instruction in instructions
            if instruction.opcode == "constant" and (number := re.match(r"(\d+)\)", instruction.rest))
        ]
        return limits[0] if len(limits) == 1 else 1


def parse_hlo(text: str) -> HloModule:
    """Parse the text returned by `compiled.as_text()`.

    Raises:
        ValueError: the text has no ENTRY computation.
    """
    computations: dict[str, tuple[Instruction, ...]] = {}
    entry: str | None = None
    name: str | None = None
    lines: list[Instruction] = []
    for line in text.splitlines():
        header = _HEADER.match(line)
        if header:
            name, lines = header.group(2), []
            entry = name if header.group(1) else entry
        elif line.startswith("}") and name is not None:
            computations[name], name = tuple(lines), None
        elif name is not None and (match := _INSTRUCTION.match(line)):
            instruction, result, opcode, rest = match.groups()
            lines.append(Instruction(instruction, read_arrays(result), opcode, rest))
    if entry is None:
        raise ValueError("not an HLO module: no ENTRY computation")
    partitions = re.search(r"num_partitions=(\d+)", text)
    return HloModule(computations, entry, int(partitions.group(1)) if partitions else 1)


def read_arrays(text: str) -> tuple[ArrayType, ...]:
    """Return the array types in a type such as "(f32[48]{0}, bf16[2,3]{1,0:T(8,128)(2,1)})"."""
    return tuple(
        ArrayType(dtype, tuple(int(size) for size in sizes.split(",") if size)) for dtype, sizes in _ARRAY.findall(text)
    )


def readable_place(op_name: str) -> str:
    """Shorten JAX's name of an operation to its module path, and mark backward passes and recomputation.

    "jit(train_step)/transpose(jvp(Net))/Net.ground/decoder/conv/dot" becomes "decoder/conv/dot, backward".
    """
    parts = [part for part in op_name.split("/") if not re.search(r"[().]", part) and part not in _STRUCTURE]
    # The name of a rematerialized module is repeated.
    parts = [part for place, part in enumerate(parts) if place == 0 or part != parts[place - 1]]
    how = ", backward" if "transpose(" in op_name else ""
    return "/".join(parts) + (", recomputed" if "rematted_computation" in op_name else how)


def _called(instruction: Instruction) -> list[tuple[str, str]]:
    """Return (role, name) of each computation that an instruction calls."""
    called = _CALLED.findall(instruction.rest)
    for branches in _BRANCHES.findall(instruction.rest):
        called += [("branch", name.strip().lstrip("%")) for name in branches.split(",")]
    return called


def _bits(dtype: str) -> int:
    number = re.match(r"[a-z]+(\d+)", dtype)
    return 8 if dtype == "pred" or number is None else int(number.group(1))


KINDS = (
    *("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "ragged-all-to-all"),
    *("collective-permute", "collective-broadcast"),
)


@dataclass(frozen=True)
class Collective:
    """One collective operation."""

    kind: str  # one of KINDS
    arrays: tuple[ArrayType, ...]  # the whole arrays: the results of a gather, the operands of a scatter
    group: int  # number of devices that communicate with each other
    times: int  # number of executions (more than one inside a loop)
    place: str  # module path of its origin

    @property
    def bytes(self) -> int:
        """Size of `arrays` over all executions."""
        return self.times * sum(array.bytes for array in self.arrays)

    @property
    def sent_bytes(self) -> float:
        """Bytes that each device must send: 2 (n - 1) / n of the size for an all-reduce, else (n - 1) / n."""
        if self.kind in ("collective-permute", "collective-broadcast"):
            return float(self.bytes)
        share = (self.group - 1) / self.group
        return self.bytes * share * (2 if self.kind == "all-reduce" else 1)


def read_collectives(module: HloModule) -> list[Collective]:
    """Return every collective of the module once, largest first.

    A TPU program repeats an asynchronous collective in each fusion that overlaps with it; these count as one.
    """
    fused = module.fused()
    collectives: dict[Any, Collective] = {}
    for computation, instructions in module.computations.items():
        times = module.runs[computation]
        for instruction in instructions:
            kind = instruction.opcode.removesuffix("-start")
            if kind not in KINDS or times == 0:
                continue
            group = group_size(instruction.rest, module.partitions)
            if group == 1:
                continue  # sends nothing
            arrays, place = _whole_arrays(kind, instruction, group), instruction.place
            channel = re.search(r"channel_id=(\d+)", instruction.rest)
            key: Any = instruction.name
            if computation in fused:
                key = (kind, arrays, group, place, channel and channel.group(1))
            times_here = min(times, collectives[key].times) if key in collectives else times
            collectives[key] = Collective(kind, arrays, group, times_here, place)
    return sorted(collectives.values(), key=lambda one: -one.bytes)


def group_size(attributes: str, partitions: int) -> int:
    """Return the number of devices in a group of a collective, from the attributes of its instruction.

    Replica groups have the form {{0,1},{2,3}}, [groups,size]<=[...], or axes of a mesh; {} means all devices.

    Raises:
        ValueError: the replica groups have another form.
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
        raise ValueError(f"unknown form of replica groups: {attributes[:200]}")
    return partitions


def total_by_kind(collectives: Sequence[Collective]) -> dict[str, tuple[int, int]]:
    """Return {kind: (executions, bytes)} in the order of KINDS."""
    totals = {}
    for kind in KINDS:
        of_kind = [one for one in collectives if one.kind == kind]
        if of_kind:
            totals[kind] = (sum(one.times for one in of_kind), sum(one.bytes for one in of_kind))
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
            ArrayType(a.dtype, (*a.shape[:place], a.shape[place] * group, *a.shape[place + 1 :])) for a in arrays
        )
    return arrays
