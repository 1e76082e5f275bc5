"""Compiled programs kept beside the run, so that one which is started again does not compile them again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import jax
from etils import epath
from jax.experimental.compilation_cache import compilation_cache as jax_cache
from ml_collections import ConfigDict

from s2rm_jax.errors import UserError
from s2rm_jax.parallel import distributed
from s2rm_jax.training.workdir_files import on_bucket

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
