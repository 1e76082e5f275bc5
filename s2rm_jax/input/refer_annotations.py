"""Reads who is referred to, by which sentences and with which mask, from the two annotation files of REFER."""

from __future__ import annotations

import gc
import logging
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from s2rm_jax.errors import UserError
from s2rm_jax.input.example import Expression, Segmentation
from s2rm_jax.input.masks import has_mask
from s2rm_jax.input.refer_instances import Annotation, Picture, read_instances
from s2rm_jax.input.refer_layout import is_generalised
from s2rm_jax.input.unpickle import load_refs

_LOG = logging.getLogger(__name__)

OVERLAPS = ("union", "drop")
TEXT_FIELDS = ("raw", "sent")


@dataclass(frozen=True)
class Referent:
    """What some sentences refer to: one object, or in gRefCOCO any number of them."""

    picture: Picture
    expressions: tuple[Expression, ...]


@contextmanager
def collector_paused() -> Iterator[None]:
    """Reading makes millions of small objects, none of them garbage; looking for some takes as long as the reading."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@collector_paused()
def read_referents(
    refs_path: Path, instances_path: Path, split: str, sentence_field: str, overlap: str = "union"
) -> list[Referent]:
    """Returns the referents of a split, ordered by the picture's id, then as in the file.

    A referent whose annotation has no mask can neither be trained nor scored, nor can a sentence without words: they
    are left out, and a logged line for each of the two counts them. In gRefCOCO (`grefs(...)`) a referent has a list of
    annotations, whose union is its mask: those of crowds are passed over, as ReLA does, and the list [-1] says that the
    sentence refers to nothing, which makes an expression with the segmentation [].

    Args:
      refs_path: `refs(SPLITBY).p` or `.json`, or `grefs(SPLITBY)` of the same.
      instances_path: `instances.json`.
      split: "train" and "val" exactly; "testA", "testB", "testC" take every split that has the letter (refclef has
        "testAB"), "test" every split that has the word.
      sentence_field: "raw" or "sent".
      overlap: what becomes of pixels under two polygons of one annotation: "union" or "drop", see ReferSource.

    Raises:
      UserError: a file is damaged, the two do not fit together, or the split is empty.
    """
    all_refs = load_refs(refs_path)
    pictures, annotations = read_instances(instances_path)
    refs = [ref for ref in all_refs if _in_split(split_of(ref, refs_path), split)]
    if not refs:
        counts = Counter(str(ref["split"]) for ref in all_refs)
        known = ", ".join(f"{name} ({count} referents)" for name, count in sorted(counts.items()))
        raise UserError(f"{refs_path} has no split {split!r}; it has {known or 'no referents at all'}")

    generalised = is_generalised(refs_path)
    segmentation_of = _union if generalised else _single
    finish = _without_overlap if overlap == "drop" else _as_it_is
    referents, without_mask, without_words = [], [], []
    for ref in refs:
        segmentation = segmentation_of(ref, annotations, finish, refs_path)
        if segmentation is None:
            without_mask.append(ref["ann_id"])
            continue
        texts = _sentences(ref, sentence_field, refs_path)
        if generalised:  # nothing says that its sent_id alone is unique
            texts = [(f"{ref.get('ref_id')}-{id}", text) for id, text in texts]
        expressions = tuple(Expression(text, segmentation, id=id) for id, text in texts if text.strip())
        without_words += [id for id, text in texts if not text.strip()]
        if expressions:
            referents.append(Referent(_picture(ref, pictures, refs_path), expressions))

    _warn(f"{refs_path}: referents left out, as their annotation has no mask", "ann_id", without_mask)
    _warn(f"{refs_path}: sentences left out, as they have no words", "sent_id", without_words)
    if not referents:
        raise UserError(f"no referent of split {split!r} in {refs_path} has both a mask and a sentence")
    _check_ids(referents, refs_path)
    return sorted(referents, key=lambda referent: referent.picture.id)


def split_of(ref: dict[str, Any], path: Path) -> str:
    """The split in which a record of a file of referents is; raises a UserError if it does not say."""
    return str(_field(ref, "split", path))


def _in_split(value: str, split: str) -> bool:
    if split in ("testA", "testB", "testC"):
        return split[-1] in value
    return "test" in value if split == "test" else value == split


_Finish = Callable[[Segmentation], Segmentation]


def _as_it_is(segmentation: Segmentation) -> Segmentation:
    return segmentation


def _without_overlap(segmentation: Segmentation) -> Segmentation:
    several = isinstance(segmentation, list) and len(segmentation) > 1
    return {"covered_once": segmentation} if several else segmentation


def _single(
    ref: dict[str, Any], annotations: dict[int, Annotation], finish: _Finish, path: Path
) -> Segmentation | None:
    """Returns the segmentation of a referent that is one object, or None if there is no mask in it."""
    ann_id = _field(ref, "ann_id", path)
    if isinstance(ann_id, list):
        raise UserError(
            f"{path} has a list of annotations for referent {ref.get('ref_id')}, which only gRefCOCO's format has; "
            f"files in that format are named g{path.name}"
        )
    segmentation = _mask_of(ann_id, ref, annotations, path).segmentation
    return None if segmentation is None else finish(segmentation)


def _union(ref: dict[str, Any], annotations: dict[int, Annotation], finish: _Finish, path: Path) -> Segmentation | None:
    """Returns the parts of a referent of gRefCOCO, [] if there is none to be found, None if none has a mask."""
    ann_ids = _field(ref, "ann_id", path)
    ann_ids = ann_ids if isinstance(ann_ids, list) else [ann_ids]
    if ann_ids == [-1]:
        return []
    parts: list[Any] = []
    for ann_id in ann_ids:
        segmentation, is_crowd = _mask_of(ann_id, ref, annotations, path)
        if segmentation is None or is_crowd:
            continue
        finished = finish(segmentation)
        parts += finished if isinstance(finished, list) else [finished]
    return parts or None


def _mask_of(ann_id: Any, ref: dict[str, Any], annotations: dict[int, Annotation], path: Path) -> Annotation:
    """Returns an annotation, with None for a segmentation in which there is no mask."""
    if ann_id not in annotations:
        raise UserError(
            f"{path} refers to annotation {ann_id} (referent {ref.get('ref_id')}), which the instances.json beside it "
            "does not have; take both files from the same archive"
        )
    annotation = annotations[ann_id]
    try:
        return annotation if has_mask(annotation.segmentation) else annotation._replace(segmentation=None)
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
