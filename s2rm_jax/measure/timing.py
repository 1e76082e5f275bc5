"""Timing alternatives side by side, so that a busy moment of the machine falls on all of them.

On what, with what and when something was measured: without it a figure says nothing.
"""

from __future__ import annotations

import datetime
import os
import platform
import re
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import jax


@dataclass(frozen=True)
class Ratio:
    """How many times as long one alternative took as another: the median over rounds, and the quartiles."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Timings:
    """The seconds that each alternative took in each round; all have the same number of rounds."""

    seconds: Mapping[str, tuple[float, ...]]

    def median(self, name: str) -> float:
        """The median of the seconds of one alternative."""
        return median(self.seconds[name])

    def ratio(self, name: str, other: str) -> Ratio:
        """How many times as long as `other` the alternative `name` took, taken within each round."""
        ratios = [mine / theirs for mine, theirs in zip(self.seconds[name], self.seconds[other], strict=True)]
        low, _, high = quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
        return Ratio(median(ratios), low, high)


def jitted(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Callable[[], Any]:
    """Returns the compiled call of a function on arguments that lie on the device."""
    compiled = jax.jit(function)
    return lambda: compiled(*arguments)


def time_alternately(actions: Mapping[str, Callable[[], object]], rounds: int, warm_up: int = 1) -> Timings:
    """Runs each action once a round, every other round in reverse order, and waits for what it returns.

    Args:
        actions: by name; each returns arrays of JAX that it started to compute, or anything else when it is done.
        rounds: how often each is timed, at least 1.
        warm_up: how often each runs before, untimed: compiling, filling caches.
    """
    seconds: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(warm_up):
        for action in actions.values():
            jax.block_until_ready(action())
    for number in range(rounds):
        for name in list(actions)[:: -1 if number % 2 else 1]:
            began = time.perf_counter()
            jax.block_until_ready(actions[name]())
            seconds[name].append(time.perf_counter() - began)
    return Timings({name: tuple(times) for name, times in seconds.items()})


_PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "torch")
_SETTINGS = ("XLA_FLAGS", "LD_PRELOAD", "GLIBC_TUNABLES")  # of the environment; the last two choose the allocator


def describe_machine(arguments: list[str]) -> dict[str, str]:
    """Returns what a report says of the machine; `arguments` are those of the command line."""
    device = jax.devices()[0]
    return {
        "command": " ".join(["python -m s2rm_jax.benchmark", *arguments]),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "devices": f"{jax.device_count()} x {device.device_kind} ({device.platform})",
        "processor": f"{processor()}, {os.cpu_count()} cores",
        "load average before": load(),
        "versions": ", ".join([f"Python {platform.python_version()}", *_versions()]),
        **{name: os.environ.get(name, "") or "none" for name in _SETTINGS},
    }


def load() -> str:
    """Returns how busy the machine was over the last 1, 5 and 15 minutes, in processes that wanted to run."""
    return " ".join(f"{value:.2f}" for value in os.getloadavg()) if sys.platform != "win32" else "unknown"


def processor() -> str:
    """Returns the name of the processor."""
    file = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*:\s*(.+)$", file.read_text(), re.MULTILINE) if file.is_file() else None
    return found.group(1) if found else platform.processor() or platform.machine()


def _versions() -> list[str]:
    versions = []
    for name in _PACKAGES:
        try:
            versions.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            versions.append(f"{name} not installed")
    return versions
