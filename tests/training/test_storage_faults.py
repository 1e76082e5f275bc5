"""Checkpoints on storage that is full, forbidden, out of reach for a while, or damaged."""

import errno
import json
import os
import time
from types import SimpleNamespace

import jax
import orbax.checkpoint as ocp
import pytest
from etils import epath

from s2rm_jax.errors import TemporaryFailure, UserError, find_fault, find_full_disk
from s2rm_jax.parallel import distributed
from s2rm_jax.parallel.mesh import make_mesh
from s2rm_jax.training import checkpoint as module
from s2rm_jax.training.checkpoint import Checkpoint, Checkpoints, has_checkpoint, restore_params
from s2rm_jax.training.run import load_config
from s2rm_jax.training.state import plan_state

MESH = make_mesh(devices=jax.devices()[:1])
WAITS = (0.1, 0.2, 0.4, 0.8)  # seconds in which threads of Orbax end after a failure


class HttpError(Exception):
    """As gcsfs raises it."""

    def __init__(self, code):
        super().__init__(f"Error {code}")
        self.code = code


class ServerDisconnectedError(Exception):
    """As aiohttp raises it."""


def os_error(number):
    return OSError(number, os.strerror(number))


LOCAL = 'Error writing "zarr3" array: Error writing local file "/run/checkpoints/5/d/1": {} [source locations=...]'
UNREACHABLE = 'UNAVAILABLE: Error reading "gs://bucket/run/checkpoints/5/state/": CURL error: Could not connect'


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        *((os_error(number), "full") for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)),
        *((os_error(number), "denied") for number in (errno.EACCES, errno.EPERM, errno.EROFS)),
        *((os_error(number), "temporary") for number in (errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.EHOSTUNREACH)),
        *((os_error(number), "other") for number in (errno.ENOENT, errno.EINVAL)),
        (ValueError(LOCAL.format("[OS error 28: ENOSPC No space left on device]")), "full"),
        (ValueError(LOCAL.format("[OS error 13: EACCES Permission denied]")), "denied"),
        (ValueError('PERMISSION_DENIED: Error reading "gs://bucket/run"'), "denied"),
        (ValueError(UNREACHABLE), "temporary"),
        (RuntimeError("DEADLINE_EXCEEDED: gs://bucket/run"), "temporary"),
        (ValueError('DATA_LOSS: Error reading local file "/run": checksum mismatch'), "other"),
        (HttpError(403), "denied"),
        (HttpError(429), "temporary"),
        (HttpError(503), "temporary"),
        (HttpError(404), "other"),
        (ServerDisconnectedError(), "temporary"),
        (TimeoutError(), "temporary"),
        (ConnectionResetError(), "temporary"),
        (ValueError("shapes (3,) and (4,) do not match"), "other"),
    ],
)
def test_errors_of_libraries_are_classified(error, fault):
    assert find_fault(error) == fault
    try:
        try:
            raise error
        except Exception as cause:
            raise RuntimeError("in a thread of Orbax") from cause
    except RuntimeError as wrapped:
        assert find_fault(wrapped) == fault


def test_an_error_that_was_raised_from_none_has_no_fault_of_another():
    try:
        try:
            raise os_error(errno.ENOSPC)
        except OSError:
            raise RuntimeError("a defect") from None
    except RuntimeError as error:
        assert find_fault(error) == "other" and find_full_disk(error) is None


@pytest.fixture
def run_of(tmp_path, standin, monkeypatch):
    """Save and read the checkpoints of a small run: its plan and functions that open and save."""
    slept = []
    monkeypatch.setattr(module, "_WAITS", WAITS)
    monkeypatch.setattr(module, "time", SimpleNamespace(sleep=lambda wait: (slept.append(wait), time.sleep(wait))))
    config = standin.make_config(optimizer__ema_decay=0.5)
    plan = plan_state(standin.StandIn(), config, MESH)
    state = plan.create()

    class Run:
        path, abstract, waits = tmp_path / "checkpoints", plan.abstract, slept

        def open(self):
            return Checkpoints(tmp_path, 5, "mean_iou")

        def save(self, *steps):
            with self.open() as checkpoints:
                for step in steps:
                    checkpoints.save(Checkpoint(step, state, 4 * step, {"mean_iou": float(step)}))

        def restore(self):
            with self.open() as checkpoints:
                return checkpoints.restore_latest(plan.abstract)

        def restore_params(self):
            return restore_params(tmp_path, "mean_iou", "latest")

    return Run()


