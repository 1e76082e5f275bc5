"""The facts about a compiled training step on a TPU slice, as lines for people and as JSON.

A compiled program read as a whole: its memory, its FLOPs, its exchanges.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from s2rm_jax.measure.chips import ASSUMED_UTILISATION, GIB, RING_LINKS, Chip, Scaling, predict_scaling
from s2rm_jax.measure.collectives import Collective, read_collectives, total_by_kind
from s2rm_jax.measure.hlo import Buffer, buffers_at_peak, parse_hlo


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


LARGE = 2**20  # bytes from which an exchange is listed by itself
BUFFERS = 8  # how many of the largest temporary arrays are listed


@dataclass(frozen=True)
class StepFacts:
    """A training step compiled for a slice of TPU chips.

    flops        of matrix products of one step on all chips, from the jaxpr: loops counted out, recomputation included
    model_flops  the same without recomputation
    """

    topology: str
    chip: Chip
    chips: int
    settings: dict[str, Any]
    program: Program
    flops: int
    model_flops: int
    compile_seconds: float

    @property
    def memory(self) -> Memory:
        """What each chip needs; the compiler for TPUs always tells."""
        assert self.program.memory is not None
        return self.program.memory

    @property
    def scaling(self) -> Scaling:
        """The prediction."""
        return predict_scaling(self.chip, self.flops / self.chips, self.program.collectives)


def facts(step: StepFacts) -> list[tuple[str, str]]:
    """Returns (what, its value) in the order in which they are shown."""
    memory, chip, scaling = step.memory, step.chip, step.scaling
    fits = "fits" if memory.total <= chip.hbm * GIB else "DOES NOT FIT"
    rows = [
        ("slice", f"{step.topology}: {step.chips} {chip.name} chips"),
        ("settings", ", ".join(f"{name} {value}" for name, value in step.settings.items())),
        ("memory of a chip", f"{memory.total / GIB:.2f} of {chip.hbm} GiB: **{fits}**"),
        (
            "of which",
            f"state and batch {memory.arguments / GIB:.2f}, temporary {memory.temporaries / GIB:.2f}, "
            f"program {memory.code / GIB:.2f}, new results {memory.new_results / GIB:.2f} GiB",
        ),
        (
            "FLOPs of a step",
            f"{step.flops / 1e12:.1f} T on all chips, {step.flops / step.chips / 1e12:.2f} T on each "
            f"({step.model_flops / step.chips / 1e12:.2f} T without recomputation; "
            f"XLA's own count {step.program.xla_flops / 1e12:.2f} T)",
        ),
    ]
    for kind, (count, size) in total_by_kind(step.program.collectives).items():
        rows.append((kind, f"{count} in a step, {size / 1e6:,.2f} MB"))
    rows += [
        ("computing", _computing(step)),
        ("sending", _sending(step)),
        ("efficiency, nothing overlapped", _efficiency(scaling, overlapped=False)),
        ("efficiency, all overlapped", _efficiency(scaling, overlapped=True)),
        ("compiled in", f"{step.compile_seconds:.0f} s"),
    ]
    return rows


def exchange_rows(collectives: tuple[Collective, ...]) -> list[tuple[str, str, str, str]]:
    """Returns (kind and devices, bytes, arrays, place) of the large exchanges, and one row for all the small ones.

    Those that look the same share a row.
    """
    alike: dict[tuple[str, str, str], list[Collective]] = {}
    for one in collectives:
        if one.bytes >= LARGE:
            largest = max(one.arrays, key=lambda array: array.bytes)
            more = f" and {len(one.arrays) - 1} more" if len(one.arrays) > 1 else ""
            alike.setdefault((f"{one.kind} of {one.group}", f"{largest}{more}", one.place), []).append(one)
    rows = []
    for (kind, arrays, place), group in alike.items():
        times = sum(one.times for one in group)
        size = sum(one.bytes for one in group)
        rows.append((f"{times} x {kind}" if times > 1 else kind, f"{size / 1e6:,.2f} MB", arrays, place))
    small = [one for one in collectives if one.bytes < LARGE]
    if small:
        together = sum(one.bytes for one in small)
        kinds = ", ".join(f"{count} {kind}" for kind, (count, _) in total_by_kind(small).items())
        rows.append((f"smaller ones: {kinds}", f"{together / 1e6:,.2f} MB", "", ""))
    return rows


def buffer_rows(step: StepFacts) -> list[tuple[str, str, str]]:
    """Returns (bytes, array, place) of the largest temporary arrays alive where memory is fullest."""
    return [
        (f"{buffer.bytes / 2**20:,.1f} MiB", str(buffer.array), buffer.place)
        for buffer in step.program.at_peak[:BUFFERS]
    ]


def as_text(step: StepFacts) -> str:
    """Returns the whole report for a terminal."""
    rows = facts(step)
    width = max(len(what) for what, _ in rows)
    lines = [f"{what:<{width}}  {value.replace('**', '')}" for what, value in rows]
    lines += ["", "exchanges:", *("  " + "  ".join(cell for cell in row if cell) for row in _exchanges(step))]
    lines += ["", "largest temporary arrays where memory is fullest (an estimate):"]
    lines += ["  " + "  ".join(row) for row in buffer_rows(step)]
    return "\n".join(lines)


def as_markdown(step: StepFacts) -> str:
    """Returns the whole report as a section of a page."""
    batch = step.settings["config.batch_size"]
    lines = [f"## {step.topology}, {batch} images", "", *_table(("", ""), facts(step))]
    lines += ["", *_table(("exchange", "size", "largest array", "from"), _exchanges(step))]
    lines += ["", *_table(("largest temporary arrays", "array", "from"), buffer_rows(step))]
    return "\n".join(lines) + "\n"


def as_json(step: StepFacts) -> dict[str, Any]:
    """Returns the numbers, in bytes, FLOPs and seconds."""
    memory, scaling = step.memory, step.scaling
    return {
        "topology": step.topology,
        "chips": step.chips,
        "settings": step.settings,
        "hbm": step.chip.hbm * GIB,
        "memory": {**vars(memory), "total": memory.total},
        "fits": memory.total <= step.chip.hbm * GIB,
        "flops": step.flops,
        "model_flops": step.model_flops,
        "xla_flops_of_a_chip": step.program.xla_flops,
        "collectives": [
            {
                "kind": one.kind,
                "bytes": one.bytes,
                "times": one.times,
                "devices": one.group,
                "arrays": [str(array) for array in one.arrays],
                "from": one.place,
            }
            for one in step.program.collectives
        ],
        "buffers_at_peak": [
            {"bytes": buffer.bytes, "array": str(buffer.array), "from": buffer.place} for buffer in step.program.at_peak
        ],
        "predicted": {"assumed_utilisation": ASSUMED_UTILISATION, **vars(scaling)},
        "compile_seconds": step.compile_seconds,
    }


def _exchanges(step: StepFacts) -> list[tuple[str, str, str, str]]:
    return exchange_rows(step.program.collectives) or [("none", "", "", "")]


def _computing(step: StepFacts) -> str:
    flops = step.flops / step.chips
    return (
        f"{flops / 1e12:.2f} TFLOP / ({step.chip.matrix_rate / 1e12:.0f} TFLOP/s x {ASSUMED_UTILISATION:.0%}, assumed) "
        f"= {1e3 * step.scaling.compute:.1f} ms"
    )


def _sending(step: StepFacts) -> str:
    sent = sum(one.sent_bytes for one in step.program.collectives)
    rate, links = step.chip.link_rate / 1e9, step.chip.links
    return (
        f"{sent / 1e9:.3f} GB a chip / ({RING_LINKS} links x {rate:.0f} GB/s, a ring) = "
        f"{1e3 * step.scaling.ring:.1f} ms; / (all {links} links x {rate:.0f} GB/s) = "
        f"{1e3 * step.scaling.all_links:.1f} ms"
    )


def _efficiency(scaling: Scaling, overlapped: bool) -> str:
    ring, best = (100 * scaling.efficiency(sending, overlapped) for sending in (scaling.ring, scaling.all_links))
    return f"{ring:.0f} % over a ring, {best:.0f} % over all links"


def _table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    lines = [header, ("---",) * len(header), *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]
