"""Train variants of the network with the same budget and several seeds, and compare them.

    python -m s2rm_jax.ablate --suite leave_one_out --out runs/ablations
    python -m s2rm_jax.ablate --suite casg --seeds 2 --steps 1000 --out runs/ablations_1000
    python -m s2rm_jax.ablate --suite fusion_by_decoder --variants plain_fpn,plain_sum --out runs/ablations
    python -m s2rm_jax.ablate --suite all --config configs/synthetic_benchmark.py --config.vision.embed_dim=32 --out ...
    python -m s2rm_jax.ablate --suite leave_one_out --variants full,sum --config refcoco --config.steps=20000 \\
      --splits val,testA,testB --out runs/on_refcoco

Suites: cumulative, fusion_by_decoder, leave_one_out (of the parts of the fusion), casg, width, expressions (per image,
at equal cost), recipe, far, far_long, all (every suite but far and far_long). Runs train on the synthetic benchmark,
those of `far` and `far_long` on its far setting (docs/synthetic_benchmark.md); each of these two needs its own --out.

--config names another configuration, which may train on photographs. It needs a fixed number of steps. --splits names
the splits that are scored after training.

--suite FILE.json is a suite of your own: {VARIANT: {FIELD: VALUE}}. Its variants are compared with `full`, the
unchanged configuration:

    {"sum": {"fusion.mode": "sum"}, "flipped": {"input.augment.flip": 0.5}}

Each run has a workdir, OUT/runs/VARIANT-seed-S, which `evaluate` and `predict` read like any other. The same command
continues after a stop (Ctrl-C saves) and trains no run twice, not even one that another suite shares. After every run
it updates OUT/SUITE/: ablations.md (tables with the spread over seeds), ablations.json and plots/. They cover
every finished run of the suite in OUT, including those that --variants and --seeds leave out. A run whose loss becomes
NaN does not stop the others; the error at the end names it.

With --collect FILE, the command trains nothing; it adds the results of the finished runs in OUT to a JSON file:

    python -m s2rm_jax.ablate --suite far --out runs/far --collect docs/results/ablation_runs.json

Several processes with the same --out share the runs: start one per core (`taskset -c 0`, `-c 1`, ...) or per GPU:

    CUDA_VISIBLE_DEVICES=0 python -m s2rm_jax.ablate ...     # and the same with 1, 2, ...
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags
from ml_collections.config_flags import config_flags

from s2rm_jax import command_line
from s2rm_jax.config import find_config
from s2rm_jax.errors import UserError, counted
from s2rm_jax.measure.ablation_suites import SUITES
from s2rm_jax.parallel.devices import keep_freed_memory

if TYPE_CHECKING:
    from s2rm_jax.measure.ablation_runs import Run

FLAGS = flags.FlagValues()
SUITE = flags.DEFINE_string(
    "suite",
    None,
    f"the suite of variants: {', '.join(SUITES)}, all (every suite but far and far_long), or a JSON file of your own",
    flag_values=FLAGS,
)
VARIANTS = flags.DEFINE_list(
    "variants", [], "the variants to train, such as full,plain_sum; by default the whole suite", flag_values=FLAGS
)
SEEDS = flags.DEFINE_integer("seeds", 3, "runs to train of each variant", lower_bound=1, flag_values=FLAGS)
STEPS = flags.DEFINE_integer(
    "steps", None, "steps of each run; defaults to config.steps", lower_bound=1, flag_values=FLAGS
)
CONFIG = config_flags.DEFINE_config_file(
    "config", None, "a configuration; defaults to synthetic_benchmark", flag_values=FLAGS
)
SPLITS = flags.DEFINE_list(
    "splits",
    [],
    "the splits to score after training; the first is that of the plots and differences; by default test,compositional "
    "of generated scenes, and config.eval.split of other data",
    flag_values=FLAGS,
)
COLLECT = flags.DEFINE_string(
    "collect",
    None,
    "train nothing; add the results of all finished runs of the suite to this JSON file",
    flag_values=FLAGS,
)
OUT = flags.DEFINE_string("out", None, "a folder for runs and reports", flag_values=FLAGS)


def main() -> None:
    """Train the runs that are left and write the report after each."""
    keep_freed_memory()
    from s2rm_jax.input.sources import build_source
    from s2rm_jax.io import make_output_folder
    from s2rm_jax.measure.ablation_report import collect, write_ablations
    from s2rm_jax.measure.ablation_runs import load_result, load_results, lock, plan, plan_finished
    from s2rm_jax.measure.ablation_suites import FAR, variants_of, with_steps
    from s2rm_jax.training.logging import log
    from s2rm_jax.training.loop import LossNotFinite

    assert SUITE.value is not None and OUT.value is not None  # required
    suite = Path(SUITE.value).stem if SUITE.value.endswith(".json") else SUITE.value
    if COLLECT.value and CONFIG.value:
        raise UserError("--collect is for runs on the synthetic benchmark; leave out --config")
    if COLLECT.value and SPLITS.value:
        raise UserError("--collect adds the scores of all splits; leave out --splits")
    if STEPS.value and "steps" in command_line.given_fields(FLAGS):
        raise UserError("--steps and --config.steps are both given; give one of them")
    if "seed" in command_line.given_fields(FLAGS):
        raise UserError(
            "--config.seed: ablate itself sets the seeds 0, 1, ...; give the number of seeds as --seeds instead"
        )
    if COLLECT.value and not Path(OUT.value).is_dir():
        raise UserError(f"--out: {OUT.value} does not exist; give the folder of the finished runs")
    benchmark = f"synthetic_benchmark:{suite}" if suite in FAR else "synthetic_benchmark"
    base = CONFIG.value or config_flags.ConfigFileFlagParser("config").parse(find_config(benchmark))
    base = with_steps(base, STEPS.value or base.steps)
    whole_suite = variants_of(SUITE.value)
    try:
        variants = variants_of(SUITE.value, VARIANTS.value or ())
    except UserError as error:
        raise UserError(f"--variants: {error}") from error
    out = make_output_folder(OUT.value)
    # Read before training too: a result that is damaged or of other settings would otherwise fail the first report.
    splits = SPLITS.value or ()
    finished = load_results(plan_finished(whole_suite, base, out, splits))
    if COLLECT.value:
        if not finished:
            raise UserError(f"--collect: {out} has no finished run of suite {suite} with {base.steps:,} steps")
        log(collect(Path(COLLECT.value), benchmark, base.steps, finished))
        return
    runs = plan(variants, SEEDS.value or 1, base, out, splits)
    folder = make_output_folder(out / suite)

    left = sum(load_result(run) is None for run in runs)
    for split in runs[0].splits if left else ():  # before training, not after it
        build_source(base.input.source, split, on_bad_example=base.input.on_bad_example)
    log(f"{counted(len(runs), 'run')} of {base.steps:,} steps, {left} left: {', '.join(v.name for v in variants)}")

    def report() -> Path:
        with lock(folder):
            results = load_results(plan_finished(whole_suite, base, out, splits))
            return write_ablations(folder, suite, base.steps, whole_suite, results)

    failed = _train(runs, suite, report)
    if len(failed) < len(runs):
        log(report().read_text(encoding="utf-8"))
    if failed:
        raise UserError(
            f"{counted(len(failed), 'run')} of suite {suite} failed: {', '.join(failed)}. The first failure: "
            f"{next(iter(failed.values()))}. {LossNotFinite.ADVICE} --out."
        )
    log(f"{counted(len(runs), 'run')} of {base.steps:,} steps; tables and plots: {folder}")


def _train(runs: Sequence[Run], suite: str, report: Callable[[], object]) -> dict[str, str]:
    """Train the runs that are left and call `report` after each; return why runs of this process failed, by name."""
    from s2rm_jax.measure.ablation_runs import RemainingTime, carry_out, claim_runs, load_result, load_results
    from s2rm_jax.training.logging import log
    from s2rm_jax.training.loop import LossNotFinite

    remaining, failed = RemainingTime(runs), dict[str, str]()
    for run in claim_runs([run for run in runs if load_result(run) is None]):
        if load_result(run) is None:  # another process may have finished it in the meantime
            position = f"{runs.index(run) + 1}/{len(runs)} of {suite}"
            log(f"== run {position}: {run.variant.name}, seed {run.seed} | ETA of the suite {remaining}")
            try:
                with remaining.measure(run):
                    carry_out(run)
            except LossNotFinite as error:
                failed[run.workdir.name] = error.what
                log(f"{run.workdir.name} failed: {error.what}; the suite goes on without it")
        if runs[0].variant.name in load_results(runs):  # without it, the report would have another reference
            report()
    return failed


if __name__ == "__main__":
    command_line.run_and_exit(main, FLAGS, __doc__, required=("suite", "out"))
