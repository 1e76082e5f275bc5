"""The training step compiled before there is a state, a batch, or even a device to run it on.

Compiled programs kept beside the run, so that one which is started again does not compile them again.

A trace of some steps: what the host and the devices did, and when.
"""

from __future__ import annotations

import copy
import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from etils import epath
from jax.experimental.compilation_cache import compilation_cache as jax_cache
from jax.sharding import Mesh
from ml_collections import ConfigDict

from s2rm_jax.errors import UserError
from s2rm_jax.input.encode import packed_shape
from s2rm_jax.input.example import Batch
from s2rm_jax.io import copy_files, on_bucket
from s2rm_jax.models.cost import count_flops, jaxpr_flops
from s2rm_jax.models.network import build_network
from s2rm_jax.parallel import distributed
from s2rm_jax.parallel.mesh import batch_sharding
from s2rm_jax.training.logging import log
from s2rm_jax.training.state import StatePlan, plan_state
from s2rm_jax.training.step import make_train_step


@dataclass(frozen=True)
class CompiledStep:
    """A compiled step, the FLOPs of its matrix products over all devices, and how long compiling took.

    `flops` are those that it computes; `model_flops` those of a forward pass times three, as is usual where a step is
    measured against what a device can do: without what config.remat computes a second time.
    """

    compiled: Any
    flops: int
    model_flops: int
    seconds: float


def compile_training_step(config: ConfigDict, mesh: Mesh) -> CompiledStep:
    """Compiles the step that `train` would run with `config` on the devices of `mesh`, which need not be there.

    Where config.steps is 0 (they follow from the data), any number will do: it is a constant of the schedule.

    Raises:
        UserError: as `compile_step`.
    """
    config = copy.deepcopy(config)
    if config.steps == 0:
        config.steps = config.optimizer.warmup_steps + 1
    network = build_network(config)
    return compile_step(network, plan_state(network, config, mesh), config, mesh)


def compile_step(network: nn.Module, plan: StatePlan, config: ConfigDict, mesh: Mesh) -> CompiledStep:
    """Compiles the step of training `network` for the states that `plan` makes and the batches that `config` describes.

    Raises:
        UserError: the batch cannot be split over the devices, or the step needs more memory than they have.
    """
    start = time.monotonic()
    batch = abstract_batch(config, mesh)
    step: Any = make_train_step(network, plan, config, mesh)
    traced = step.trace(plan.abstract, batch)
    inputs = batch.images, batch.tokens, batch.token_mask
    forward = count_flops(network.apply, {"params": plan.abstract.params}, *inputs)
    try:
        compiled = traced.lower().compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" in str(error):
            raise UserError(_does_not_fit(config, mesh, str(error))) from error
        raise
    return CompiledStep(compiled, jaxpr_flops(traced.jaxpr.jaxpr), 3 * forward, time.monotonic() - start)


def abstract_batch(config: ConfigDict, mesh: Mesh) -> Batch:
    """Returns the batch that `config` describes as ShapeDtypeStructs, spread over `mesh`."""
    (height, width), tokens = config.input.image_size, config.text.max_tokens
    images, expressions = config.batch_size, config.input.expressions_per_image
    sharding = batch_sharding(mesh)

    def array(dtype: Any, *shape: int) -> Any:
        return jax.ShapeDtypeStruct((images, *shape), dtype, sharding=sharding)

    return Batch(
        images=array(jnp.uint8, height, width, 3),
        tokens=array(jnp.int32, expressions, tokens),
        token_mask=array(jnp.bool, expressions, tokens),
        targets=array(jnp.uint8, expressions, *packed_shape(height, width)),
        valid=array(jnp.bool, expressions),
        has_target=array(jnp.bool, expressions),
    )


def _does_not_fit(config: ConfigDict, mesh: Mesh, message: str) -> str:
    used = re.search(r"Used (\S+) of (\S+) hbm", message)
    needs = f"it needs {used.group(1)} of {used.group(2)}" if used else "see above"
    return (
        f"the step does not fit into the memory of a device: {needs} with config.batch_size={config.batch_size} on "
        f"{mesh.size} devices and config.remat={config.remat!r}; use more devices, fewer images, "
        "config.optimizer.accumulate, or --config.remat=dense or blocks."
    )


COMPILATION_CACHE_DIRECTORY = "compilation_cache"
OFF = "off"  # as config.compilation_cache
WORTH_KEEPING = 2.0  # seconds of compiling


