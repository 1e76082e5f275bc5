"""Reads who is referred to, by which sentences and with which mask, from the two annotation files of REFER."""

from __future__ import annotations

import gc
import json
import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from s2rm_jax.errors import UserError
from s2rm_jax.input.example import Expression, Segmentation
from s2rm_jax.input.masks import has_mask
from s2rm_jax.input.unpickle import load_refs

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Picture:
    """A picture as `instances.json` lists it; the size is in pixels."""

    id: int
    file_name: str
    height: int
    width: int


@dataclass(frozen=True)
class Referent:
    """One object and the sentences that refer to it."""

    picture: Picture
    expressions: tuple[Expression, ...]


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Reading makes millions of small objects, none of them garbage; looking for some takes as long as the reading."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@_collector_paused()
def read_referents(refs_path: Path, instances_path: Path, split: str, sentence_field: str) -> list[Referent]:
    """Returns the referents of a split, ordered by the picture's id, then as in the file.

    A referent whose annotation has no mask can neither be trained nor scored, nor can a sentence without words: they
    are left out, and a logged line for each of the two counts them.

    Args:
      refs_path: `refs(SPLITBY).p` or `.json`.
      instances_path: `instances.json`.
      split: "train" and "val" exactly; "testA", "testB", "testC" take every split that has the letter (refclef has
        "testAB"), "test" every split that has the word.
      sentence_field: "raw" or "sent".

    Raises:
      UserError: a file is damaged, the two do not fit together, or the split is empty.
    """
    all_refs = load_refs(refs_path)
    pictures, segmentations = _read_instances(instances_path)
    refs = [ref for ref in all_refs if _in_split(str(_field(ref, "split", refs_path)), split)]
    if not refs:
        counts = Counter(str(ref["split"]) for ref in all_refs)
        known = ", ".join(f"{name} ({count} referents)" for name, count in sorted(counts.items()))
        raise UserError(f"{refs_path} has no split {split!r}; it has {known or 'no referents at all'}")

    referents, without_mask, without_words = [], [], []
    for ref in refs:
        segmentation = _segmentation(ref, segmentations, refs_path)
        if segmentation is None:
            without_mask.append(ref["ann_id"])
            continue
        sentences = _sentences(ref, sentence_field, refs_path)
        expressions = tuple(Expression(text, segmentation, id=id) for id, text in sentences if text.strip())
        without_words += [id for id, text in sentences if not text.strip()]
        if expressions:
            referents.append(Referent(_picture(ref, pictures, refs_path), expressions))

    _warn(f"{refs_path}: referents left out, as their annotation has no mask", "ann_id", without_mask)
    _warn(f"{refs_path}: sentences left out, as they have no words", "sent_id", without_words)
    if not referents:
        raise UserError(f"no referent of split {split!r} in {refs_path} has both a mask and a sentence")
    _check_ids(referents, refs_path)
    return sorted(referents, key=lambda referent: referent.picture.id)


def _in_split(value: str, split: str) -> bool:
    if split in ("testA", "testB", "testC"):
        return split[-1] in value
    return "test" in value if split == "test" else value == split


def _segmentation(ref: dict[str, Any], segmentations: dict[int, Any], path: Path) -> Segmentation | None:
    """Returns the segmentation of a referent, or None if there is no mask in it."""
    ann_id = _field(ref, "ann_id", path)
    if isinstance(ann_id, list):
        raise UserError(f"{path} refers to several objects at once (gRefCOCO's format), which is not supported")
    if ann_id not in segmentations:
        raise UserError(
            f"{path} refers to annotation {ann_id} (referent {ref.get('ref_id')}), which the instances.json beside it "
            "does not have; take both files from the same archive"
        )
    segmentation = segmentations[ann_id]
    try:
        return segmentation if has_mask(segmentation) else None
    except UserError as error:
        raise UserError(f"annotation {ann_id} in the instances.json beside {path}: {error}") from error


def _picture(ref: dict[str, Any], pictures: dict[int, Picture], path: Path) -> Picture:
    id = _field(ref, "image_id", path)
    if id not in pictures:
        raise UserError(
            f"{path} refers to picture {id} (referent {ref.get('ref_id')}), which the instances.json beside it does "
            "not have; take both files from the same archive"
        )
    return pictures[id]


def _sentences(ref: dict[str, Any], field: str, path: Path) -> list[tuple[str, str]]:
    """Returns (id, text) of each sentence."""
    sentences = []
    for entry in _field(ref, "sentences", path):
        id, text = _field(entry, "sent_id", path), _field(entry, field, path)
        if not isinstance(text, str):
            raise UserError(f"{path} has {text!r:.40} instead of a text as {field!r} of the sentence with sent_id {id}")
        sentences.append((str(id), text))
    return sentences


def _field(record: dict[str, Any], name: str, path: Path) -> Any:
    if name not in record:
        raise UserError(f"{path} has a referent or a sentence without {name!r}: {record!s:.80}")
    return record[name]


def _check_ids(referents: list[Referent], path: Path) -> None:
    counts = Counter(expression.id for referent in referents for expression in referent.expressions)
    id, count = counts.most_common(1)[0]
    if count > 1:
        raise UserError(f"{path} has {count} sentences with the sent_id {id} in one split; each needs its own")


def _warn(what: str, id_name: str, ids: list[Any]) -> None:
    if ids:
        first = ", ".join(str(id) for id in ids[:5])
        _LOG.warning("%s: %d (%s %s%s)", what, len(ids), id_name, first, ", ..." if len(ids) > 5 else "")


def _read_instances(path: Path) -> tuple[dict[int, Picture], dict[int, Any]]:
    """Returns the pictures and the segmentations of a file in COCO's format, each by id."""
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{path} is damaged or not JSON ({error}); get it again") from error
    try:
        pictures = {
            entry["id"]: Picture(entry["id"], entry["file_name"], entry["height"], entry["width"])
            for entry in content["images"]
        }
        segmentations = {entry["id"]: entry.get("segmentation") for entry in content["annotations"]}
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{path} is not in COCO's format ({error!r}): it needs images with id, file_name, height and width, and "
            "annotations with id and segmentation"
        ) from error
    return pictures, segmentations
