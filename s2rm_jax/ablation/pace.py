"""How long a suite of runs still takes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from s2rm_jax.ablation.runs import Run
from s2rm_jax.training.checkpoint import has_checkpoint
from s2rm_jax.training.progress import hours_minutes_seconds


class Pace:
    """Tells the time left from what the runs took that were carried out from their first step to their scores."""

    def __init__(self, runs: Sequence[Run], clock: Callable[[], float] = time.perf_counter):
        self._clock = clock
        self._steps_left = sum(run.config.steps for run in runs)
        self._steps = 0
        self._seconds = 0.0

    @property
    def left(self) -> str:
        """The time left as h:mm:ss; of unknown length until a whole run was measured."""
        if not self._steps:
            return "unknown until a run is through"
        return hours_minutes_seconds(self._seconds / self._steps * self._steps_left)

    @contextmanager
    def measured(self, run: Run) -> Iterator[None]:
        """Measures the run that is carried out inside, unless it goes on from where it stopped."""
        whole, began = not has_checkpoint(run.workdir), self._clock()
        yield
        if whole:
            self._seconds += self._clock() - began
            self._steps += run.config.steps

    def done(self, run: Run) -> None:
        """Hears that nothing is left of a run."""
        self._steps_left -= run.config.steps
