"""On what, with what and when something was measured: without it a figure says nothing."""

from __future__ import annotations

import datetime
import os
import platform
import re
import sys
from importlib import metadata
from pathlib import Path

import jax

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
