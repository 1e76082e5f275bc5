"""Reads `instances.json` of the REFER layout: pictures and annotations in COCO's format."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from s2rm_jax.errors import UserError


@dataclass(frozen=True)
class Picture:
    """A picture as `instances.json` lists it; the size is in pixels."""

    id: int
    file_name: str
    height: int
    width: int


class Annotation(NamedTuple):
    """The mask of one object as it is stored; a crowd is many objects that were not told apart."""

    segmentation: Any
    is_crowd: bool


def read_json(path: Path) -> Any:
    """Returns the contents of a JSON file; raises a UserError if it cannot be read or is damaged."""
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{path} is damaged or not JSON ({error}); get it again") from error


def read_instances(path: Path) -> tuple[dict[int, Picture], dict[int, Annotation]]:
    """Returns the pictures and the annotations of a file in COCO's format, each by id.

    Raises:
      UserError: the file cannot be read, is damaged, or is not in COCO's format.
    """
    content = read_json(path)
    try:
        pictures = {
            entry["id"]: Picture(entry["id"], entry["file_name"], entry["height"], entry["width"])
            for entry in content["images"]
        }
        annotations = {
            entry["id"]: Annotation(entry.get("segmentation"), bool(entry.get("iscrowd")))
            for entry in content["annotations"]
        }
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{path} is not in COCO's format ({error!r}): it needs images with id, file_name, height and width, and "
            "annotations with id and segmentation"
        ) from error
    return pictures, annotations
