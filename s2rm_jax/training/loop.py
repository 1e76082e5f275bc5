"""The training loop: what happens between the first step and the last, and when a run is stopped or resumed."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from s2rm_jax.errors import UserError
from s2rm_jax.evaluation.protocols import protocol_named
from s2rm_jax.input.example import Batch
from s2rm_jax.input.sampling import EpochSize, steps_for
from s2rm_jax.interop.pretrained import Pretrained, find_pretrained, load_pretrained
from s2rm_jax.io import workdir_path
from s2rm_jax.parallel import distributed
from s2rm_jax.parallel.mesh import build_mesh, put_batch
from s2rm_jax.training.checkpoint import CHECKPOINT_DIRECTORY, Checkpoint, Checkpoints, has_checkpoint
from s2rm_jax.training.compile import CompiledStep, Profile, compilation_cache, compile_step
from s2rm_jax.training.heartbeat import Heartbeat
from s2rm_jax.training.interrupt import Interrupted, StopRequest, listen_for_stop
from s2rm_jax.training.logging import Averages, Progress, RunLog, counted, hours_minutes_seconds, log, report_evaluation
from s2rm_jax.training.optimizer import describe_groups
from s2rm_jax.training.run import CONFIG_FILE, keep_pretrained
from s2rm_jax.training.start import (
    check_before_start,
    describe_compiled,
    describe_devices,
    describe_epoch,
    open_workdir,
    seconds_at_peak,
    with_vocabulary,
)
from s2rm_jax.training.state import StatePlan, TrainState, plan_state
from s2rm_jax.training.step import Metrics, check_batch_splits
from s2rm_jax.training.workdir import require_workdir
from s2rm_jax.training.writers import METRICS_FILE, MetricsWriter

BatchProgress = Callable[[int, int], None]  # called with (batches done, batches in all)


@dataclass(frozen=True)
class Parts:
    """What the loop works with.

    batches     takes the number of images already seen, returns the batches that follow, without end
    evaluate    takes parameters and what to call after each batch, returns metrics; None never evaluates
    save_vocab  writes the vocabulary to a path
    epoch       what the training split holds, None where it has no end
    """

    network: nn.Module
    batches: Callable[[int], Iterator[Batch]]
    evaluate: Callable[[Any, BatchProgress], dict[str, float]] | None
    save_vocab: Callable[[epath.Path], None]
    epoch: EpochSize | None = None


class _EvaluationStopped(Exception):
    """Somebody asked the run to stop while it was evaluating."""


def train_and_evaluate(
    config: ConfigDict, workdir: epath.PathLike, profile_steps: range = range(0)
) -> dict[str, float]:
    """Trains as `config` says, in `workdir`, continuing what an earlier run with this configuration began there.

    A run that was stopped or killed and continued gives the same parameters as one that ran through. `profile_steps`
    are traced into <workdir>/profile.

    Returns:
        The metrics of the evaluation after the last step, or of that step itself where config.eval.every is 0.

    Raises:
        UserError: something in the configuration, the data or the workdir must be put right, or the loss became NaN.
        Interrupted: somebody asked the run to stop (Ctrl-C, SIGTERM); its state is saved.
    """
    from s2rm_jax.input.sources import find_source

    check_before_start(config)
    mesh = build_mesh(config)
    require_workdir(workdir)
    workdir = workdir_path(workdir)
    find_source(config.input.source, config.input.train_split)  # a glance, before the Hub is asked for weights
    if has_checkpoint(workdir):
        config = keep_pretrained(workdir, config)
    else:
        find_pretrained(config)  # so that a wrong path costs nobody the reading of the data
    config = with_vocabulary(config, workdir)
    parts = assemble(config, mesh)
    if config.steps == 0:
        config = copy.deepcopy(config)
        config.steps = steps_for(config.epochs, parts.epoch, config.batch_size)
    return run(config, workdir, parts, mesh, profile_steps)


def assemble(config: ConfigDict, mesh: Mesh) -> Parts:
    """Builds the network and its input as `config` says; the evaluation runs on the devices of `mesh`.

    Raises:
        UserError: the data is not there, or does not fit the configuration.
    """
    from s2rm_jax.evaluation.evaluator import Evaluator
    from s2rm_jax.input import pipeline, sampling, sources
    from s2rm_jax.models.network import build_network

    source = sources.build_source(config.input.source, config.input.train_split, training=True)
    if len(source) == 0:
        raise UserError(f"config.input.train_split: the split {config.input.train_split!r} is empty; name another.")
    tokenizer = pipeline.build_tokenizer(config, source)
    network = build_network(config)
    evaluate = None
    if config.eval.every:
        held_out = sources.build_source(config.input.source, config.eval.split)
        evaluator = Evaluator(network, tokenizer, config, protocol_named(config.eval.protocol), mesh)

        def evaluate(params: Any, progress: BatchProgress) -> dict[str, float]:
            return evaluator(params, held_out, progress=progress).metrics

    return Parts(
        network,
        lambda examples_seen: pipeline.train_batches(
            source, tokenizer, config, start=examples_seen, process=distributed.process()
        ),
        evaluate,
        tokenizer.save,
        sampling.epoch_size(source, config),
    )


def run(
    config: ConfigDict, workdir: epath.PathLike, parts: Parts, mesh: Mesh, profile_steps: range = range(0)
) -> dict[str, float]:
    """Does what `train_and_evaluate` describes, with the given parts on the given devices."""
    workdir = workdir_path(workdir)
    check_batch_splits(config.batch_size, config.optimizer.accumulate, mesh.size)
    profile = Profile(workdir, profile_steps, config.steps)
    plan = plan_state(parts.network, config, mesh)
    # Where a run begins: a checkpoint in its own workdir goes before everything else, so that a job which is started
    # again never starts over; without one, pretrained parts are loaded and the rest begins from the seed.
    pretrained = {} if has_checkpoint(workdir) else load_pretrained(config, plan.abstract.params)
    with (
        RunLog() as log,
        Heartbeat(workdir, config.steps) as heartbeat,
        open_workdir(workdir, config, parts.save_vocab) as checkpoints,
        compilation_cache(config, workdir),
        listen_for_stop() as stop,
    ):
        log.open(workdir)
        heartbeat.beat("starting", checkpoints.latest_step)
        restored = checkpoints.restore_latest(plan.abstract)
        begin = restored or Checkpoint(0, _initial_state(plan, pretrained), examples_seen=0, metrics=None)
        del pretrained  # the state has it now; here it would stay in the memory of the host to the end
        compiling = begin.step < config.steps
        log(
            f"{'Continuing' if restored else 'Training'} in {workdir} from step {begin.step} of {config.steps}, "
            f"{counted(config.batch_size, 'image')} a step, {describe_devices(mesh)}. "
            f"{describe_epoch(config, parts.epoch)}{'First the step is compiled.' if compiling else ''}\n"
            f"{describe_groups(config, plan.abstract.params)}"
        )
        compiled: CompiledStep | None = None
        if compiling:  # once: it is this very program that runs
            heartbeat.beat("compiling")
            compiled = compile_step(parts.network, plan, config, mesh)
            log(describe_compiled(compiled, mesh))
        profile.begin(begin.step)
        with MetricsWriter(workdir, config, begin.step) as writer, profile:
            loop = _Loop(config, workdir, parts, mesh, compiled, checkpoints, writer, profile, heartbeat, stop)
            return loop.run(begin, saved=restored is not None)


def _initial_state(plan: StatePlan, pretrained: dict[str, Pretrained]) -> TrainState:
    for part in pretrained.values():
        log(part.report)
    return plan.create({name: part.params for name, part in pretrained.items()})


@dataclass(frozen=True)
class _Loop:
    config: ConfigDict
    workdir: epath.Path
    parts: Parts
    mesh: Mesh
    compiled: CompiledStep | None  # None where no step is left to be taken
    checkpoints: Checkpoints
    writer: MetricsWriter
    profile: Profile
    heartbeat: Heartbeat
    stop: StopRequest

    def run(self, begin: Checkpoint, saved: bool) -> dict[str, float]:
        """Trains from `begin`, which is `saved` already or not, to the last step; returns the last metrics."""
        config, clock = self.config, time.perf_counter()
        step, state, examples_seen, evaluation = begin.step, begin.state, begin.examples_seen, begin.metrics
        saved_step = step if saved else None
        at_peak = seconds_at_peak(self.compiled, self.mesh) if self.compiled else None
        progress, averages = Progress(config.steps, at_peak), Averages()
        batches = self.parts.batches(examples_seen)
        running: tuple[int, Metrics] | None = None  # the step that the devices are working on
        trained: dict[str, float] = {}

        while True:
            last = step >= config.steps
            evaluation_due = evaluation is None and self._evaluation_due(step)
            if self.stop.signum or last or evaluation_due or self.checkpoints.due(step):
                if running:  # nothing is evaluated or saved before it is known to be sound
                    trained, running = self._record(*running, progress, averages), None
                with progress.pause():
                    if evaluation_due:
                        evaluation = self._evaluate(step, state.eval_params)
                    if step != saved_step or (evaluation_due and evaluation):
                        self.heartbeat.beat("saving", step)
                        self.checkpoints.save(Checkpoint(step, state, examples_seen, evaluation), config)
                        saved_step = step
                if last and (evaluation or not evaluation_due):
                    self._say_finished(evaluation, time.perf_counter() - clock, step - begin.step)
                    return evaluation or trained
                if self.stop.signum:
                    self.checkpoints.wait()
                    raise Interrupted(self._stopped(step), self.stop.signum)

            with jax.transfer_guard("disallow"), self.profile.step(step + 1):
                with progress.waiting_for_input():
                    batch = next(batches)
                assert self.compiled is not None  # a step is left
                state, metrics = self.compiled.compiled(state, put_batch(batch, self.mesh))
                self.stop.exchange()
                step, examples_seen, evaluation = step + 1, examples_seen + config.batch_size, None
                self.heartbeat.beat("training", step)
                # Read one step late: while the host waits for the step before, the devices have this one to work on.
                if running:
                    trained = self._record(*running, progress, averages)
                running = step, metrics
            if self.profile.ends(step):
                jax.block_until_ready(metrics)
                with progress.pause():
                    self.profile.write()

    def _evaluation_due(self, step: int) -> bool:
        if self.parts.evaluate is None or step == 0:
            return False
        return step % self.config.eval.every == 0 or step >= self.config.steps

    def _record(self, step: int, metrics: Metrics, progress: Progress, averages: Averages) -> dict[str, float]:
        """Waits for the metrics of a step and checks them; tells the means since the last line when one is due.

        After a resume the first line speaks of the steps since then, and not of those before that it would have told.
        """
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        if not (math.isfinite(values["loss"]) and math.isfinite(values["grad_norm"])):
            self.checkpoints.wait()
            good = self.checkpoints.latest_step
            kept = "no checkpoint was saved yet" if good is None else f"the checkpoint of step {good} is sound and kept"
            raise UserError(
                f"step {step}: the loss is {values['loss']} and the norm of its gradient {values['grad_norm']}; "
                f"training stopped, {kept} in {self.workdir}. Lower config.optimizer.learning_rate or set "
                "config.optimizer.clip_norm=1.0, and start another --workdir."
            )
        progress.finish_step(step, int(values["expressions"]), self.config.batch_size)
        averages.add(values)
        if step % self.config.log_every == 0 or step == self.config.steps:
            means, speed = averages.take(), progress.speed()
            if self.parts.epoch:
                means["epoch"] = step * self.config.batch_size / self.parts.epoch.rows
            log(progress.line(step, means, speed), step)
            self.writer.write(step, "train", means | speed)
        return values

    def _evaluate(self, step: int, params: Any) -> dict[str, float] | None:
        """Evaluates and tells the result; None if the run was asked to stop before it was through."""
        assert self.parts.evaluate is not None

        def break_off_if_asked() -> None:
            self.heartbeat.beat("evaluating", step)
            self.stop.exchange(wait=True)
            if self.stop.signum:
                raise _EvaluationStopped

        split = self.config.eval.split
        clock = time.perf_counter()
        try:
            break_off_if_asked()
            metrics = self.parts.evaluate(params, report_evaluation(split, break_off_if_asked))
        except _EvaluationStopped:
            return None
        # The precisions are in the files; one line of a screen holds the rest.
        shown = ", ".join(f"{name} {value:.2f}" for name, value in metrics.items() if "@" not in name)
        log(f"step {step}: {split}: {shown} ({hours_minutes_seconds(time.perf_counter() - clock)})", step)
        self.writer.write(step, self.config.eval.split, metrics)
        return metrics

    def _say_finished(self, evaluation: dict[str, float] | None, seconds: float, steps: int) -> None:
        result = ""
        if evaluation and self.checkpoints.best:
            metric, split = self.config.eval.metric, self.config.eval.split
            best_step, best = self.checkpoints.best
            result = f" {metric} on {split}: {evaluation[metric]:.2f}, best {best:.2f} at step {best_step}."
        log(
            f"Trained {counted(steps, 'step')} in {hours_minutes_seconds(seconds)}, {self.config.steps} in all."
            f"{result} Checkpoints, {CONFIG_FILE} and {METRICS_FILE} lie in {self.workdir}. "
            f"Next: python -m s2rm_jax.evaluate --workdir {self.workdir}"
        )

    def _stopped(self, step: int) -> str:
        return (
            f"Stopped after step {step} of {self.config.steps}; saved in {self.workdir / CHECKPOINT_DIRECTORY}. "
            "The same command continues."
        )
