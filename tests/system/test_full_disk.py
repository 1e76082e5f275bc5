"""Commands on a full disk: one line on stderr, whatever Orbax, asyncio and TensorStore print about it."""

import json
import shutil

import pytest

from tests.command import run_process

CONFIG = """
from s2rm_jax.training.run import load_config

def get_config():
    return load_config({workdir!r})
"""


@pytest.fixture
def workdir(tiny_workdir, tmp_path):
    """A copy of the tiny run, because hidden output is written to its log folder."""
    return shutil.copytree(tiny_workdir, tmp_path / "run")


def assert_one_line(done, *parts):
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    for part in parts:
        assert part in done.stderr


def test_train(warm, workdir, tmp_path):
    """With a network that compiles in a second."""
    new = tmp_path / "new"
    (tmp_path / "tiny.py").write_text(CONFIG.format(workdir=str(workdir)))
    asked = (f"--config={tmp_path / 'tiny.py'}", f"--workdir={new}", "--config.eval.every=0")
    done = warm.run("tests/system/small_commands.py", "train", *asked, blocks=8)
    assert_one_line(done, f"a checkpoint cannot be written to {new / 'checkpoints'}", "free space there")
    hidden = (new / "log" / "libraries_0.log").read_text()
    assert hidden.count("\n") > 20 and "File too large" in hidden
    ended = json.loads((new / "log" / "process_0.jsonl").read_text().splitlines()[-1])["message"]
    assert ended.startswith("ended by UserError: a checkpoint cannot be written")


def test_evaluate(workdir, tmp_path):
    out = tmp_path / "out"
    done = run_process("-m", "s2rm_jax.evaluate", f"--workdir={workdir}", "--limit=2", f"--out={out}", blocks=4)
    assert_one_line(done, f"--out: {out} cannot be written (File too large); give another --out, or free space")


def test_predict(warm, workdir, tmp_path):
    out = tmp_path / "out"
    done = warm.run("-m", "s2rm_jax.predict", f"--workdir={workdir}", "--text=the star", f"--out={out}", blocks=1)
    assert_one_line(
        done, f"--out: {out / 'overlay.png'} cannot be written (File too large); give another --out, or free space"
    )
