"""Fixtures for training by the scripts of launch/, with a network that compiles in a second."""

import os
import sys
from pathlib import Path

import pytest

from tests.waiting import read_metrics

ROOT = Path(__file__).parents[2]
CONFIG = '''
"""Very small scenes."""
from ml_collections import ConfigDict
from s2rm_jax.config import default_config

def get_config():
    config = default_config()
    config.steps, config.batch_size = 12, 8
    config.log_every, config.checkpoint_every = 1, 6
    config.eval.every = 0
    config.input.source = ConfigDict({"name": "synthetic", "image_size": (48, 64), "expressions_per_scene": 3})
    config.input.image_size = (16, 16)
    config.input.expressions_per_image = 2
    config.text.update({"vocab_size": 128, "max_tokens": 18})
    config.optimizer.update({"ema_decay": 0.9, "clip_norm": 1.0, "learning_rate": 0.01})
    return config
'''
# Takes the place of python: in `python -m s2rm_jax.train FLAGS`, a small network takes that of the real one.
PYTHON = f"""#!/bin/sh
if [ "$1" != -m ]; then exec {sys.executable} "$@"; fi
shift 2
exec {sys.executable} {ROOT / "tests" / "system" / "small_commands.py"} train "$@"
"""


@pytest.fixture(scope="session")
def small_training(tmp_path_factory):
    """The environment in which scripts train the small network, and the path of its configuration."""
    shared = tmp_path_factory.mktemp("small_training")
    (shared / "small.py").write_text(CONFIG)
    executable(shared / "python", PYTHON)
    environment = {
        "PYTHON": str(shared / "python"),
        "PYTHONPATH": str(ROOT),
    }
    return os.environ | environment, str(shared / "small.py")


@pytest.fixture
def make_executable():
    return executable


@pytest.fixture
def read_trace():
    return trace


def executable(path, text):
    path.write_text(text)
    path.chmod(0o755)
    return path


def trace(workdir):
    """Return the loss of each step."""
    return {line["step"]: line["train/loss"] for line in read_metrics(workdir) if "train/loss" in line}
