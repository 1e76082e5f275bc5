"""Tracing steps of a run for a profiler."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
from etils import epath

from s2rm_jax.errors import UserError, reason_of
from s2rm_jax.io import copy_files, on_bucket
from s2rm_jax.parallel import distributed
from s2rm_jax.training.logging import log

PROFILE_DIRECTORY = "profile"


def parse_profile_steps(text: str) -> range:
    """Return the steps that "FIRST:LAST" means, including LAST.

    Raises:
        UserError: the text has another form.
    """
    numbers = re.fullmatch(r"(\d+):(\d+)", text)
    first, last = map(int, numbers.groups()) if numbers else (0, 0)
    if not 1 <= first <= last:
        raise UserError(f"--profile_steps is {text!r}; it must be FIRST:LAST, two steps counted from 1, such as 10:15")
    return range(first, last + 1)


class Profile:
    """Trace the given steps of a run into <workdir>/profile; with several processes, only process 0 is traced.

    Use it as a context manager, so that a trace is written even if the run fails.

    Raises:
        UserError: the run has fewer steps.
    """

    def __init__(self, workdir: epath.Path, steps: range, last_step: int):
        if steps and steps[-1] > last_step:
            raise UserError(
                f"--profile_steps={steps[0]}:{steps[-1]}, but the run has {last_step} steps: give steps of the run"
            )
        self._directory = workdir / PROFILE_DIRECTORY
        self._steps = steps if distributed.is_first() else range(0)
        self._tracing = False
        self._local: tempfile.TemporaryDirectory[str] | None = None

    def begin(self, step: int) -> None:
        """Log if no step is left to trace in a run that continues from `step`."""
        if self._steps and step >= self._steps[-1]:
            log(f"nothing to trace: --profile_steps ends at {self._steps[-1]}, and the run continues from step {step}")

    @contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Trace the block, which dispatches step `number`, if that is one of the steps to trace."""
        if number in self._steps and not self._tracing:
            if on_bucket(self._directory):  # JAX writes traces to local disks only
                self._local = tempfile.TemporaryDirectory()
            jax.profiler.start_trace(self._local.name if self._local else self._directory)
            self._tracing = True
        with jax.profiler.StepTraceAnnotation("train", step_num=number):
            yield

    def ends(self, number: int) -> bool:
        """Return whether step `number` is the last to trace: the trace is to be written once it is finished."""
        return self._tracing and number >= self._steps[-1]

    def write(self) -> None:
        """End the trace, if there is one, and write it; a failure is logged, and the run continues."""
        if not self._tracing:
            return
        self._tracing = False
        try:
            jax.profiler.stop_trace()
            if self._local:
                with self._local as folder:
                    copy_files(Path(folder), self._directory)
        except (OSError, RuntimeError) as error:
            log(f"the trace could not be written to {self._directory}: {reason_of(error)}")
            return
        log(f"traced into {self._directory}; to look at it: pip install xprof; xprof --logdir {self._directory}")

    def __enter__(self) -> Profile:
        return self

    def __exit__(self, *_: object) -> None:
        self.write()
