"""The text of an optimised HLO module, read into computations, instructions and arrays; nothing of JAX is needed.

What fills the memory of a device while a compiled program runs.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

_ARRAY = re.compile(r"\b(pred|(?:bf|[a-z])\d+[a-z0-9]*)\[([\d,]*)\](?:\{([^}]*)\})?")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^  (ROOT )?%?([\w.\-]+) = (.*?[)\]}]) ([a-z][\w\-]*)\((.*)$")
_CALLED = re.compile(r"\b(calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)")
_STRUCTURE = ("checkpoint", "rematted_computation", "shard_map", "while", "body", "cond", "closed_call")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")


@dataclass(frozen=True)
class ArrayType:
    """The type of an array on one device: element type, shape, and the layout as HLO writes it."""

    dtype: str
    shape: tuple[int, ...]
    layout: str = ""

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.shape))}]"

    @property
    def bytes(self) -> int:
        """Size of the values alone."""
        return math.ceil(math.prod(self.shape) * _bits(self.dtype) / 8)

    @property
    def padded_bytes(self) -> int:
        """Size in memory: a tiled layout such as T(8,128) fills up the last axes to whole tiles."""
        tile = re.search(r"T\(([\d,]+)\)", self.layout)
        if not tile or not self.shape:
            return self.bytes
        from_minor = [self.shape[int(axis)] for axis in self.layout.split(":")[0].split(",")]
        tile_from_minor = [int(side) for side in tile.group(1).split(",")][::-1]
        padded = [
            size if place >= len(tile_from_minor) else math.ceil(size / tile_from_minor[place]) * tile_from_minor[place]
            for place, size in enumerate(from_minor)
        ]
        return math.ceil(math.prod(padded) * _bits(self.dtype) / 8)

    @property
    def in_main_memory(self) -> bool:
        """False where the layout names another memory space than 0, such as the on-chip memory of a TPU."""
        space = re.search(r"S\((\d+)\)", self.layout)
        return space is None or space.group(1) == "0"


@dataclass(frozen=True)
class Instruction:
    """One line of a computation: its name, the arrays that it returns, what it does, and the rest of the line."""

    name: str
    results: tuple[ArrayType, ...]
    opcode: str
    rest: str
    is_root: bool = False

    @property
    def operands(self) -> list[str]:
        """Names of the instructions that this one takes."""
        return re.findall(r"%([\w.\-]+)", self.rest.split(")", 1)[0])

    @property
    def place(self) -> str:
        """Where in the program it comes from, such as "decoder/stage1_block/conv, backward"; empty if unknown."""
        name = re.search(r'op_name="([^"]*)"', self.rest)
        return readable_place(name.group(1)) if name else ""


@dataclass(frozen=True)
class HloModule:
    """The computations of a module, by name, each a tuple of instructions in order."""

    computations: Mapping[str, tuple[Instruction, ...]]
    entry: str
    partitions: int

    @cached_property
    def runs(self) -> dict[str, int]:
        """How often each computation runs when the module runs once: loops whose length can be read are counted out.

        Of a loop whose length depends on data, the body counts once; of a condition, every branch.
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
        """Names the computations that are executed as one instruction."""
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
        inside = self.computations.get(condition or "", ())
        limits = [
            int(number.group(1))
            for instruction in inside
            if instruction.opcode == "constant" and (number := re.match(r"(\d+)\)", instruction.rest))
        ]
        return limits[0] if len(limits) == 1 else 1


