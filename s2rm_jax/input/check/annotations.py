"""Examine who is referred to: counts, and whether referents, expressions, annotations and masks fit together.

Reads instances.json for the doctor: forgiving where the training reader is strict, so that all faults are seen.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from s2rm_jax.errors import UserError
from s2rm_jax.input.check.files import TOLERANCE, SplitSize, extent_of, misfit
from s2rm_jax.input.check.report import Diagnosis
from s2rm_jax.input.progress_bar import progress_bar
from s2rm_jax.input.refer_annotations import is_generalised, read_json


@dataclass(frozen=True)
class Instances:
    """The images and annotations of a file in COCO's format by id, and what is wrong with its lists."""

    images: dict[Any, dict[str, Any]]
    annotations: dict[Any, dict[str, Any]]
    duplicate_ids: tuple[str, ...]
    unusable: tuple[str, ...]  # entries without what every entry needs


def load_instances(path: Path) -> Instances:
    """Read the file; raises a UserError if it is not one in COCO's format at all."""
    content = read_json(path)
    lists = [content.get(name) for name in ("images", "annotations")] if isinstance(content, dict) else [None]
    if not all(isinstance(entries, list) for entries in lists):
        raise UserError(f"{path} is not in COCO's format: it has no lists 'images' and 'annotations'; get it again")
    images, bad_images = _usable(lists[0], "image", {"file_name": str, "height": int, "width": int})
    annotations, bad_annotations = _usable(lists[1], "annotation", {})
    duplicates = _duplicates(images, "image") + _duplicates(annotations, "annotation")
    return Instances(
        images={entry["id"]: entry for entry in images},
        annotations={entry["id"]: entry for entry in annotations},
        duplicate_ids=tuple(duplicates),
        unusable=tuple(bad_images + bad_annotations),
    )


