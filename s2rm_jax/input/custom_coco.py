"""One's own data as JSON in COCO's format, whose annotations carry "expressions" and, if wanted, a "split"."""

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
from s2rm_jax.input.stored import StoredSource


def coco_json_source(
    split: str, *, root: str | Path, file: str = "annotations.json", image_root: str | Path = ""
) -> StoredSource:
    """Reads one split; annotations without "expressions" are not referred to and passed over.

    Args:
      split: the value of "split" in the annotations that are wanted; one without it is in "train".
      root: the folder of the file.
      file: its name. With "{split}" in it there is a file for each split, whose annotations need not name it.
      image_root: the folder to which each "file_name" is relative, where it is not `root`.

    Raises:
      UserError: there is no such file or split, or an annotation has a mistake; names them and what is wrong.
    """
    path, default_split = file_of(root, file, split)
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON ({error}); write it again") from error
    lists = ("images", "annotations")
    if not (isinstance(content, dict) and all(isinstance(content.get(name), list) for name in lists)):
        raise UserError(f"{path} is not in COCO's format: it needs lists of 'images' and 'annotations'")
    mistakes = Mistakes(path)
    folder = Path(image_root).expanduser() if str(image_root) else path.parent
    images = _images(content["images"], mistakes)
    records = []
    for position, entry in enumerate(content["annotations"]):
        where = f"annotation {_name(entry, position)}"
        if not isinstance(entry, dict):
            mistakes.add(where, f"must be an object {{...}}, got {entry!r:.40}")
        elif "expressions" in entry:
            problems = list(filter(None, _problems(entry, images)))
            mistakes.add(where, *problems)
            if not problems:
                records.append(_record(where, entry, images[entry["image_id"]], folder, default_split))
    _check_ids(records, mistakes)
    if not records and not mistakes.found:
        raise UserError(f"{path} has no annotation with 'expressions'; add to those that are referred to (own_data.md)")
    return source_of(path.name, records, split, mistakes)


def _images(entries: list[Any], mistakes: Mistakes) -> dict[Any, dict[str, Any]]:
    images = {}
    for position, entry in enumerate(entries):
        fields = {"id": int | str, "file_name": str, "height": int, "width": int}
        wrong = [name for name, kind in fields.items() if not (isinstance(entry, dict) and _has(entry, name, kind))]
        if wrong:
            mistakes.add(
                f"image {_name(entry, position)}", f"{', '.join(map(repr, wrong))} missing or of the wrong kind"
            )
        else:
            images[entry["id"]] = entry
    return images


def _has(entry: dict[str, Any], name: str, kind: Any) -> bool:
    return isinstance(entry.get(name), kind)


def _name(entry: Any, position: int) -> str:
    return str(entry["id"]) if isinstance(entry, dict) and "id" in entry else f"at position {position}"


def _record(where: str, entry: dict[str, Any], image: dict[str, Any], folder: Path, default_split: str) -> Record:
    return Record(
        where=where,
        id=str(entry["id"]),
        image_name=str(image["id"]),
        image=path_beside(folder, image["file_name"]),
        sentences=tuple(entry["expressions"]),
        segmentation=entry["segmentation"],
        split=entry.get("split", default_split),
        size=(image["height"], image["width"]),
    )


def _problems(entry: dict[str, Any], images: dict[Any, dict[str, Any]]) -> list[str]:
    problems = [f"{name!r} is missing" for name in ("id", "image_id", "segmentation") if name not in entry]
    problems.append(problem_of_sentences(entry["expressions"], "expressions"))
    if "image_id" in entry and (not isinstance(entry["image_id"], int | str) or entry["image_id"] not in images):
        problems.append(f"there is no image with the id {entry['image_id']!r:.40}")
    if "split" in entry and not (isinstance(entry["split"], str) and entry["split"]):
        problems.append(f"'split' must be a text, got {entry['split']!r:.40}")
    if "segmentation" in entry:
        problems.append(problem_of_segmentation(entry["segmentation"]))
        if entry["segmentation"] == [] and (entry.get("area") or any(entry.get("bbox") or ())):
            problems.append(
                "has a box or an area but no mask; give it one, or remove both to say that there is nothing"
            )
    return problems


def _check_ids(records: list[Record], mistakes: Mistakes) -> None:
    seen = set()
    for record in records:
        if record.id in seen:
            mistakes.add(record.where, "another annotation has this id")
        seen.add(record.id)
