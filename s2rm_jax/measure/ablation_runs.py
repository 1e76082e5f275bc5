"""The runs of an ablation: planning, training and evaluation, each run once, shared by several processes.

Each run has its own workdir. A process holds the lock of a workdir while it trains the run.
"""

from __future__ import annotations

import copy
import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath
from filelock import Timeout
from ml_collections import ConfigDict

from s2rm_jax.config import CONFIG_FILE
from s2rm_jax.errors import UserError
from s2rm_jax.evaluation.metrics import ExpressionScore
from s2rm_jax.input.synthetic import SyntheticSource
from s2rm_jax.io import lock_file, write_atomically
from s2rm_jax.measure.ablation_suites import Variant, apply_variant
from s2rm_jax.models.cost import network_cost
from s2rm_jax.parallel.programs import compilation_cache
from s2rm_jax.training.checkpoint import has_checkpoint
from s2rm_jax.training.logging import METRICS_FILE, evaluation_part, hours_minutes_seconds, log
from s2rm_jax.training.loop import check_before_start
from s2rm_jax.training.run import load_config, require_same_config

RESULT_FILE = "result.json"


@dataclass(frozen=True)
class Run:
    """A variant with a seed, its workdir, and the splits on which it is scored after training."""

    variant: Variant
    seed: int
    config: ConfigDict
    workdir: Path
    splits: tuple[str, ...] = ("test", "compositional")


@dataclass(frozen=True)
class Score:
    """Scores of a run on a split, in percent; the fields that begin with `by_` are mean IoUs by group.

    Attributes:
        by_kind: kind of expression; empty if the source has no kinds
        by_objects: objects in the scene; like the following, only of generated scenes
        by_distance: slices of the last stage between referent and landmark (`Composition.landmark_distance`), of the
            expressions with a landmark
        by_kind_and_distance: both, as in "relation, 3"
    """

    mean_iou: float
    overall_iou: float
    expressions: int
    by_kind: Mapping[str, float] = field(default_factory=dict)
    by_objects: Mapping[str, float] = field(default_factory=dict)
    by_distance: Mapping[str, float] = field(default_factory=dict)  # results of earlier versions have none
    by_kind_and_distance: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class RunResult:
    """The result of a finished run."""

    variant: str
    seed: int
    parameters: int  # of the whole network
    gflops: float  # of a forward pass of one image with its expressions
    scores: Mapping[str, Score]  # by split, of the parameters after the last step (of their average if there is one)
    curve: Sequence[tuple[int, float]]  # (step, mean IoU) of the evaluations during training
    curve_split: str  # the split of those evaluations


def plan(variants: Sequence[Variant], seeds: int, base: ConfigDict, out: Path, splits: Sequence[str] = ()) -> list[Run]:
    """Return the runs, seed by seed, so that an unfinished suite soon has a result of every variant.

    They are scored on `splits`; by default on test and compositional of generated scenes, and on config.eval.split of
    other data.

    Raises:
        UserError: the configuration of a variant is invalid, or `out` has a run of the same name with other settings.
    """
    generated = base.input.source.name == "synthetic"
    splits = tuple(splits) or (Run.splits if generated else (base.eval.split,))
    base = copy.deepcopy(base)
    if not base.compilation_cache:
        base.compilation_cache = str((out / "compilation_cache").absolute())  # all seeds share compiled programs
    configs = []
    for variant in variants:
        try:
            configs.append(apply_variant(base, variant))
            check_before_start(configs[-1])  # now, not when the run starts, perhaps days later
        except UserError as error:
            raise UserError(f"variant {variant.name}: {error}") from error
    runs = []
    for seed in range(seeds):
        for variant, variant_config in zip(variants, configs, strict=True):
            config = copy.deepcopy(variant_config)
            config.seed = seed
            run = Run(variant, seed, config, out / "runs" / f"{variant.name}-seed-{seed}", splits)
            _require_unchanged(run)
            runs.append(run)
    return runs


def plan_finished(variants: Sequence[Variant], base: ConfigDict, out: Path, splits: Sequence[str] = ()) -> list[Run]:
    """Return the runs of `variants` in `out`, of any seed, that are finished; the order and the errors are `plan`'s."""
    seeds = {variant.name: _seeds_with_result(variant, out) for variant in variants}
    found = [variant for variant in variants if seeds[variant.name]]
    highest = max((seed for of_variant in seeds.values() for seed in of_variant), default=-1)
    return [run for run in plan(found, highest + 1, base, out, splits) if run.seed in seeds[run.variant.name]]


def _seeds_with_result(variant: Variant, out: Path) -> list[int]:
    names = [path.parent.name for path in (out / "runs").glob(f"{variant.name}-seed-*/{RESULT_FILE}")]
    endings = [name.rpartition("-")[2] for name in names]
    return [int(ending) for ending in endings if ending.isdecimal()]


