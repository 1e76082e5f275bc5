"""The training step as `train` runs it, ready to be timed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ml_collections import ConfigDict

from s2rm_jax.benchmarks.subject import Subject
from s2rm_jax.parallel.mesh import build_mesh, put_batch
from s2rm_jax.training.ahead_of_time import CompiledAhead, compile_step
from s2rm_jax.training.state import plan_state


@dataclass(frozen=True)
class TrainingStep:
    """A compiled step; `take` takes one each time that it is called, and returns its metrics."""

    compiled: CompiledAhead
    take: Callable[[], Any]


def training_step(subject: Subject) -> TrainingStep:
    """Compiles the step for config.batch_size pictures and makes a state and a batch for it."""
    config = with_steps(subject.config)
    mesh = build_mesh(config)
    plan = plan_state(subject.network, config, mesh)
    compiled = compile_step(subject.network, plan, config, mesh)
    batch, state = put_batch(subject.batch(), mesh), plan.create(subject.params)

    def take() -> Any:
        nonlocal state
        state, metrics = compiled.compiled(state, batch)
        return metrics

    return TrainingStep(compiled, take)


def with_steps(config: ConfigDict) -> ConfigDict:
    """Returns a configuration whose steps are not to be counted from data, of which there is none."""
    config = copy.deepcopy(config)
    config.steps = config.steps or config.optimizer.warmup_steps + 1000
    return config
