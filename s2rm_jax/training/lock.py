"""The lock of a workdir, in which one run trains at a time.

On a disk, the lock of a workdir is a lock of the operating system on WORKDIR/.lock, which ends with the process that
holds it. On a bucket, and on file systems without locks, it is a lease: WORKDIR/lock.json, which its holder renews and
which lapses if it does not. On a disk, lock.json only says who the holder is.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from etils import epath
from filelock import Timeout

from s2rm_jax.errors import UserError, reason_of, storage_error
from s2rm_jax.io import lock_file, on_bucket, write_atomically
from s2rm_jax.parallel import distributed
from s2rm_jax.training.logging import log

LOCK_FILE, HOLDER_FILE = ".lock", "lock.json"
LEASE = 60.0  # seconds without a renewal after which a lease has lapsed
RENEW_EVERY = 15.0  # seconds
SETTLE = 3.0  # seconds to wait, so that the last of several processes that take a lease at once has written its record

_LOGGER = logging.getLogger(__name__)
_POLL = 1.0  # seconds between looks at a lease


@dataclass
class WorkdirLock:
    """The lock of a workdir; `taken` names the process that took over its lease, and is empty until then."""

    taken: str = ""


@contextmanager
def lock_workdir(workdir: epath.Path) -> Iterator[WorkdirLock]:
    """Hold the lock of a workdir, which is created if missing. Every process of a run must call this.

    Raises:
        UserError: another run holds it, or the workdir cannot be written.
    """
    with contextlib.ExitStack() as stack:
        problem: UserError | None = None
        lock = WorkdirLock()
        if distributed.is_first():
            try:
                workdir.mkdir(parents=True, exist_ok=True)
                lock = stack.enter_context(_lease(workdir) if on_bucket(workdir) else _lock_on_disk(workdir))
            except UserError as error:
                problem = error
            except Exception as error:  # clients of buckets raise many kinds
                problem = storage_error(f"--workdir {workdir} cannot be used", error)
                if problem is None:
                    raise
        problem = distributed.gather(problem)[0]  # so that all processes end with it
        if problem is not None:
            raise problem
        yield lock


@contextmanager
def _lock_on_disk(workdir: epath.Path) -> Iterator[WorkdirLock]:
    with contextlib.ExitStack() as stack:
        lock = WorkdirLock()
        try:
            stack.enter_context(lock_file(Path(workdir) / LOCK_FILE, wait=False))
        except Timeout:
            raise _in_use(workdir, _read(workdir / HOLDER_FILE)) from None
        except PermissionError:
            raise
        except OSError:  # no locks here
            lock = stack.enter_context(_lease(workdir))
        else:
            stack.callback((workdir / HOLDER_FILE).unlink, missing_ok=True)
            _write(workdir / HOLDER_FILE, _own_record())
        yield lock


@contextmanager
def _lease(workdir: epath.Path) -> Iterator[WorkdirLock]:
    path, own = workdir / HOLDER_FILE, _own_record()
    _require_lapsed(workdir, path)
    _write(path, own)
    time.sleep(SETTLE)
    holder = _read(path)
    if holder.get("id") != own["id"]:
        raise _in_use(workdir, holder)
    lock, ended = WorkdirLock(), threading.Event()
    thread = threading.Thread(target=_renew, args=(path, own, lock, ended), daemon=True)
    thread.start()
    try:
        yield lock
    finally:
        ended.set()
        thread.join()
        with contextlib.suppress(Exception):  # clients of buckets raise many kinds; the lease lapses all the same
            if _read(path).get("id") == own["id"]:
                path.unlink()


def _require_lapsed(workdir: epath.Path, path: epath.Path) -> None:
    """Wait until a lease has lapsed, as that of a killed process does; raise UserError if it is renewed meanwhile."""
    found = _read(path)
    if not found:
        return
    log(f"--workdir {workdir} was in use {_by(found)}: waiting up to {LEASE:.0f} s to see whether it still is")
    lapses = time.monotonic() + LEASE  # not by the time in the record: the clocks of two hosts may differ
    while time.monotonic() < lapses:
        time.sleep(_POLL)
        now = _read(path)
        if now and now != found:
            raise _in_use(workdir, now)
        if not now:
            return


def _renew(path: epath.Path, own: Mapping[str, Any], lock: WorkdirLock, ended: threading.Event) -> None:
    logged = ""
    while not ended.wait(RENEW_EVERY):
        try:
            holder = _read(path)
            if not holder or holder["id"] == own["id"]:
                _write(path, {**own, "renewed": time.time()})
                continue
            lock.taken = _by(holder)  # this process was stopped for longer than a lease
            _LOGGER.error("--workdir %s was taken over %s: this run stops", path.parent, _by(holder))
        except Exception as error:  # clients of buckets raise many kinds; what fails now may succeed the next time
            if reason_of(error) != logged:
                logged = reason_of(error)
                _LOGGER.warning("the lease of --workdir %s cannot be renewed (%s); trying again", path.parent, logged)
            continue
        if callable(signal.getsignal(signal.SIGTERM)):  # `listen_for_stop` ends the run after its step, without saving
            os.kill(os.getpid(), signal.SIGTERM)
            return


def _own_record() -> dict[str, Any]:
    return {
        "host": socket.gethostname(),
        "process": os.getpid(),
        "since": datetime.now(UTC).isoformat(sep=" ", timespec="seconds"),
        "renewed": time.time(),
        "id": secrets.token_hex(8),
    }


def _write(path: epath.Path, record: Mapping[str, Any]) -> None:
    write_atomically(path, json.dumps(record) + "\n")


def _read(path: epath.Path) -> dict[str, Any]:
    """Return the record of the holder, or {} if there is none."""
    try:
        record = json.loads(path.read_text())
        return {name: record[name] for name in ("host", "process", "since", "renewed", "id")}
    except (FileNotFoundError, ValueError, TypeError, KeyError, RecursionError):
        return {}


def _in_use(workdir: epath.Path, holder: Mapping[str, Any]) -> UserError:
    return UserError(
        f"--workdir {workdir} is in use {_by(holder)}: wait until that run ends, or give another --workdir"
    )


def _by(holder: Mapping[str, Any]) -> str:
    if not holder:
        return "by another process"
    return f"by process {holder['process']} on host {holder['host']} since {holder['since']}"