def _require_unchanged(run: Run) -> None:
    if not (run.workdir / CONFIG_FILE).exists():
        return
    began = load_config(run.workdir)
    try:
        require_same_config(run.workdir, began, run.config)  # which allows another number of steps
    except UserError as error:
        if began.input.source.to_dict() == run.config.input.source.to_dict():
            raise
        raise UserError(
            f"--out: the run in {run.workdir} has other data; give another --out. The suites far and far_long have "
            "scenes of their own, so each needs an --out of its own."
        ) from error
    if began.steps != run.config.steps:
        raise UserError(
            f"--steps: the run in {run.workdir} has {began.steps} steps, not {run.config.steps}; give another --out, "
            f"or --steps={began.steps}"
        )


def load_result(run: Run) -> RunResult | None:
    """Return the result of a run with the scores of its splits, or None if the run is not finished.

    Raises:
        UserError: the file of the result is damaged, or has no scores of one of the splits.
    """
    try:
        content = json.loads((run.workdir / RESULT_FILE).read_text(encoding="utf-8"))
        scores = {split: Score(**score) for split, score in content.pop("scores").items()}
        curve = tuple((int(step), float(value)) for step, value in content.pop("curve"))
        result = RunResult(**content, scores=scores, curve=curve)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"{run.workdir / RESULT_FILE} cannot be read ({error}); delete it to score the run again"
        ) from error
    if missing := [split for split in run.splits if split not in scores]:
        raise UserError(
            f"--splits: {run.workdir / RESULT_FILE} has the scores of {', '.join(scores)}, not of "
            f"{', '.join(missing)}; give --splits={','.join(scores)}, or delete it to score the run again"
        )
    return replace(result, scores={split: scores[split] for split in run.splits})


def load_results(runs: Sequence[Run]) -> dict[str, list[RunResult]]:
    """Return the results of all processes so far, by the name of the variant, in the order of `runs`."""
    results: dict[str, list[RunResult]] = {}
    for run in runs:
        if (result := load_result(run)) is not None:
            results.setdefault(run.variant.name, []).append(result)
    return results


def carry_out(run: Run) -> RunResult:
    """Train the rest of a run, evaluate it, and write the result to its workdir.

    Raises:
        UserError: the configuration or the workdir is invalid.
        LossNotFinite: the loss or its gradient became NaN or infinite.
        Interrupted: the run was asked to stop; the same call continues it.
    """
    from s2rm_jax.training.loop import train_and_evaluate

    train_and_evaluate(run.config, run.workdir)
    with compilation_cache(run.config, epath.Path(run.workdir)):
        scores = _scores(run)
    costs = network_cost(run.config).values()
    expressions = run.config.input.expressions_per_image
    result = RunResult(
        run.variant.name,
        run.seed,
        parameters=sum(part.parameters for part in costs),
        gflops=sum(part.flops(expressions) for part in costs) / 1e9,
        scores=scores,
        curve=_curve(run),
        curve_split=run.config.eval.split,
    )
    write_atomically(epath.Path(run.workdir) / RESULT_FILE, json.dumps(asdict(result), indent=2) + "\n")
    jax.clear_caches()  # programs of this variant are not used again
    return result


def _scores(run: Run) -> dict[str, Score]:
    from s2rm_jax.evaluation.evaluator import Evaluator
    from s2rm_jax.evaluation.protocols import protocol_named
    from s2rm_jax.input.sources import build_source
    from s2rm_jax.training.logging import report_evaluation
    from s2rm_jax.training.run import load_run

    # The latest checkpoint, not the best: choosing by a score would favour variants with noisy scores.
    trained = load_run(run.workdir, "latest")
    config = copy.deepcopy(run.config)
    config.eval.limit = 0
    evaluator = Evaluator(trained.network, trained.tokenizer, config, protocol_named(config.eval.protocol))
    scores = {}
    for split in run.splits:
        source = build_source(config.input.source, split, on_bad_example=config.input.on_bad_example)
        report = evaluator(trained.params, source, progress=report_evaluation(split))
        metrics = report.total.metrics()  # both IoUs, which some protocols do not show
        scores[split] = Score(
            metrics["mean_iou"],
            metrics["overall_iou"],
            len(report.expressions),
            **_scores_by_group(report.expressions, source, split, config),
        )
    return scores


