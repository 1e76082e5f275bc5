"""A run of an earlier version can be used and continued.

earlier_run.tar.xz is the workdir, without its compiled programs, of a run of two steps of the smallest network on
synthetic scenes, made on 2026-11-28 by the version of commit af40f82. That version continued it to step 4 with the
losses and gradient norms below.
"""

import json
import tarfile
from pathlib import Path

import pytest

from s2rm_jax.segmenter import Segmenter
from s2rm_jax.training.loop import train_and_evaluate
from s2rm_jax.training.run import load_config

LOSSES = {3: 1.519958257675171, 4: 1.427186131477356}
GRADIENT_NORMS = {3: 25.682832717895508, 4: 18.496456146240234}


@pytest.fixture
def workdir(tmp_path) -> Path:
    with tarfile.open(Path(__file__).with_name("earlier_run.tar.xz")) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path


def test_an_earlier_run_segments(workdir):
    result = Segmenter.from_checkpoint(workdir).segment(
        Path(__file__).parents[2] / "docs/images/demo.png", ["the red star"]
    )
    assert result.masks.any() and 0 < result.scores[0] < 1


def test_an_earlier_run_continues(workdir):
    config = load_config(workdir).unlock()
    config.steps, config.eval.every = 4, 0
    config.compilation_cache = ""  # so that the cache of the tests is used
    train_and_evaluate(config, workdir)
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    trained = {line["step"]: line for line in lines if "train/loss" in line}
    assert list(trained) == [1, 2, 3, 4]
    assert {step: trained[step]["train/loss"] for step in LOSSES} == pytest.approx(LOSSES, rel=1e-4)
    assert {step: trained[step]["train/grad_norm"] for step in LOSSES} == pytest.approx(GRADIENT_NORMS, rel=1e-3)
