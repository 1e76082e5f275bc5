"""The processes of a run, found from flags and environment: torchrun, Open MPI, MPICH, SLURM, Kubernetes, TPU pods."""

from __future__ import annotations

import importlib.util
import os
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from s2rm_jax.errors import UserError

_ALONE = "or give --distributed=off to run this process alone"
# Each lists the visible GPUs of a process: the first of NVIDIA, the others of AMD.
_VISIBLE = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")
_FIRST_PORT, _PORTS = 61440, 4096  # range of the coordinator's port if none is given


@dataclass(frozen=True)
class Cluster:
    """The coordinator of a run, its number of processes and the index of this one; JAX detects what is None."""

    found_in: str  # the source of the description, for messages
    coordinator: str | None = None  # HOST:PORT, at which process 0 listens
    processes: int | None = None
    index: int | None = None
    devices: tuple[int, ...] | None = None  # indices of the accelerators that belong to this process; None: all


def find_cluster(
    environment: Mapping[str, str],
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    device_files: Path = Path("/dev"),
    *,
    coordinated: bool = True,
) -> Cluster | None:
    """Return the cluster that the arguments, or else the environment, describe; None if there is none.

    Unless `coordinated`, the processes do not connect to each other, and no address of a coordinator is needed.

    Raises:
        UserError: the description is incomplete or wrong.
    """
    address = coordinator_address or environment.get("S2RM_COORDINATOR_ADDRESS")
    number = _given(num_processes, environment, "S2RM_NUM_PROCESSES")
    index = _given(process_id, environment, "S2RM_PROCESS_ID")
    if number is not None or index is not None:
        return _explicit(address, number, index)
    mpi_address = address if coordinated else "localhost:0"
    found = (
        _tpu(environment, device_files)
        # The innermost launcher first: torchrun and mpirun are often started within a job of SLURM.
        or _torchrun(environment, device_files)
        or _open_mpi(environment, mpi_address, device_files)
        or _mpich(environment, mpi_address, device_files)
        or _slurm(environment, device_files)
        or _kubernetes(environment)
    )
    if found is None:
        _require_no_others(environment)
    elif found.processes and not 0 <= (found.index or 0) < found.processes:
        raise UserError(
            f"the variables of {found.found_in} describe process {found.index} of {found.processes}: processes are "
            f"numbered from 0; correct them, {_ALONE}"
        )
    if address:
        if found is None:
            raise UserError(
                f"--coordinator_address={address} is given without the processes: give --num_processes and "
                f"--process_id too, {_ALONE}"
            )
        found = replace(found, coordinator=_checked(address))
    return found


def _explicit(address: str | None, number: int | None, index: int | None) -> Cluster | None:
    names = {"--coordinator_address": address, "--num_processes": number, "--process_id": index}
    missing = [name for name, value in names.items() if value is None]
    if missing:
        raise UserError(
            f"{' and '.join(missing)} missing: a run of several processes needs all of {', '.join(names)} "
            "(or S2RM_COORDINATOR_ADDRESS, S2RM_NUM_PROCESSES, S2RM_PROCESS_ID in the environment)"
        )
    assert address is not None and number is not None and index is not None
    if number < 1 or not 0 <= index < number:
        raise UserError(f"--process_id={index} with --num_processes={number}: processes are numbered from 0 to N - 1")
    return Cluster("flags or S2RM_* variables", _checked(address), number, index) if number > 1 else None


def _tpu(environment: Mapping[str, str], device_files: Path) -> Cluster | None:
    """Return the cluster of a TPU VM; JAX detects the pod, even if it has one host only."""
    enabled = "tpu" in environment.get("JAX_PLATFORMS", "tpu")
    chips = any(device_files.glob("accel[0-9]*")) or any(device_files.glob("vfio/[0-9]*"))
    return Cluster("this TPU VM") if enabled and chips and importlib.util.find_spec("libtpu") else None


