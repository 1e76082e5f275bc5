"""Metrics on disk: metrics.jsonl for programs, TensorBoard files for people."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from s2rm_jax.parallel import distributed

METRICS_FILE = "metrics.jsonl"
TENSORBOARD_DIRECTORY = "tensorboard"


class MetricsWriter:
    """Appends metrics to <workdir>/metrics.jsonl, one JSON object a line, and to <workdir>/tensorboard.

    A run that goes on from `step` first takes back what an earlier life of it wrote about later steps, so that no step
    is told twice. Use it as a context manager, or `close()` it. Of several processes, the first writes for all.
    """

    def __init__(self, workdir: Path, step: int = 0):
        self._writes = distributed.is_first()
        if not self._writes:
            return
        from tensorboardX import SummaryWriter

        path = workdir / METRICS_FILE
        _drop_lines_after(path, step)
        self._lines = path.open("a", encoding="utf-8")
        self._tensorboard = SummaryWriter(str(workdir / TENSORBOARD_DIRECTORY), purge_step=step + 1)

    def write(self, step: int, part: str, metrics: Mapping[str, float]) -> None:
        """Writes the metrics of `part` ("train", "val", ...) at `step`."""
        if not self._writes:
            return
        values = {f"{part}/{name}": float(value) for name, value in metrics.items()}
        self._lines.write(json.dumps({"step": step, **values}) + "\n")
        self._lines.flush()
        for name, value in values.items():
            self._tensorboard.add_scalar(name, value, step)

    def close(self) -> None:
        """Closes the files."""
        if not self._writes:
            return
        self._lines.close()
        self._tensorboard.close()

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _drop_lines_after(path: Path, step: int) -> None:
    if not path.exists():
        return
    kept = [line for line in path.read_text(encoding="utf-8").splitlines() if _is_whole(line) and _step(line) <= step]
    fresh = path.with_suffix(".tmp")
    fresh.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
    fresh.replace(path)


def _is_whole(line: str) -> bool:
    # A run that was killed may have left half a line behind.
    return line.startswith("{") and line.endswith("}")


def _step(line: str) -> int:
    return int(json.loads(line)["step"])
