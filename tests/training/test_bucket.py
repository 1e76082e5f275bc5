"""A run with its workdir on a bucket: a stand-in for Google Cloud Storage in the memory of this process."""

import importlib.util
import json
import signal
import sys
from pathlib import Path

import jax
import pytest
from etils import epath
from etils.epath import backend
from orbax.checkpoint._src.path import gcs_utils

from s2rm_jax import io
from s2rm_jax.config import default_config
from s2rm_jax.errors import TemporaryFailure, UserError
from s2rm_jax.io import JsonLines
from s2rm_jax.parallel.mesh import make_mesh
from s2rm_jax.training import lock
from s2rm_jax.training.checkpoint import has_checkpoint, restore_params
from s2rm_jax.training.interrupt import Interrupted
from s2rm_jax.training.logging import MetricsWriter, RunLog
from s2rm_jax.training.run import load_config, require_workdir

MESH = make_mesh(devices=jax.devices()[:1])


@pytest.fixture(scope="module")
def fake_bucket():
    path = Path(__file__).with_name("fake_bucket.py")
    spec = importlib.util.spec_from_file_location("fake_bucket", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def server(fake_bucket):
    """One for all tests: TensorStore remembers where it was pointed first."""
    with pytest.MonkeyPatch.context() as patch:
        bucket = fake_bucket.FakeBucket()
        patch.setenv("TENSORSTORE_GCS_HTTP_URL", bucket.url)
        patch.setenv("GOOGLE_AUTH_TOKEN_FOR_TESTING", "none")
        yield bucket
        bucket.close()


@pytest.fixture
def bucket(server, fake_bucket, monkeypatch):
    """The bucket, as gs://..."""
    system = fake_bucket.BucketFileSystem(server)
    monkeypatch.setattr(type(backend.fsspec_backend), "_get_filesystem", lambda self, name: system)
    installed = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if name == "gcsfs" else installed(name))
    # Orbax asks this by google-cloud-storage, which is not there.
    monkeypatch.setattr(gcs_utils, "is_hierarchical_namespace_enabled", lambda path: False)
    monkeypatch.setattr(io, "REWRITE_EVERY", 0.0)
    monkeypatch.setattr(lock, "SETTLE", 0.0)
    server.objects.clear()
    return server


def test_a_run_starts_continues_and_is_read_on_a_bucket(bucket, tmp_path, standin, monkeypatch):
    monkeypatch.chdir(tmp_path)
    workdir = "gs://bucket/runs/one"
    require_workdir(workdir)
    config = standin.make_config()
    first = standin.make_config(steps=8)
    standin.train(first, workdir, standin.make_parts(first), MESH, profile_steps=range(2, 3))
    assert has_checkpoint(workdir)
    require_workdir(workdir)
    on_bucket = standin.train(config, workdir, standin.make_parts(config), MESH)
    standin.train(first, tmp_path / "disk", standin.make_parts(first), MESH)
    on_disk = standin.train(config, tmp_path / "disk", standin.make_parts(config), MESH)
    assert on_bucket == on_disk
    assert load_config(workdir).vision == config.vision
    assert load_config(workdir).text.vocab == "gs://bucket/runs/one/vocab.txt"
    for a, b in zip(
        *(jax.tree.leaves(restore_params(w, "mean_iou")[1]) for w in (workdir, tmp_path / "disk")), strict=True
    ):
        assert (a == b).all()
    names = [name.removeprefix("bucket/runs/one/") for name in bucket.objects]
    steps = {name.split("/")[1] for name in names if name.startswith("checkpoints/")}
    assert {"10", "12"} <= steps and "5" not in steps
    written = bucket.objects["bucket/runs/one/metrics.jsonl"].decode().splitlines()
    assert [json.loads(line)["step"] for line in written] == [4, 8, 12]
    assert "Trained 4 steps" in bucket.objects["bucket/runs/one/log/process_0.jsonl"].decode().splitlines()[-1]
    assert "lock.json" not in names
    with lock.lock_workdir(epath.Path(workdir)):
        assert "bucket/runs/one/lock.json" in bucket.objects
    assert sum(name.startswith("tensorboard/events") for name in names) == 2
    assert sum(name.endswith(".xplane.pb") for name in names) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["disk"]  # nothing took gs: for a folder


def test_lines_are_written_now_and_then_and_at_the_end(bucket, monkeypatch):
    monkeypatch.setattr(io, "REWRITE_EVERY", 60.0)
    now = [0.0]
    path = epath.Path("gs://bucket/lines.jsonl")
    lines = JsonLines(path, clock=lambda: now[0])
    for step in range(5):
        now[0] += 25
        lines.write({"step": step})
    assert path.read_text().count("\n") == 3
    lines.close()
    assert path.read_text().count("\n") == 5
    again = JsonLines(path, keep=lambda line: line["step"] < 2)
    again.write({"step": 2})
    again.close()
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [0, 1, 2]


def test_a_bucket_out_of_reach_for_a_moment_loses_no_line(bucket, monkeypatch):
    path = epath.Path("gs://bucket/lines.jsonl")
    lines = JsonLines(path)
    lines.write({"step": 1})
    with monkeypatch.context() as outage:
        outage.setattr(bucket, "put", lambda *_: (_ for _ in ()).throw(TimeoutError("timed out")))
        lines.write({"step": 2})
    lines.write({"step": 3})
    assert path.read_text().count("\n") == 3
    lines.close()


@pytest.mark.parametrize("ended", [TemporaryFailure("later"), Interrupted("Stopped.", signal.SIGINT), None])
def test_closing_on_a_bucket_out_of_reach_keeps_the_error_that_ended_the_run(bucket, monkeypatch, capsys, ended):
    unreachable = TimeoutError("timed out")
    workdir = epath.Path("gs://bucket/run")
    with pytest.raises(type(ended or unreachable)) as raised, RunLog() as run_log:
        run_log.open(workdir)
        with MetricsWriter(workdir, default_config()) as writer:
            writer.write(1, "train", {"loss": 1.0})
            monkeypatch.setattr(bucket, "put", lambda *_: (_ for _ in ()).throw(unreachable))
            if ended:
                raise ended
    assert raised.value is (ended or unreachable)
    assert "the end of the log cannot be written (timed out)" in capsys.readouterr().err


def test_a_checkpoint_without_its_mark_does_not_count(bucket):
    bucket.put("bucket/run/checkpoints/5/state/part", b"")
    assert not has_checkpoint("gs://bucket/run")
    bucket.put("bucket/run/checkpoints/5/commit_success.txt", b"")
    assert has_checkpoint("gs://bucket/run")


def test_an_unreachable_bucket_is_reported_in_one_line(bucket, monkeypatch):
    def refuse(self, path, **_):
        raise RuntimeError("401: anonymous caller\nhas no access")

    monkeypatch.setattr(type(backend.fsspec_backend), "exists", refuse)
    with pytest.raises(UserError, match=r"^--workdir gs://bucket/run cannot be reached: 401: anonymous caller$"):
        require_workdir("gs://bucket/run")
