"""Metrics on disk or on a bucket: metrics.jsonl for programs, and for people what the configuration names."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING

from etils import epath
from ml_collections import ConfigDict

from s2rm_jax.parallel import distributed
from s2rm_jax.training.interrupt import Interrupted
from s2rm_jax.training.workdir_files import JsonLines

if TYPE_CHECKING:
    from s2rm_jax.training.tensorboard_files import TensorBoardFiles
    from s2rm_jax.training.wandb_run import WandbRun

METRICS_FILE = "metrics.jsonl"


class MetricsWriter:
    """Appends metrics to <workdir>/metrics.jsonl, one JSON object a line, and to what the configuration names.

    These are TensorBoard files unless config.tensorboard is False, and W&B if config.wandb_project names a project.
    A run that goes on from `step` first takes back what an earlier life of it wrote about later steps, so that no step
    is told twice. Use it as a context manager, or `close()` it. Of several processes, the first writes for all.
    """

    def __init__(self, workdir: epath.PathLike, config: ConfigDict, step: int = 0):
        """Opens the files; of the configuration it reads `tensorboard` and `wandb_project`.

        Raises:
            UserError: Weights & Biases is asked for and cannot be had.
        """
        self._writes = distributed.is_first()
        if not self._writes:
            return
        workdir = epath.Path(workdir)
        self._lines = JsonLines(workdir / METRICS_FILE, keep=lambda line: line["step"] <= step)
        self._others: list[TensorBoardFiles | WandbRun] = []
        with contextlib.ExitStack() as opened:
            opened.callback(self.close, failed=True)
            if config.tensorboard:
                from s2rm_jax.training.tensorboard_files import TensorBoardFiles

                self._others.append(TensorBoardFiles(workdir, step))
            if config.wandb_project:
                from s2rm_jax.training.wandb_run import WandbRun

                self._others.append(WandbRun(workdir, config))
            opened.pop_all()  # all are open: whoever uses this closes them

    def write(self, step: int, part: str, metrics: Mapping[str, float]) -> None:
        """Writes the metrics of `part` ("train", "val", ...) at `step`."""
        if not self._writes:
            return
        values = {f"{part}/{name}": float(value) for name, value in metrics.items()}
        self._lines.write({"step": step, **values})
        for other in self._others:
            other.write(step, values)

    def close(self, failed: bool = False) -> None:
        """Closes the files, each also where another cannot be; `failed` says that the run ended by an error."""
        if not self._writes:
            return
        with contextlib.ExitStack() as closing:
            for other in self._others:
                closing.callback(other.close, failed)
            closing.callback(self._lines.close)

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close(failed=kind is not None and not issubclass(kind, Interrupted))
