"""The training loop, from the configuration to the last step, for runs that begin, continue or are stopped."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from s2rm_jax.config import CONFIG_FILE, check_config
from s2rm_jax.errors import UserError, counted
from s2rm_jax.evaluation.metrics import MaskCounts
from s2rm_jax.evaluation.protocols import protocol_named
from s2rm_jax.input.example import Batch
from s2rm_jax.input.sampling import EpochSize, steps_for
from s2rm_jax.interop.pretrained import find_pretrained, find_vocabulary, load_pretrained
from s2rm_jax.io import naming_full_workdir, workdir_path
from s2rm_jax.parallel import distributed
from s2rm_jax.parallel.mesh import build_mesh, put_batch
from s2rm_jax.parallel.programs import compilation_cache
from s2rm_jax.training.checkpoint import CHECKPOINT_DIRECTORY, Checkpoint, Checkpoints, has_checkpoint
from s2rm_jax.training.compile import CompiledStep, compile_step
from s2rm_jax.training.interrupt import Interrupted, StopRequest, listen_for_stop
from s2rm_jax.training.lock import WorkdirLock, lock_workdir
from s2rm_jax.training.logging import (
    METRICS_FILE,
    Averages,
    MetricsWriter,
    Progress,
    RunLog,
    evaluation_part,
    hours_minutes_seconds,
    log,
    report_evaluation,
    require_wandb,
)
from s2rm_jax.training.optimizer import describe_groups, learning_rate_schedule
from s2rm_jax.training.profile import Profile
from s2rm_jax.training.run import load_config, open_workdir, require_workdir, resolve_config
from s2rm_jax.training.state import plan_state
from s2rm_jax.training.step import Metrics, check_batch_splits

_LOG = logging.getLogger(__name__)

BatchProgress = Callable[[int, int], None]  # called with (batches done, batches in all)


@dataclass(frozen=True)
class Parts:
    """The parts that the loop works with."""

    network: nn.Module
    # Returns an endless stream of batches, which begins after the given number of rows.
    batches: Callable[[int], Iterator[Batch]]
    # Returns the metrics of parameters and calls a function after each batch; None: no evaluation.
    evaluate: Callable[[Any, BatchProgress], dict[str, float]] | None
    save_vocab: Callable[[epath.Path], None]
    epoch: EpochSize | None = None  # of the training split; None if the source is endless
    left_out: Set[str] = frozenset()  # the problems of the bad examples that `batches` left out


class LossNotFinite(UserError):
    """The loss of a step, or the norm of its gradient, is not finite; `what` is the message without the advice."""

    ADVICE = "Lower config.optimizer.learning_rate or set config.optimizer.clip_norm=1.0, and give another"

    def __init__(self, what: str):
        super().__init__(f"{what}. {self.ADVICE} --workdir.")
        self.what = what


class _EvaluationStopped(Exception):
    """An evaluation was ended by a request to stop the run."""


def train_and_evaluate(
    config: ConfigDict,
    workdir: epath.PathLike,
    profile_steps: range = range(0),
    *,
    network: nn.Module | None = None,
) -> dict[str, float]:
    """Train as `config` says in `workdir`, or continue the run that is there.

    A run that was stopped or killed and continued gives the same parameters as an uninterrupted one. A checkpoint in
    the workdir takes precedence over pretrained weights, so that a restarted job never starts over.

    Args:
        config: see `config.default_config`.
        workdir: the folder of the run, on disk or in a bucket; created if missing.
        profile_steps: steps to trace into the folder `profile` of the workdir.
        network: a module to train instead of `build_network(config)`; give it again to continue the run and to load it.

    Returns:
        The metrics of the evaluation after the last step, or of that step itself if config.eval.every is 0.

    Raises:
        UserError: the configuration, the data or the workdir needs to be corrected.
        LossNotFinite: the loss or its gradient became NaN or infinite.
        Interrupted: the run was asked to stop (Ctrl-C, SIGTERM), and its state is saved.
    """
    from s2rm_jax.input.sources import find_source

    check_before_start(config)
    mesh = build_mesh(config)
    require_workdir(workdir)
    workdir = workdir_path(workdir)
    with RunLog() as run_log:
        find_source(config.input.source, config.input.train_split)  # fails early, before weights are downloaded
        began = load_config(workdir) if has_checkpoint(workdir) else None
        if began is None:
            find_pretrained(config)  # fails early, before the data is read
        config = resolve_config(config, began)
        if network is not None:
            config.network = f"{type(network).__module__}:{type(network).__qualname__}"
        parts = assemble(config, mesh, find_vocabulary(config) if began is None else None, network)
        if config.steps and config.epochs:
            log(f"ignored: config.epochs={config.epochs:g}, because config.steps is {config.steps:,}")
        if config.steps == 0:
            config.steps = steps_for(config.epochs, parts.epoch, config.batch_size)
        return train_with_parts(config, workdir, parts, mesh, profile_steps, began=began, run_log=run_log)


def check_before_start(config: ConfigDict) -> None:
    """Check everything that can be checked before data is read and programs are compiled.

    Raises:
        UserError: a field has a value that does not work.
    """
    check_config(config)
    require_wandb(config)
    check_batch_splits(config.batch_size, config.optimizer.accumulate, jax.device_count())
    if config.steps:  # otherwise they follow from the data
        learning_rate_schedule(config)
    metrics = MaskCounts().metrics(protocol_named(config.eval.protocol))
    if config.eval.metric not in metrics:
        raise UserError(f"config.eval.metric is {config.eval.metric!r}; it must be one of: {', '.join(metrics)}")


def assemble(
    config: ConfigDict, mesh: Mesh, vocabulary: Sequence[str] | None = None, network: nn.Module | None = None
) -> Parts:
    """Build the network and its input as `config` says; the evaluation runs on the devices of `mesh`.

    `vocabulary` is that of the pretrained text weights; see `build_tokenizer`. A given `network` is not built.

    Raises:
        UserError: the data is missing, or does not fit the configuration.
    """
    from s2rm_jax.evaluation.evaluator import Evaluator
    from s2rm_jax.input import pipeline, sampling, sources
    from s2rm_jax.models.network import build_network

    on_bad = config.input.on_bad_example
    source = sources.build_source(config.input.source, config.input.train_split, training=True, on_bad_example=on_bad)
    if len(source) == 0:
        raise UserError(f"config.input.train_split: the split {config.input.train_split!r} is empty; name another")
    pipeline.require_images(source, config)
    tokenizer = pipeline.build_tokenizer(config, source, vocabulary)
    network = build_network(config) if network is None else network
    evaluate = None
    if config.eval.every:
        held_out = sources.build_source(config.input.source, config.eval.split, on_bad_example=on_bad)
        pipeline.require_images(held_out, config, config.eval.limit)
        # By one process, because it reads the status of every image and all would find the same.
        if distributed.is_first() and config.eval.split.rpartition(":")[2] != config.input.train_split:
            pipeline.warn_of_shared_images(source, held_out, config)
        evaluator = Evaluator(network, tokenizer, config, protocol_named(config.eval.protocol), mesh)

        def evaluate(params: Any, progress: BatchProgress) -> dict[str, float]:
            return evaluator(params, held_out, progress=progress).metrics

    left_out = pipeline.LeftOut(set(getattr(source, "left_out", ())))  # when the annotations were read
    return Parts(
        network,
        lambda rows_seen: pipeline.train_batches(
            source, tokenizer, config, start=rows_seen, process=distributed.process(), left_out=left_out
        ),
        evaluate,
        tokenizer.save,
        sampling.epoch_size(source, config),
        left_out.problems,
    )


def train_with_parts(
    config: ConfigDict,
    workdir: epath.Path,
    parts: Parts,
    mesh: Mesh,
    profile_steps: range,
    *,
    began: ConfigDict | None,
    run_log: RunLog,
) -> dict[str, float]:
    """Compile the step, create or restore the state, and train.

    This is the second half of `train_and_evaluate`; see there.

    Args:
        config: resolved, with its number of steps.
        workdir: the folder of the run.
        parts: what `assemble` returns.
        mesh: the devices.
        profile_steps: steps to trace.
        began: the configuration of the run that is continued, or None.
        run_log: opened in the workdir.
    """
    profile = Profile(workdir, profile_steps, config.steps)
    plan = plan_state(parts.network, config, mesh)
    loaded = load_pretrained(config, plan.abstract.params) if began is None else {}
    with (
        naming_full_workdir(workdir),
        lock_workdir(workdir) as lock,
        open_workdir(workdir, config, began, parts.save_vocab) as checkpoints,
        compilation_cache(config, workdir),
        listen_for_stop() as stop,
    ):
        run_log.open(workdir)
        begin = checkpoints.restore_latest(plan.abstract)
        restored = begin is not None
        if begin is not None and parts.epoch and begin.epoch_rows not in (None, parts.epoch.rows):
            _LOG.warning(
                "the data has changed: an epoch had %d rows when the checkpoint was saved and has %d now; the rest "
                "of the run reads the new data in another order: give another --workdir to train on it from the start",
                *(begin.epoch_rows, parts.epoch.rows),
            )
        if begin is None:
            for part in loaded.values():
                log(part.report)
            state = plan.create({name: part.params for name, part in loaded.items()})
            begin = Checkpoint(0, state, rows_seen=0, metrics=None)
        del loaded  # the state has copies; these would occupy the memory of the host to the end
        has_steps = begin.step < config.steps
        log(
            f"{'Continuing' if restored else 'Training'} in {workdir} from step {begin.step} of {config.steps}, "
            f"{counted(config.batch_size, 'image')} a step, {_describe_devices(mesh)}. "
            f"{_describe_epoch(config, parts.epoch)}{'The step is compiled first.' if has_steps else ''}\n"
            f"{describe_groups(config, plan.abstract.params)}"
        )
        compiled: CompiledStep | None = None
        if has_steps:
            compiled = compile_step(parts.network, plan, config, mesh)
            log(compiled.describe(mesh))
        profile.begin(begin.step)
        evaluated_again = evaluation_part(config.eval.split) if begin.metrics is None else ""
        with MetricsWriter(workdir, config, begin.step, evaluated_again) as writer, profile:
            loop = _Loop(config, workdir, parts, mesh, compiled, checkpoints, writer, profile, stop, lock)
            return loop.train_from(begin, saved=restored)


def _describe_devices(mesh: Mesh) -> str:
    """Return the devices of a run, such as "8 x TPU v4 of 2 processes"."""
    processes = distributed.process()[1]
    several = f" of {processes} processes" if processes > 1 else ""
    return f"{mesh.size} x {mesh.devices.flat[0].device_kind}{several}"


def _describe_epoch(config: ConfigDict, epoch: EpochSize | None) -> str:
    if epoch is None:
        return ""
    return (
        f"An epoch shows {epoch.expressions:,} expressions in {epoch.rows / config.batch_size:,.1f} steps "
        f"(sampling {config.input.sampling}). "
    )


@dataclass(frozen=True)
class _Loop:
    config: ConfigDict
    workdir: epath.Path
    parts: Parts
    mesh: Mesh
    compiled: CompiledStep | None  # None if no step is left
    checkpoints: Checkpoints
    writer: MetricsWriter
    profile: Profile
    stop: StopRequest
    lock: WorkdirLock

    def train_from(self, begin: Checkpoint, saved: bool) -> dict[str, float]:
        """Train from `begin` to the last step and return the last metrics; `saved`: `begin` is a checkpoint on disk."""
        config, start = self.config, time.perf_counter()
        step, state, rows_seen, evaluation = begin.step, begin.state, begin.rows_seen, begin.metrics
        saved_step, epoch_rows = (step if saved else None), self.parts.epoch and self.parts.epoch.rows
        at_peak = self.compiled.seconds_at_peak(self.mesh) if self.compiled else None
        progress, averages = Progress(config.steps, at_peak), Averages()
        batches = self.parts.batches(rows_seen)
        running: tuple[int, Metrics] | None = None  # the step in progress on the devices
        train_metrics: dict[str, float] = {}

        while True:
            last = step >= config.steps
            evaluation_due = evaluation is None and self._evaluation_due(step)
            if self.stop.signum or last or evaluation_due or self.checkpoints.due(step):
                self._require_lock(step)
                if running:  # check for NaN before evaluating or saving
                    train_metrics, running = self._record(*running, progress, averages), None
                with progress.pause():
                    if step != saved_step:  # first, because the evaluation takes long and may fail
                        self.checkpoints.save(Checkpoint(step, state, rows_seen, evaluation, epoch_rows))
                        saved_step = step
                    if evaluation_due and (evaluation := self._evaluate(step, state.eval_params)):
                        self.checkpoints.save(Checkpoint(step, state, rows_seen, evaluation, epoch_rows))
                if last and (evaluation or not evaluation_due):
                    self._log_finished(evaluation, time.perf_counter() - start, step - begin.step)
                    return evaluation or train_metrics
                if self.stop.signum:
                    self._require_lock(step)  # it may have been taken during the evaluation
                    self.checkpoints.wait()
                    raise Interrupted(
                        f"Stopped after step {step} of {config.steps}; saved in {self.workdir / CHECKPOINT_DIRECTORY}. "
                        "The same command continues.",
                        self.stop.signum,
                    )

            with jax.transfer_guard("disallow"), self.profile.step(step + 1):
                with progress.waiting_for_input():
                    batch = next(batches)
                assert self.compiled is not None  # a step is left
                state, metrics = self.compiled.executable(state, put_batch(batch, self.mesh))
                self.stop.exchange()
                step, rows_seen, evaluation = step + 1, rows_seen + config.batch_size, None
                # Read the metrics one step late, so that the devices have work while the host waits; but at once where
                # the clock of the rates starts or is read, since a late reading would count another number of steps.
                if running:
                    train_metrics = self._record(*running, progress, averages)
                running = step, metrics
                if step == begin.step + 1 or self._line_due(step):
                    train_metrics, running = self._record(*running, progress, averages), None
            if self.profile.ends(step):
                jax.block_until_ready(metrics)
                with progress.pause():
                    self.profile.write()

    def _require_lock(self, step: int) -> None:
        """Raise UserError if the run was asked to stop because another run has taken the workdir."""
        if self.stop.signum and (taken := distributed.gather(self.lock.taken)[0]):
            raise UserError(
                f"--workdir {self.workdir} was taken over {taken}: this run stopped after step {step} without saving; "
                "wait until the other run ends, or give another --workdir"
            )

    def _evaluation_due(self, step: int) -> bool:
        if self.parts.evaluate is None or step == 0:
            return False
        return step % self.config.eval.every == 0 or step >= self.config.steps

    def _line_due(self, step: int) -> bool:
        return step % self.config.log_every == 0 or step == self.config.steps

    def _record(self, step: int, metrics: Metrics, progress: Progress, averages: Averages) -> dict[str, float]:
        """Wait for the metrics of a step, check them, and log and write the means since the last line if one is due.

        After a resume, the first line has the means of the steps since then only.
        """
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        if not (math.isfinite(values["loss"]) and math.isfinite(values["grad_norm"])):
            self.checkpoints.wait()
            latest = self.checkpoints.latest_step
            kept = "no checkpoint was saved yet" if latest is None else f"the checkpoint of step {latest} is kept"
            raise LossNotFinite(
                f"step {step}: the loss is {values['loss']} and the norm of its gradient {values['grad_norm']}; "
                f"training stopped, {kept} in {self.workdir}"
            )
        progress.finish_step(step, int(values["expressions"]), self.config.batch_size)
        averages.add(values)
        if self._line_due(step):
            means, speed = averages.take(), progress.speed()
            if self.parts.epoch:
                means["epoch"] = step * self.config.batch_size / self.parts.epoch.rows
            log(progress.line(step, means, speed), step)
            self.writer.write(step, "train", means | speed)
        return values

    def _evaluate(self, step: int, params: Any) -> dict[str, float] | None:
        """Evaluate, log and write the metrics; return None if the run was asked to stop meanwhile."""
        assert self.parts.evaluate is not None

        def raise_if_stopped() -> None:
            self.stop.exchange(wait=True)
            if self.stop.signum:
                raise _EvaluationStopped

        split = self.config.eval.split
        start = time.perf_counter()
        try:
            raise_if_stopped()
            metrics = self.parts.evaluate(params, report_evaluation(split, raise_if_stopped))
        except _EvaluationStopped:
            return None
        # Without the precisions, which are in the files, the metrics fit on a line.
        shown = ", ".join(f"{name} {value:.2f}" for name, value in metrics.items() if "@" not in name)
        log(f"step {step}: {split}: {shown} ({hours_minutes_seconds(time.perf_counter() - start)})", step)
        self.writer.write(step, evaluation_part(split), metrics)
        return metrics

    def _log_finished(self, evaluation: dict[str, float] | None, seconds: float, steps: int) -> None:
        result = ""
        if self.config.input.on_bad_example == "skip":
            left_out = set().union(*distributed.gather(set(self.parts.left_out)))
            if left_out:
                number = counted(len(left_out), "example")
                was = "was" if len(left_out) == 1 else "were"
                result = f" Since this start, {number} could not be read and {was} skipped."
        if evaluation and self.checkpoints.best:
            metric, split = self.config.eval.metric, self.config.eval.split
            best_step, best = self.checkpoints.best
            result += f" {metric} on {split}: {evaluation[metric]:.2f}, best {best:.2f} at step {best_step}."
        log(
            f"Trained {counted(steps, 'step')} in {hours_minutes_seconds(seconds)}, {self.config.steps} in all."
            f"{result} Checkpoints, {CONFIG_FILE} and {METRICS_FILE} are in {self.workdir}. "
            f"Next: python -m s2rm_jax.evaluate --workdir {self.workdir}"
        )
