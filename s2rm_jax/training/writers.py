"""Metrics on disk or on a bucket: metrics.jsonl for programs, TensorBoard files for people."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from etils import epath

from s2rm_jax.parallel import distributed
from s2rm_jax.training.workdir_files import REWRITE_EVERY, JsonLines, copy_files, on_bucket

METRICS_FILE = "metrics.jsonl"
TENSORBOARD_DIRECTORY = "tensorboard"


class MetricsWriter:
    """Appends metrics to <workdir>/metrics.jsonl, one JSON object a line, and to <workdir>/tensorboard.

    A run that goes on from `step` first takes back what an earlier life of it wrote about later steps, so that no step
    is told twice. Use it as a context manager, or `close()` it. Of several processes, the first writes for all.
    """

    def __init__(self, workdir: epath.PathLike, step: int = 0):
        self._writes = distributed.is_first()
        if not self._writes:
            return
        from tensorboardX import SummaryWriter

        workdir = epath.Path(workdir)
        self._lines = JsonLines(workdir / METRICS_FILE, keep=lambda line: line["step"] <= step)
        self._folder = workdir / TENSORBOARD_DIRECTORY
        # TensorBoard's files are appended to, which a bucket cannot: there they are made here and copied as they grow.
        self._made_here = tempfile.TemporaryDirectory() if on_bucket(workdir) else None
        self._copied = time.monotonic()
        folder = self._made_here.name if self._made_here else str(self._folder)
        self._tensorboard = SummaryWriter(folder, purge_step=step + 1)

    def write(self, step: int, part: str, metrics: Mapping[str, float]) -> None:
        """Writes the metrics of `part` ("train", "val", ...) at `step`."""
        if not self._writes:
            return
        values = {f"{part}/{name}": float(value) for name, value in metrics.items()}
        self._lines.write({"step": step, **values})
        for name, value in values.items():
            self._tensorboard.add_scalar(name, value, step)
        if self._made_here and time.monotonic() - self._copied >= REWRITE_EVERY:
            self._tensorboard.flush()
            copy_files(Path(self._made_here.name), self._folder)
            self._copied = time.monotonic()

    def close(self) -> None:
        """Closes the files."""
        if not self._writes:
            return
        self._lines.close()
        self._tensorboard.close()
        if self._made_here:
            copy_files(Path(self._made_here.name), self._folder)
            self._made_here.cleanup()

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
