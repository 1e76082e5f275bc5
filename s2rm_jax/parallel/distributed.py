"""Joining the processes of a run, exchanging values between them, and leaving.

Commands that train or evaluate call `join = define_flags(FLAGS)` and then `join()` before any device is used. All other
functions also work with a single process, without waiting.
"""

from __future__ import annotations

import os
import pickle
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from functools import cache
from typing import Any, Literal, NoReturn

from absl import flags

from s2rm_jax.errors import UserError, reason_of
from s2rm_jax.parallel.cluster import Cluster, find_cluster

JOIN_TIMEOUT = 300  # seconds
_HEARTBEAT_TIMEOUT = 40  # seconds
_GRACE = 5.0  # seconds that process 0 waits before it exits after an error
_joining: Literal["no", "failed", "done"] = "no"

# Parts of error messages that are due to the loss of another process or of the connection to it. Errors of a process
# itself have others (RESOURCE_EXHAUSTED, INVALID_ARGUMENT, ...).
_PEER_ERRORS = ("Gloo", "UNAVAILABLE", "DEADLINE_EXCEEDED", "ABORTED", "coordination", "Barrier", "NCCL")


def define_flags(flag_values: flags.FlagValues) -> Callable[[], None]:
    """Define the flags for joining other processes; return a function that joins them."""
    mode = flags.DEFINE_enum(
        "distributed", "auto", ["auto", "on", "off"], "auto: join other processes if flags, a TPU pod, SLURM, "
        "torchrun, Open MPI, MPICH or Kubernetes describe them; on: fail if there are none; off: run alone",
        flag_values=flag_values,
    )  # fmt: skip
    address = flags.DEFINE_string(
        "coordinator_address", None, "HOST:PORT at which process 0 listens", flag_values=flag_values
    )
    number = flags.DEFINE_integer("num_processes", None, "number of processes of the run", flag_values=flag_values)
    index = flags.DEFINE_integer("process_id", None, "index of this process, from 0", flag_values=flag_values)
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
    """Join the other processes of the run, if arguments or environment describe any (`cluster.find_cluster`).

    Call it before any use of a device. Processes on CPUs communicate by gloo.

    Args:
        mode: "auto", "on" (UserError if there are no others) or "off" (do nothing).
        coordinator_address: HOST:PORT; this and the next two are taken from the environment if None.
        num_processes: number of processes of the run.
        process_id: index of this process.
        timeout: seconds to wait for the others.

    Raises:
        UserError: the cluster is described incompletely, or its processes do not connect.
    """
    if mode == "off":
        others = {"coordinator_address": coordinator_address, "num_processes": num_processes, "process_id": process_id}
        if given := [f"--{name}" for name, value in others.items() if value is not None]:
            raise UserError(f"--distributed=off is given with {' and '.join(given)}; leave out one or the other")
        return
    cluster = find_cluster(os.environ, coordinator_address, num_processes, process_id)
    if cluster is None:
        if mode == "on":
            raise UserError(
                "--distributed=on, but no other processes are described: give --coordinator_address, "
                "--num_processes and --process_id, or start the run with srun, torchrun or mpirun, in a JobSet, or on "
                "a TPU pod"
            )
        return
    _join(cluster, timeout, required=mode == "on")


def _join(cluster: Cluster, timeout: int, required: bool) -> None:
    import jax

    global _joining  # noqa: PLW0603
    _joining = "failed"  # until it succeeds
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # The service would handle SIGTERM and interfere with Orbax's count of steps; training/interrupt.py handles it.
    jax.config.update("jax_enable_preemption_service", False)
    errors: list[Exception] = []

    def connect() -> None:
        try:
            jax.distributed.initialize(
                cluster.coordinator,
                cluster.processes,
                cluster.index,
                local_device_ids=cluster.devices,
                # Without detection by JAX, which would give each SLURM task a single accelerator.
                cluster_detection_method="deactivate" if cluster.coordinator and cluster.processes else None,
                initialization_timeout=timeout + 60,
                heartbeat_timeout_seconds=_HEARTBEAT_TIMEOUT,
            )
        except Exception as error:
            errors.append(error)

    # In a thread, because JAX ends the whole process at its own timeout.
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(timeout)
    if thread.is_alive():
        raise UserError(f"{_describe(cluster)}: {_why_not_joined(cluster)} within {timeout} s (--join_timeout)")
    if not errors:
        _joining = "done"
        return
    if isinstance(errors[0], ValueError) and not cluster.processes and not required:
        _joining = "no"  # JAX found no others: a lone TPU
        return
    raise UserError(
        f"{_describe(cluster)}: cannot join the others ({reason_of(errors[0])}); check that the address is correct and "
        "the port free"
    ) from errors[0]


