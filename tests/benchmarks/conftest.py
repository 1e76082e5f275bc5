"""What the benchmarks measure in tests: the smallest network, as it is for the tests of other parts."""

import pytest

from s2rm_jax.benchmarks.subject import Subject
from s2rm_jax.benchmarks.training_step import training_step
from tests.conftest import tiny_config


@pytest.fixture(scope="session")
def subject():
    config = tiny_config()
    config.vision.update({"depths": (1, 1), "num_heads": (1, 2)})
    config.decoder.widths = (8, 8)
    config.fusion.rotations = (0, 90)
    config.vision.drop_path_rate = config.text.dropout_rate = 0.0
    config.steps = 0  # as in the configurations that count them from data
    return Subject.of(config)


@pytest.fixture(scope="session")
def training(subject):
    """The training step of the subject, compiled."""
    return training_step(subject)
