"""A trace of some steps: what the host and the devices did, and when."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
from etils import epath

from s2rm_jax.errors import UserError
from s2rm_jax.parallel import distributed
from s2rm_jax.training.progress import say
from s2rm_jax.training.workdir_files import copy_files, on_bucket

PROFILE_DIRECTORY = "profile"


def parse_profile_steps(text: str) -> range:
    """Returns the steps that "FIRST:LAST" means, LAST included.

    Raises:
        UserError: it means none.
    """
    numbers = re.fullmatch(r"(\d+):(\d+)", text)
    first, last = map(int, numbers.groups()) if numbers else (0, 0)
    if not 1 <= first <= last:
        raise UserError(f"--profile_steps is {text!r}; it must be FIRST:LAST, two steps counted from 1, such as 10:15.")
    return range(first, last + 1)


class Profile:
    """Traces the given steps of a run into <workdir>/profile. Of several processes, the first traces itself.

    Use it as a context manager, so that a trace that was begun is written whatever happens.

    Raises:
        UserError: the run has not so many steps.
    """

    def __init__(self, workdir: epath.Path, steps: range, last_step: int):
        if steps and steps[-1] > last_step:
            raise UserError(
                f"--profile_steps={steps[0]}:{steps[-1]}, but the run has {last_step} steps: name steps that it takes."
            )
        self._directory = workdir / PROFILE_DIRECTORY
        self._steps = steps if distributed.is_first() else range(0)
        self._tracing = False
        self._made_here: tempfile.TemporaryDirectory[str] | None = None

    def begin(self, step: int) -> None:
        """Hears after which step the run begins, and says so if what is to be traced is over."""
        if self._steps and step >= self._steps[-1]:
            say(f"nothing to trace: --profile_steps ends at {self._steps[-1]}, and the run goes on from step {step}")

    @contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Inside, step `number` is given to the devices."""
        if number in self._steps and not self._tracing:
            if on_bucket(self._directory):  # JAX writes to this machine only
                self._made_here = tempfile.TemporaryDirectory()
            jax.profiler.start_trace(self._made_here.name if self._made_here else self._directory)
            self._tracing = True
        with jax.profiler.StepTraceAnnotation("train", step_num=number):
            yield

    def ends(self, number: int) -> bool:
        """Says whether step `number` is the last to be traced: the trace is to be written when it is finished."""
        return self._tracing and number >= self._steps[-1]

    def write(self) -> None:
        """Ends the trace, if there is one, and writes it; where that fails, the run goes on."""
        if not self._tracing:
            return
        self._tracing = False
        try:
            jax.profiler.stop_trace()
            if self._made_here:
                with self._made_here as folder:
                    copy_files(Path(folder), self._directory)
        except (OSError, RuntimeError) as error:
            say(f"the trace could not be written to {self._directory}: {str(error).splitlines()[0]}")
            return
        say(f"traced into {self._directory}; to look at it: pip install xprof; xprof --logdir {self._directory}")

    def __enter__(self) -> Profile:
        return self

    def __exit__(self, *_: object) -> None:
        self.write()
