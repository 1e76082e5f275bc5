"""Variants of the network that torch_model.py does not have are refused when they are exported; needs no torch."""

import ast
from itertools import combinations
from pathlib import Path

import pytest

from s2rm_jax import config as config_module
from s2rm_jax.config import default_config
from s2rm_jax.errors import UserError
from s2rm_jax.interop import torch_folder


def of_torch_model() -> dict[str, dict]:
    """Return CHOICES and FIXED of torch_model.py, without importing torch."""
    tree = ast.parse(Path(torch_folder.__file__).with_name("torch_model.py").read_text(encoding="utf-8"))
    names = ("PAIRS", "CHOICES", "FIXED")
    tables = [one for one in tree.body if isinstance(one, ast.Assign) and one.targets[0].id in names]
    found: dict[str, dict] = {}
    exec(compile(ast.Module(tables, []), "torch_model.py", "exec"), found)
    return found


def values_of(field: str) -> list:
    """Return every value that a field of the network may take."""
    if field in config_module._CHOICES:
        return list(config_module._CHOICES[field])
    values = config_module._SUBSETS[field]
    return [chosen for size in range(1, len(values) + 1) for chosen in combinations(values, size)]


FIELDS = [
    name for name in (*config_module._CHOICES, *config_module._SUBSETS) if name.split(".")[0] in ("fusion", "decoder")
]


@pytest.mark.parametrize("field", FIELDS)
def test_each_value_is_exported_exactly_if_pytorch_has_it(field):
    section, name = field.split(".")
    tables = of_torch_model()
    for value in values_of(field):
        if choices := tables["CHOICES"].get((section, name)):
            in_pytorch = set(value if isinstance(value, tuple) else (value,)) <= set(choices)
        else:
            in_pytorch = value == tables["FIXED"][section, name]
        config = default_config()
        config[section][name] = value
        if in_pytorch:
            torch_folder.require_torch_variant(config)
        else:
            with pytest.raises(UserError, match=f"config.{field}=.* cannot be exported to PyTorch"):
                torch_folder.require_torch_variant(config)
