"""The training step as `train` runs it, ready to be timed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from s2rm_jax.benchmarks.subject import Subject
from s2rm_jax.parallel.mesh import build_mesh, put_batch
from s2rm_jax.training.state import plan_state
from s2rm_jax.training.step import make_train_step


def training_step(subject: Subject) -> Callable[[], Any]:
    """Returns what takes one step of config.batch_size pictures each time that it is called, and its metrics."""
    config = with_steps(subject.config)
    mesh = build_mesh(config)
    plan = plan_state(subject.network, config, mesh)
    step = make_train_step(subject.network, plan, config, mesh)
    batch = put_batch(subject.batch(), mesh)
    state = plan.create(subject.params)

    def once() -> Any:
        nonlocal state
        state, metrics = step(state, batch)
        return metrics

    return once


def with_steps(config: ConfigDict) -> ConfigDict:
    """Returns a configuration whose steps are not to be counted from data, of which there is none."""
    config = copy.deepcopy(config)
    config.steps = config.steps or config.optimizer.warmup_steps + 1000
    return config
