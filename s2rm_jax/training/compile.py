"""The compiled training step: compiling it ahead of time, caching compiled programs, and profiling steps.

Compiled programs are cached in two ways. JAX's compilation cache (`compilation_cache`) saves compiling, but a process
traces its programs to find them there. A `ProgramStore` keeps whole executables, which saves tracing too; it is for
prediction on CPUs, where starting takes longer than segmenting.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import logging
import os
import pickle
import platform
import re
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import jaxlib
from etils import epath
from jax.experimental.compilation_cache import compilation_cache as jax_cache
from jax.experimental.serialize_executable import deserialize_and_load, serialize
from jax.sharding import Mesh
from ml_collections import ConfigDict

from s2rm_jax.errors import UserError, one_line, reason_of
from s2rm_jax.input.encode import packed_shape
from s2rm_jax.input.example import Batch
from s2rm_jax.io import copy_files, make_cache_folder, on_bucket
from s2rm_jax.models.cost import count_flops, jaxpr_flops
from s2rm_jax.models.network import build_network
from s2rm_jax.parallel import distributed
from s2rm_jax.parallel.devices import GIB, matrix_rate, read_memory
from s2rm_jax.parallel.mesh import batch_sharding
from s2rm_jax.training.logging import hours_minutes_seconds, log
from s2rm_jax.training.state import StatePlan, parameter_shapes, plan_state
from s2rm_jax.training.step import make_train_step

COMPILATION_CACHE_DIRECTORY = "compilation_cache"
PROFILE_DIRECTORY = "profile"
OFF = "off"  # value of config.compilation_cache
WORTH_KEEPING = 2.0  # seconds of compiling from which a program is cached
PROGRAMS_KEPT = 64  # how many files a ProgramStore keeps, the most recently used
_DIGEST = hashlib.sha256().digest_size
_UNFINISHED = ".unfinished-"
_OUR_FILES = re.compile(rf"[0-9a-f]{{{2 * _DIGEST}}}|{re.escape(_UNFINISHED)}.*")

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class CompiledStep:
    """A compiled training step."""

    executable: Any  # called with a state and a batch
    flops: int  # of its matrix products, over all devices
    model_flops: int  # of three forward passes: without what config.remat computes again, as MFU is usually defined
    seconds: float  # that compiling took

    def seconds_at_peak(self, mesh: Mesh) -> float | None:
        """Return the duration of a step of nothing but matrix products at the devices' published rate, if known."""
        rate = matrix_rate(mesh.devices.flat[0].device_kind)
        return self.model_flops / (rate * mesh.size) if rate else None

    def describe(self, mesh: Mesh) -> str:
        """Return the memory that the step needs on each device and its FLOPs, for the log."""
        device = mesh.local_devices[0]
        memory, limit = read_memory(self.executable), (device.memory_stats() or {}).get("bytes_limit")
        needs = ""
        if memory is not None:
            needs = (
                f" A step needs {_bytes(memory.total)}{f' of {_bytes(limit)}' if limit else ''} on each device: state "
                f"and batch {_bytes(memory.arguments)}, temporary {_bytes(memory.temporaries)}"
                f"{f', program {_bytes(memory.code)}' if memory.code else ''}."
            )
        rate = matrix_rate(device.device_kind)
        mfu = f"; MFU is the share of {rate / 1e12:,.0f} TFLOP/s a device" if rate else ""
        model = f" ({_flops(self.model_flops)} without recomputation)" if self.flops > 1.05 * self.model_flops else ""
        return (
            f"Compiled in {hours_minutes_seconds(self.seconds)}.{needs} "
            f"It computes {_flops(self.flops)} in matrix products on all devices together{model}{mfu}."
        )


def compile_training_step(config: ConfigDict, mesh: Mesh) -> CompiledStep:
    """Compile the step that training with `config` runs on the devices of `mesh`, which need not be present.

    Raises:
        UserError: as `compile_step`.
    """
    config, network = with_fixed_steps(config), build_network(config)
    return compile_step(network, plan_state(network, config, mesh), config, mesh)


def with_fixed_steps(config: ConfigDict) -> ConfigDict:
    """Return the configuration with an arbitrary number of steps if config.steps is 0; speed does not depend on it."""
    config = copy.deepcopy(config)
    config.steps = config.steps or config.optimizer.warmup_steps + 1000
    return config


