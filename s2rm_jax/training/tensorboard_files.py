"""Metrics as TensorBoard reads them: <workdir>/tensorboard, on disk or on a bucket."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path

from etils import epath

from s2rm_jax.training.workdir_files import REWRITE_EVERY, copy_files, on_bucket

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