def _torchrun(environment: Mapping[str, str], device_files: Path) -> Cluster | None:
    size = _number(environment, "WORLD_SIZE", 1)
    if size == 1 or any(name not in environment for name in ("RANK", "MASTER_ADDR", "MASTER_PORT")):
        return None
    port = _number(environment, "MASTER_PORT")
    if environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True":  # torchrun itself listens at MASTER_PORT
        port = _port(f"{environment.get('TORCHELASTIC_RUN_ID')} {port}")
    rank, here = _number(environment, "RANK"), _number(environment, "LOCAL_WORLD_SIZE", 1)
    devices = _share_of_devices(environment, _number(environment, "LOCAL_RANK", 0), here, device_files)
    host = environment["MASTER_ADDR"]
    return Cluster("torchrun", f"[{host}]:{port}" if ":" in host else f"{host}:{port}", size, rank, devices)


def _slurm(environment: Mapping[str, str], device_files: Path) -> Cluster | None:
    tasks = _number(environment, "SLURM_NTASKS", 1)
    if "SLURM_JOB_ID" not in environment or tasks == 1:
        return None
    # A shell in an allocation has SLURM_NTASKS too. It may even be a step, with SLURM_PROCID, but a step of one task.
    needed = ("SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_LOCALID")
    missing = [name for name in needed if name not in environment]
    if missing or _number(environment, "SLURM_STEP_NUM_TASKS", tasks) != tasks:
        reason = f"{missing[0]} is not set" if missing else "this step has a different number of tasks"
        raise UserError(f"SLURM gave this job {tasks} tasks, but {reason}: start it with srun, {_ALONE}")
    first = re.match(r"([^,\[]+)(?:\[(\d+)[^\]]*\]([^,\[]*))?", environment["SLURM_STEP_NODELIST"])
    assert first is not None
    port = _FIRST_PORT + (_number(environment, "SLURM_JOB_ID") + _number(environment, "SLURM_STEP_ID", 0)) % _PORTS
    tasks_here = -(-tasks // _number(environment, "SLURM_STEP_NUM_NODES", 1))
    devices = _share_of_devices(environment, _number(environment, "SLURM_LOCALID"), tasks_here, device_files)
    host = "".join(part or "" for part in first.groups())
    return Cluster("SLURM", f"{host}:{port}", tasks, _number(environment, "SLURM_PROCID"), devices)


def _open_mpi(environment: Mapping[str, str], address: str | None, device_files: Path) -> Cluster | None:
    size = _number(environment, "OMPI_COMM_WORLD_SIZE", 1)
    if size == 1:
        return None
    needed = ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE")
    missing = [name for name in needed if name not in environment]
    if missing:
        raise UserError(f"OMPI_COMM_WORLD_SIZE is {size}, but {missing[0]} is not set: start it with mpirun, {_ALONE}")
    rank, local_rank, here = (_number(environment, name) for name in needed)
    launcher = environment.get("OMPI_MCA_orte_hnp_uri", "")  # "1531.0;tcp://10.96.0.1,10.148.0.1:34911", Open MPI 4
    host = re.search(r"tcp://([^,:]+)", launcher)
    first = host[1] if host else None
    job = launcher or environment.get("PMIX_NAMESPACE", "")
    coordinator = _coordinator_of_mpi("Open MPI", here == size, first, job, address)
    return Cluster("Open MPI", coordinator, size, rank, _share_of_devices(environment, local_rank, here, device_files))


def _mpich(environment: Mapping[str, str], address: str | None, device_files: Path) -> Cluster | None:
    """Return the cluster of MPICH's launcher Hydra, which Intel MPI uses too."""
    size = _number(environment, "PMI_SIZE", 1)
    if size == 1 or "PMI_RANK" not in environment or "MPI_LOCALNRANKS" not in environment:
        return None
    rank, here = _number(environment, "PMI_RANK"), _number(environment, "MPI_LOCALNRANKS")
    local_rank = _number(environment, "MPI_LOCALRANKID", rank % here)
    # No variable names the job. The processes of a host have the same parent, unless a shell starts each of them.
    if here == size and not address and _parent_name() not in ("hydra_pmi_proxy", ""):
        raise UserError(
            "the processes that mpiexec started are not its direct children, so they cannot find a common port: give "
            f"--coordinator_address=127.0.0.1:PORT, the same for all processes, {_ALONE}"
        )
    coordinator = _coordinator_of_mpi("MPICH", here == size, None, str(os.getppid()), address)
    return Cluster("MPICH", coordinator, size, rank, _share_of_devices(environment, local_rank, here, device_files))


def _parent_name() -> str:
    """Return the name of the program that started this process, "" where it is unknown."""
    try:
        return Path(f"/proc/{os.getppid()}/comm").read_text(encoding="utf-8").strip()
    except OSError:  # not Linux
        return ""


def _coordinator_of_mpi(name: str, one_host: bool, first: str | None, job: str, address: str | None) -> str:
    """Return an address for the coordinator: of this host if there is no other, else of the host `first`."""
    if not (one_host or first or address):
        raise UserError(
            f"{name} does not give the host of its first process: give --coordinator_address=HOST:PORT of that host, "
            f"the same for all processes, {_ALONE}"
        )
    return f"{'127.0.0.1' if one_host or not first else first}:{_port(job)}"


def _port(job: str) -> int:
    """Return a port that is the same for all processes of a job, and different for most other jobs."""
    return _FIRST_PORT + zlib.crc32(job.encode()) % _PORTS


def _require_no_others(environment: Mapping[str, str]) -> None:
    """Raise UserError if a variable counts processes but the others that describe them are missing."""
    for name, launcher in (("WORLD_SIZE", "torchrun"), ("PMI_SIZE", "mpiexec or srun")):
        if _number(environment, name, 1) != 1:
            raise UserError(
                f"{name} is {environment[name]}, but other variables of {launcher} are not set: start it with "
                f"{launcher}, give --coordinator_address, --num_processes and --process_id, {_ALONE}"
            )


def _kubernetes(environment: Mapping[str, str]) -> Cluster | None:
    if "KUBERNETES_SERVICE_HOST" not in environment or "JOB_COMPLETION_INDEX" not in environment:
        return None
    if not importlib.util.find_spec("kubernetes"):
        raise UserError(
            "this pod belongs to an indexed Job, and finding the others needs the package kubernetes, which is not "
            "installed: pip install 'jax[k8s]', or set S2RM_COORDINATOR_ADDRESS, S2RM_NUM_PROCESSES and "
            f"S2RM_PROCESS_ID in the manifest, {_ALONE}"
        )
    return Cluster("Kubernetes")


def _share_of_devices(
    environment: Mapping[str, str], index: int, processes: int, device_files: Path
) -> tuple[int, ...] | None:
    """Return which of the visible accelerators belong to process `index` of the `processes` on this host.

    None (all of them) if it is the only process or sees only its own accelerator; else an equal share.
    """
    listed = next(filter(None, map(environment.get, _VISIBLE)), None)
    visible = len(listed.split(",")) if listed else _count_gpus(environment, device_files) or processes
    if processes == 1 or (listed and visible == 1):
        return None
    if visible % processes:
        raise UserError(
            f"{processes} processes on this host cannot share {visible} accelerators evenly: "
            "start as many as there are accelerators, or one per host; JAX_PLATFORMS=cpu uses none"
        )
    each = visible // processes
    return tuple(range(index * each, (index + 1) * each))


def _count_gpus(environment: Mapping[str, str], device_files: Path) -> int:
    """Return the number of GPUs of this host that JAX may use, 0 if it is unknown."""
    platforms = environment.get("JAX_PLATFORMS") or "cuda,rocm"
    hidden = "" in map(environment.get, _VISIBLE)
    if hidden or not any(name in platforms for name in ("cuda", "rocm", "gpu")):
        return 0
    nvidia = [path for path in device_files.glob("nvidia*") if path.name.removeprefix("nvidia").isdigit()]
    amd = list(device_files.glob("dri/renderD*")) if (device_files / "kfd").exists() else []
    return len(nvidia) or len(amd)


def _given(flag: int | None, environment: Mapping[str, str], name: str) -> int | None:
    return flag if flag is not None or not environment.get(name) else _number(environment, name)


def _number(environment: Mapping[str, str], name: str, default: int = 0) -> int:
    text = environment.get(name)
    if not text:
        return default
    try:
        return int(text)
    except ValueError:
        raise UserError(f"{name}={text} in the environment: it must be an integer") from None


def _checked(address: str) -> str:
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise UserError(f"--coordinator_address={address}: it must be HOST:PORT, such as node1:12345")
    return address
