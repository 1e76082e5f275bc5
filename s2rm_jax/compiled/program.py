"""A compiled program read as a whole: its memory, its FLOPs, its exchanges."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from s2rm_jax.compiled.buffers import Buffer, buffers_at_peak
from s2rm_jax.compiled.collectives import Collective, read_collectives
from s2rm_jax.compiled.hlo import parse_hlo


@dataclass(frozen=True)
class Memory:
    """Bytes that a program needs on each device; results that reuse the memory of arguments count as arguments only."""

    arguments: int
    new_results: int
    temporaries: int
    code: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.arguments + self.new_results + self.temporaries + self.code


@dataclass(frozen=True)
class Program:
    """What a compiled program says of itself.

    memory       of each device; None where the compiler does not tell
    xla_flops    of each device, as XLA counts them: the body of a loop once, and not only matrix products
    collectives  the largest first
    at_peak      temporary arrays that are alive where memory is fullest, the largest first (an estimate)
    """

    memory: Memory | None
    xla_flops: float
    collectives: tuple[Collective, ...]
    at_peak: tuple[Buffer, ...]


def read_program(compiled: Any) -> Program:
    """Reads a `jax.stages.Compiled`; nothing runs."""
    module = parse_hlo(compiled.as_text())
    cost = compiled.cost_analysis() or {}
    return Program(
        memory=read_memory(compiled),
        xla_flops=float(cost.get("flops", 0.0)),
        collectives=tuple(read_collectives(module)),
        at_peak=tuple(buffers_at_peak(module)),
    )


def read_memory(compiled: Any) -> Memory | None:
    """Returns what a `jax.stages.Compiled` needs on each device, or None where the compiler does not tell."""
    told = compiled.memory_analysis()
    if told is None:
        return None
    return Memory(
        arguments=told.argument_size_in_bytes,
        new_results=told.output_size_in_bytes - told.alias_size_in_bytes,
        temporaries=told.temp_size_in_bytes,
        code=told.generated_code_size_in_bytes,
    )
