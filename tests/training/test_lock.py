"""One run at a time trains in a workdir, on disks and on storage without locks."""

import errno
import fcntl
import json
import os
import re
import signal
import socket
import threading
from dataclasses import replace

import jax
import pytest
from etils import epath

from s2rm_jax.errors import TemporaryFailure, UserError
from s2rm_jax.io import lock_file
from s2rm_jax.parallel.mesh import make_mesh
from s2rm_jax.training import lock as module
from s2rm_jax.training.lock import lock_workdir

ME = rf"by process {os.getpid()} on host {re.escape(socket.gethostname())} since \d{{4}}-"


@pytest.fixture
def workdir(tmp_path):
    return epath.Path(tmp_path / "run")


@pytest.fixture
def without_locks(monkeypatch, request):
    """The file system has no locks, so that flock gives the error of the parameter; renewals are frequent."""
    number = getattr(request, "param", errno.ENOLCK)

    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    for name, seconds in {"LEASE": 5.0, "RENEW_EVERY": 0.05, "SETTLE": 0.01, "_POLL": 0.02}.items():
        monkeypatch.setattr(module, name, seconds)


def refused(workdir):
    with pytest.raises(UserError) as told, lock_workdir(workdir):
        pass
    message = str(told.value)
    assert "\n" not in message and message.endswith("wait until that run ends, or give another --workdir")
    return message


def test_a_second_run_is_refused_before_it_changes_anything(workdir, standin):
    config = standin.make_config(steps=1)
    with lock_workdir(workdir), pytest.raises(UserError, match=rf"^--workdir {workdir} is in use {ME}"):
        standin.train(config, workdir, standin.make_parts(config), make_mesh(devices=jax.devices()[:1]))
    assert [path.name for path in workdir.iterdir()] == [".lock"]
    standin.train(config, workdir, standin.make_parts(config), make_mesh(devices=jax.devices()[:1]))
    assert not (workdir / "lock.json").exists()


@pytest.mark.parametrize("content", [None, "", "[" * 100_000, "[1]", '{"host": 3}'])
def test_a_holder_that_cannot_be_named_holds_it_all_the_same(workdir, content):
    with lock_workdir(workdir):
        path = workdir / "lock.json"
        path.unlink() if content is None else path.write_text(content)
        assert "is in use by another process: wait" in refused(workdir)


def test_what_a_killed_run_left_does_not_lock(workdir):
    with lock_workdir(workdir):
        left = (workdir / "lock.json").read_text()
    (workdir / "lock.json").write_text(left)
    with lock_workdir(workdir):
        assert json.loads((workdir / "lock.json").read_text())["process"] == os.getpid()


@pytest.mark.parametrize("without_locks", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP], indirect=True)
def test_a_lease_is_renewed_while_the_run_lasts(workdir, without_locks):
    with lock_workdir(workdir):
        assert re.search(ME, refused(workdir))
        assert re.search(ME, refused(workdir))
    assert not (workdir / "lock.json").exists()
    with lock_workdir(workdir):
        pass


def test_a_lease_of_a_killed_run_lapses(workdir, without_locks, monkeypatch, capsys):
    monkeypatch.setattr(module, "LEASE", 0.3)
    with lock_workdir(workdir):
        left = (workdir / "lock.json").read_text()
    (workdir / "lock.json").write_text(left)
    with lock_workdir(workdir):
        pass
    assert re.search(rf"was in use {ME}.*: waiting up to 0 s", capsys.readouterr().out)


def test_a_lease_that_another_host_renews_is_respected_whatever_its_clock_says(workdir, without_locks):
    with lock_workdir(workdir):
        record = json.loads((workdir / "lock.json").read_text()) | {"host": "h2"}
    module._write(workdir / "lock.json", record | {"renewed": 0})
    renewal = threading.Timer(0.1, module._write, (workdir / "lock.json", record | {"renewed": 15}))
    renewal.start()
    assert "on host h2 since" in refused(workdir)
    renewal.join()


