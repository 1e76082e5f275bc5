"""What fills the memory of a device while a compiled program runs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from s2rm_jax.compiled.hlo import ArrayType, HloModule, Instruction

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
