"""Trains a network, evaluates it as it goes, and resumes a run that was interrupted.

    python -m s2rm_jax.train --config configs/synthetic.py --workdir runs/synthetic
    python -m s2rm_jax.train --config configs/synthetic.py --workdir runs/small --config.batch_size=8 --config.steps=500

The workdir receives config.json, vocab.txt, checkpoints/ (the latest two and the best), metrics.jsonl, tensorboard/,
log/, heartbeat.json and compilation_cache/; it may be on a bucket (gs://...). docs/running_at_scale.md has the details.
The same command on the same workdir continues where the run stopped, exactly as if it had never stopped.
Ctrl-C and SIGTERM save, say at which step, and exit with status 0; a second Ctrl-C stops at once.
Several processes train together where a TPU pod, SLURM, Open MPI, Kubernetes or flags say so, on a workdir that all
share: --coordinator_address=HOST:PORT --num_processes=N --process_id=I.
Any field of the configuration (s2rm_jax/config.py) can be set by --config.FIELD=VALUE.
"""

from __future__ import annotations

from typing import Any

from absl import flags
from ml_collections.config_flags import config_flags

from s2rm_jax import command_line
from s2rm_jax.parallel import distributed

FLAGS = flags.FlagValues()
CONFIG = config_flags.DEFINE_config_file(
    "config", None, "a file of configs/, with an argument after a colon where it takes one", flag_values=FLAGS
)
join_others = distributed.define_flags(FLAGS)
PROFILE_STEPS = flags.DEFINE_string(
    "profile_steps", None, "FIRST:LAST, such as 10:15: steps to be traced into WORKDIR/profile", flag_values=FLAGS
)
WORKDIR = flags.DEFINE_string("workdir", None, "the directory of the run, new or to be resumed", flag_values=FLAGS)


@command_line.returns_result(FLAGS)
def main() -> dict[str, Any] | None:
    """Trains as the flags say; returns the last metrics, on one process."""
    join_others()
    from s2rm_jax.training.compile import parse_profile_steps
    from s2rm_jax.training.loop import train_and_evaluate

    assert WORKDIR.value is not None  # required
    profile_steps = range(0) if PROFILE_STEPS.value is None else parse_profile_steps(PROFILE_STEPS.value)
    metrics = train_and_evaluate(CONFIG.value, WORKDIR.value, profile_steps)
    return {"workdir": WORKDIR.value, "metrics": metrics} if distributed.is_first() else None


if __name__ == "__main__":
    command_line.run(main, FLAGS, __doc__, required=("config", "workdir"))
