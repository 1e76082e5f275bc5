"""Metrics as Weights & Biases shows them: a run of the project that config.wandb_project names.

docs/training.md has how to use it. Where they go and as whom is said as wandb itself takes it: `wandb login`,
WANDB_ENTITY, WANDB_MODE=offline and so on.
"""

from __future__ import annotations

import contextlib
import importlib.util
import secrets
import tempfile
from collections.abc import Mapping
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from s2rm_jax.errors import UserError
from s2rm_jax.training.workdir_files import on_bucket, write_whole

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
            write_whole(known, f"{run_id}\n")
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
