"""The processes of a run, found from flags and environment: SLURM, Open MPI, Kubernetes, TPU pods."""

from __future__ import annotations

import importlib.util
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from s2rm_jax.errors import UserError

_ALONE = "or give --distributed=off to run this process alone"
_FIRST_PORT, _PORTS = 61440, 4096  # range of the coordinator's port if none is given


@dataclass(frozen=True)
class Cluster:
    """The coordinator of a run, its number of processes and the index of this one.

    found_in     the source of the description, for messages
    coordinator  HOST:PORT, at which process 0 listens
    devices      indices of the visible accelerators that belong to this process; None means all

    If `coordinator`, `processes` and `index` are None, JAX detects them itself.
    """

    found_in: str
    coordinator: str | None = None
    processes: int | None = None
    index: int | None = None
    devices: tuple[int, ...] | None = None


def find_cluster(
    environment: Mapping[str, str],
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    device_files: Path = Path("/dev"),
) -> Cluster | None:
    """Return the cluster that the arguments, or else the environment, describe; None if there is none.

    Raises:
        UserError: the description is incomplete or wrong.
    """
    address = coordinator_address or environment.get("S2RM_COORDINATOR_ADDRESS")
    number = _given(num_processes, environment, "S2RM_NUM_PROCESSES")
    index = _given(process_id, environment, "S2RM_PROCESS_ID")
    if number is not None or index is not None:
        return _explicit(address, number, index)
    found = _tpu(environment, device_files) or _slurm(environment)
    found = found or _open_mpi(environment, address) or _kubernetes(environment)
    if address:
        if found is None:
            raise UserError(
                f"--coordinator_address={address} is given without the processes: give --num_processes and "
                f"--process_id too, {_ALONE}."
            )
        found = replace(found, coordinator=_checked(address))
    return found


def _explicit(address: str | None, number: int | None, index: int | None) -> Cluster | None:
    names = {"--coordinator_address": address, "--num_processes": number, "--process_id": index}
    missing = [name for name, value in names.items() if value is None]
    if missing:
        raise UserError(
            f"{' and '.join(missing)} missing: a run of several processes needs all of {', '.join(names)} "
            "(or S2RM_COORDINATOR_ADDRESS, S2RM_NUM_PROCESSES, S2RM_PROCESS_ID in the environment)."
        )
    assert address is not None and number is not None and index is not None
    if number < 1 or not 0 <= index < number:
        raise UserError(f"--process_id={index} with --num_processes={number}: processes are numbered from 0 to N - 1.")
    return Cluster("flags or S2RM_* variables", _checked(address), number, index) if number > 1 else None


def _tpu(environment: Mapping[str, str], device_files: Path) -> Cluster | None:
    """Return the cluster of a TPU VM; JAX detects the pod, also if it has one host only."""
    enabled = "tpu" in environment.get("JAX_PLATFORMS", "tpu")
    chips = any(device_files.glob("accel[0-9]*")) or any(device_files.glob("vfio/[0-9]*"))
    return Cluster("this TPU VM") if enabled and chips and importlib.util.find_spec("libtpu") else None


def _slurm(environment: Mapping[str, str]) -> Cluster | None:
    tasks = int(environment.get("SLURM_NTASKS", 1))
    if "SLURM_JOB_ID" not in environment or tasks == 1:
        return None
    # A shell in an allocation has SLURM_NTASKS too. It may even be a step, with SLURM_PROCID, but a step of one task.
    needed = ("SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_LOCALID")
    missing = [name for name in needed if name not in environment]
    if missing or int(environment.get("SLURM_STEP_NUM_TASKS", tasks)) != tasks:
        reason = f"{missing[0]} is not set" if missing else "this step has another number of tasks"
        raise UserError(f"SLURM gave this job {tasks} tasks, but {reason}: start it by srun, {_ALONE}.")
    first = re.match(r"([^,\[]+)(?:\[(\d+)[^\]]*\]([^,\[]*))?", environment["SLURM_STEP_NODELIST"])
    assert first is not None
    port = _FIRST_PORT + (int(environment["SLURM_JOB_ID"]) + int(environment.get("SLURM_STEP_ID", 0))) % _PORTS
    tasks_here = -(-tasks // int(environment.get("SLURM_STEP_NUM_NODES", 1)))
    devices = _share_of_devices(environment, int(environment["SLURM_LOCALID"]), tasks_here)
    host = "".join(part or "" for part in first.groups())
    return Cluster("SLURM", f"{host}:{port}", tasks, int(environment["SLURM_PROCID"]), devices)


def _open_mpi(environment: Mapping[str, str], address: str | None) -> Cluster | None:
    size = int(environment.get("OMPI_COMM_WORLD_SIZE", 1))
    if size == 1:
        return None
    needed = ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE")
    missing = [name for name in needed if name not in environment]
    if missing:
        raise UserError(f"OMPI_COMM_WORLD_SIZE is {size} but {missing[0]} is not set: start by mpirun, {_ALONE}.")
    rank, local_rank, here = (int(environment[name]) for name in needed)
    launcher = environment.get("OMPI_MCA_orte_hnp_uri", "")  # "1531.0;tcp://10.96.0.1,10.148.0.1:34911", Open MPI 4
    port = _FIRST_PORT + zlib.crc32((launcher or environment.get("PMIX_NAMESPACE", "")).encode()) % _PORTS
    host = re.search(r"tcp://([^,:]+)", launcher)
    if here < size and not host and not address:
        raise UserError(
            "Open MPI does not give the host of its first process: give --coordinator_address=HOST:PORT of that host, "
            f"the same for all processes, {_ALONE}."
        )
    name = "127.0.0.1" if here == size or not host else host[1]
    return Cluster("Open MPI", f"{name}:{port}", size, rank, _share_of_devices(environment, local_rank, here))


def _kubernetes(environment: Mapping[str, str]) -> Cluster | None:
    if "KUBERNETES_SERVICE_HOST" not in environment or "JOB_COMPLETION_INDEX" not in environment:
        return None
    if not importlib.util.find_spec("kubernetes"):
        raise UserError(
            "this pod belongs to an indexed Job, and finding the others needs the package kubernetes, which is not "
            "installed: pip install 'jax[k8s]', or set S2RM_COORDINATOR_ADDRESS, S2RM_NUM_PROCESSES and "
            f"S2RM_PROCESS_ID in the manifest, {_ALONE}."
        )
    return Cluster("Kubernetes")


def _share_of_devices(environment: Mapping[str, str], index: int, processes: int) -> tuple[int, ...] | None:
    """Return which of the visible accelerators belong to process `index` of the `processes` on this host.

    None (all of them) if it is the only process or sees only its own accelerator; else an equal share.
    """
    listed = environment.get("CUDA_VISIBLE_DEVICES") or environment.get("ROCR_VISIBLE_DEVICES")
    visible = len(listed.split(",")) if listed else processes
    if processes == 1 or (listed and visible == 1):
        return None
    if visible % processes:
        raise UserError(
            f"{processes} processes on this host cannot share {visible} accelerators evenly: "
            "start as many as there are accelerators, or one per host."
        )
    each = visible // processes
    return tuple(range(index * each, (index + 1) * each))


def _given(flag: int | None, environment: Mapping[str, str], name: str) -> int | None:
    if flag is not None or not environment.get(name):
        return flag
    try:
        return int(environment[name])
    except ValueError:
        raise UserError(f"{name}={environment[name]} in the environment: it must be an integer.") from None


def _checked(address: str) -> str:
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise UserError(f"--coordinator_address={address}: it must be HOST:PORT, such as node1:12345.")
    return address
