"""Atomic files and growing files on a disk; test_bucket.py tests them on a bucket."""

import importlib.util
import json
import os

import pytest
from etils import epath

from s2rm_jax import io
from s2rm_jax.errors import UserError
from s2rm_jax.io import JsonLines, workdir_path, write_atomically
from s2rm_jax.training.logging import MetricsWriter


def test_lines_are_there_at_once_and_go_on_behind_those_that_are_kept(tmp_path):
    path = epath.Path(tmp_path / "lines.jsonl")
    lines = JsonLines(path)
    for step in (1, 2, 3):
        lines.write({"step": step})
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3]
    lines.close()
    with path.open("a") as stream:
        stream.write('{"step": 4, "half')
    again = JsonLines(path, keep=lambda line: line["step"] != 2)
    again.write({"step": 5})
    again.close()
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 3, 5]


@pytest.mark.parametrize(
    "left",
    [
        b'{"step": 2, "eval": {"iou": 1}',  # cut behind a brace
        b'{"step": 2, "name": "}',
        b"{}}",
        b"[2]",
        b"\x00\x00\x00",
        b'{"step": 2, "name": "caf\xc3',
        b'{"step": ' + b"[" * 100_000 + b"}",
    ],
)
def test_an_incomplete_line_of_a_killed_run_is_dropped(tmp_path, left):
    path = epath.Path(tmp_path / "lines.jsonl")
    path.write_bytes(b'{"step": 1, "text": "caf\xc3\xa9\\u2028"}\n' + left)
    lines = JsonLines(path)
    lines.write({"step": 3})
    lines.close()
    assert [json.loads(line)["step"] for line in path.read_text().split("\n")[:-1]] == [1, 3]


def test_metrics_without_a_step_do_not_end_a_resumed_run(tmp_path, standin):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"loss": 2.0}\n{"step": "2"}\n{"step": 9}\n')
    with MetricsWriter(tmp_path, standin.make_config(tensorboard=False), step=5) as writer:
        writer.write(6, "train", {"loss": 1.0})
    assert path.read_text() == '{"step": 1}\n{"step": 6, "train/loss": 1.0}\n'


def test_a_file_that_cannot_be_written_whole_stays_as_it_was(tmp_path):
    path = epath.Path(tmp_path / "file.json")
    write_atomically(path, "old")

    def full():
        yield "ne"
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space"):
        write_atomically(path, full())
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["file.json"]


def test_a_file_is_on_the_disk_before_it_replaces_another(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda number: synced.append(os.fstat(number).st_size))
    path = epath.Path(tmp_path / "file.json")
    for content in ("four", b"four", ["fo", "ur"]):
        write_atomically(path, content)
    assert synced == [4, 4, 4]
    write_atomically(path, "four", durable=False)
    assert synced == [4, 4, 4] and path.read_text() == "four"


def test_which_buckets_will_do(monkeypatch):
    with pytest.raises(UserError, match=r"--workdir s3://b/run: only buckets of Google Cloud Storage"):
        workdir_path("s3://b/run")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"--workdir gs://b/run: gcsfs is not installed: pip install"):
        workdir_path("gs://b/run")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if name == "gcsfs" else None)
    assert str(workdir_path("gs://b/run") / "config.json") == "gs://b/run/config.json"
    assert io.on_bucket("gs://b") and not io.on_bucket("runs/gs:/b")
