"""Trains variants of the network alike, several seeds each, and compares them: which part earns its place.

    python -m s2rm_jax.ablate --suite steps --out runs/ablations
    python -m s2rm_jax.ablate --suite casg --seeds 2 --steps 1000 --out runs/ablations_1000
    python -m s2rm_jax.ablate --suite all --config configs/synthetic_benchmark.py --config.vision.embed_dim=32 --out ...

The suites: steps (of S2RM), recurrence, balance, casg, width, expressions (expressions an image at equal cost), all.
Each run has a workdir, OUT/runs/VARIANT-seed-S, which can be evaluated and predicted with like any other. The same
command continues where it stopped (Ctrl-C saves) and trains nothing twice, also for another suite that shares a
variant. OUT/SUITE/ receives ablations.md (tables with the spread over seeds), ablations.json and plots/, written anew
after every run. By default it trains on the synthetic benchmark (docs/synthetic_benchmark.md).

Given several times at once it shares the runs: one process for each core (`taskset -c 0` before the command, `-c 1`
before the next) or for each GPU:

    CUDA_VISIBLE_DEVICES=0 python -m s2rm_jax.ablate ...     # and the same with 1, 2, ...
"""

from __future__ import annotations

from pathlib import Path

from absl import flags
from ml_collections.config_flags import config_flags

from s2rm_jax import command_line
from s2rm_jax.config import find_config
from s2rm_jax.measure.ablation_suites import SUITES

FLAGS = flags.FlagValues()
SUITE = flags.DEFINE_enum("suite", None, [*SUITES, "all"], "what is compared", flag_values=FLAGS)
SEEDS = flags.DEFINE_integer("seeds", 3, "how many runs of each variant", lower_bound=1, flag_values=FLAGS)
STEPS = flags.DEFINE_integer(
    "steps", None, "of each run; by default those of the configuration", lower_bound=1, flag_values=FLAGS
)
CONFIG = config_flags.DEFINE_config_file(
    "config", None, "a configuration with synthetic scenes; by default the benchmark", flag_values=FLAGS
)
OUT = flags.DEFINE_string("out", None, "the folder of runs and tables", flag_values=FLAGS)


def main() -> None:
    """Compares as the flags log."""
    from s2rm_jax.io import make_output_folder
    from s2rm_jax.measure.ablation_report import write_report
    from s2rm_jax.measure.ablation_runs import Pace, carry_out, claim_on, claimed, finished, finished_results, plan
    from s2rm_jax.measure.ablation_suites import variants_of, with_steps
    from s2rm_jax.training.logging import log

    suite = SUITE.value
    assert suite is not None and OUT.value is not None  # required
    base = CONFIG.value or config_flags.ConfigFileFlagParser("config").parse(find_config("synthetic_benchmark"))
    base = with_steps(base, STEPS.value or base.steps)
    variants = variants_of(suite)
    out = make_output_folder(OUT.value)
    runs = plan(variants, SEEDS.value or 1, base, out)
    folder = make_output_folder(out / suite)

    left = [run for run in runs if finished(run) is None]
    log(f"{len(runs)} runs of {base.steps:,} steps, {len(left)} of them left: {', '.join(v.name for v in variants)}")

    def report() -> Path:
        with claim_on(folder):
            return write_report(folder, suite, base.steps, variants, finished_results(runs))

    pace = Pace(runs)
    for run in claimed(left):
        if finished(run) is None:  # else another process has finished it meanwhile
            at = f"{runs.index(run) + 1}/{len(runs)} of {suite}"
            log(f"== run {at}: {run.variant.name}, seed {run.seed} | ETA of the suite {pace.left}")
            with pace.measured(run):
                carry_out(run)
        if variants[0].name in finished_results(runs):  # what the others are compared with
            report()
    log(report().read_text(encoding="utf-8"))
    log(f"{len(runs)} runs of {base.steps:,} steps; tables and figures are in {folder}")


if __name__ == "__main__":
    command_line.run(main, FLAGS, __doc__, required=("suite", "out"))
