"""What the benchmarks measure in tests: the smallest network, as it is for the tests of other parts."""

import pytest

from s2rm_jax.measure.subject import Subject, network_parts
from s2rm_jax.measure.timing import jitted
from s2rm_jax.measure.training_speed import training_step
from tests.conftest import tiny_config


@pytest.fixture(scope="session")
def subject():
    config = tiny_config()
    config.vision.update({"depths": (1, 1), "num_heads": (1, 2)})
    config.decoder.widths = (8, 8)
    config.fusion.rotations = (0, 90)
    config.vision.drop_path_rate = config.text.dropout_rate = 0.0
    config.update({"steps": 0, "epochs": 1.0})  # as in the configurations that count steps from data
    return Subject.of(config)


@pytest.fixture(scope="session")
def begun(subject):
    """The training step of the subject, compiled, and the loss of the first one, which no later one has."""
    training = training_step(subject)
    return training, float(training.take()["loss"])


@pytest.fixture(scope="session")
def training(begun):
    return begun[0]


@pytest.fixture(scope="session")
def first_loss(begun):
    return begun[1]


@pytest.fixture(scope="session")
def parts(subject):
    """The parts of the subject for one image and two expressions, compiled as far as they were needed."""
    return network_parts(subject, 1, 2)


@pytest.fixture(scope="session")
def logits(subject):
    """What the whole network finds there."""
    return jitted(*subject.forward(1, 2))()
