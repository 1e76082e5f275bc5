"""Facts about a training step compiled for a TPU slice, with predicted scaling: as Markdown and JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from s2rm_jax.evaluation.tables import markdown_table
from s2rm_jax.measure.hlo import Collective, parse_hlo, read_collectives, total_by_kind
from s2rm_jax.parallel.devices import GIB, Chip, Memory, read_memory

ASSUMED_UTILIZATION = 0.4  # of the matrix units; an assumption, not a measurement
RING_LINKS = 2  # a ring through all chips sends in both directions; it fits into every slice, torus or not
LARGE = 2**20  # bytes from which a collective is listed separately


@dataclass(frozen=True)
class Program:
    """Facts about a compiled program."""

    memory: Memory | None  # per device; None if the compiler reports none
    xla_flops: float  # per device, as XLA counts them: the body of a loop once, and not only matrix products
    collectives: tuple[Collective, ...]  # largest first


def read_program(compiled: Any) -> Program:
    """Read a `jax.stages.Compiled` without running it."""
    module = parse_hlo(compiled.as_text())
    cost = compiled.cost_analysis() or {}
    return Program(
        memory=read_memory(compiled),
        xla_flops=float(cost.get("flops", 0.0)),
        collectives=tuple(read_collectives(module)),
    )


@dataclass(frozen=True)
class Scaling:
    """Predicted seconds of one step on each chip."""

    compute: float  # FLOPs / (matrix rate x assumed utilization)
    ring: float  # communication over one ring in both directions, the slowest case
    all_links: float  # communication over all links of the chip at once, the best case

    def efficiency(self, communication: float, overlapped: bool) -> float:
        """Return the time of a step without communication divided by that with it, all of it overlapped or none."""
        return self.compute / (max(self.compute, communication) if overlapped else self.compute + communication)


def predict_scaling(chip: Chip, flops: float, sent_bytes: float) -> Scaling:
    """Predict a step from the FLOPs of one chip and the bytes that it sends, ignoring latencies."""
    return Scaling(
        compute=flops / (chip.matrix_rate * ASSUMED_UTILIZATION),
        ring=sent_bytes / (RING_LINKS * chip.link_rate),
        all_links=sent_bytes / (chip.links * chip.link_rate),
    )


@dataclass(frozen=True)
class StepFacts:
    """A training step compiled for a slice of TPU chips."""

    topology: str
    chip: Chip
    chips: int
    settings: dict[str, Any]
    program: Program
    flops: int  # of the matrix products of one step on all chips, counted in the jaxpr, including recomputation
    model_flops: int  # the same without recomputation
    compile_seconds: float

    @property
    def memory(self) -> Memory:
        """Memory per chip, which the compiler for TPUs always reports."""
        assert self.program.memory is not None
        return self.program.memory

    @property
    def fits(self) -> bool:
        """Whether a chip has enough memory."""
        return self.memory.total <= self.chip.hbm * GIB

    @property
    def sent_bytes(self) -> float:
        """Bytes that each chip sends in a step."""
        return sum(one.sent_bytes for one in self.program.collectives)

    @property
    def scaling(self) -> Scaling:
        """The predicted scaling."""
        return predict_scaling(self.chip, self.flops / self.chips, self.sent_bytes)


def as_markdown(step: StepFacts) -> str:
    """Return the report as a section of a Markdown page."""
    collectives = _collective_rows(step.program.collectives)
    title = f"## {step.topology}, {step.settings['config.batch_size']} images"
    tables = [
        markdown_table(("", ""), _facts(step)),
        markdown_table(("collective", "size", "largest array", "origin"), collectives),
    ]
    return "\n\n".join([title, *tables]) + "\n"


def _facts(step: StepFacts) -> list[tuple[str, str]]:
    """Return (name, value) in the order in which they are shown."""
    memory, chip, scaling, flops = step.memory, step.chip, step.scaling, step.flops / step.chips

    def efficiency(overlapped: bool) -> str:
        ring, best = (100 * scaling.efficiency(seconds, overlapped) for seconds in (scaling.ring, scaling.all_links))
        return f"{ring:.0f} % over a ring, {best:.0f} % over all links"

    return [
        ("slice", f"{step.topology}: {step.chips} {chip.name} chips"),
        ("settings", ", ".join(f"{name} {value}" for name, value in step.settings.items())),
        (
            "memory per chip",
            f"{memory.total / GIB:.2f} of {chip.hbm} GiB: **{'fits' if step.fits else 'DOES NOT FIT'}**",
        ),
        (
            "memory by use",
            f"state and batch {memory.arguments / GIB:.2f}, temporary arrays {memory.temporaries / GIB:.2f}, "
            f"program {memory.code / GIB:.2f}, new results {memory.new_results / GIB:.2f} GiB",
        ),
        (
            "FLOPs per step",
            f"{step.flops / 1e12:.1f} T on all chips, {flops / 1e12:.2f} T per chip "
            f"({step.model_flops / step.chips / 1e12:.2f} T without recomputation; "
            f"XLA's count {step.program.xla_flops / 1e12:.2f} T)",
        ),
        *(
            (kind, f"{count} per step, {size / 1e6:,.2f} MB")
            for kind, (count, size) in total_by_kind(step.program.collectives).items()
        ),
        (
            "computation",
            f"{flops / 1e12:.2f} TFLOP / ({chip.matrix_rate / 1e12:.0f} TFLOP/s x {ASSUMED_UTILIZATION:.0%}, assumed) "
            f"= {1e3 * scaling.compute:.1f} ms",
        ),
        (
            "communication",
            f"{step.sent_bytes / 1e9:.3f} GB per chip / ({RING_LINKS} links x {chip.link_rate / 1e9:.0f} GB/s, ring) = "
            f"{1e3 * scaling.ring:.1f} ms; / (all {chip.links} links x {chip.link_rate / 1e9:.0f} GB/s) = "
            f"{1e3 * scaling.all_links:.1f} ms",
        ),
        ("efficiency, no overlap", efficiency(overlapped=False)),
        ("efficiency, full overlap", efficiency(overlapped=True)),
        ("compile time", f"{step.compile_seconds:.0f} s"),
    ]


def _collective_rows(collectives: Sequence[Collective]) -> list[tuple[str, str, str, str]]:
    """Return (kind and devices, bytes, arrays, place) of large collectives, alike ones joined, and of the rest."""
    alike: dict[tuple[str, str, str], list[Collective]] = {}
    for one in collectives:
        if one.bytes >= LARGE:
            largest = max(one.arrays, key=lambda array: array.bytes)
            more = f" and {len(one.arrays) - 1} more" if len(one.arrays) > 1 else ""
            alike.setdefault((f"{one.kind} of {one.group}", f"{largest}{more}", one.place), []).append(one)
    rows = []
    for (kind, arrays, place), group in alike.items():
        times = sum(one.times for one in group)
        rows.append((f"{times} x {kind}" if times > 1 else kind, _megabytes(group), arrays, place))
    small = [one for one in collectives if one.bytes < LARGE]
    if small:
        kinds = ", ".join(f"{count} {kind}" for kind, (count, _) in total_by_kind(small).items())
        rows.append((f"smaller: {kinds}", _megabytes(small), "", ""))
    return rows or [("none", "", "", "")]


def _megabytes(collectives: Sequence[Collective]) -> str:
    return f"{sum(one.bytes for one in collectives) / 1e6:,.2f} MB"


def as_json(step: StepFacts) -> dict[str, Any]:
    """Return the numbers in bytes, FLOPs and seconds."""
    memory, scaling = step.memory, step.scaling
    return {
        "topology": step.topology,
        "chips": step.chips,
        "settings": step.settings,
        "hbm": step.chip.hbm * GIB,
        "memory": {**vars(memory), "total": memory.total},
        "fits": step.fits,
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
        "predicted": {"assumed_utilization": ASSUMED_UTILIZATION, **vars(scaling)},
        "compile_seconds": step.compile_seconds,
    }
