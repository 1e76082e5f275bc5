"""The fixture `processes`: the module processes.py, for tests of whole commands."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def processes() -> ModuleType:
    spec = importlib.util.spec_from_file_location("several_processes", Path(__file__).with_name("processes.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
