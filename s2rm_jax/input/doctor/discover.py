"""Finds what lies under a folder: which datasets, split by whom."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from s2rm_jax.errors import UserError
from s2rm_jax.input.doctor.published import where_annotations, where_pictures

KNOWN = ("refcoco", "refcoco+", "refcocog", "refclef", "grefcoco")
_NAME = re.compile(r"g?refs\((.+)\)\.(p|json)")


class Found(NamedTuple):
    """A file of referents and the instances.json beside it, which need not exist."""

    dataset: str
    split_by: str
    refs: Path
    instances: Path


def discover(root: Path, dataset: str = "", split_by: str = "") -> list[Found]:
    """Returns the datasets under `root`, or the one that is asked for, in the order of KNOWN, then by name.

    Raises UserError if the folder or what is asked for is not there; says what is, and where people get the rest.
    """
    if not root.is_dir():
        raise UserError(f"the folder {root} does not exist; give the one that holds refcoco, refcocog, ... as --root")
    found = [item for folder in sorted(path for path in root.iterdir() if path.is_dir()) for item in _in_folder(folder)]
    if not found:
        if _in_folder(root):
            raise UserError(f"{root} is the folder of one dataset; give the folder above it, {root.resolve().parent}")
        raise UserError(
            f"{root} has no folder with a file refs(...).p in it; unpack the annotations of a dataset there, for "
            f"example {where_annotations('refcoco')}; and the pictures: {where_pictures('refcoco')}"
        )
    wanted = [item for item in found if dataset in ("", item.dataset) and split_by in ("", item.split_by)]
    if not wanted:
        asked = " ".join(part for part in (dataset, split_by and f"split by {split_by}") if part)
        there = ", ".join(f"{item.dataset} split by {item.split_by}" for item in found)
        advice = f"; get {where_annotations(dataset)}" if dataset in KNOWN else ""
        raise UserError(f"{root} has no {asked}; it has {there}{advice}")
    order = {name: number for number, name in enumerate(KNOWN)}
    return sorted(wanted, key=lambda item: (order.get(item.dataset, len(KNOWN)), item.dataset, item.split_by))


def _in_folder(folder: Path) -> list[Found]:
    """The files of referents in a folder; of a pickle and a JSON file with one name, the pickle, as in training."""
    by_name: dict[str, Found] = {}
    for path in sorted(folder.iterdir(), reverse=True):  # .p before .json
        match = _NAME.fullmatch(path.name)
        if match and path.is_file():
            by_name.setdefault(match[1], Found(folder.name, match[1], path, folder / "instances.json"))
    return list(by_name.values())
