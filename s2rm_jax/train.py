"""Train a network, evaluate it during training, and resume interrupted runs.

    python -m s2rm_jax.train --config configs/synthetic.py --workdir runs/demo
    python -m s2rm_jax.train --config configs/synthetic.py --workdir runs/small --config.batch_size=8 --config.steps=500

The workdir receives config.json, vocab.txt, checkpoints/ (the latest two and the best), metrics.jsonl, tensorboard/,
log/ and compilation_cache/; it may be on a bucket (gs://...). See docs/running_at_scale.md.
The same command on the same workdir continues a stopped run. With the same devices, on a CPU, the result is that of an
uninterrupted run (docs/determinism.md).
Ctrl-C and SIGTERM save a checkpoint and exit with status 0; a second Ctrl-C stops at once.
Several processes train together on a shared workdir if a TPU pod, SLURM, torchrun, Open MPI, MPICH, Kubernetes or these
flags define them: --coordinator_address=HOST:PORT --num_processes=N --process_id=I.
Any field of the configuration (s2rm_jax/config.py) can be set with --config.FIELD=VALUE.
"""

from __future__ import annotations

from typing import Any

from absl import flags
from ml_collections.config_flags import config_flags

from s2rm_jax import command_line
from s2rm_jax.parallel import distributed
from s2rm_jax.parallel.devices import keep_freed_memory

FLAGS = flags.FlagValues()
CONFIG = config_flags.DEFINE_config_file("config", None, command_line.CONFIG_HELP, flag_values=FLAGS)
join_others = distributed.define_flags(FLAGS)
PROFILE_STEPS = flags.DEFINE_string(
    "profile_steps", None, "FIRST:LAST, such as 10:15: steps to trace into WORKDIR/profile", flag_values=FLAGS
)
WORKDIR = flags.DEFINE_string("workdir", None, "the folder of the run, new or to be resumed", flag_values=FLAGS)


@command_line.returns_result(FLAGS)
def main() -> dict[str, Any] | None:
    """Train as the flags say; the first process returns the last metrics."""
    keep_freed_memory()
    join_others()
    from s2rm_jax.training.loop import train_and_evaluate
    from s2rm_jax.training.profile import parse_profile_steps

    assert WORKDIR.value is not None  # required
    profile_steps = range(0) if PROFILE_STEPS.value is None else parse_profile_steps(PROFILE_STEPS.value)
    metrics = train_and_evaluate(CONFIG.value, WORKDIR.value, profile_steps)
    return {"workdir": WORKDIR.value, "metrics": metrics} if distributed.is_first() else None


if __name__ == "__main__":
    command_line.run_and_exit(main, FLAGS, __doc__, required=("config", "workdir"))
