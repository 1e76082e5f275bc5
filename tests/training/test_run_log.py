"""The log file of each process."""

import errno
import json
import logging
import os
import re

import jax
import pytest
from etils import epath

from s2rm_jax.errors import UserError
from s2rm_jax.io import JsonLines
from s2rm_jax.parallel import distributed
from s2rm_jax.parallel.mesh import make_mesh
from s2rm_jax.training.logging import RunLog, log

MESH = make_mesh(devices=jax.devices()[:1])


def lines(workdir, process=0):
    text = (workdir / "log" / f"process_{process}.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def test_what_is_printed_is_kept_with_its_time_and_step(tmp_path, standin, capsys):
    config = standin.make_config(steps=8)
    standin.train(config, tmp_path, standin.make_parts(config), MESH)
    kept = lines(tmp_path)
    assert "\n".join(line["message"] for line in kept) + "\n" == capsys.readouterr().out
    assert [line["step"] for line in kept if "step" in line] == [4, 8]
    assert all(line["process"] == 0 and re.match(r"\d{4}-\d\d-\d\dT[\d:.]+\+00:00$", line["time"]) for line in kept)
    longer = standin.make_config(steps=9)
    standin.train(longer, tmp_path, standin.make_parts(longer), MESH)
    assert lines(tmp_path)[: len(kept)] == kept and len(lines(tmp_path)) > len(kept)


def test_another_process_prints_nothing_and_keeps_a_file_of_its_own(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(distributed, "process", lambda: (3, 4))
    with RunLog() as run_log:
        log("before the workdir is known")
        run_log.open(epath.Path(tmp_path))
        log("later", step=7)
    log("and after the end")
    assert capsys.readouterr().out == ""
    assert [(line["process"], line.get("step"), line["message"]) for line in lines(tmp_path, 3)] == [
        (3, None, "before the workdir is known"),
        (3, 7, "later"),
    ]


def test_warnings_of_readers_are_kept_and_printed_to_stderr(tmp_path, capsys):
    with RunLog() as run_log:
        logging.getLogger("s2rm_jax.input.refer").warning("%d images are missing", 3)
        run_log.open(epath.Path(tmp_path))
    assert capsys.readouterr() == ("", "3 images are missing\n")
    assert [line["message"] for line in lines(tmp_path)] == ["3 images are missing"]


def test_how_it_was_broken_off_is_the_last_line(tmp_path):
    with pytest.raises(ValueError, match="no"), RunLog() as run_log:
        run_log.open(epath.Path(tmp_path))
        raise ValueError("no")
    assert lines(tmp_path)[-1]["message"] == "ended by ValueError: no"


def test_a_disk_that_is_full_is_named(tmp_path, standin, monkeypatch):
    def write(lines, values):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(JsonLines, "write", write)
    config = standin.make_config(steps=1)
    message = (
        rf"--workdir {tmp_path} cannot be written \(No space left on device\): free space there and run the command"
    )
    with pytest.raises(UserError, match=message):
        standin.train(config, tmp_path, standin.make_parts(config), MESH)
