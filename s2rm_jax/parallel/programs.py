"""Compiled programs that are kept for later processes.

JAX's compilation cache saves compiling, but a process traces its programs to find them there. A `ProgramStore` keeps
whole executables, which saves tracing too; it is for prediction on CPUs, where starting takes longer than segmenting.
Both execute what they find: training keeps its programs in the workdir, which is the user's own, but prediction in a
private folder of the user, because the workdir of a network may come from somebody else.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import pickle
import platform
import re
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import flax
import jax
import jaxlib
from etils import epath
from jax.experimental.compilation_cache import compilation_cache as jax_cache
from jax.experimental.serialize_executable import deserialize_and_load, serialize
from ml_collections import ConfigDict

from s2rm_jax.errors import UserError, one_line, reason_of
from s2rm_jax.io import make_cache_folder, on_bucket
from s2rm_jax.parallel import distributed

COMPILATION_CACHE_DIRECTORY = "compilation_cache"
OFF = "off"  # value of config.compilation_cache
WORTH_KEEPING = 2.0  # seconds of compiling from which JAX caches a program
PRIVATE_CACHE_SIZE = 2**30  # bytes, of the programs used most recently
PROGRAMS_KEPT = 64  # how many files a ProgramStore keeps, the most recently used
_DIGEST = hashlib.sha256().digest_size
_UNFINISHED = ".unfinished-"
_OUR_FILES = re.compile(rf"[0-9a-f]{{{2 * _DIGEST}}}|{re.escape(_UNFINISHED)}.*")

_LOG = logging.getLogger(__name__)


def compilation_cache(config: ConfigDict, workdir: epath.Path) -> AbstractContextManager[None]:
    """Within the context, let JAX cache compiled programs in the folder that config.compilation_cache names.

    The default is <workdir>/compilation_cache, unless JAX already has a folder (JAX_COMPILATION_CACHE_DIR). JAX's keys
    include everything that a program depends on, so a stale program is never used. With several processes, process 0
    writes and all read. Several processes on CPUs have no cache by default: their programs differ, so the first process
    would be ready long before the others and wait for them in a step.

    Raises:
        UserError: the folder that config.compilation_cache names cannot be used.
    """
    setting = config.compilation_cache
    if setting == OFF:
        return _caching_in(None)
    several_on_cpu = jax.default_backend() == "cpu" and not distributed.is_alone()
    if not setting and (several_on_cpu or jax.config.values["jax_compilation_cache_dir"]):
        return nullcontext()
    folder = epath.Path(setting) if setting else workdir / COMPILATION_CACHE_DIRECTORY
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if not setting:  # the workdir of a finished run may be read-only
            return nullcontext()
        raise UserError(
            f"config.compilation_cache: {folder} cannot be used ({error}); give another folder, or off"
        ) from error
    return _caching_in(str(folder if on_bucket(folder) else folder.absolute()))


def private_compilation_cache(config: ConfigDict) -> AbstractContextManager[None]:
    """Within the context, let JAX cache compiled programs in ~/.cache or XDG_CACHE_HOME, for this user only.

    JAX's settings are left as they are if it already has a folder, or if no private one can be created. There is no
    cache if config.compilation_cache is off; another folder named there is that of the training run.
    """
    if config.compilation_cache == OFF:
        return _caching_in(None)
    folder = None if jax.config.values["jax_compilation_cache_dir"] else _private_folder("compilation_cache")
    return nullcontext() if folder is None else _caching_in(str(folder), PRIVATE_CACHE_SIZE)


@contextmanager
def _caching_in(folder: str | None, most_bytes: int | None = None) -> Iterator[None]:
    """Within the context, let JAX cache programs in `folder`, or not at all; None: with JAX's limit on its size."""
    values: dict[str, object] = {"jax_compilation_cache_dir": folder}
    if folder is not None:
        values |= {
            "jax_persistent_cache_min_compile_time_secs": WORTH_KEEPING,
            # XLA's own caches do not support buckets, and their paths are in the keys of JAX's cache, which a workdir
            # that was moved would not find again.
            "jax_persistent_cache_enable_xla_caches": "none",
        }
    if most_bytes is not None:
        values["jax_compilation_cache_max_size"] = most_bytes
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

    Return None on accelerators, if config.compilation_cache is off, and if no private folder can be created. JAX's
    settings count too: there is no store if JAX_ENABLE_COMPILATION_CACHE=false, or if JAX has a cache of its own
    (JAX_COMPILATION_CACHE_DIR), because a program that comes from there cannot be saved again.
    """
    settings = jax.config.values
    disabled = config.compilation_cache == OFF or not settings["jax_enable_compilation_cache"]
    if disabled or settings["jax_compilation_cache_dir"] or jax.default_backend() != "cpu":
        return None
    folder = _private_folder("programs")
    return None if folder is None else ProgramStore(folder, config)


def _private_folder(name: str) -> Path | None:
    """Return a cache folder of this user without symbolic links; None if others can enter or replace it.

    Whoever can write to the folder can run code as this user.
    """
    try:
        folder = make_cache_folder(name).resolve()
        _require_private(folder)
    except (OSError, UserError) as error:
        _LOG.debug("compiled programs are not kept: %s", one_line(error))
        return None
    return folder


def _require_private(folder: Path) -> None:
    """Raise PermissionError if others can enter or replace a folder."""
    status = folder.stat()
    if status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise PermissionError(f"{folder} is not private to this user")
    for parent in folder.parents:
        status = parent.stat()
        # A group may write to a parent: on many systems every user has a group of its own. A folder that others put in
        # the place of this one belongs to them, so it is refused above.
        writable = status.st_mode & stat.S_IWOTH and not status.st_mode & stat.S_ISVTX
        if status.st_uid not in (0, os.getuid()) or writable:
            raise PermissionError(f"others can replace {folder}, because they can write to {parent}")


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
        self._folder = folder
        self._context = json.dumps([_describe_environment(), _describe_network(config)], sort_keys=True)

    def remember(self, what: str, compute: Callable[[], Any]) -> Any:
        """Return the value of `compute`, a fact about the network that takes a trace to find; it is kept as `what`."""
        path, described = self._file(what, _describe_settings())
        value = _load(path, described, pickle.loads)
        if value is None:
            value = compute()
            _save(path, described, pickle.dumps(value))
        return value

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