def compile_step(network: nn.Module, plan: StatePlan, config: ConfigDict, mesh: Mesh) -> CompiledStep:
    """Compile the training step of `network` for the states of `plan` and the batches that `config` describes.

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
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        used = re.search(r"Used (\S+) of (\S+) hbm", str(error))
        needs = f"it needs {used.group(1)} of {used.group(2)}" if used else "see above"
        raise UserError(
            f"the step does not fit into the memory of a device: {needs} with config.batch_size={config.batch_size} on "
            f"{mesh.size} devices and config.remat={config.remat!r}; use more devices, fewer images, "
            "config.optimizer.accumulate, or --config.remat=dense or blocks"
        ) from error
    return CompiledStep(compiled, jaxpr_flops(traced.jaxpr.jaxpr), 3 * forward, time.monotonic() - start)


def abstract_batch(config: ConfigDict, mesh: Mesh) -> Batch:
    """Return the batch that `config` describes as ShapeDtypeStructs, split over `mesh`."""
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


def _flops(number: int) -> str:
    return f"{number / 1e12:.2f} TFLOP" if number >= 1e11 else f"{number / 1e9:.3g} GFLOP"


def _bytes(number: int) -> str:
    return f"{number / GIB:.2f} GiB" if number >= GIB / 100 else f"{number / 2**20:.2f} MiB"


@contextmanager
def compilation_cache(config: ConfigDict, workdir: epath.Path) -> Iterator[None]:
    """Within the context, let JAX cache compiled programs in the folder that config.compilation_cache names.

    The default is <workdir>/compilation_cache, unless JAX already has a folder (JAX_COMPILATION_CACHE_DIR). JAX's keys
    include everything that a program depends on, so a stale program is never used. Of several processes, the first
    writes and all read. Several processes on CPUs have no cache by default: their programs differ, so the first process
    would be ready long before the others and wait for them in a step.

    Raises:
        UserError: the folder that config.compilation_cache names cannot be used.
    """
    setting = config.compilation_cache
    several_on_cpu = jax.default_backend() == "cpu" and not distributed.is_alone()
    if not setting and (several_on_cpu or jax.config.values["jax_compilation_cache_dir"]):
        yield
        return
    folder = epath.Path(setting) if setting else workdir / COMPILATION_CACHE_DIRECTORY
    values: dict[str, object] = {"jax_compilation_cache_dir": None}
    if setting != OFF:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            if not setting:  # the workdir of a finished run may be read-only
                yield
                return
            raise UserError(
                f"config.compilation_cache: {folder} cannot be used ({error}); give another folder, or off"
            ) from error
        values = {
            "jax_compilation_cache_dir": str(folder if on_bucket(folder) else folder.absolute()),
            "jax_persistent_cache_min_compile_time_secs": WORTH_KEEPING,
            # XLA's own caches do not support buckets, and their paths are in the keys of JAX's cache, which a workdir
            # that was moved would not find again.
            "jax_persistent_cache_enable_xla_caches": "none",
        }
    before = {name: jax.config.values[name] for name in values}
    _update_cache_settings(values)
    try:
        yield
    finally:
        _update_cache_settings(before)


def _update_cache_settings(values: dict[str, object]) -> None:
    for name, value in values.items():
        jax.config.update(name, value)
    jax_cache.reset_cache()  # otherwise JAX continues with the folder that it used first


def open_program_store(config: ConfigDict) -> ProgramStore | None:
    """Return the store of programs of the network that `config` describes, in ~/.cache or XDG_CACHE_HOME.

    Return None on accelerators, if config.compilation_cache is off, and if no private folder can be created: whoever
    can write to the folder can run code as this user. JAX's settings count too: there is no store if
    JAX_ENABLE_COMPILATION_CACHE=false, or if JAX has a cache of its own (JAX_COMPILATION_CACHE_DIR), because a program
    that comes from there cannot be saved again.
    """
    settings = jax.config.values
    disabled = config.compilation_cache == OFF or not settings["jax_enable_compilation_cache"]
    if disabled or settings["jax_compilation_cache_dir"] or jax.default_backend() != "cpu":
        return None
    try:
        folder = _require_private(make_cache_folder("programs"))
    except (OSError, UserError) as error:
        _LOG.debug("compiled programs are not kept: %s", one_line(error))
        return None
    return ProgramStore(folder, config)


def _require_private(folder: Path) -> Path:
    """Return a folder without symbolic links; raise PermissionError if others can enter or replace it."""
    folder = folder.resolve()
    status = folder.stat()
    if status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise PermissionError(f"{folder} is not private to this user")
    for parent in folder.parents:
        status = parent.stat()
        # A group may write to a parent: on many systems every user has a group of its own. What others put in the place
        # of the folder is not used anyway, because the files in it must belong to this user.
        writable = status.st_mode & stat.S_IWOTH and not status.st_mode & stat.S_ISVTX
        if status.st_uid not in (0, os.getuid()) or writable:
            raise PermissionError(f"others can replace {folder}, because they can write to {parent}")
    return folder


class ProgramStore:
    """Compiled programs for CPUs, for later processes of the same user.

    A program is found again only if all that it depends on is the same: the code of this package, the versions of JAX
    and Flax, the network, the shapes of its arguments and their device, the settings of JAX and XLA, and the processor.
    Each file has a checksum of these and of its content, so a file that is damaged, or whose name differs from the one
    that it was written with, is not used: the program is compiled again and replaces it, with a warning.

    Args:
        folder: where the files are; their contents are executed.
        config: the configuration from which the network of the programs is built.
    """

    def __init__(self, folder: Path, config: ConfigDict):
        self._folder, self._config = folder, config
        self._context = json.dumps([_describe_environment(), _describe_network(config)], sort_keys=True)

    def parameter_shapes(self, network: nn.Module) -> Any:
        """Return `state.parameter_shapes` of the network, which are kept because they take a trace of all of it."""
        path, described = self._file("parameter_shapes", _describe_settings())
        shapes = _load(path, described, pickle.loads)
        if shapes is None:
            shapes = parameter_shapes(network, self._config)
            _save(path, described, pickle.dumps(shapes))
        return shapes

    def keep(self, function: Any) -> Callable[..., Any]:
        """Return `function`, the result of `jax.jit`, as a function that loads and keeps its programs here.

        Arguments are arrays on one device; those that are given by name must be static. The first call with some shapes
        must return before the next.
        """
        programs: dict[Any, Any] = {}

        def call(*arguments: Any, **static: Any) -> Any:
            leaves, structure = jax.tree.flatten(arguments)
            shapes = tuple((leaf.shape, leaf.dtype) for leaf in leaves)
            devices = sorted(leaves[0].devices(), key=lambda device: device.id)
            numbers = tuple(device.id for device in devices)
            settings = _describe_settings()
            key = structure, shapes, numbers, settings, tuple(sorted(static.items()))
            if key in programs:
                return programs[key](*arguments)
            what = f"{function.__name__} {static} {structure} {shapes} {numbers}"
            path, described = self._file(what, settings)

            def load(body: bytes) -> tuple[Any, Any]:
                serialized, in_tree, out_tree = pickle.loads(body)
                program = deserialize_and_load(serialized, in_tree, out_tree, execution_devices=devices)
                return program, jax.block_until_ready(program(*arguments))  # some faults appear only in a run

            loaded = _load(path, described, load)
            if loaded is not None:
                programs[key], outputs = loaded
                return outputs
            programs[key] = program = function.lower(*arguments, **static).compile()
            try:
                _save(path, described, pickle.dumps(serialize(program)))
            except _NOT_SERIALIZED as error:
                _LOG.debug("a compiled program of %s is not kept: %s", function.__name__, one_line(error))
            return program(*arguments)

        return call

    def _file(self, what: str, settings: str) -> tuple[Path, bytes]:
        described = f"{self._context}\n{settings}\n{what}".encode()
        return self._folder / hashlib.sha256(described).hexdigest(), described


_NOT_SERIALIZED = (  # what JAX and pickle raise for programs that cannot be serialized
    *(ValueError, TypeError, AttributeError, NotImplementedError, pickle.PicklingError, jax.errors.JaxRuntimeError),
)


def _describe_environment() -> list[Any]:
    """Return what programs depend on and what stays the same in a process, as plain values."""
    package = Path(__file__).parents[1]
    source = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        source.update(f"{path.relative_to(package)}\n".encode() + path.read_bytes())
    device = jax.devices()[0]
    versions = jax.__version__, jaxlib.__version__, flax.__version__, platform.python_version()
    devices = device.client.platform_version, device.device_kind, jax.device_count()
    return [source.hexdigest(), versions, devices, _describe_processor()]


def _describe_network(config: ConfigDict) -> dict[str, Any]:
    """Return the fields that the network and its programs depend on, without paths: a run may be moved."""
    content, unused = config.to_dict(), ("pretrained", "vocab", "lower_case")
    network: dict[str, Any] = {
        section: {name: value for name, value in content[section].items() if name not in unused}
        for section in ("vision", "text", "fusion", "decoder")
    }
    others = {"dtype": content["dtype"], "remat": content["remat"], "image_size": content["input"]["image_size"]}
    return network | others


def _describe_settings() -> str:
    """Return the settings of JAX, some of which hold in a block only, and of XLA."""
    settings = {name: value for name, value in jax.config.values.items() if "_cache_" not in name}
    flags = {name: value for name, value in os.environ.items() if "XLA" in name}
    return json.dumps([settings, flags], sort_keys=True, default=str)


def _describe_processor() -> list[Any]:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # not Linux
        lines = [f"model name: {platform.processor()} of {platform.node()}"]
    kinds = ("model name", "flags", "Features", "CPU ")  # the latter two on ARM
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    return [platform.platform(), sorted({line for line in lines if line.startswith(kinds)}), len(cores)]


def _load(path: Path, described: bytes, decode: Callable[[bytes], Any]) -> Any:
    """Return what a file of a ProgramStore holds; None if it does not exist and, with a warning, if it is unusable."""
    try:
        content = _read_own(path)
        digest, body = content[:_DIGEST], content[_DIGEST:]
        if hashlib.sha256(described + body).digest() != digest:
            raise ValueError("it is damaged: its checksum is wrong")
        loaded = decode(body)
        with contextlib.suppress(OSError):
            os.utime(path)  # see _save
    except FileNotFoundError:
        return None
    except Exception as error:  # pickle and XLA raise many kinds
        _LOG.warning("the compiled program %s cannot be used (%s); compiling it again", path, reason_of(error))
        return None
    return loaded


def _read_own(path: Path) -> bytes:
    """Return the content of a file of this user that nobody else can write to.

    Raises:
        PermissionError: it is not such a file.
        OSError: it does not exist, is a symbolic link, or cannot be read.
    """
    # The checks are of the open file, which nobody can replace between them and the reading.
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o022:
            raise PermissionError("others can write to it")
        return file.read()


def _save(path: Path, described: bytes, body: bytes) -> None:
    """Write a file of a ProgramStore, and remove the least recently used ones; do nothing if that fails."""
    with contextlib.suppress(OSError):  # such as a full disk
        handle, temporary = tempfile.mkstemp(prefix=_UNFINISHED, dir=path.parent)  # for this user only
        try:
            with open(handle, "wb") as file:
                file.write(hashlib.sha256(described + body).digest() + body)
            os.replace(temporary, path)
        finally:
            Path(temporary).unlink(missing_ok=True)
        ours = [file for file in path.parent.iterdir() if _OUR_FILES.fullmatch(file.name)]
        by_use = sorted(ours, key=lambda file: file.stat().st_mtime, reverse=True)
        for old in by_use[PROGRAMS_KEPT:]:
            old.unlink(missing_ok=True)


def parse_profile_steps(text: str) -> range:
    """Return the steps that "FIRST:LAST" means, including LAST.

    Raises:
        UserError: the text has another form.
    """
    numbers = re.fullmatch(r"(\d+):(\d+)", text)
    first, last = map(int, numbers.groups()) if numbers else (0, 0)
    if not 1 <= first <= last:
        raise UserError(f"--profile_steps is {text!r}; it must be FIRST:LAST, two steps counted from 1, such as 10:15")
    return range(first, last + 1)


class Profile:
    """Trace the given steps of a run into <workdir>/profile; of several processes, the first is traced.

    Use it as a context manager, so that a trace is written even if the run fails.

    Raises:
        UserError: the run has fewer steps.
    """

    def __init__(self, workdir: epath.Path, steps: range, last_step: int):
        if steps and steps[-1] > last_step:
            raise UserError(
                f"--profile_steps={steps[0]}:{steps[-1]}, but the run has {last_step} steps: give steps of the run"
            )
        self._directory = workdir / PROFILE_DIRECTORY
        self._steps = steps if distributed.is_first() else range(0)
        self._tracing = False
        self._local: tempfile.TemporaryDirectory[str] | None = None

    def begin(self, step: int) -> None:
        """Log if no step is left to trace in a run that continues from `step`."""
        if self._steps and step >= self._steps[-1]:
            log(f"nothing to trace: --profile_steps ends at {self._steps[-1]}, and the run continues from step {step}")

    @contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Trace the block, which dispatches step `number`, if that is one of the steps to trace."""
        if number in self._steps and not self._tracing:
            if on_bucket(self._directory):  # JAX writes traces to local disks only
                self._local = tempfile.TemporaryDirectory()
            jax.profiler.start_trace(self._local.name if self._local else self._directory)
            self._tracing = True
        with jax.profiler.StepTraceAnnotation("train", step_num=number):
            yield

    def ends(self, number: int) -> bool:
        """Return whether step `number` is the last to trace: the trace is to be written once it is finished."""
        return self._tracing and number >= self._steps[-1]

    def write(self) -> None:
        """End the trace, if there is one, and write it; a failure is logged, and the run continues."""
        if not self._tracing:
            return
        self._tracing = False
        try:
            jax.profiler.stop_trace()
            if self._local:
                with self._local as folder:
                    copy_files(Path(folder), self._directory)
        except (OSError, RuntimeError) as error:
            log(f"the trace could not be written to {self._directory}: {reason_of(error)}")
            return
        log(f"traced into {self._directory}; to look at it: pip install xprof; xprof --logdir {self._directory}")

    def __enter__(self) -> Profile:
        return self

    def __exit__(self, *_: object) -> None:
        self.write()
