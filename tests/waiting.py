"""Wait for what another process or thread does, and read the metrics that a run has written so far."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

TIMEOUT = 600  # seconds; only reached if something hangs
OF_THE_CLOCK = ("_per_second", "waiting_for_input")  # ends of the names of metrics


def wait_for(
    condition: Callable[[], object],
    meanwhile: Callable[[], object] = lambda: None,
    *,
    seconds: float = TIMEOUT,
    pause: float = 0.005,
) -> None:
    """Wait until a condition holds; before each pause call `meanwhile`, which can assert that a process still runs."""
    end = time.monotonic() + seconds
    while not condition():
        meanwhile()
        assert time.monotonic() < end
        time.sleep(pause)


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """Return the lines of metrics.jsonl, without the metrics that depend on the clock."""
    path = workdir / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [{name: value for name, value in line.items() if not name.endswith(OF_THE_CLOCK)} for line in lines]
