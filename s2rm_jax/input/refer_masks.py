"""The masks of the REFER layout: which annotations have one, and which mask a referent has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from s2rm_jax.input.example import Segmentation
from s2rm_jax.input.masks import fractions_problem, has_pixels, usable_parts


@dataclass(frozen=True)
class ImageEntry:
    """An image of `instances.json`; the size is in pixels. All ids of a file are integers, or all are strings."""

    id: Any
    file_name: str
    height: int
    width: int


class Annotation(NamedTuple):
    """The stored mask of one object; a crowd is many objects in one annotation. `image_id` may be None."""

    segmentation: Any
    is_crowd: bool
    image_id: Any


class Masks:
    """The masks of annotations. Methods return a mask, or a str that says why there is none.

    `overlap` is "union" or "drop", see ReferSource. `bad` has the ids of annotations with parts that were left out
    because they cannot be decoded.
    """

    def __init__(self, annotations: Mapping[Any, Annotation], overlap: str):
        self.bad: list[Any] = []
        self.annotations = annotations
        self._overlap = overlap
        self._found: dict[Any, Segmentation | str] = {}

    def single(self, ann_id: Any, image: ImageEntry) -> Segmentation | str:
        """Return the mask of an annotation that is in the annotations."""
        return self._of(ann_id, image) or "its polygons cover no pixel"

    def union(self, ann_ids: Sequence[Any], image: ImageEntry) -> Segmentation | str:
        """Return the union of the masks of several annotations without crowds, or why there is none."""
        parts: list[Any] = []
        for ann_id in ann_ids:
            if self.annotations[ann_id].is_crowd:
                continue
            found = self._of(ann_id, image)
            if isinstance(found, str):
                return found if len(ann_ids) == 1 else f"annotation {ann_id}: {found}"
            parts += found if isinstance(found, list) else [found]
        return parts or "apart from crowds, its polygons cover no pixel"

    def _of(self, ann_id: Any, image: ImageEntry) -> Segmentation | str:
        """Return the mask of an annotation, [] if it covers no pixel."""
        image_id = self.annotations[ann_id].image_id
        if image_id not in (None, image.id):
            return f"it belongs to image {image_id!r}, not to image {image.id!r}"
        if ann_id not in self._found:
            self._found[ann_id] = self._find(ann_id, image)
        return self._found[ann_id]

    def _find(self, ann_id: Any, image: ImageEntry) -> Segmentation | str:
        stored = self.annotations[ann_id].segmentation
        if not isinstance(stored, list | dict) or not stored:
            return f"its segmentation is {stored!r:.40}"
        segmentation, problems, is_empty, _ = usable_parts(stored, image.height, image.width)
        if not segmentation:
            return problems[0]
        if problem := fractions_problem(segmentation):
            return problem
        if is_empty:
            return []
        if problems:
            self.bad.append(ann_id)
        if self._overlap == "drop" and isinstance(segmentation, list) and len(segmentation) > 1:
            once = {"covered_once": segmentation}
            return once if has_pixels(once, image.height, image.width) else []
        return segmentation
