"""The runs of an ablation: each in a workdir of its own, trained, scored on held-out splits, and done but once.

How several processes share the runs of a suite: a run is one process's at a time, and given back however it ends.

Beside each workdir lies a file NAME.lock, which means nothing once no process has it.

How long a suite of runs still takes.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath
from filelock import FileLock, Timeout
from ml_collections import ConfigDict

from s2rm_jax.config import CONFIG_FILE
from s2rm_jax.errors import UserError
from s2rm_jax.evaluation.metrics import ExpressionScore
from s2rm_jax.io import write_atomically
from s2rm_jax.measure.ablation_suites import Variant, configured
from s2rm_jax.models.cost import network_cost
from s2rm_jax.training.checkpoint import has_checkpoint
from s2rm_jax.training.compile import compilation_cache
from s2rm_jax.training.logging import hours_minutes_seconds, log
from s2rm_jax.training.loop import check_before_start
from s2rm_jax.training.run import load_config, require_same_config

RESULT_FILE = "result.json"
SPLITS = ("test", "compositional")


@dataclass(frozen=True)
class Run:
    """A variant with a seed, and where it is trained."""

    variant: Variant
    seed: int
    config: ConfigDict
    workdir: Path


@dataclass(frozen=True)
class Score:
    """What a run has on a split, in percent; `by_kind` and `by_objects` are mean IoUs, by the name of the group."""

    mean_iou: float
    overall_iou: float
    expressions: int
    by_kind: Mapping[str, float]
    by_objects: Mapping[str, float]


@dataclass(frozen=True)
class Result:
    """What is kept of a finished run.

    parameters   of the whole network
    gflops       of a forward pass of one image with its expressions
    scores       {split: Score} of the parameters after the last step, averaged where the run keeps an average
    curve        ((step, mean IoU of the training's own evaluations), ...)
    curve_split  the split of those
    """

    variant: str
    seed: int
    parameters: int
    gflops: float
    scores: Mapping[str, Score]
    curve: Sequence[tuple[int, float]]
    curve_split: str


def plan(variants: Sequence[Variant], seeds: int, base: ConfigDict, out: Path) -> list[Run]:
    """Returns the runs, seed by seed, so that an unfinished suite has something to say of every variant.

    Raises:
        UserError: a variant cannot work, or `out` holds a run of the same name with other settings.
    """
    if base.input.source.name != "synthetic":
        raise UserError(f"config.input.source.name is {base.input.source.name!r}; ablations take synthetic scenes.")
    base = copy.deepcopy(base)
    if not base.compilation_cache:
        base.compilation_cache = str((out / "compilation_cache").absolute())  # seeds share their programs
    configs = [_checked(variant, configured(base, variant)) for variant in variants]
    runs = []
    for seed in range(seeds):
        for variant, of_variant in zip(variants, configs, strict=True):
            config = copy.deepcopy(of_variant)
            config.seed = seed
            run = Run(variant, seed, config, out / "runs" / f"{variant.name}-seed-{seed}")
            _require_unchanged(run)
            runs.append(run)
    return runs


def _checked(variant: Variant, config: ConfigDict) -> ConfigDict:
    """Finds now what would end the suite days later, such as a batch that does not split among the devices."""
    try:
        check_before_start(config)
    except UserError as error:
        raise UserError(f"variant {variant.name}: {error}") from error
    return config


def _require_unchanged(run: Run) -> None:
    if not (run.workdir / CONFIG_FILE).exists():
        return
    began = load_config(run.workdir)
    require_same_config(run.workdir, began, run.config)
    if began.steps != run.config.steps:  # which a run may change, but a comparison may not
        raise UserError(
            f"the run in {run.workdir} has {began.steps} steps, and {run.config.steps} are asked for: give another "
            f"--out, or --steps {began.steps}."
        )


def finished(run: Run) -> Result | None:
    """Returns the result of a run that was finished before."""
    try:
        content = json.loads((run.workdir / RESULT_FILE).read_text(encoding="utf-8"))
        scores = {split: Score(**score) for split, score in content.pop("scores").items()}
        curve = tuple((int(step), float(value)) for step, value in content.pop("curve"))
        return Result(**content, scores=scores, curve=curve)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"{run.workdir / RESULT_FILE} cannot be read ({error}): delete it, the run is then scored again."
        ) from error


def finished_results(runs: Sequence[Run]) -> dict[str, list[Result]]:
    """Returns the results that there are by now, of any process: by the name of the variant, in the order of `runs`."""
    results: dict[str, list[Result]] = {}
    for run in runs:
        if (result := finished(run)) is not None:
            results.setdefault(run.variant.name, []).append(result)
    return results


def carry_out(run: Run, splits: Sequence[str] = SPLITS) -> Result:
    """Trains what is left of a run, scores it, and keeps the result in its workdir.

    Raises:
        UserError: the configuration or the workdir must be put right, or the loss became NaN.
        Interrupted: somebody asked the run to stop; the same call continues it.
    """
    from s2rm_jax.interop import pretrained
    from s2rm_jax.training.loop import train_and_evaluate

    train_and_evaluate(run.config, run.workdir, pretrained=pretrained)
    with compilation_cache(run.config, epath.Path(run.workdir)):
        scores = _scores(run, splits)
    costs = network_cost(run.config).values()
    expressions = run.config.input.expressions_per_image
    result = Result(
        run.variant.name,
        run.seed,
        parameters=sum(part.parameters for part in costs),
        gflops=sum(part.flops(expressions) for part in costs) / 1e9,
        scores=scores,
        curve=_curve(run),
        curve_split=run.config.eval.split,
    )
    write_atomically(epath.Path(run.workdir) / RESULT_FILE, json.dumps(asdict(result), indent=2) + "\n")
    jax.clear_caches()  # the next variant is another program
    return result


def _scores(run: Run, splits: Sequence[str]) -> dict[str, Score]:
    from s2rm_jax.evaluation.evaluator import Evaluator
    from s2rm_jax.input.sources import build_source
    from s2rm_jax.training.logging import report_evaluation
    from s2rm_jax.training.run import load_run

    # The latest and not the best: a budget is compared, and nothing may be chosen by looking.
    trained = load_run(run.workdir, "latest")
    config = copy.deepcopy(run.config)
    config.eval.limit = 0
    evaluator = Evaluator(trained.network, trained.tokenizer, config)
    scores = {}
    for split in splits:
        source: Any = build_source(config.input.source, split)
        report = evaluator(trained.params, source, progress=report_evaluation(split, stopping=lambda: None))
        objects = {f"{split}-{index}": str(len(source.composition(index).masks)) for index in range(len(source))}
        expressions = report.expressions
        scores[split] = Score(
            report.metrics["mean_iou"],
            report.metrics["overall_iou"],
            len(expressions),
            mean_ious(expressions, [score.kind for score in expressions]),
            mean_ious(expressions, [objects[score.example_id] for score in expressions]),
        )
    return scores


def mean_ious(scores: Sequence[ExpressionScore], groups: Sequence[str]) -> dict[str, float]:
    """Returns the mean IoU in percent of each group of expressions, by the names of the groups in order."""
    found: dict[str, list[float]] = {name: [] for name in sorted(set(groups))}
    for score, group in zip(scores, groups, strict=True):
        found[group].append(100 * (score.iou or 0.0))
    return {name: float(np.mean(ious)) for name, ious in found.items()}


def _curve(run: Run) -> list[tuple[int, float]]:
    """Reads how the mean IoU of the training's own evaluations went."""
    from s2rm_jax.training.logging import METRICS_FILE

    lines = [json.loads(line) for line in (run.workdir / METRICS_FILE).read_text(encoding="utf-8").splitlines()]
    name = f"{run.config.eval.split}/mean_iou"
    return [(line["step"], line[name]) for line in lines if name in line]


_LOOK_AGAIN = 2.0  # seconds


def claimed(runs: Sequence[Run]) -> Iterator[Run]:
    """Yields each run once, while no other process has it: first those that are free, then those that become free.

    The order is that of `runs` where there is no other process.

    Raises:
        UserError: files cannot be locked where the workdirs lie.
    """
    left, elsewhere, waiting = list(runs), set[str](), False
    while left:
        for run in left:
            claim = claim_on(run.workdir)
            try:
                claim.acquire(timeout=0)
            except Timeout:
                if (name := run.workdir.name) not in elsewhere:
                    log(f"another process trains {name}; it is looked at again after the others")
                    elsewhere.add(name)
                continue
            except OSError as error:
                raise UserError(f"{claim.lock_file} cannot be locked ({error}): give an --out that can.") from error
            left.remove(run)
            waiting = False
            try:
                yield run
            finally:
                claim.release()
            break
        else:
            if not waiting:
                log(f"waiting for what other processes train: {', '.join(run.workdir.name for run in left)}")
            waiting = True
            time.sleep(_LOOK_AGAIN)


def claim_on(path: Path) -> FileLock:
    """Returns what, entered, keeps other processes from a folder, as long as they ask for it too."""
    return FileLock(path.with_name(path.name + ".lock"))


class Pace:
    """Tells the time that this process alone needs, by the runs that it carried out from first step to scores."""

    def __init__(self, runs: Sequence[Run], clock: Callable[[], float] = time.perf_counter):
        self._runs = runs
        self._clock = clock
        self._steps = 0
        self._seconds = 0.0

    @property
    def left(self) -> str:
        """The time left as h:mm:ss; of unknown length until a whole run was measured."""
        if not self._steps:
            return "unknown until a run is through"
        steps_left = sum(run.config.steps for run in self._runs if finished(run) is None)
        return hours_minutes_seconds(self._seconds / self._steps * steps_left)

    @contextmanager
    def measured(self, run: Run) -> Iterator[None]:
        """Measures the run that is carried out inside, unless it goes on from where it stopped."""
        whole, began = not has_checkpoint(run.workdir), self._clock()
        yield
        if whole:
            self._seconds += self._clock() - began
            self._steps += run.config.steps
