"""Time alternatives side by side, describe the machine, and write the report of a benchmark."""

from __future__ import annotations

import datetime
import json
import os
import platform
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import jax
import jax.numpy as jnp

from s2rm_jax.evaluation.tables import markdown_table

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "torch")
_ENVIRONMENT = ("XLA_FLAGS", "LD_PRELOAD", "GLIBC_TUNABLES")  # the last two choose the memory allocator

Cell = str | int | float
Row = Sequence[Cell]


@dataclass(frozen=True)
class Ratio:
    """Time of one alternative divided by that of another: median and quartiles over rounds."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f} to {self.high:.2f})"


@dataclass(frozen=True)
class Timings:
    """The seconds of each alternative in each round; all have the same number of rounds."""

    seconds: Mapping[str, tuple[float, ...]]

    def median(self, name: str) -> float:
        """Return the median seconds of one alternative."""
        return median(self.seconds[name])

    def ratio(self, name: str, other: str) -> Ratio:
        """Return the time of `name` divided by that of `other`, taken within each round."""
        ratios = [mine / theirs for mine, theirs in zip(self.seconds[name], self.seconds[other], strict=True)]
        low, _, high = quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
        return Ratio(median(ratios), low, high)


def jitted(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Callable[[], Any]:
    """Return a compiled call of a function on arguments that are on the device."""
    compiled = jax.jit(function)
    return lambda: compiled(*arguments)


def gradient(function: Callable[..., Any], argnums: Sequence[int]) -> Callable[..., Any]:
    """Return the gradient of a stand-in loss of a function: the sum of the mean squares of its outputs."""

    def loss(*arguments: Any) -> jax.Array:
        leaves = jax.tree.leaves(function(*arguments))
        return sum((jnp.square(leaf.astype(jnp.float32)).mean() for leaf in leaves), jnp.float32(0))

    return jax.grad(loss, argnums=argnums)


def time_alternately(actions: Mapping[str, Callable[[], object]], rounds: int, warm_up: int = 1) -> Timings:
    """Run every action once per round and wait for its result.

    Alternating spreads the load of other programs over all alternatives. Every other round runs in reverse order.

    Args:
        actions: by name; each returns JAX arrays that may still be being computed, or anything else when it is done.
        rounds: timed runs of each action, at least 1.
        warm_up: untimed runs of each action before that, which compile and fill caches.
    """
    seconds: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(warm_up):
        for action in actions.values():
            jax.block_until_ready(action())
    for number in range(rounds):
        for name in list(actions)[:: -1 if number % 2 else 1]:
            start = time.perf_counter()
            jax.block_until_ready(actions[name]())
            seconds[name].append(time.perf_counter() - start)
    return Timings({name: tuple(times) for name, times in seconds.items()})


def describe_machine(arguments: Sequence[str]) -> dict[str, str]:
    """Return the command (with its `arguments`), date, hardware, load, versions and environment of a report."""
    device = jax.devices()[0]
    cpuinfo = Path("/proc/cpuinfo")
    model = re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(), re.MULTILINE) if cpuinfo.is_file() else None
    processor = model.group(1) if model else platform.processor() or platform.machine()
    load = " ".join(f"{value:.2f}" for value in os.getloadavg()) if hasattr(os, "getloadavg") else "unknown"
    return {
        "command": " ".join(["python -m s2rm_jax.benchmark", *arguments]),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "devices": f"{jax.device_count()} x {device.device_kind} ({device.platform})",
        "processor": f"{processor}, {os.cpu_count()} cores",
        "load average before": load,
        "versions": ", ".join([f"Python {platform.python_version()}", *map(_version, _PACKAGES)]),
        **{name: os.environ.get(name, "") or "none" for name in _ENVIRONMENT},
    }


def _version(package: str) -> str:
    try:
        return f"{package} {metadata.version(package)}"
    except metadata.PackageNotFoundError:
        return f"{package} not installed"


@dataclass(frozen=True)
class Section:
    """One table of a report.

    `text` describes the measurement and the expected result; `figures` are the key numbers, for programs.
    """

    title: str
    text: str
    head: Sequence[str]
    rows: Sequence[Row]
    figures: Mapping[str, int | float] = field(default_factory=dict)

    def markdown(self) -> str:
        """Return the section as Markdown."""
        lines = [f"## {self.title}", "", self.text, ""]
        if self.rows:
            lines.append(markdown_table(self.head, [[format_cell(cell) for cell in row] for row in self.rows]))
        return "\n".join(lines).rstrip() + "\n"


def format_cell(value: Cell) -> str:
    """Format a number with three significant digits; strings are unchanged."""
    if isinstance(value, str):
        return value
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def report_markdown(machine: Mapping[str, str], sections: Sequence[Section]) -> str:
    """Return the whole report as Markdown."""
    facts = [f"- {name}: {f'`{value}`' if name == 'command' else value}" for name, value in machine.items()]
    return "\n".join(["# Benchmark", "", *facts, "", *(section.markdown() for section in sections)])


def write_report(folder: Path, machine: Mapping[str, str], sections: Sequence[Section]) -> None:
    """Write benchmark.md, benchmark.json and the plots into a folder, which is created.

    Raises:
        OSError: the files cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "benchmark.md").write_text(report_markdown(machine, sections), encoding="utf-8")
    content = json.dumps({"machine": dict(machine), "sections": [asdict(one) for one in sections]}, indent=2)
    (folder / "benchmark.json").write_text(content + "\n", encoding="utf-8")
