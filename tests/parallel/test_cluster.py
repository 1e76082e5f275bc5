"""Clusters found from flags and environment, and errors for incomplete descriptions."""

import pytest

from s2rm_jax.errors import UserError
from s2rm_jax.parallel import cluster as module
from s2rm_jax.parallel.cluster import Cluster, find_cluster

SLURM = {
    "SLURM_JOB_ID": "70001",
    "SLURM_STEP_ID": "0",
    "SLURM_NTASKS": "4",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_NODELIST": "node[007-008]",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
}
MPI = {
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_RANK": "2",
    "OMPI_COMM_WORLD_LOCAL_RANK": "0",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911",
}
HYDRA = {"PMI_SIZE": "2", "PMI_RANK": "1", "MPI_LOCALNRANKS": "2", "MPI_LOCALRANKID": "1"}
TORCHRUN = {
    "WORLD_SIZE": "4",
    "RANK": "3",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "node7",
    "MASTER_PORT": "29500",
}
POD = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "1"}


def without(environment, *names):
    return {name: value for name, value in environment.items() if name not in names}


@pytest.fixture(autouse=True)
def parent(monkeypatch):
    """The tests are started by MPICH's launcher."""
    monkeypatch.setattr(module, "_parent_name", lambda: "hydra_pmi_proxy")


@pytest.fixture
def installed(monkeypatch):
    """Set which packages are found to be installed."""

    def install(*names):
        monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: name in names or None)

    return install


@pytest.mark.parametrize(
    "environment",
    [{}, {"WORLD_SIZE": ""}, {"PMI_SIZE": "1"}, {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "1"}, {"SLURM_JOB_ID": "1"}],
)
def test_a_single_process(environment, tmp_path):
    assert find_cluster(environment, device_files=tmp_path) is None
    assert find_cluster(environment, "localhost:1", 1, 0, tmp_path) is None


def test_flags_take_precedence_over_the_environment():
    environment = {
        "S2RM_COORDINATOR_ADDRESS": "a:1",
        "S2RM_NUM_PROCESSES": "2",
        "S2RM_PROCESS_ID": "1",
    }
    assert find_cluster(environment | SLURM) == Cluster("flags or S2RM_* variables", "a:1", 2, 1)
    assert find_cluster(environment, "b:2", 3, 2) == Cluster("flags or S2RM_* variables", "b:2", 3, 2)
    assert find_cluster(environment, process_id=0) == Cluster("flags or S2RM_* variables", "a:1", 2, 0)


def test_slurm(tmp_path):
    port = 61440 + 70001 % 4096
    assert find_cluster(SLURM, device_files=tmp_path) == Cluster("SLURM", f"node007:{port}", 4, 3, (1,))
    others = {"gpu-a,gpu-b": "gpu-a", "node[007-008]-ib,c1": "node007-ib", "n[3,5],x[1-2]": "n3", "alone": "alone"}
    for nodes, first in others.items():
        found = find_cluster(SLURM | {"SLURM_STEP_NODELIST": nodes}, device_files=tmp_path)
        assert found is not None and found.coordinator == f"{first}:{port}"
    second_step = find_cluster(SLURM | {"SLURM_STEP_ID": "3"}, device_files=tmp_path)
    assert second_step is not None and second_step.coordinator == f"node007:{port + 3}"  # steps may run at once
    found = find_cluster(SLURM, "here:5", device_files=tmp_path)
    assert found is not None and (found.coordinator, found.processes, found.index) == ("here:5", 4, 3)


@pytest.mark.parametrize(
    ("visible", "nodes", "local", "devices"),
    [
        ("0,1", "2", "1", (1,)),  # two tasks share two
        ("0,1,2,3", "2", "1", (2, 3)),
        ("3", "2", "1", None),  # each sees its own
        ("0,1,2,3", "4", "0", None),  # one task per node takes them all
    ],
)
def test_each_task_has_its_share_of_the_accelerators(visible, nodes, local, devices, tmp_path):
    more = {"CUDA_VISIBLE_DEVICES": visible, "SLURM_STEP_NUM_NODES": nodes, "SLURM_LOCALID": local}
    found = find_cluster(SLURM | more, device_files=tmp_path)
    assert found is not None and found.devices == devices


