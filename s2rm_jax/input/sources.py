"""The sources of examples by name: what `config.input.source` can ask for."""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

from s2rm_jax.errors import UserError
from s2rm_jax.input.example import Source
from s2rm_jax.input.refer import ReferSource
from s2rm_jax.input.synthetic import SyntheticSource
from s2rm_jax.input.tfds_source import TfdsSource

SOURCES: dict[str, Any] = {"synthetic": SyntheticSource, "refer": ReferSource, "tfds": TfdsSource}


def build_source(config: ConfigDict, split: str) -> Source:
    """Builds one split of the source that `config` names; its other fields are the arguments of that source.

    Raises UserError for a name or a field that does not exist, and passes on what the source itself finds wrong.
    """
    fields = dict(config)
    name = fields.pop("name", "")
    if name not in SOURCES:
        raise UserError(f"config.input.source.name is {name!r}; it must be one of: {', '.join(sorted(SOURCES))}.")
    try:
        return SOURCES[name](split, **fields)
    except TypeError as error:
        raise UserError(f"config.input.source does not fit the source {name!r}: {error}") from error
