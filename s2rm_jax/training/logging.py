"""Logging of a run: lines for people, the progress of training and evaluation, and metrics for programs.

Everything goes through the logger "s2rm_jax", to which the modules that read data also send their warnings. The console
gets every line, and so does <workdir>/log/process_N.jsonl while a `RunLog` is open. Metrics go to
<workdir>/metrics.jsonl, to TensorBoard files and to Weights & Biases (docs/training.md).
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import secrets
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from s2rm_jax.errors import UserError, one_line, reason_of
from s2rm_jax.io import REWRITE_EVERY, JsonLines, copy_files, ignoring_temporary, on_bucket, write_atomically
from s2rm_jax.parallel import distributed
from s2rm_jax.training.interrupt import Interrupted

LOG_DIRECTORY = "log"
METRICS_FILE = "metrics.jsonl"
TENSORBOARD_DIRECTORY = "tensorboard"
WANDB_DIRECTORY = "wandb"  # the name is chosen by wandb
WANDB_ID_FILE = "wandb_run.txt"


class _Console(logging.Handler):
    """Print warnings to stderr and other lines to stdout; with several processes, only process 0 prints to stdout."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print a line at once, also into a pipe; a closed pipe raises, which logging's own handlers prevent."""
        if record.levelno >= logging.WARNING:
            print(self.format(record), file=sys.stderr, flush=True)
        elif distributed.is_first():
            print(self.format(record), flush=True)


_LOGGER = logging.getLogger("s2rm_jax")
_LOGGER.setLevel(logging.INFO)
_LOGGER.addHandler(_Console())
_LOGGER.propagate = False  # absl gives the root logger a handler, which would print every line again


def log(line: str, step: int | None = None) -> None:
    """Log a line for people; `step` is the training step that it belongs to."""
    _LOGGER.info("%s", line, extra={"step": step})


class RunLog(logging.Handler):
    """Write every logged line to <workdir>/log/process_N.jsonl: {"time", "process", "step" if it has one, "message"}.

    Use it as a context manager. Lines before `open` are kept until then. Each process has a file of its own.
    """

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self._lines: JsonLines | None = None
        self._pending: list[dict[str, Any]] = []

    def open(self, workdir: epath.Path) -> None:
        """Open the file in an existing workdir.

        Raises:
            OSError: the file cannot be written.
        """
        folder = workdir / LOG_DIRECTORY
        folder.mkdir(parents=True, exist_ok=True)
        self._lines = JsonLines(folder / f"process_{distributed.process()[0]}.jsonl")
        for values in self._pending:
            self._lines.write(values)

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line."""
        step = getattr(record, "step", None)
        values = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "process": distributed.process()[0],
            **({} if step is None else {"step": step}),
            "message": self.format(record),
        }
        if self._lines:
            self._lines.write(values)
        else:
            self._pending.append(values)

    def __enter__(self) -> RunLog:
        _LOGGER.addHandler(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        _LOGGER.removeHandler(self)
        with _closing_after(error, "the log"), contextlib.ExitStack() as stack:
            if self._lines:
                stack.callback(self._lines.close)
            if kind is not None:  # only into the file; the command prints the error
                self.handle(
                    _LOGGER.makeRecord("s2rm_jax", logging.INFO, "", 0, f"ended by {kind.__name__}: {error}", (), None)
                )


@contextmanager
def _closing_after(error: BaseException | None, what: str) -> Iterator[None]:
    """Only warn of an error of the block if `error` is being raised already, because the status depends on `error`."""
    try:
        yield
    except Exception as later:  # clients of buckets raise many kinds
        if error is None:
            raise
        _LOGGER.warning("the end of %s cannot be written (%s)", what, reason_of(later))


def hours_minutes_seconds(seconds: float) -> str:
    """Return a duration as h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


