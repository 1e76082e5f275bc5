"""What a person sees while a run is under way: how far, how fast, how long still.

What a run said, kept by each process as JSON lines: <workdir>/log/process_N.jsonl.

Means of the metrics over the steps between two lines of the log: a single step says little.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from etils import epath

from s2rm_jax.io import JsonLines
from s2rm_jax.parallel import distributed

SAID = logging.getLogger("s2rm_jax.said")  # hears every line, for whoever keeps them (training/logging.py)
SAID.setLevel(logging.INFO)
SAID.propagate = False


def log(line: str, step: int | None = None) -> None:
    """Prints a line at once, also into a pipe; of several processes, the first speaks for all."""
    if distributed.is_first():
        print(line, flush=True)
    SAID.info("%s", line, extra={"step": step})


def counted(number: int, thing: str) -> str:
    """Writes so many things: 1 image, 2 images."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def hours_minutes_seconds(seconds: float) -> str:
    """Writes a duration as h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


class Progress:
    """Counts finished steps and the time they took.

    The clock starts when the first step is finished, which waits for the input to begin. Rates are those since the last
    line and leave out pauses (evaluation, saving); the time left counts them in, as they will come again.

    `seconds_at_peak` is what a step would take if the devices did nothing but matrix products at their published rate;
    where it is known, the share of it in the time that steps take is told: the model-FLOP utilisation, or MFU.
    """

    def __init__(
        self,
        last_step: int,
        seconds_at_peak: float | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ):
        self._clock, self._made = clock, clock()
        self._last_step, self._seconds_at_peak = last_step, seconds_at_peak
        self._began_step = 0
        self._began: float | None = None
        self._restart()

    def finish_step(self, step: int, expressions: int, images: int) -> None:
        """Hears that a step is finished, and what was in its batch."""
        if self._began is None:
            self._began, self._began_step = self._clock(), step
            log(f"step {step} is done after {hours_minutes_seconds(self._began - self._made)}")
            self._restart()
            return
        self._expressions += expressions
        self._images += images
        self._steps += 1

    @contextmanager
    def waiting_for_input(self) -> Iterator[None]:
        """Counts the time inside as waiting for input."""
        began = self._clock()
        yield
        self._waited += self._clock() - began

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Leaves the time inside out of the rates."""
        began = self._clock()
        yield
        self._paused += self._clock() - began

    def speed(self) -> dict[str, float]:
        """Returns the rates since the last line, and percentages of the time (waiting for input, MFU); {} at first."""
        seconds = self._clock() - self._since - self._paused
        if not self._images:
            return {}
        rates = {
            "expressions_per_second": self._expressions / seconds,
            "images_per_second": self._images / seconds,
            "waiting_for_input": 100 * min(1.0, self._waited / seconds),
        }
        if self._seconds_at_peak:
            rates["model_flop_utilisation"] = 100 * self._steps * self._seconds_at_peak / seconds
        return rates

    def line(self, step: int, metrics: Mapping[str, float], speed: Mapping[str, float]) -> str:
        """Returns the line for `step`, with what `speed` returned, and begins to count anew for the next one."""
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
        if "model_flop_utilisation" in speed:
            parts.append(f"MFU {speed['model_flop_utilisation']:.1f}%")
        if self._began is not None and step > self._began_step:
            per_step = (self._clock() - self._began) / (step - self._began_step)
            parts.append(f"ETA {hours_minutes_seconds(per_step * (self._last_step - step))}")
        self._restart()
        return " | ".join(parts)

    def _restart(self) -> None:
        self._since = self._clock()
        self._waited = self._paused = 0.0
        self._expressions = self._images = self._steps = 0


def report_evaluation(split: str, stopping: Callable[[], None], every: float = 10.0) -> Callable[[int, int], None]:
    """Returns what an evaluation calls after each batch: it says every `every` seconds how far it is.

    `stopping` is called too, and may raise to break the evaluation off.
    """
    began = said = time.perf_counter()

    def report(done: int, total: int) -> None:
        nonlocal said
        stopping()
        now = time.perf_counter()
        if now - said >= every:
            said = now
            left = hours_minutes_seconds((now - began) / done * (total - done))
            log(f"evaluating {split}: batch {done}/{total} ({100 * done // total}%) | ETA {left}")

    return report


LOG_DIRECTORY = "log"


class RunLog(logging.Handler):
    """While inside, keeps every line that is said: {"time", "process", "step" where it is of one, "message"}.

    What is said before `open` is kept until then. Of several processes only the first prints, but each keeps its own.
    """

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self._lines: JsonLines | None = None
        self._before: list[dict[str, Any]] = []

    def open(self, workdir: epath.Path) -> None:
        """Names the workdir, which must exist.

        Raises:
            OSError: it cannot be written.
        """
        folder = workdir / LOG_DIRECTORY
        folder.mkdir(parents=True, exist_ok=True)
        self._lines = JsonLines(folder / f"process_{distributed.process()[0]}.jsonl")
        for values in self._before:
            self._lines.write(values)

    def emit(self, record: logging.LogRecord) -> None:
        """Keeps a line."""
        step = getattr(record, "step", None)
        values = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "process": distributed.process()[0],
            **({} if step is None else {"step": step}),
            "message": record.getMessage(),
        }
        if self._lines:
            self._lines.write(values)
        else:
            self._before.append(values)

    def __enter__(self) -> RunLog:
        SAID.addHandler(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if kind is not None:
            SAID.info("ended by %s: %s", kind.__name__, error)
        SAID.removeHandler(self)
        if self._lines:
            self._lines.close()


# What does not speak of expressions is averaged over steps; the learning rate is that of the last step.
_OF_STEPS = ("grad_norm", "expressions")
_OF_THE_LAST_STEP = ("learning_rate",)


class Averages:
    """Adds up metrics of steps; those of expressions weigh by the number of expressions in the step."""

    def __init__(self) -> None:
        self._sums: dict[str, tuple[float, float]] = {}  # of each metric: weighted sum, sum of weights
        self._latest: Mapping[str, float] = {}

    def add(self, metrics: Mapping[str, float]) -> None:
        """Hears the metrics of a step; "expressions" must be among them."""
        self._latest = metrics
        for name, value in metrics.items():
            weight = 1.0 if name in _OF_STEPS else metrics["expressions"]
            total, weights = self._sums.get(name, (0.0, 0.0))
            self._sums[name] = (total + weight * value, weights + weight)

    def take(self) -> dict[str, float]:
        """Returns the means since the last call, and begins anew; a mean over no expression at all is 0."""
        means = {
            name: self._latest[name] if name in _OF_THE_LAST_STEP else total / weights if weights else 0.0
            for name, (total, weights) in self._sums.items()
        }
        self._sums = {}
        return means
