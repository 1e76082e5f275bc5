"""Fixtures of the training tests: the stand-in network and its data."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

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
