"""One's own data as JSON lines, a referent a line:

{"image": "kitchen.jpg", "mask": "cup.png", "sentences": ["the red cup", "cup on the left"], "split": "train"}
{"image": "kitchen.jpg", "polygon": [[12, 30, 60, 30, 60, 80]], "sentences": ["the kettle"], "split": "train"}
{"image": "garden.jpg", "rle": {"size": [480, 640], "counts": "..."}, "sentences": ["the dog"], "split": "val"}
{"image": "garden.jpg", "polygon": [], "sentences": ["the cat"], "split": "val"}   (there is none)
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from s2rm_jax.errors import UserError
from s2rm_jax.input.custom_records import (
    Mistakes,
    Record,
    file_of,
    path_beside,
    problem_of_segmentation,
    problem_of_sentences,
    source_of,
)
from s2rm_jax.input.example import Segmentation
from s2rm_jax.input.stored import StoredSource

_MASK_KINDS = ("mask", "polygon", "rle")


def json_lines_source(split: str, *, root: str | Path, file: str = "data.jsonl") -> StoredSource:
    """Reads one split; the lines of one picture become one example, each line a referent.

    Args:
      split: the value of "split" in the lines that are wanted; a line without it is in "train".
      root: the folder of the file.
      file: its name. With "{split}" in it there is a file for each split, whose lines need not name it.

    Raises:
      UserError: there is no such file or split, or a line has a mistake; names the lines and what is wrong there.
    """
    path, default_split = file_of(root, file, split)
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as UTF-8 text ({error}); write it again") from error
    mistakes = Mistakes(path)
    records = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            record = _record(line, number, path.parent, default_split, mistakes)
            records += [record] if record else []
    return source_of(path.name, records, split, mistakes)


def _record(line: str, number: int, folder: Path, default_split: str, mistakes: Mistakes) -> Record | None:
    """Returns the record of a line, or None if there is something wrong with it, which is noted."""
    where = f"line {number}"
    try:
        entry = json.loads(line)
    except ValueError as error:
        mistakes.add(where, f"not JSON ({error})")
        return None
    problems = list(filter(None, _problems(entry)))
    mistakes.add(where, *problems)
    if problems:
        return None
    return Record(
        where=where,
        id=str(number),
        image_name=entry["image"],
        image=path_beside(folder, entry["image"]),
        sentences=tuple(entry["sentences"]),
        segmentation=_segmentation(entry, folder),
        split=entry.get("split", default_split),
    )


def _problems(entry: Any) -> list[str]:
    if not isinstance(entry, dict):
        return [f"must be an object {{...}}, got {entry!r:.40}"]
    kinds = [kind for kind in _MASK_KINDS if kind in entry]
    problems = [f"{name!r} is missing" for name in ("image", "sentences") if name not in entry]
    if len(kinds) != 1:
        found = " and ".join(map(repr, kinds)) if kinds else "none"
        problems.append(f"needs one of 'mask', 'polygon' and 'rle', has {found}")
    problems += [
        f"{name!r} must be a text, got {entry[name]!r:.40}"
        for name in ("image", "mask", "split")
        if name in entry and not (isinstance(entry[name], str) and entry[name])
    ]
    if "sentences" in entry:
        problems.append(problem_of_sentences(entry["sentences"], "sentences"))
    if "polygon" in entry:
        is_list = isinstance(entry["polygon"], list)
        problems.append(problem_of_segmentation(entry["polygon"]) if is_list else "'polygon' must be a list of lists")
    if "rle" in entry:
        is_rle = isinstance(entry["rle"], dict)
        problems.append(problem_of_segmentation(entry["rle"]) if is_rle else "'rle' must have a size and counts")
    return problems


def _segmentation(entry: dict[str, Any], folder: Path) -> Segmentation:
    if "mask" in entry:
        return {"png": str(path_beside(folder, entry["mask"]))}
    return entry["polygon"] if "polygon" in entry else entry["rle"]
