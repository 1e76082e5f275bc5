"""How several processes share the runs of a suite: a run is one process's at a time, and given back however it ends.

Beside each workdir lies a file NAME.lock, which means nothing once no process has it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from filelock import FileLock, Timeout

from s2rm_jax.ablation.runs import Run
from s2rm_jax.errors import UserError
from s2rm_jax.training.progress import say

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
                    say(f"another process trains {name}; it is looked at again after the others")
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
                say(f"waiting for what other processes train: {', '.join(run.workdir.name for run in left)}")
            waiting = True
            time.sleep(_LOOK_AGAIN)


def claim_on(path: Path) -> FileLock:
    """Returns what, entered, keeps other processes from a folder, as long as they ask for it too."""
    return FileLock(path.with_name(path.name + ".lock"))