def test_open_mpi(tmp_path):
    found = find_cluster(MPI, device_files=tmp_path)
    assert found is not None and (found.found_in, found.processes, found.index) == ("Open MPI", 4, 2)
    assert found.coordinator is not None and found.coordinator.startswith("10.96.0.1:")
    one_host = without(MPI, "OMPI_MCA_orte_hnp_uri") | {"OMPI_COMM_WORLD_LOCAL_SIZE": "4", "PMIX_NAMESPACE": "x@1"}
    found = find_cluster(one_host, device_files=tmp_path)
    assert found is not None and found.coordinator is not None and found.coordinator.startswith("127.0.0.1:")


def test_mpich(tmp_path):
    found = find_cluster(HYDRA, device_files=tmp_path)
    assert found is not None and (found.found_in, found.processes, found.index) == ("MPICH", 2, 1)
    assert found.coordinator is not None and found.coordinator.startswith("127.0.0.1:") and found.devices == (1,)
    several_hosts = HYDRA | {"PMI_SIZE": "4", "PMI_RANK": "3"}
    found = find_cluster(several_hosts, "node1:5", device_files=tmp_path)
    assert found is not None and (found.coordinator, found.processes, found.index) == ("node1:5", 4, 3)


def test_mpich_through_a_shell_needs_an_address(tmp_path, monkeypatch):
    """Each process has a shell of its own as its parent, so they would wait at different ports."""
    monkeypatch.setattr(module, "_parent_name", lambda: "bash")
    with pytest.raises(UserError, match=r"not its direct children.*: give --coordinator_address=127\.0\.0\.1:PORT"):
        find_cluster(HYDRA, device_files=tmp_path)
    found = find_cluster(HYDRA, "127.0.0.1:5", device_files=tmp_path)
    assert found is not None and found.coordinator == "127.0.0.1:5"
    monkeypatch.setattr(module, "_parent_name", lambda: "")  # not Linux
    assert find_cluster(HYDRA, device_files=tmp_path) is not None


