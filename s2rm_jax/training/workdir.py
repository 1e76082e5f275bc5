"""Whether a folder may be the workdir of a run, so that nobody's own files get a run among them or are written over."""

from __future__ import annotations

from etils import epath

from s2rm_jax.errors import UserError
from s2rm_jax.training.checkpoint import CHECKPOINT_DIRECTORY, has_checkpoint
from s2rm_jax.training.compilation_cache import COMPILATION_CACHE_DIRECTORY
from s2rm_jax.training.heartbeat import HEARTBEAT_FILE
from s2rm_jax.training.profile import PROFILE_DIRECTORY
from s2rm_jax.training.run_config import CONFIG_FILE, VOCAB_FILE, load_config
from s2rm_jax.training.run_log import LOG_DIRECTORY
from s2rm_jax.training.tensorboard_files import TENSORBOARD_DIRECTORY
from s2rm_jax.training.wandb_run import ID_FILE, WANDB_DIRECTORY
from s2rm_jax.training.workdir_files import workdir_path
from s2rm_jax.training.writers import METRICS_FILE

_OF_A_START = {
    *(CONFIG_FILE, "config.tmp", VOCAB_FILE, CHECKPOINT_DIRECTORY, METRICS_FILE, TENSORBOARD_DIRECTORY),
    *(COMPILATION_CACHE_DIRECTORY, PROFILE_DIRECTORY, LOG_DIRECTORY, HEARTBEAT_FILE, "heartbeat.tmp"),
    *(WANDB_DIRECTORY, ID_FILE, "wandb_run.tmp"),
}
_LOGS = {".log", ".out", ".err"}  # a job's own record of the run is often put beside it


def require_workdir(workdir: epath.PathLike) -> None:
    """Checks that a run can begin or go on in `workdir`: a new or empty folder, that of a run, or of a failed start.

    Raises:
        UserError: it is a file, or a folder that holds something else.
    """
    workdir = workdir_path(workdir)
    try:
        exists = workdir.exists()
    except Exception as error:  # whatever those who reach buckets raise: no credentials, no such bucket, no network
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"--workdir {workdir} cannot be reached: {reason}") from error
    if exists and not workdir.is_dir():
        raise UserError(f"--workdir {workdir} is a file; give a folder: a new one, or that of a run to be continued.")
    if not workdir.is_dir() or has_checkpoint(workdir):
        return
    names = sorted(
        path.name for path in workdir.iterdir() if not path.name.startswith(".") and path.suffix not in _LOGS
    )
    strange = [name for name in names if name not in _OF_A_START]
    if strange and not _has_config(workdir):
        raise UserError(
            f"--workdir {workdir} holds files that are not of a run, such as {strange[0]}; give a new folder, or that "
            "of a run to be continued."
        )


def _has_config(workdir: epath.Path) -> bool:
    """Whether there is the configuration of a run; other programs have a config.json, too."""
    try:
        load_config(workdir)
    except UserError:
        return False
    return True
