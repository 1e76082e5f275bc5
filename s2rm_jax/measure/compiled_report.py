"""Facts about a training step compiled for a TPU slice, with predicted scaling: as Markdown and JSON.

The collectives are read from the text of the optimized HLO module.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from s2rm_jax.evaluation.tables import markdown_table
from s2rm_jax.parallel.devices import ASSUMED_MFU, GIB, Chip, Memory, read_memory

RING_LINKS = 2  # a ring through all chips sends in both directions; it fits into every slice, torus or not
LARGE = 2**20  # bytes from which a collective is listed separately

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
        compute=flops / (chip.matrix_rate * ASSUMED_MFU),
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
            f"{flops / 1e12:.2f} TFLOP / ({chip.matrix_rate / 1e12:.0f} TFLOP/s x {ASSUMED_MFU:.0%}, assumed) "
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
        "predicted": {"assumed_utilization": ASSUMED_MFU, **vars(scaling)},
        "compile_seconds": step.compile_seconds,
    }