def failing(monkeypatch, owner, name, error, times):
    """Let a function raise an error for the first `times` calls; return the list of all calls."""
    working, calls = getattr(owner, name), []

    def call(*args, **kwargs):
        calls.append(args)
        if len(calls) <= times:
            raise error
        return working(*args, **kwargs)

    monkeypatch.setattr(owner, name, call)
    return calls


def in_background(monkeypatch, error, times):
    """Let the first `times` saves fail where checkpoints are written, in a thread of Orbax."""
    write, calls = ocp.JsonCheckpointHandler._save_fn, []

    async def call(*args):
        if args[0]._filename == "metrics":
            return await write(*args)
        calls.append(args)
        if len(calls) <= times:
            raise error
        await write(*args)

    monkeypatch.setattr(ocp.JsonCheckpointHandler, "_save_fn", call)


@pytest.mark.parametrize("times", [1, 3])
def test_the_last_save_is_tried_again_until_it_succeeds(run_of, monkeypatch, capsys, times):
    in_background(monkeypatch, ValueError(UNREACHABLE), times)
    run_of.save(5)
    restored = run_of.restore()
    assert restored.step == 5 and restored.metrics == {"mean_iou": 5.0}
    out = capsys.readouterr().out
    assert "a checkpoint cannot be written to " in out and "trying again in 0 s" in out
    assert run_of.waits == list(WAITS[: len(run_of.waits)]) and len(run_of.waits) >= times


def test_a_save_that_failed_earlier_does_not_end_the_run(run_of, monkeypatch):
    in_background(monkeypatch, HttpError(503), 1)
    run_of.save(5, 10)
    assert run_of.restore().step == 10


def test_what_does_not_pass_ends_with_a_status_of_its_own_and_earlier_checkpoints(run_of, monkeypatch):
    run_of.save(5)
    with monkeypatch.context() as patch:
        in_background(patch, HttpError(503), 10**6)
        with pytest.raises(TemporaryFailure, match=r"cannot be written to .*checkpoints \(Error 503\): .* again later"):
            run_of.save(10)
    assert run_of.waits == list(WAITS)
    assert run_of.restore().step == 5


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (os_error(errno.ENOSPC), r"\(No space left on device\): free space there and run the command again$"),
        (os_error(errno.EACCES), r"\(Permission denied\): correct the permissions or give another folder, and run"),
    ],
)
def test_a_permanent_fault_is_reported_at_once(run_of, monkeypatch, error, message):
    in_background(monkeypatch, error, 10**6)
    with pytest.raises(UserError, match=message) as told:
        run_of.save(5)
    assert not isinstance(told.value, TemporaryFailure) and run_of.waits == []


def test_a_defect_is_not_reported_as_a_fault_of_the_storage(run_of, monkeypatch):
    in_background(monkeypatch, ValueError("shapes do not match"), 10**6)
    with pytest.raises(ValueError, match="shapes do not match"):
        run_of.save(5)


@pytest.mark.parametrize("read", ["restore", "restore_params"])
def test_reading_is_tried_again(run_of, monkeypatch, read):
    run_of.save(5)
    expected = getattr(run_of, read)()
    calls = failing(monkeypatch, ocp.CheckpointManager, "restore", ValueError(UNREACHABLE), 2)
    assert jax.tree.structure(getattr(run_of, read)()) == jax.tree.structure(expected)
    assert len(calls) == 3


@pytest.mark.parametrize("read", ["restore", "restore_params"])
@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (ValueError(UNREACHABLE), TemporaryFailure, "cannot be reached now; run the same command again later"),
        (os_error(errno.EACCES), UserError, r"\(Permission denied\): correct the permissions"),
    ],
)
def test_nobody_is_told_to_remove_a_checkpoint_that_is_not_damaged(run_of, monkeypatch, read, error, kind, message):
    run_of.save(5, 10)
    failing(monkeypatch, ocp.CheckpointManager, "restore", error, 10**6)
    with pytest.raises(UserError, match=message) as told:
        getattr(run_of, read)()
    assert type(told.value) is kind
    assert not any(word in str(told.value) for word in ("delete", "rename", "damaged"))


def test_a_checkpoint_whose_parts_can_all_be_read_is_not_called_damaged(run_of, monkeypatch):
    run_of.save(5, 10)
    failing(monkeypatch, ocp.CheckpointManager, "restore", ValueError("no such device"), 10**6)
    with pytest.raises(ValueError, match="no such device"):
        run_of.restore()