def test_of_two_that_take_a_lease_at_once_one_gets_it(workdir, without_locks, monkeypatch):
    monkeypatch.setattr(module, "SETTLE", 1.0)
    both, outcomes, require_lapsed = threading.Barrier(2), [], module._require_lapsed

    def require_lapsed_to_both(*arguments):
        require_lapsed(*arguments)
        both.wait(60)

    monkeypatch.setattr(module, "_require_lapsed", require_lapsed_to_both)

    def start():
        try:
            with lock_workdir(workdir):
                outcomes.append("holds")
                both.wait(60)
        except UserError as error:
            outcomes.append("in use" if "is in use" in str(error) else str(error))
            both.wait(60)

    threads = [threading.Thread(target=start) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["holds", "in use"]


def test_a_run_that_was_stopped_for_longer_than_its_lease_stops(workdir, without_locks, capsys):
    class Stopped(Exception):
        pass

    def stop(*_):
        raise Stopped

    before = signal.signal(signal.SIGTERM, stop)
    try:
        with pytest.raises(Stopped), lock_workdir(workdir):
            other = json.loads((workdir / "lock.json").read_text()) | {"id": "another", "host": "h2"}
            for _ in range(100):  # a renewal at the same moment may replace it
                (workdir / "lock.json").write_text(json.dumps(other))
                threading.Event().wait(0.1)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert re.search(r"was taken over by process \d+ on host h2 since .*: this run stops\n", capsys.readouterr().err)
    assert json.loads((workdir / "lock.json").read_text())["host"] == "h2"  # not ours to remove


def test_a_run_whose_lease_was_taken_stops_without_saving(workdir, without_locks, standin):
    config = standin.make_config(checkpoint_every=3)
    parts = standin.make_parts(config)

    def batches(rows_seen):
        for count, batch in enumerate(parts.batches(rows_seen), start=1):
            if count == 3:
                other = json.loads((workdir / "lock.json").read_text()) | {"id": "another", "host": "h2"}
                for _ in range(20):  # a renewal at the same moment may replace it
                    (workdir / "lock.json").write_text(json.dumps(other))
                    threading.Event().wait(0.05)
            yield batch

    message = rf"--workdir {workdir} was taken over by process \d+ on host h2 since .*: this run stopped after step 3 w"
    with pytest.raises(UserError, match=message):
        standin.train(config, workdir, replace(parts, batches=batches), make_mesh(devices=jax.devices()[:1]))
    assert not list((workdir / "checkpoints").iterdir())
    assert json.loads((workdir / "lock.json").read_text())["host"] == "h2"


@pytest.mark.parametrize("error", [TimeoutError("timed out"), RuntimeError("no credentials")])
def test_a_lease_that_cannot_be_renewed_for_a_moment_is_renewed_later(
    workdir, without_locks, monkeypatch, capsys, error
):
    write, failed = module._write, []

    def unreachable(path, record):
        if len(failed) < 2:
            failed.append(record)
            raise error
        write(path, record)

    with lock_workdir(workdir):
        monkeypatch.setattr(module, "_write", unreachable)
        assert re.search(ME, refused(workdir))
    assert len(failed) == 2
    assert capsys.readouterr().err.count(f"cannot be renewed ({error}); trying again") == 1


@pytest.mark.parametrize(("number", "kind"), [(errno.EROFS, UserError), (errno.EHOSTUNREACH, TemporaryFailure)])
def test_a_workdir_that_cannot_be_written_is_reported_in_one_line(workdir, monkeypatch, number, kind):
    def fail(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(module, "_write", fail)
    message = rf"--workdir {workdir} cannot be used \({os.strerror(number)}\)"
    with pytest.raises(UserError, match=message) as told, lock_workdir(workdir):
        pass
    assert type(told.value) is kind


def test_a_lock_works_without_fcntl(tmp_path, monkeypatch):
    """As on systems where filelock has neither fcntl nor the locks of Windows."""
    from filelock import SoftFileLock, Timeout

    monkeypatch.setattr("s2rm_jax.io.FileLock", SoftFileLock)
    with lock_file(tmp_path / "lock"), pytest.raises(Timeout), lock_file(tmp_path / "lock", wait=False):
        pass
    with lock_file(tmp_path / "lock", wait=False):
        pass
