"""The subject of the benchmarks in tests: the smallest network."""

import pytest

from s2rm_jax.measure.harness import Subject, jitted, network_parts
from s2rm_jax.measure.training_speed import training_step
from tests.conftest import tiny_config


@pytest.fixture(scope="session")
def subject():
    config = tiny_config()
    config.fusion.rotations = (0, 90)
    config.vision.drop_path_rate = config.text.dropout_rate = 0.0
    config.update({"steps": 0, "epochs": 1.0})  # as in the configurations that count steps from data
    return Subject.from_config(config)


@pytest.fixture(scope="session")
def training_and_first_loss(subject):
    """The compiled training step of the subject, and the loss of its first step."""
    training = training_step(subject)
    return training, float(training.take()["loss"])


@pytest.fixture(scope="session")
def training(training_and_first_loss):
    return training_and_first_loss[0]


@pytest.fixture(scope="session")
def first_loss(training_and_first_loss):
    return training_and_first_loss[1]


@pytest.fixture(scope="session")
def parts(subject):
    """The parts of the subject for one image and two expressions."""
    return network_parts(subject, 1, 2)


@pytest.fixture(scope="session")
def logits(subject):
    """The output of the whole network for the same inputs."""
    return jitted(*subject.forward(1, 2))()
