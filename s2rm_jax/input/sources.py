"""The sources of examples by name: what `config.input.source` can ask for.

Where the folders of a source lie now, if they have moved since a run was trained on them.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from typing import Any

from ml_collections import ConfigDict

from s2rm_jax.errors import UserError
from s2rm_jax.input.custom import coco_json_source, file_of, json_lines_source
from s2rm_jax.input.example import Source
from s2rm_jax.input.mixture import MixtureSource, combined_source, pair_of, part_of_split
from s2rm_jax.input.refer import ReferSource
from s2rm_jax.input.refer_annotations import find_annotations
from s2rm_jax.input.synthetic import SyntheticSource
from s2rm_jax.input.tfds import TfdsSource, newest_version


def mixture_source(split: str, *, parts: Any, training: bool = False) -> Source:
    """Build the sources in `parts` and mixes them: by their weights for training, else each image of each part once.

    Args:
      split: of every part. "NAME:SPLIT" is that split of the part NAME alone, as if there were no mixture.
      parts: a ConfigDict of names, each with the settings of a source and its "weight" (1 where there is none).
      training: whether it is to be trained on; `build_source` says it.

    Raises:
      UserError: as the parts do, and MixtureSource.
    """
    alone, split = part_of_split(split, parts)
    if alone:
        return build_source(_without_weight(parts[alone]), split, training=training)
    weights = {name: parts[name].get("weight", 1.0) for name in sorted(parts)}
    built = {name: build_source(_without_weight(parts[name]), split, training=training) for name in weights}
    return MixtureSource(built, weights if training else None)


SOURCES: dict[str, Any] = {
    "synthetic": SyntheticSource,
    "refer": ReferSource,
    "tfds": TfdsSource,
    "combined": combined_source,
    "coco_json": coco_json_source,
    "json_lines": json_lines_source,
    "mixture": mixture_source,
}


def build_source(config: ConfigDict, split: str, *, training: bool = False) -> Source:
    """Build one split of the source that `config` names; its other fields are the arguments of that source.

    With `training` it shows what an epoch of a training shows, in which a mixture repeats images; without, each
    image once, whatever the split.

    Raises UserError for a name or a field that does not exist, and passes on what the source itself finds wrong.
    """
    name, given = _arguments(config, split, training)
    return SOURCES[name](*given.args, **given.kwargs)


def find_source(config: ConfigDict, split: str) -> None:
    """Look whether the files that `build_source` would read first are there, which takes no time.

    Raises UserError as `build_source` does, of what can be told without reading them.
    """
    name, given = _arguments(config, split, training=True)
    given.apply_defaults()
    if name in _FINDERS:
        _FINDERS[name](given.arguments)


def _find_mixture(fields: dict[str, Any]) -> None:
    alone, split = part_of_split(fields["split"], fields["parts"])
    for name, part in fields["parts"].items():
        if alone in ("", name):
            find_source(_without_weight(part), split)


def _find_combined(fields: dict[str, Any]) -> None:
    for dataset in fields["datasets"]:
        find_annotations(fields["root"], *pair_of(dataset))


_FINDERS: dict[str, Callable[[dict[str, Any]], object]] = {
    "refer": lambda fields: find_annotations(fields["root"], fields["dataset"], fields["split_by"]),
    "tfds": lambda fields: newest_version(fields["root"], fields["dataset"], fields["split_by"]),
    "combined": _find_combined,
    "coco_json": lambda fields: file_of(fields["root"], fields["file"], fields["split"]),
    "json_lines": lambda fields: file_of(fields["root"], fields["file"], fields["split"]),
    "mixture": _find_mixture,
}


def _arguments(config: ConfigDict, split: str, training: bool) -> tuple[str, inspect.BoundArguments]:
    """The name of a source, and its arguments; raises a UserError where they do not fit it."""
    fields = dict(config)
    name = fields.pop("name", "")
    if name not in SOURCES:
        raise UserError(f"config.input.source.name is {name!r}; it must be one of: {', '.join(sorted(SOURCES))}.")
    if name == "mixture":
        fields["training"] = training
        _check_parts(fields.get("parts"))
    try:
        return name, inspect.signature(SOURCES[name]).bind(split, **fields)
    except TypeError as error:
        raise UserError(f"config.input.source does not fit the source {name!r}: {error}") from error


def _check_parts(parts: Any) -> None:
    if not isinstance(parts, ConfigDict) or not all(isinstance(part, ConfigDict) for part in parts.values()):
        raise UserError("the parts of a mixture must be a ConfigDict {name: {'name': SOURCE, 'weight': 1.0, ...}, ...}")


def _without_weight(part: ConfigDict) -> ConfigDict:
    return ConfigDict({field: value for field, value in part.items() if field != "weight"})


_NAMED = re.compile(r"((?:[\w+-]+\.)*(?:image_)?root)=(.*)")


def with_folders(source: ConfigDict, moves: Sequence[str]) -> ConfigDict:
    """Return the settings of a source with other folders.

    Args:
        source: what config.input.source holds.
        moves: each DIR, which becomes the root of a source that has one, or FIELD=DIR, where FIELD is root, image_root
            or, in a mixture, one of these behind the part, such as parts.mine.root.

    Raises:
        UserError: there is no such folder, or several of which DIR might be one; names those that there are.
    """
    fields = source.to_dict()
    roots = _roots(fields)
    for move in moves:
        named = _NAMED.fullmatch(move)
        name, folder = named.groups() if named else ("root", move)
        if not named and "root" not in roots and len(roots) == 1:
            (name,) = roots
        section, _, field = name.rpartition(".")
        if f"{section}.root".lstrip(".") not in roots:
            known = [
                f"--data {root.removesuffix('root')}{kind}=DIR" for root in roots for kind in ("root", "image_root")
            ]
            there = f"say which: {', '.join(known)}" if known else "it reads no files"
            raise UserError(f"--data {move}: the source {source.name!r} of this run has no folder {name!r}; {there}")
        roots[f"{section}.root".lstrip(".")][field] = folder
    return ConfigDict(fields)


def _roots(fields: dict, prefix: str = "") -> dict[str, dict]:
    """The sections that have a root, by its dotted name."""
    found = {f"{prefix}root": fields} if "root" in fields else {}
    for name, value in fields.items():
        if isinstance(value, dict):
            found |= _roots(value, f"{prefix}{name}.")
    return found