class Progress:
    """Measure the speed of training.

    The clock starts when the first step is finished, so compiling and the start of the input are left out. Rates are
    those since the last line, without pauses (evaluation, saving). The estimated time includes pauses, as they recur.

    Args:
        last_step: the number of steps of the run.
        seconds_at_peak: duration of a step that does nothing but matrix products at the published rate of the devices,
            None if the rate is unknown. Its share of the measured time is the model FLOPs utilization (MFU).
        clock: returns seconds.
    """

    def __init__(
        self,
        last_step: int,
        seconds_at_peak: float | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ):
        self._clock, self._created = clock, clock()
        self._last_step, self._seconds_at_peak = last_step, seconds_at_peak
        self._first_step = 0
        self._started: float | None = None
        self._restart()

    def finish_step(self, step: int, expressions: int, images: int) -> None:
        """Count a finished step and the content of its batch."""
        if self._started is None:
            self._started, self._first_step = self._clock(), step
            log(f"step {step} is done after {hours_minutes_seconds(self._started - self._created)}")
            self._restart()
            return
        self._expressions += expressions
        self._images += images
        self._steps += 1

    @contextmanager
    def waiting_for_input(self) -> Iterator[None]:
        """Count the time inside as waiting for input."""
        start = self._clock()
        yield
        self._waited += self._clock() - start

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Leave the time inside out of the rates."""
        start = self._clock()
        yield
        self._paused += self._clock() - start

    def speed(self) -> dict[str, float]:
        """Return the rates since the last line, and percentages of the time (waiting for input, MFU); {} at first."""
        seconds = self._clock() - self._since - self._paused
        if not self._images:
            return {}
        rates = {
            "expressions_per_second": self._expressions / seconds,
            "images_per_second": self._images / seconds,
            "waiting_for_input": 100 * min(1.0, self._waited / seconds),
        }
        if self._seconds_at_peak:
            rates["model_flops_utilization"] = 100 * self._steps * self._seconds_at_peak / seconds
        return rates

    def line(self, step: int, metrics: Mapping[str, float], speed: Mapping[str, float]) -> str:
        """Return the line for `step`, given the result of `speed`, and start counting for the next line."""
        parts = [
            f"step {step}/{self._last_step} ({100 * step // self._last_step}%)",
            *([f"epoch {metrics['epoch']:.2f}"] if "epoch" in metrics else []),
            f"loss {metrics['loss']:.4f}",
            f"mIoU {metrics['mean_iou']:.1f}",
            f"lr {metrics['learning_rate']:.2e}",
        ]
        if speed:
            parts += [
                f"{speed['expressions_per_second']:.1f} expressions/s, {speed['images_per_second']:.1f} images/s",
                f"{speed['waiting_for_input']:.0f}% waiting for input",
            ]
        if "model_flops_utilization" in speed:
            parts.append(f"MFU {speed['model_flops_utilization']:.1f}%")
        if self._started is not None and step > self._first_step:
            per_step = (self._clock() - self._started) / (step - self._first_step)
            parts.append(f"ETA {hours_minutes_seconds(per_step * (self._last_step - step))}")
        self._restart()
        return " | ".join(parts)

    def _restart(self) -> None:
        self._since = self._clock()
        self._waited = self._paused = 0.0
        self._expressions = self._images = self._steps = 0


def report_evaluation(
    split: str,
    stopping: Callable[[], None] = lambda: None,
    every: float = 10.0,
    clock: Callable[[], float] = time.perf_counter,
) -> Callable[[int, int], None]:
    """Return a function to call after each batch of an evaluation; it logs the progress every `every` seconds.

    `stopping` is called after each batch too, and may raise to end the evaluation. The time of the first batch includes
    compilation, so the estimate begins after it.
    """
    last = clock()
    first: tuple[int, float] | None = None

    def report(done: int, total: int) -> None:
        nonlocal first, last
        stopping()
        now = clock()
        first = first or (done, now)
        if now - last >= every:
            last = now
            line = f"evaluating {split}: batch {done}/{total} ({100 * done // total}%)"
            if done > first[0]:
                line += f" | ETA {hours_minutes_seconds((now - first[1]) / (done - first[0]) * (total - done))}"
            log(line)

    return report


class Averages:
    """Average the metrics of steps: per expression, but grad_norm and expressions per step; learning_rate is the last.

    A single step is noisy, so a line of the log has the means since the last line.
    """

    def __init__(self) -> None:
        self._sums: dict[str, tuple[float, float]] = {}  # of each metric: weighted sum, sum of weights
        self._latest: Mapping[str, float] = {}

    def add(self, metrics: Mapping[str, float]) -> None:
        """Add the metrics of one step, which must include "expressions"."""
        self._latest = metrics
        for name, value in metrics.items():
            weight = 1.0 if name in ("grad_norm", "expressions") else metrics["expressions"]
            total, weights = self._sums.get(name, (0.0, 0.0))
            self._sums[name] = (total + weight * value, weights + weight)

    def take(self) -> dict[str, float]:
        """Return the means since the last call and start again; a mean over no expressions is 0."""
        means = {name: total / weights if weights else 0.0 for name, (total, weights) in self._sums.items()}
        if "learning_rate" in means:
            means["learning_rate"] = self._latest["learning_rate"]
        self._sums = {}
        return means


def evaluation_part(split: str) -> str:
    """Return the prefix of the metric names of evaluations of a split; "train" is the prefix of training batches."""
    return "eval_train" if split == "train" else split


class MetricsWriter:
    """Write metrics to <workdir>/metrics.jsonl, to TensorBoard files and to Weights & Biases, as the config says.

    A run that resumes at `step` first removes the metrics of later steps from metrics.jsonl, so that no step is written
    twice. Use it as a context manager. With several processes, only process 0 writes.
    """

    def __init__(self, workdir: epath.PathLike, config: ConfigDict, step: int = 0, repeats: str = ""):
        """Open the files.

        Args:
            workdir: the folder of the run.
            config: the fields read are `tensorboard` and `wandb_project`.
            step: at which the run begins or resumes.
            repeats: the prefix of the metrics at `step` that will be written again, and so are removed too.

        Raises:
            UserError: Weights & Biases is configured and does not work.
        """
        self._lines: JsonLines | None = None
        self._others: list[TensorBoardFiles | WandbRun] = []
        if not distributed.is_first():
            return
        workdir = epath.Path(workdir)

        def is_earlier(line: dict[str, Any]) -> bool:
            written_again = bool(repeats) and any(name.startswith(f"{repeats}/") for name in line)
            return line.get("step") in range(step if written_again else step + 1)

        self._lines = JsonLines(workdir / METRICS_FILE, keep=is_earlier)
        with contextlib.ExitStack() as opened:
            opened.push(self.__exit__)
            if config.tensorboard:
                self._others.append(TensorBoardFiles(workdir, step))
            if config.wandb_project:
                self._others.append(WandbRun(workdir, config))
            opened.pop_all()  # everything is open, and `__exit__` closes it

    def write(self, step: int, part: str, metrics: Mapping[str, float]) -> None:
        """Write metrics at `step` under the prefix `part`: "train", or the `evaluation_part` of a split."""
        if self._lines is None:
            return
        values = {f"{part}/{name}": float(value) for name, value in metrics.items()}
        self._lines.write({"step": step, **values})
        for other in self._others:
            other.write(step, values)

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        failed = kind is not None and not issubclass(kind, Interrupted)
        with _closing_after(error, "the metrics"), contextlib.ExitStack() as closing:  # even if closing one part fails
            for other in self._others:
                closing.callback(other.close, failed)
            if self._lines is not None:
                closing.callback(self._lines.close)


class TensorBoardFiles:
    """Write values to <workdir>/tensorboard; values of earlier files at steps after `step` are discarded."""

    def __init__(self, workdir: epath.Path, step: int):
        # It would import torch, for annotations only, which takes as long as all other imports together.
        with _hidden("torch"):
            from tensorboardX import SummaryWriter

        self._folder = workdir / TENSORBOARD_DIRECTORY
        # A bucket cannot append to files, so they are written on this machine and copied as they grow.
        self._local = tempfile.TemporaryDirectory() if on_bucket(workdir) else None
        self._copied = time.monotonic()
        self._writer = SummaryWriter(self._local.name if self._local else str(self._folder), purge_step=step + 1)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Add the values of a step."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        if self._local and time.monotonic() - self._copied >= REWRITE_EVERY:
            self._writer.flush()
            self._copied = time.monotonic()
            with ignoring_temporary():  # the next copy has these values too
                copy_files(Path(self._local.name), self._folder)

    def close(self, failed: bool) -> None:
        """Close the files."""
        with self._local or contextlib.nullcontext():
            self._writer.close()
            if self._local:
                copy_files(Path(self._local.name), self._folder)


@contextmanager
def _hidden(module: str) -> Iterator[None]:
    """Make importing a module fail as if it were not installed, unless it has been imported already."""
    if module in sys.modules:
        yield
        return
    sys.modules[module] = None  # type: ignore[assignment]  # the documented way to make its import fail
    try:
        yield
    finally:
        sys.modules.pop(module, None)


def require_wandb(config: ConfigDict) -> None:
    """Check that wandb is installed and has a login if the configuration uses it.

    The server is not asked whether the login is valid. Of several processes, only the first needs one.

    Raises:
        UserError: it is not installed, or has no login and is not offline.
    """
    if not config.wandb_project:
        return
    if importlib.util.find_spec("wandb") is None:
        raise UserError(
            f"config.wandb_project is {config.wandb_project!r}, but wandb is not installed: pip install -e '.[wandb]', "
            "or leave the field empty"
        )
    if distributed.is_first():
        import wandb

        with _explaining_wandb(config):
            # Silent, wandb prints nothing and does not ask for a missing login, for which nobody may be there.
            settings = wandb.setup(wandb.Settings(silent=True)).settings
            if settings.mode not in ("offline", "dryrun", "disabled"):
                wandb.login(verify=False)


class WandbRun:
    """A run on Weights & Biases; it lives as long as the workdir, which keeps its id in wandb_run.txt.

    Steps that a killed run takes again appear twice. wandb's own files are in <workdir>/wandb, or, if the workdir is in
    a bucket, in a temporary folder.
    """

    def __init__(self, workdir: epath.Path, config: ConfigDict):
        id_file = workdir / WANDB_ID_FILE
        run_id = id_file.read_text().strip() if id_file.exists() else secrets.token_hex(4)
        self._local = tempfile.TemporaryDirectory() if on_bucket(workdir) else None
        with contextlib.ExitStack() as opened:
            if self._local:
                opened.callback(self._local.cleanup)
            self._run = _start_wandb(workdir, config, run_id, self._local.name if self._local else str(workdir))
            opened.callback(self._run.finish, exit_code=1)
            write_atomically(id_file, f"{run_id}\n")
            # The step is an ordinary value, because wandb's own step cannot decrease.
            self._run.define_metric("step")
            self._run.define_metric("*", step_metric="step")
            opened.pop_all()  # nothing failed, and `close` ends both

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Add the values of a step."""
        self._run.log({"step": step, **values})

    def close(self, failed: bool) -> None:
        """End the run, marked as failed or finished."""
        with self._local or contextlib.nullcontext():
            self._run.finish(exit_code=int(failed))


def _start_wandb(workdir: epath.Path, config: ConfigDict, run_id: str, folder: str) -> Any:
    import wandb

    with _explaining_wandb(config):
        return wandb.init(
            project=config.wandb_project,
            name=workdir.name,
            id=run_id,
            resume="allow",
            config=config.to_dict(),
            dir=folder,
            settings=wandb.Settings(console="off", silent=True),
        )


@contextmanager
def _explaining_wandb(config: ConfigDict) -> Iterator[None]:
    import wandb

    try:
        yield
    except wandb.Error as error:
        reason = one_line(error).rstrip(".")
        raise UserError(
            f"config.wandb_project={config.wandb_project}: wandb failed: {reason}; log in with `wandb login`, set "
            "WANDB_MODE=offline, or leave the field empty"
        ) from error
