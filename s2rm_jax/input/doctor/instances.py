"""Reads instances.json for the doctor: forgiving where the training reader is strict, so that all faults are seen."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from s2rm_jax.errors import UserError
from s2rm_jax.input.refer_instances import read_json


@dataclass(frozen=True)
class Instances:
    """The pictures and annotations of a file in COCO's format by id, and what is wrong with its lists."""

    pictures: dict[Any, dict[str, Any]]
    annotations: dict[Any, dict[str, Any]]
    duplicate_ids: tuple[str, ...]
    unusable: tuple[str, ...]  # entries without what every entry needs


def load_instances(path: Path) -> Instances:
    """Reads the file; raises a UserError if it is not one in COCO's format at all."""
    content = read_json(path)
    lists = [content.get(name) for name in ("images", "annotations")] if isinstance(content, dict) else [None]
    if not all(isinstance(entries, list) for entries in lists):
        raise UserError(f"{path} is not in COCO's format: it has no lists 'images' and 'annotations'; get it again")
    pictures, bad_pictures = _usable(lists[0], "picture", {"file_name": str, "height": int, "width": int})
    annotations, bad_annotations = _usable(lists[1], "annotation", {})
    duplicates = _duplicates(pictures, "picture") + _duplicates(annotations, "annotation")
    return Instances(
        pictures={entry["id"]: entry for entry in pictures},
        annotations={entry["id"]: entry for entry in annotations},
        duplicate_ids=tuple(duplicates),
        unusable=tuple(bad_pictures + bad_annotations),
    )


def _usable(entries: Any, name: str, needed: dict[str, type]) -> tuple[list[dict[str, Any]], list[str]]:
    """Returns the entries that have an id and every needed field of the right type, and descriptions of the others."""

    def fits(entry: Any) -> bool:
        if not isinstance(entry, dict) or not isinstance(entry.get("id"), int | str):
            return False
        return all(isinstance(entry.get(field), type_) for field, type_ in needed.items())

    good = [entry for entry in entries if fits(entry)]
    bad = [f"{name} {entry!s:.60}" for entry in entries if not fits(entry)]
    return good, bad


def _duplicates(entries: list[dict[str, Any]], name: str) -> list[str]:
    counts = Counter(entry["id"] for entry in entries)
    return [f"{name} {id} ({count} times)" for id, count in counts.items() if count > 1]