def parse_hlo(text: str) -> HloModule:
    """Reads the text that `compiled.as_text()` returns.

    Raises:
        ValueError: the text has no entry computation.
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
            root, instruction, result, opcode, rest = match.groups()
            lines.append(Instruction(instruction, read_arrays(result), opcode, rest, root is not None))
    if entry is None:
        raise ValueError("no ENTRY computation in this text: it is no HLO module")
    partitions = re.search(r"num_partitions=(\d+)", text)
    return HloModule(computations, entry, int(partitions.group(1)) if partitions else 1)


def read_arrays(text: str) -> tuple[ArrayType, ...]:
    """Returns the types of the arrays in a type such as "(f32[48]{0}, bf16[2,3]{1,0:T(8,128)(2,1)})"."""
    return tuple(
        ArrayType(dtype, tuple(int(size) for size in sizes.split(",") if size), layout)
        for dtype, sizes, layout in _ARRAY.findall(text)
    )


def readable_place(op_name: str) -> str:
    """Shortens JAX's name of an operation to the path of modules, and says whether it is the backward pass.

    "jit(train_step)/transpose(jvp(Net))/Net.ground/decoder/conv/dot" becomes "decoder/conv/dot, backward".
    """
    parts = [part for part in op_name.split("/") if not re.search(r"[().]", part) and part not in _STRUCTURE]
    # A rematerialised module stands there twice in a row.
    parts = [part for place, part in enumerate(parts) if place == 0 or part != parts[place - 1]]
    how = ", backward" if "transpose(" in op_name else ""
    return "/".join(parts) + (", recomputed" if "rematted_computation" in op_name else how)


def _called(instruction: Instruction) -> list[tuple[str, str]]:
    found = _CALLED.findall(instruction.rest)
    for branches in _BRANCHES.findall(instruction.rest):
        found += [("branch", name.strip().lstrip("%")) for name in branches.split(",")]
    return [("branch" if role.endswith("_computation") else role, name) for role, name in found]


def _bits(dtype: str) -> int:
    number = re.match(r"[a-z]+(\d+)", dtype)
    return 8 if dtype == "pred" or number is None else int(number.group(1))


_FORWARDED = ("bitcast", "get-tuple-element", "tuple", "while", "optimization-barrier")  # what holds others' memory
_NOT_MADE = ("parameter", "constant")


@dataclass(frozen=True)
class Buffer:
    """An array that the program makes for a time, and where in the program it comes from."""

    array: ArrayType
    place: str

    @property
    def bytes(self) -> int:
        """Its size in memory, padding of its layout included."""
        return self.array.padded_bytes


def buffers_at_peak(module: HloModule) -> list[Buffer]:
    """Returns the temporary arrays that are alive where those of the entry computation fill most, the largest first.

    Read from the order of the instructions, so it needs a scheduled module. An estimate: which arrays share memory
    because one is updated in place is not in the text, and what loops make inside is left out. Arguments, results and
    what lies in another memory than the main one do not count.
    """
    instructions = module.computations[module.entry]
    made: dict[tuple[str, int], tuple[int, ArrayType, Instruction]] = {}
    holds: dict[str, list[tuple[str, int]]] = {}  # of each instruction: the arrays that its results are
    last_use: dict[tuple[str, int], int] = {}
    results: set[tuple[str, int]] = set()
    for position, instruction in enumerate(instructions):
        taken = [array for operand in instruction.operands for array in holds.get(operand, [])]
        for array in taken:
            last_use[array] = position
        if instruction.opcode in _FORWARDED:
            index = instruction.rest.rpartition("index=")[2] if instruction.opcode == "get-tuple-element" else ""
            number = int(index.split(",")[0]) if index[:1].isdigit() else None
            holds[instruction.name] = taken if number is None else taken[number : number + 1]
        else:
            holds[instruction.name] = [(instruction.name, place) for place in range(len(instruction.results))]
            if instruction.opcode not in _NOT_MADE and not instruction.opcode.endswith("-start"):
                for place, array_type in enumerate(instruction.results):
                    made[instruction.name, place] = (position, array_type, instruction)
        if instruction.is_root:
            results.update(holds[instruction.name])
    lives = [
        (first, last_use.get(key, first), Buffer(array, instruction.place))
        for key, (first, array, instruction) in made.items()
        if key not in results and array.in_main_memory
    ]
    peak = max(_filled(lives), default=(0, 0))[1]
    return sorted((one for first, last, one in lives if first <= peak <= last), key=lambda one: -one.bytes)


def _filled(lives: list[tuple[int, int, Buffer]]) -> Iterator[tuple[int, int]]:
    """Yields (bytes alive, position) at every position where something begins to live."""
    ends = sorted((last, one.bytes) for _, last, one in lives)
    alive, ended = 0, 0
    for first, _, one in sorted(lives, key=lambda life: life[0]):
        while ended < len(ends) and ends[ended][0] < first:
            alive -= ends[ended][1]
            ended += 1
        alive += one.bytes
        yield alive, first