def _usable(entries: Any, name: str, needed: dict[str, type]) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the entries that have an id and every needed field of the right type, and descriptions of the others."""

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


Ref = dict[str, Any]

_SAME_ARCHIVE = "take the file of referents and instances.json from the same archive"


def count_by_split(refs: list[Ref]) -> dict[str, SplitSize]:
    """SplitSize images, referents and expressions by split, in the order train, val, then by name."""
    groups: dict[str, list[Ref]] = defaultdict(list)
    for ref in refs:
        groups[str(ref.get("split", "no split"))].append(ref)
    order = {"train": 0, "val": 1}
    return {
        split: SplitSize(
            images=len({ref.get("image_id") for ref in group}),
            referents=len(group),
            expressions=sum(len(_expressions(ref)) for ref in group),
        )
        for split, group in sorted(groups.items(), key=lambda item: (order.get(item[0], 2), item[0]))
    }


def examine_annotations(diagnosis: Diagnosis, refs: list[Ref], instances: Instances, quiet: bool = False) -> list[Any]:
    """Add counts and problems to `diagnosis`; returns the ids of the images that referents are in, without repeats.

    Only what referents use is examined: annotations of other objects in the same images do no harm.
    """
    unusable = [ref for ref in refs if not _is_usable(ref)]
    cases = [f"{ref!s:.80}" for ref in unusable]
    diagnosis.add("unusable referents", cases, "their ids are no ids; get the file of referents again")
    refs = [ref for ref in refs if _is_usable(ref)]
    diagnosis.counts = count_by_split(refs)
    diagnosis.add_wrong_counts(f"this is another version or part of a copy; {_SAME_ARCHIVE}, and get both again")
    get_again = "get instances.json again"
    diagnosis.add("unusable entries of instances.json", list(instances.unusable), get_again)
    diagnosis.add("ids that occur twice in instances.json", list(instances.duplicate_ids), get_again)
    _examine_ids(diagnosis, refs)
    _examine_expressions(diagnosis, refs)
    used = _examine_links(diagnosis, refs, instances)
    _examine_masks(diagnosis, used, instances, quiet)
    ids = dict.fromkeys(ref.get("image_id") for ref in refs)
    return [id for id in ids if id in instances.images]


def _examine_ids(diagnosis: Diagnosis, refs: list[Ref]) -> None:
    generalised = is_generalised(Path(diagnosis.annotations))  # in gRefCOCO a sent_id is unique within its referent
    referents = Counter(str(ref.get("ref_id")) for ref in refs)
    cases = [f"ref_id {id} ({count} times)" for id, count in referents.items() if count > 1 and id != "None"]
    expressions = Counter(
        (str(ref.get("split")), str(ref.get("ref_id")) if generalised else "", str(entry.get("sent_id")))
        for ref in refs
        for entry in _expressions(ref)
    )
    cases += [f"sent_id {id} in {split} ({count} times)" for (split, _, id), count in expressions.items() if count > 1]
    diagnosis.add("ids that occur twice among the referents", cases, "get the file of referents again")


def _examine_expressions(diagnosis: Diagnosis, refs: list[Ref]) -> None:
    cases = [f"ref_id {ref.get('ref_id')} has none" for ref in refs if not _expressions(ref)]
    for ref in refs:
        for entry in _expressions(ref):
            texts = [entry[field] for field in ("raw", "sent") if field in entry]
            if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
                cases.append(f"sent_id {entry.get('sent_id')} of ref_id {ref.get('ref_id')}")
    diagnosis.add("expressions without words", cases, "harmless if few: they are left out of training and evaluation")


def _examine_links(diagnosis: Diagnosis, refs: list[Ref], instances: Instances) -> dict[Any, Any]:
    """Check that images and annotations exist and belong together.

    Returns the annotations that are used and whose image is known: id of the annotation -> id of the image.
    """
    missing, elsewhere, used = [], [], {}
    for ref in refs:
        image, name = ref.get("image_id"), f"ref_id {ref.get('ref_id')}"
        if image not in instances.images:
            missing.append(f"image {image} of {name}")
        for id in _annotation_ids(ref):
            annotation = instances.annotations.get(id)
            if annotation is None:
                missing.append(f"annotation {id} of {name}")
            elif annotation.get("image_id", image) != image:
                elsewhere.append(f"{name}: image {image}, its annotation {id}: image {annotation['image_id']}")
            elif image in instances.images:
                used[id] = image
    diagnosis.add("referents whose image or annotation is not in instances.json", missing, _SAME_ARCHIVE)
    diagnosis.add("referents whose annotation is of another image", elsewhere, _SAME_ARCHIVE)
    return used


def _examine_masks(diagnosis: Diagnosis, used: dict[Any, Any], instances: Instances, quiet: bool) -> None:
    without, misfits = [], []
    for id, image_id in progress_bar(used.items(), f"{diagnosis.dataset}: masks", len(used), quiet=quiet):
        annotation, image = instances.annotations[id], instances.images[image_id]
        height, width = image["height"], image["width"]
        try:
            extent = extent_of(annotation.get("segmentation"), height, width)
            reason = "" if extent is None else misfit(extent, annotation.get("bbox"), height, width)
        except UserError as error:
            misfits.append(f"annotation {id}: {error}")
            continue
        if extent is None:
            without.append(f"annotation {id}")
        elif reason:
            misfits.append(f"annotation {id}: {reason}")
    harmless = "harmless if few: their referents are left out of training and evaluation"
    diagnosis.add("annotations without a mask", without, harmless)
    diagnosis.add("masks that do not fit", misfits, f"more than {TOLERANCE:g} pixels off or damaged; {_SAME_ARCHIVE}")


def _is_usable(ref: Ref) -> bool:
    """Whether the ids of image and annotations can be looked up; damaged files have anything in their place."""
    return all(isinstance(id, int | str | None) for id in (ref.get("image_id"), *_annotation_ids(ref)))


def _expressions(ref: Ref) -> list[dict[str, Any]]:
    expressions = ref.get("sentences")
    return [entry for entry in expressions if isinstance(entry, dict)] if isinstance(expressions, list) else []


def _annotation_ids(ref: Ref) -> list[Any]:
    """The annotations of a referent: one, or in gRefCOCO a list, in which -1 means that there is none."""
    ids = ref.get("ann_id")
    return [id for id in ids if id != -1] if isinstance(ids, list) else [ids]
