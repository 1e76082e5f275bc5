"""Several processes that train together: joining them, asking who one is, exchanging what all must know, leaving.

Doors that train or evaluate call `join = define_flags(FLAGS)` and then `join()`, before any device is used. Everything
else here does its part, without waiting for anybody, also where there is only one process.
"""

from __future__ import annotations

import os
import pickle
import socket
import sys
import threading
import time
from collections.abc import Callable
from functools import cache
from typing import Any, Literal, NoReturn

from absl import flags

from s2rm_jax.errors import UserError
from s2rm_jax.parallel.cluster import Cluster, find_cluster

JOIN_TIMEOUT = 300  # seconds
_SILENCE = 40  # seconds without a sign of life after which a process counts as dead
_GRACE = 5.0  # seconds by which the first process outlives an error
_joining: Literal["no", "failed", "done"] = "no"

# How errors begin, or what they hold, when another process or the way to it is gone. What a process did wrong itself
# (RESOURCE_EXHAUSTED, INVALID_ARGUMENT, ...) reads otherwise.
_SIGNS_OF_LOSS = ("Gloo", "UNAVAILABLE", "DEADLINE_EXCEEDED", "ABORTED", "coordination", "Barrier", "NCCL")


def define_flags(flag_values: flags.FlagValues) -> Callable[[], None]:
    """Defines the flags by which a door joins other processes; returns what the door calls to join them."""
    mode = flags.DEFINE_enum(
        "distributed", "auto", ["auto", "on", "off"], "auto: join others where flags, a TPU pod, SLURM, Open MPI or "
        "Kubernetes name them; on: it is an error if there are none; off: run alone", flag_values=flag_values,
    )  # fmt: skip
    address = flags.DEFINE_string(
        "coordinator_address", None, "HOST:PORT at which process 0 listens", flag_values=flag_values
    )
    number = flags.DEFINE_integer("num_processes", None, "processes of the run", flag_values=flag_values)
    index = flags.DEFINE_integer("process_id", None, "which of them this is, from 0", flag_values=flag_values)
    timeout = flags.DEFINE_integer(
        "join_timeout", JOIN_TIMEOUT, "seconds to wait for the other processes", lower_bound=1, flag_values=flag_values
    )
    return lambda: initialize(mode.value, address.value, number.value, index.value, timeout.value)


def initialize(
    mode: str = "auto",
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    timeout: int = JOIN_TIMEOUT,
) -> None:
    """Joins the other processes of the run, where flags or environment say that there are any (`group.find_group`).

    Must come before any use of a device. Processes on CPUs exchange by gloo.

    Args:
        mode: "auto", "on" (UserError if there are none) or "off" (does nothing).
        coordinator_address: HOST:PORT; as the two after it, None takes it from the environment.
        num_processes: of the run.
        process_id: of this one.
        timeout: seconds to wait for the others.

    Raises:
        UserError: the group is described by half, or it does not come together.
    """
    if mode == "off":
        return
    group = find_cluster(os.environ, coordinator_address, num_processes, process_id)
    if group is None:
        if mode == "on":
            raise UserError(
                "--distributed=on, but nothing says who the other processes are: give --coordinator_address, "
                "--num_processes and --process_id, or start by srun, by mpirun, in a JobSet or on a TPU pod."
            )
        return
    _join(group, timeout, required=mode == "on")


def _join(group: Cluster, timeout: int, required: bool) -> None:
    import jax

    global _joining  # noqa: PLW0603
    _joining = "failed"  # until it is done
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # It would take SIGTERM, and its count of steps would mix with Orbax's; `training.interrupt` listens instead.
    jax.config.update("jax_enable_preemption_service", False)
    errors: list[Exception] = []

    def connect() -> None:
        try:
            jax.distributed.initialize(
                group.coordinator,
                group.processes,
                group.index,
                local_device_ids=group.devices,
                # What is known is not to be detected anew: JAX would give each SLURM task a single accelerator.
                cluster_detection_method="deactivate" if group.coordinator and group.processes else None,
                initialization_timeout=timeout + 60,
                heartbeat_timeout_seconds=_SILENCE,
            )
        except Exception as error:
            errors.append(error)

    # In a thread, because JAX ends the whole process when its own time is up.
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(timeout)
    if thread.is_alive():
        raise UserError(f"{_who(group)}: {_why_not_joined(group)} within {timeout} s (--join_timeout).")
    if not errors:
        _joining = "done"
        return
    if isinstance(errors[0], ValueError) and not group.processes and not required:
        _joining = "no"  # JAX found no others: a lone TPU
        return
    reason = str(errors[0]).strip().splitlines()[0]
    raise UserError(
        f"{_who(group)}: cannot join the others ({reason}); check that the address and port are free and right."
    ) from errors[0]