def test_a_relative_workdir_changes_no_diagnosis(run_of, monkeypatch):
    run_of.save(5, 10)
    monkeypatch.chdir(run_of.path.parent)
    with monkeypatch.context() as patch:
        failing(patch, ocp.CheckpointManager, "restore", ValueError("no such device"), 10**6)
        with pytest.raises(ValueError, match="no such device"):
            restore_params(".", "mean_iou", "latest")
    (run_of.path / "10" / "data" / "metadata").write_text("{")
    (run_of.path / "10" / "state" / "_METADATA").write_text("{")
    with pytest.raises(UserError, match=r"10 is damaged \(data: (?!.*absolute).*\): rename it to 10\.damaged"):
        restore_params(".", "mean_iou", "latest")


def test_several_processes_do_not_try_again_alone(run_of, monkeypatch):
    run_of.save(5)
    with run_of.open() as checkpoints, monkeypatch.context() as patch:
        calls = failing(patch, ocp.CheckpointManager, "restore", TimeoutError(), 10**6)
        patch.setattr(distributed, "is_alone", lambda: False)
        with pytest.raises(TemporaryFailure):
            checkpoints.restore_latest(run_of.abstract)
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("state/_METADATA", "{"),
        ("state/_METADATA", None),
        ("data/metadata", "[" * 100_000),
        ("data/metadata", None),
    ],
)
def test_a_damaged_part_is_named_with_what_to_do(run_of, name, content):
    run_of.save(5, 10)
    path = run_of.path / "10" / name
    path.unlink() if content is None else path.write_text(content)
    part = name.split("/")[0]
    message = rf"checkpoints/10 is damaged \({part}: .*\): rename it to 10.damaged to use that of step 5$"
    with pytest.raises(UserError, match=message) as told:
        run_of.restore()
    assert "\n" not in str(told.value)
    (run_of.path / "10").rename(run_of.path / "10.damaged")
    assert run_of.restore().step == 5


def test_the_only_checkpoint_is_not_to_be_renamed(run_of):
    run_of.save(5)
    (run_of.path / "5" / "state" / "_METADATA").unlink()
    with pytest.raises(UserError, match=r"is damaged .*: there is no other; copy it back from a backup, or train in"):
        run_of.restore_params()


def test_a_checkpoint_that_another_process_removed_while_it_was_read(run_of, monkeypatch):
    run_of.save(5, 10)

    def remove(manager, step, **_):
        (run_of.path / str(step)).rename(run_of.path / "removed")
        raise FileNotFoundError(f"{step}/state")

    monkeypatch.setattr(ocp.CheckpointManager, "restore", remove)
    with pytest.raises(
        TemporaryFailure, match=r"checkpoints/10 was removed while it was read; .*run the command again"
    ):
        run_of.restore_params()


@pytest.mark.parametrize(
    "content", ["[" * 100_000, "", '{"mean_iou"', "[1]", '{"mean_iou": "good"}', '{"mean_iou": {}}']
)
@pytest.mark.parametrize("read", ["restore", "restore_params"])
def test_damaged_metrics_are_named_and_cost_no_checkpoint(run_of, content, read):
    run_of.save(5)
    path = run_of.path / "5" / "metrics"
    (path / "metrics").write_text(content)
    with pytest.raises(UserError, match=r"5/metrics/metrics is damaged \(.*\): rename the folder") as told:
        getattr(run_of, read)()
    assert "\n" not in str(told.value)
    path.rename(path.with_name("metrics.damaged"))
    assert getattr(run_of, read)() is not None


def test_metrics_of_another_protocol_are_not_a_score(run_of):
    run_of.save(5)
    (run_of.path / "5" / "metrics" / "metrics").write_text(json.dumps({"n_acc": 3.0}))
    with run_of.open() as checkpoints:
        assert checkpoints.best is None
    assert run_of.restore_params() is not None


@pytest.mark.parametrize("number", [errno.EIO, errno.ETIMEDOUT])
def test_no_reader_takes_a_passing_fault_for_a_mistake(run_of, tmp_path, monkeypatch, number):
    run_of.save(5)
    (tmp_path / "config.json").write_text("{}")

    def fail(*_, **__):
        raise os_error(number)

    for name, read in {
        "read_text": lambda: load_config(tmp_path),
        "iterdir": lambda: has_checkpoint(tmp_path),
        "is_dir": run_of.restore_params,
    }.items():
        with monkeypatch.context() as outage:
            outage.setattr(type(epath.Path(tmp_path)), name, fail)
            with pytest.raises(
                TemporaryFailure, match=rf"cannot be read \({os.strerror(number)}\): the storage cannot"
            ):
                read()