def test_torchrun(tmp_path):
    assert find_cluster(TORCHRUN, device_files=tmp_path) == Cluster("torchrun", "node7:29500", 4, 3, (1,))
    agent = TORCHRUN | {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RUN_ID": "none"}
    ports = set()
    for more in ({}, {"RANK": "0", "LOCAL_RANK": "0"}, {"MASTER_PORT": "29501"}):
        found = find_cluster(agent | more, device_files=tmp_path)
        assert found is not None and found.coordinator is not None
        ports.add(int(found.coordinator.removeprefix("node7:")))
    assert len(ports) == 2 and min(ports) >= 61440  # where torchrun does not listen; one for all processes of a run
    found = find_cluster(TORCHRUN | {"MASTER_ADDR": "::1"}, device_files=tmp_path)
    assert found is not None and found.coordinator == "[::1]:29500"
    assert find_cluster(TORCHRUN | {"WORLD_SIZE": "1", "RANK": "0"}, device_files=tmp_path) is None


@pytest.mark.parametrize(("inner", "name"), [(TORCHRUN, "torchrun"), (MPI, "Open MPI"), (HYDRA, "MPICH")])
def test_a_launcher_within_a_job_of_slurm_counts(inner, name, tmp_path):
    one_task_per_node = SLURM | {"SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1"}
    found = find_cluster(one_task_per_node | inner, device_files=tmp_path)
    assert found is not None and found.found_in == name


def test_srun_with_pmi_is_slurm(tmp_path):
    found = find_cluster(SLURM | {"PMI_SIZE": "4", "PMI_RANK": "3"}, device_files=tmp_path)
    assert found is not None and found.found_in == "SLURM"


def devices_of(environment, index, folder):
    local = {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": str(index), "OMPI_COMM_WORLD_LOCAL_RANK": str(index)}
    found = find_cluster(MPI | local | environment, device_files=folder)
    assert found is not None
    return found.devices


def test_the_gpus_of_a_host_are_shared_where_no_variable_lists_them(tmp_path):
    for name in (*(f"nvidia{index}" for index in range(8)), "nvidiactl", "nvidia-uvm", "nvidia-caps"):
        (tmp_path / name).touch()
    assert [devices_of({}, index, tmp_path) for index in range(2)] == [(0, 1, 2, 3), (4, 5, 6, 7)]
    assert devices_of({"JAX_PLATFORMS": "cuda"}, 1, tmp_path) == (4, 5, 6, 7)
    assert devices_of({"CUDA_VISIBLE_DEVICES": "2,3"}, 1, tmp_path) == (1,)
    assert devices_of({"JAX_PLATFORMS": "cpu"}, 1, tmp_path) == (1,)  # ignored on CPUs
    assert devices_of({"CUDA_VISIBLE_DEVICES": ""}, 1, tmp_path) == (1,)
    (tmp_path / "nvidia7").unlink()
    with pytest.raises(UserError, match=r"2 processes on this host cannot share 7 accelerators evenly: .*=cpu"):
        devices_of({}, 0, tmp_path)


def test_amd_gpus_are_counted_too(tmp_path):
    (tmp_path / "dri").mkdir()
    for index in range(4):
        (tmp_path / "dri" / f"renderD{128 + index}").touch()
    assert devices_of({}, 1, tmp_path) == (1,)  # of another maker
    (tmp_path / "kfd").touch()
    assert devices_of({}, 1, tmp_path) == (2, 3)
    for name in ("ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"):
        assert devices_of({name: "0,1"}, 1, tmp_path) == (1,)
        assert devices_of({name: ""}, 1, tmp_path) == (1,)


def test_clusters_that_jax_detects_itself(tmp_path, installed):
    installed("kubernetes")
    assert find_cluster(POD, device_files=tmp_path) == Cluster("Kubernetes")
    (tmp_path / "accel0").touch()
    installed("libtpu")
    assert find_cluster(POD, device_files=tmp_path) == Cluster("this TPU VM")
    assert find_cluster({"JAX_PLATFORMS": "cpu"}, device_files=tmp_path) is None


@pytest.mark.parametrize(
    ("environment", "arguments", "message"),
    [
        ({}, ("a:1", 2, None), "--process_id missing: .* needs all of"),
        ({}, (None, 2, None), "--coordinator_address and --process_id missing"),
        ({"S2RM_NUM_PROCESSES": "2"}, ("a:1", None, None), "--process_id missing"),
        ({}, ("a:1", None, None), "given without the processes"),
        ({}, ("a:1", 2, 2), "--process_id=2 with --num_processes=2: processes are numbered from 0 to N - 1"),
        ({}, ("a:1", 2, -1), "--process_id=-1"),
        ({}, ("a", 2, 1), "--coordinator_address=a: it must be HOST:PORT"),
        ({"S2RM_NUM_PROCESSES": "two"}, ("a:1", None, 0), "S2RM_NUM_PROCESSES=two in the environment"),
        (without(SLURM, "SLURM_STEP_NODELIST"), (), "SLURM gave this job 4 tasks, but SLURM_STEP_NODELIST is not set"),
        (SLURM | {"SLURM_STEP_NUM_TASKS": "1"}, (), "this step has a different number of tasks: start it with srun"),
        (SLURM | {"CUDA_VISIBLE_DEVICES": "0,1,2"}, (), "2 processes on this host cannot share 3 accelerators"),
        (without(MPI, "OMPI_COMM_WORLD_RANK"), (), "OMPI_COMM_WORLD_RANK is not set: start it with mpirun"),
        (without(MPI, "OMPI_MCA_orte_hnp_uri"), (), "Open MPI does not give the host"),
        (HYDRA | {"PMI_SIZE": "4"}, (), "MPICH does not give the host"),
        (without(HYDRA, "MPI_LOCALNRANKS"), (), "PMI_SIZE is 2, but other variables of mpiexec or srun are not set"),
        (without(TORCHRUN, "RANK"), (), "WORLD_SIZE is 4, but other variables of torchrun are not set"),
        (TORCHRUN | {"RANK": "4"}, (), "the variables of torchrun describe process 4 of 4"),
        (TORCHRUN | {"RANK": "first"}, (), "RANK=first in the environment: it must be an integer"),
        (POD, (), "package kubernetes, which is not installed"),
    ],
)
def test_an_incomplete_description_is_refused(environment, arguments, message, tmp_path, installed):
    installed()
    with pytest.raises(UserError, match=message) as caught:
        find_cluster(environment, *arguments, device_files=tmp_path)
    assert "\n" not in str(caught.value)