def _who(group: Cluster) -> str:
    if group.processes is None:
        return f"found {group.found_in}"
    return f"process {group.index} of {group.processes} ({group.found_in}, coordinator {group.coordinator})"


def _why_not_joined(group: Cluster) -> str:
    if group.coordinator and group.index:
        host, _, port = group.coordinator.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
        except OSError as error:
            return f"the coordinator could not be reached ({error.strerror or error})"
    return "not all processes came"


def process() -> tuple[int, int]:
    """Returns (index of this process, number of processes)."""
    jax = sys.modules.get("jax")  # not imported for this: doors that need no JAX ask too
    if jax is None or _joining == "failed" or not jax.distributed.is_initialized():
        return 0, 1
    return jax.process_index(), jax.process_count()


def is_first() -> bool:
    """Says whether this process is the one that speaks and writes for all."""
    return process()[0] == 0


def is_alone() -> bool:
    """Says whether this is the only process."""
    return process()[1] == 1


def gather(value: Any) -> list[Any]:
    """Returns the values that all processes gave, by index; every process must call it. They go by pickle."""
    if is_alone():
        return [value]
    import numpy as np
    from jax.experimental import multihost_utils

    data = np.frombuffer(pickle.dumps(value), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(len(data)))
    padded = multihost_utils.process_allgather(np.pad(data, (0, int(sizes.max()) - len(data))))
    return [pickle.loads(row[:size].tobytes()) for row, size in zip(padded, sizes, strict=True)]


class Maximum:
    """The greatest of the small numbers that all processes give; every process must make one.

    It is on its way when the constructor returns: by a program of its own on the devices, after those that run there.
    """

    def __init__(self, number: int):
        self._array = _program_for_maxima()(number)

    def value(self) -> int:
        """Waits for the number and returns it."""
        import jax

        return int(jax.device_get(self._array))


@cache
def _program_for_maxima() -> Callable[[int], Any]:
    import jax
    import jax.numpy as jnp
    import numpy as np

    from s2rm_jax.parallel.mesh import make_mesh, put_batch, replicated

    mesh = make_mesh()
    maximum = jax.jit(jnp.max, out_shardings=replicated(mesh))
    return lambda number: maximum(put_batch(np.full(jax.local_device_count(), number, np.int32), mesh))


def require_everywhere(check: Callable[[], bool], message: str) -> None:
    """Waits for all processes, then raises UserError on all of them unless `check()` holds on each."""
    gather(None)
    without = [index for index, holds in enumerate(gather(check())) if not holds]
    if without:
        raise UserError(f"{message} It fails for process {without[0]}.")


def is_peer_failure(error: BaseException) -> bool:
    """Says whether an error is what is seen here of the end of another process."""
    return not is_alone() and not isinstance(error, UserError) and any(sign in str(error) for sign in _SIGNS_OF_LOSS)


def leave(status: int) -> NoReturn:
    """Exits with `status`; after an error without waiting for the others, which may be waiting for this one."""
    if status and _joining != "no":
        sys.stdout.flush()
        sys.stderr.flush()
        if _joining == "done" and is_first():
            # Without this process, whose service they use, JAX aborts the others with a dump of its stack. A mistake
            # that all make, as in the configuration, they are to tell themselves, and by the status for it.
            time.sleep(_GRACE)
        os._exit(status)
    sys.exit(status)