def _describe(cluster: Cluster) -> str:
    if cluster.processes is None:
        return f"found {cluster.found_in}"
    return f"process {cluster.index} of {cluster.processes} ({cluster.found_in}, coordinator {cluster.coordinator})"


def _why_not_joined(cluster: Cluster) -> str:
    if cluster.coordinator and cluster.index:
        host, _, port = cluster.coordinator.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
        except OSError as error:
            return f"the coordinator could not be reached ({error.strerror or error})"
    return "not all processes connected"


def process() -> tuple[int, int]:
    """Return (index of this process, number of processes)."""
    jax = sys.modules.get("jax")  # not imported here, because commands without JAX call this too
    if jax is None or _joining == "failed" or not jax.distributed.is_initialized():
        return 0, 1
    return jax.process_index(), jax.process_count()


def is_first() -> bool:
    """Return whether this is process 0, which logs and writes for all."""
    return process()[0] == 0


def is_alone() -> bool:
    """Return whether this is the only process."""
    return process()[1] == 1


def gather(value: Any) -> list[Any]:
    """Return the values of all processes, pickled, by index; every process must call it."""
    if is_alone():
        return [value]
    import numpy as np
    from jax.experimental import multihost_utils

    data = np.frombuffer(pickle.dumps(value), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(len(data)))
    padded = multihost_utils.process_allgather(np.pad(data, (0, int(sizes.max()) - len(data))))
    return [pickle.loads(row[:size].tobytes()) for row, size in zip(padded, sizes, strict=True)]


def start_maximum(number: int) -> Callable[[], int]:
    """Return a function that waits for the maximum of the small integers of all processes; each must call this.

    This does not wait: it enqueues a program on the devices, after those that are running.
    """
    import jax

    maximum = _maximum_program()(number)
    return lambda: int(jax.device_get(maximum))


@cache
def _maximum_program() -> Callable[[int], Any]:
    import jax
    import jax.numpy as jnp
    import numpy as np

    from s2rm_jax.parallel.mesh import make_mesh, put_batch, replicated

    mesh = make_mesh()
    maximum = jax.jit(jnp.max, out_shardings=replicated(mesh))
    return lambda number: maximum(put_batch(np.full(jax.local_device_count(), number, np.int32), mesh))


def require_everywhere(check: Callable[[], bool], message: str) -> None:
    """Wait for all processes, then raise UserError on all of them unless `check()` is true on each."""
    gather(None)
    failed = [index for index, holds in enumerate(gather(check())) if not holds]
    if failed:
        raise UserError(f"{message}. It fails for process {failed[0]}.")


def is_peer_failure(error: BaseException) -> bool:
    """Return whether an error is due to the end of another process."""
    return not is_alone() and not isinstance(error, UserError) and any(part in str(error) for part in _PEER_ERRORS)


def leave(status: int, failed: bool) -> NoReturn:
    """Exit with `status`; if this process `failed`, without waiting for the others, which may be waiting for it."""
    # srun and others send SIGTERM to the rest once a process has ended; the status must be that of this process.
    if _joining != "no" and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if failed and _joining != "no":
        sys.stdout.flush()
        sys.stderr.flush()
        if _joining == "done" and is_first():
            # The others use a service of process 0; without it, JAX aborts them with a stack dump. Wait until they
            # have reported an error of their own, such as a mistake in the configuration, with their own status.
            time.sleep(_GRACE)
        os._exit(status)
    sys.exit(status)
