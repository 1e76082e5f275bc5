"""Fixtures of the training tests: the stand-in network with its data, and fast compilation."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import jax
import pytest

STANDIN = Path(__file__).with_name("standin.py")


@pytest.fixture(scope="session")
def standin() -> ModuleType:
    """The module standin.py, which is also a program (`standin.__file__`)."""
    spec = importlib.util.spec_from_file_location("training_standin", STANDIN)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def quick_compilation(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Settings of JAX, as environment variables, with which small programs compile fast and are cached."""
    return {
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("compiled")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }


@pytest.fixture(autouse=True, scope="package")
def compile_quickly(quick_compilation: dict[str, str]) -> Iterator[None]:
    values = {
        "jax_disable_most_optimizations": True,
        "jax_compilation_cache_dir": quick_compilation["JAX_COMPILATION_CACHE_DIR"],
        "jax_persistent_cache_min_compile_time_secs": 0.0,
    }
    before = {name: jax.config.values[name] for name in values}
    for name, value in values.items():
        jax.config.update(name, value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)
