"""Metrics on disk or on a bucket: metrics.jsonl for programs, and for people what the configuration names.

Metrics as TensorBoard reads them: <workdir>/tensorboard, on disk or on a bucket.

Metrics as Weights & Biases shows them: a run of the project that config.wandb_project names.

docs/training.md has how to use it. Where they go and as whom is said as wandb itself takes it: `wandb login`,
WANDB_ENTITY, WANDB_MODE=offline and so on.
"""

from __future__ import annotations

import contextlib
import importlib.util
import secrets
import tempfile
import time
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from types import TracebackType
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from s2rm_jax.errors import UserError
from s2rm_jax.io import REWRITE_EVERY, JsonLines, copy_files, on_bucket, write_atomically
from s2rm_jax.parallel import distributed
from s2rm_jax.training.interrupt import Interrupted

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
                self._others.append(TensorBoardFiles(workdir, step))
            if config.wandb_project:
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


TENSORBOARD_DIRECTORY = "tensorboard"


class TensorBoardFiles:
    """Adds files to <workdir>/tensorboard by which what earlier ones say of steps after `step` counts no more."""

    def __init__(self, workdir: epath.Path, step: int):
        from tensorboardX import SummaryWriter

        self._folder = workdir / TENSORBOARD_DIRECTORY
        # These files are appended to, which a bucket cannot: there they are made here and copied as they grow.
        self._made_here = tempfile.TemporaryDirectory() if on_bucket(workdir) else None
        self._copied = time.monotonic()
        folder = self._made_here.name if self._made_here else str(self._folder)
        self._writer = SummaryWriter(folder, purge_step=step + 1)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Adds values of a step."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        if self._made_here and time.monotonic() - self._copied >= REWRITE_EVERY:
            self._writer.flush()
            copy_files(Path(self._made_here.name), self._folder)
            self._copied = time.monotonic()

    def close(self, failed: bool) -> None:
        """Closes the files."""
        with self._made_here or nullcontext():
            self._writer.close()
            if self._made_here:
                copy_files(Path(self._made_here.name), self._folder)


WANDB_DIRECTORY = "wandb"  # so named by wandb
ID_FILE = "wandb_run.txt"


def require_wandb(config: ConfigDict) -> None:
    """Checks that wandb is installed where the configuration asks for it.

    Raises:
        UserError: it is not.
    """
    if config.wandb_project and importlib.util.find_spec("wandb") is None:
        raise UserError(
            f"config.wandb_project is {config.wandb_project!r}, but wandb is not installed: pip install -e '.[wandb]', "
            "or leave the field empty."
        )


class WandbRun:
    """One run on Weights & Biases for the whole life of a workdir: <workdir>/wandb_run.txt knows its id.

    Steps that a killed run takes again are there twice. What wandb keeps on disk lies in <workdir>/wandb, or, where
    that is on a bucket, in a folder that goes with the process.
    """

    def __init__(self, workdir: epath.Path, config: ConfigDict):
        known = workdir / ID_FILE
        run_id = known.read_text().strip() if known.exists() else secrets.token_hex(4)
        self._made_here = tempfile.TemporaryDirectory() if on_bucket(workdir) else None
        with contextlib.ExitStack() as opened:
            if self._made_here:
                opened.callback(self._made_here.cleanup)
            self._run = _begin(workdir, config, run_id, self._made_here.name if self._made_here else str(workdir))
            opened.callback(self._run.finish, exit_code=1)
            write_atomically(known, f"{run_id}\n")
            # The number of the step is a value among others, as wandb's own can only grow.
            self._run.define_metric("step")
            self._run.define_metric("*", step_metric="step")
            opened.pop_all()  # nothing failed: `close` ends both

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Adds values of a step."""
        self._run.log({"step": step, **values})

    def close(self, failed: bool) -> None:
        """Ends the run, with the mark that it failed or not."""
        with self._made_here or contextlib.nullcontext():
            self._run.finish(exit_code=int(failed))


def _begin(workdir: epath.Path, config: ConfigDict, run_id: str, folder: str) -> Any:
    import wandb

    try:
        return wandb.init(
            project=config.wandb_project,
            name=workdir.name,
            id=run_id,
            resume="allow",
            config=config.to_dict(),
            dir=folder,
            settings=wandb.Settings(console="off", silent=True),
        )
    except wandb.Error as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"config.wandb_project={config.wandb_project}: wandb says: {reason.rstrip('.')}; `wandb login` logs "
            "in, WANDB_MODE=offline needs no login, and an empty field does without."
        ) from error