def _scores_by_group(
    expressions: Sequence[ExpressionScore], source: Any, split: str, config: ConfigDict
) -> dict[str, dict[str, float]]:
    """Return the fields of a `Score` that begin with `by_`."""
    by_kind = mean_ious(expressions, [score.kind for score in expressions])
    if not isinstance(source, SyntheticSource):
        return {} if set(by_kind) <= {""} else {"by_kind": by_kind}
    objects, distances = _groups(source, split, slices=-(-config.input.image_size[0] // _stride(config)))
    related = [score for score in expressions if score.id in distances]
    return {
        "by_kind": by_kind,
        "by_objects": mean_ious(expressions, [objects[score.example_id] for score in expressions]),
        "by_distance": mean_ious(related, [distances[score.id] for score in related]),
        "by_kind_and_distance": mean_ious(related, [f"{score.kind}, {distances[score.id]}" for score in related]),
    }


_REMOTE = 7  # slices from which on all distances are one group


def _groups(source: SyntheticSource, split: str, slices: int) -> tuple[dict[str, str], dict[str, str]]:
    """Return {example: objects in its scene} and, of expressions with a landmark, {expression: distance in slices}."""
    objects, distances = {}, {}
    for index in range(len(source)):
        composed, name = source.composition(index), f"{split}-{index}"
        objects[name] = str(len(composed.masks))
        for number, reference in enumerate(composed.references):
            distance = composed.landmark_distance(reference, slices)
            if distance is not None:
                distances[f"{name}-{number}"] = str(distance) if distance < _REMOTE else f"{_REMOTE}+"
    return objects, distances


def _stride(config: ConfigDict) -> int:
    """Return the pixels between two slices of the last stage: 4 of a patch, doubled by each further stage."""
    return 2 ** (1 + len(config.vision.depths))


def mean_ious(scores: Sequence[ExpressionScore], groups: Sequence[str]) -> dict[str, float]:
    """Return the mean IoU in percent of each group of expressions that have one, in the order of `by_number`."""
    ious: dict[str, list[float]] = {}
    for score, group in zip(scores, groups, strict=True):
        if score.iou is not None:  # as in the mean over all expressions
            ious.setdefault(group, []).append(100 * score.iou)
    return {name: float(np.mean(ious[name])) for name in sorted(ious, key=by_number)}


def by_number(group: str) -> tuple[str | int, ...]:
    """Return a key that sorts names of groups with the numbers in them as numbers: 8, 9, 10, 10+."""
    return tuple(int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", group))


def _curve(run: Run) -> list[tuple[int, float]]:
    """Return (step, mean IoU) of the evaluations during training."""
    lines = [json.loads(line) for line in (run.workdir / METRICS_FILE).read_text(encoding="utf-8").splitlines()]
    name = f"{evaluation_part(run.config.eval.split)}/mean_iou"
    return [(line["step"], line[name]) for line in lines if name in line]


_POLL_SECONDS = 2.0


def claim_runs(runs: Sequence[Run]) -> Iterator[Run]:
    """Yield each run once while holding its lock: first the runs without another process, then as locks are released.

    Raises:
        UserError: the file system of the workdirs does not support locks.
    """
    left, reported, waiting = list(runs), set[str](), False
    while left:
        for run in left:
            try:
                with lock(run.workdir, wait=False):
                    left.remove(run)
                    waiting = False
                    yield run
                break
            except Timeout:
                if (name := run.workdir.name) not in reported:
                    log(f"another process is training {name}; trying it again after the others")
                    reported.add(name)
        else:
            if not waiting:
                log(f"waiting for other processes: {', '.join(run.workdir.name for run in left)}")
            waiting = True
            time.sleep(_POLL_SECONDS)


@contextmanager
def lock(folder: Path, wait: bool = True) -> Iterator[None]:
    """Hold the lock of a folder, the file FOLDER.lock beside it; it is released however the process ends.

    Raises:
        Timeout: another process holds the lock and `wait` is False.
        UserError: the file system does not support locks.
    """
    path = folder.with_name(folder.name + ".lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        try:
            stack.enter_context(lock_file(path, wait))
        except Timeout:
            raise
        except OSError as error:
            raise UserError(
                f"--out: {path} cannot be locked ({error}); give a folder on another file system"
            ) from error
        yield


class RemainingTime:
    """Estimates the time that this process alone needs for the runs left, from the runs that it did from the start."""

    def __init__(self, runs: Sequence[Run]):
        self._runs = runs
        self._steps = 0
        self._seconds = 0.0

    def __str__(self) -> str:
        if not self._steps:
            return "unknown until a run is finished"
        steps_left = sum(run.config.steps for run in self._runs if load_result(run) is None)
        return hours_minutes_seconds(self._seconds / self._steps * steps_left)

    @contextmanager
    def measure(self, run: Run) -> Iterator[None]:
        """Measure the run inside, unless it continues from a checkpoint."""
        from_start, start = not has_checkpoint(run.workdir), time.perf_counter()
        yield
        if from_start:
            self._seconds += time.perf_counter() - start
            self._steps += run.config.steps
