"""How long a suite of runs still takes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from s2rm_jax.ablation.runs import Run, finished
from s2rm_jax.training.checkpoint import has_checkpoint
from s2rm_jax.training.progress import hours_minutes_seconds


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