@contextmanager
def compilation_cache(config: ConfigDict, workdir: epath.Path) -> Iterator[None]:
    """While inside, JAX keeps what it compiled as config.compilation_cache says, and takes what was kept.

    Empty, that is in <workdir>/compilation_cache, unless JAX was given a folder already (JAX_COMPILATION_CACHE_DIR).
    JAX keys a program by all that it depends on, the kind of machine included, so that what is kept can only be of no
    use. Of several processes, the first writes and all read; a program that is not whole is compiled anew. On CPUs,
    where each process has programs of its own, several keep none by default: the first would be ready long before the
    others, and wait for them in a step.

    Raises:
        UserError: the folder that config.compilation_cache names cannot be used.
    """
    setting = config.get("compilation_cache", "")  # which runs of older versions do not have
    for_one_only = jax.default_backend() == "cpu" and not distributed.is_alone()
    if not setting and (for_one_only or jax.config.values["jax_compilation_cache_dir"]):
        yield
        return
    folder = epath.Path(setting) if setting else workdir / COMPILATION_CACHE_DIRECTORY
    values: dict[str, object] = {"jax_compilation_cache_dir": None}
    if setting != OFF:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            if not setting:  # a finished run may lie where it can only be read
                yield
                return
            raise UserError(
                f"config.compilation_cache: {folder} cannot be used ({error}); name another folder, or say off."
            ) from error
        values = {
            "jax_compilation_cache_dir": str(folder if on_bucket(folder) else folder.absolute()),
            "jax_persistent_cache_min_compile_time_secs": WORTH_KEEPING,
        }
        if on_bucket(folder):  # which XLA, unlike JAX, does not know
            values["jax_persistent_cache_enable_xla_caches"] = "none"
    before = {name: jax.config.values[name] for name in values}
    _set(values)
    try:
        yield
    finally:
        _set(before)


def _set(values: dict[str, object]) -> None:
    for name, value in values.items():
        jax.config.update(name, value)
    jax_cache.reset_cache()  # else JAX goes on with the folder that it used first


PROFILE_DIRECTORY = "profile"


def parse_profile_steps(text: str) -> range:
    """Returns the steps that "FIRST:LAST" means, LAST included.

    Raises:
        UserError: it means none.
    """
    numbers = re.fullmatch(r"(\d+):(\d+)", text)
    first, last = map(int, numbers.groups()) if numbers else (0, 0)
    if not 1 <= first <= last:
        raise UserError(f"--profile_steps is {text!r}; it must be FIRST:LAST, two steps counted from 1, such as 10:15.")
    return range(first, last + 1)


class Profile:
    """Traces the given steps of a run into <workdir>/profile. Of several processes, the first traces itself.

    Use it as a context manager, so that a trace that was begun is written whatever happens.

    Raises:
        UserError: the run has not so many steps.
    """

    def __init__(self, workdir: epath.Path, steps: range, last_step: int):
        if steps and steps[-1] > last_step:
            raise UserError(
                f"--profile_steps={steps[0]}:{steps[-1]}, but the run has {last_step} steps: name steps that it takes."
            )
        self._directory = workdir / PROFILE_DIRECTORY
        self._steps = steps if distributed.is_first() else range(0)
        self._tracing = False
        self._made_here: tempfile.TemporaryDirectory[str] | None = None

    def begin(self, step: int) -> None:
        """Hears after which step the run begins, and says so if what is to be traced is over."""
        if self._steps and step >= self._steps[-1]:
            log(f"nothing to trace: --profile_steps ends at {self._steps[-1]}, and the run goes on from step {step}")

    @contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Inside, step `number` is given to the devices."""
        if number in self._steps and not self._tracing:
            if on_bucket(self._directory):  # JAX writes to this machine only
                self._made_here = tempfile.TemporaryDirectory()
            jax.profiler.start_trace(self._made_here.name if self._made_here else self._directory)
            self._tracing = True
        with jax.profiler.StepTraceAnnotation("train", step_num=number):
            yield

    def ends(self, number: int) -> bool:
        """Says whether step `number` is the last to be traced: the trace is to be written when it is finished."""
        return self._tracing and number >= self._steps[-1]

    def write(self) -> None:
        """Ends the trace, if there is one, and writes it; where that fails, the run goes on."""
        if not self._tracing:
            return
        self._tracing = False
        try:
            jax.profiler.stop_trace()
            if self._made_here:
                with self._made_here as folder:
                    copy_files(Path(folder), self._directory)
        except (OSError, RuntimeError) as error:
            log(f"the trace could not be written to {self._directory}: {str(error).splitlines()[0]}")
            return
        log(f"traced into {self._directory}; to look at it: pip install xprof; xprof --logdir {self._directory}")

    def __enter__(self) -> Profile:
        return self

    def __exit__(self, *_: object) -> None:
        self.write()
