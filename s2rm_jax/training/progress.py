"""What a person sees while a run is under way: how far, how fast, how long still."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from s2rm_jax.parallel import distributed

SAID = logging.getLogger("s2rm_jax.said")  # hears every line, for whoever keeps them (training/run_log.py)
SAID.setLevel(logging.INFO)
SAID.propagate = False


def say(line: str, step: int | None = None) -> None:
    """Prints a line at once, also into a pipe; of several processes, the first speaks for all."""
    if distributed.is_first():
        print(line, flush=True)
    SAID.info("%s", line, extra={"step": step})


def counted(number: int, thing: str) -> str:
    """Writes so many things: 1 picture, 2 pictures."""
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

    def finish_step(self, step: int, expressions: int, pictures: int) -> None:
        """Hears that a step is finished, and what was in its batch."""
        if self._began is None:
            self._began, self._began_step = self._clock(), step
            say(f"step {step} is done after {hours_minutes_seconds(self._began - self._made)}")
            self._restart()
            return
        self._expressions += expressions
        self._pictures += pictures
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
        if not self._pictures:
            return {}
        rates = {
            "expressions_per_second": self._expressions / seconds,
            "pictures_per_second": self._pictures / seconds,
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
                f"{speed['expressions_per_second']:.1f} expressions/s, {speed['pictures_per_second']:.1f} pictures/s",
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
        self._expressions = self._pictures = self._steps = 0


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
            say(f"evaluating {split}: batch {done}/{total} ({100 * done // total}%) | ETA {left}")

    return report
