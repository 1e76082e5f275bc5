"""Save checkpoints in processes that are killed, one after another.

    python save_and_die.py WORKDIR LIVES SEED

Each process is forked from one that has imported everything. It restores the latest checkpoint, checks that it is
complete and continues saving, every second step twice, until it is killed at a random moment. Prints the number of
processes that were killed during a save, and the last step.
"""

import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

import jax
import numpy as np

from s2rm_jax.parallel.mesh import make_mesh, replicated
from s2rm_jax.training.checkpoint import Checkpoint, Checkpoints
from s2rm_jax.training.state import TrainState

ARRAYS, LENGTH = 24, 257


def state_of(step):
    """Return a state whose every value depends on the step."""
    arrays = {f"array{i}": np.full(LENGTH, 1000 * step + i, np.float32) for i in range(ARRAYS)}
    doubled = {name: 2 * array for name, array in arrays.items()}
    return TrainState(np.int32(step), arrays, doubled, None, np.full(2, step, np.uint32))


def require_whole(found):
    assert found.rows_seen == 4 * found.step
    assert found.metrics in (None, {"mean_iou": float(found.step)}), found.metrics
    jax.tree.map(np.testing.assert_array_equal, found.state, state_of(found.step))


def live(workdir, begun):
    """Restore, check and save without end; before each save, write the last step to the pipe `begun`."""
    sharding = replicated(make_mesh(devices=jax.devices()[:1]))
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), state_of(0))
    checkpoints = Checkpoints(workdir, 1, "mean_iou")
    found = checkpoints.restore_latest(abstract)
    if found is not None:
        require_whole(found)
    step = found.step if found is not None else 0
    while True:
        step += 1
        state = jax.device_put(state_of(step), sharding)
        for metrics in (None, {"mean_iou": float(step)})[step % 2 :]:
            os.write(begun, b"%d\n" % (step - 1))
            checkpoints.save(Checkpoint(step, state, 4 * step, metrics))


def bear(workdir):
    """Start a process; return its id and the pipe to which it writes its steps."""
    reading, writing = os.pipe()
    process = os.fork()
    if process == 0:
        try:
            live(workdir, writing)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    os.close(writing)
    return process, os.fdopen(reading)


def main(workdir, lives, seed):
    chance, cut_short, last = random.Random(seed), 0, 0
    seconds = 0.1  # that a save takes; measured as they come
    for _ in range(lives):
        process, pipe = bear(workdir)
        with pipe:
            step = int(pipe.readline() or sys.exit("a life found something that is not whole"))
            assert step >= last, f"step {last} was there and is lost, {step} was found"
            for _ in range(chance.randrange(4)):
                began = time.monotonic()
                step = int(pipe.readline())
                seconds = (seconds + time.monotonic() - began) / 2
            last = step - 1  # the save of `step` may still be under way, or be replaced
            time.sleep(chance.uniform(0, 1.5 * seconds))
            os.kill(process, signal.SIGKILL)
            assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == -signal.SIGKILL
        cut_short += any("tmp" in path.name for path in (workdir / "checkpoints").iterdir())
    print(cut_short, last)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
