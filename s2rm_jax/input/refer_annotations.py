"""The files of the REFER layout: finding them, and reading referents, expressions and masks from them.

- `ROOT/refcoco/refs(unc).p`: referents with their expressions and split; or refs(unc).json
- `ROOT/refcoco/instances.json`: images and masks, in COCO's format
- `ROOT/images/mscoco/images/train2014/`: the images; for refclef ROOT/images/saiapr_tc-12/

gRefCOCO's file is ROOT/grefcoco/grefs(unc).json (or .p); its expressions refer to any number of objects, also none.
"""

from __future__ import annotations

import gc
import json
import logging
import re
from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from s2rm_jax.errors import UserError, counted, first_of
from s2rm_jax.input.example import Expression, Segmentation, expression_problem
from s2rm_jax.input.images import path_in
from s2rm_jax.input.plain_pickle import load_plain_pickle
from s2rm_jax.input.refer_masks import Annotation, ImageEntry, Masks

_LOG = logging.getLogger(__name__)

TEXT_FIELDS = ("raw", "sent")
OVERLAPS = ("union", "drop")


def check_choices(sentence_field: str, overlap: str) -> None:
    """Raise a UserError unless the two arguments, which several sources have, are one of their choices."""
    for name, value, choices in (("sentence_field", sentence_field, TEXT_FIELDS), ("overlap", overlap, OVERLAPS)):
        if value not in choices:
            raise UserError(f"{name} is {value!r}; it must be one of: {', '.join(choices)}")


_COCO_FOLDERS = (
    "images/mscoco/images/train2014",
    "images/mscoco/train2014",
    "images/train2014",
    "train2014",
    "coco/train2014",
    "images/train2017",
    "train2017",
    "coco/train2017",
)
_CLEF_FOLDERS = ("images/saiapr_tc-12", "saiapr_tc-12")
# Images that refclef refers to but its archive lacks.
_LOST = {"refclef": frozenset({"17975.jpg", "19575.jpg", "19579.jpg"})}
_COCO_NAME = re.compile(r"COCO_[a-z]+\d{4}_(\d{12}\.\w+)$")
_MOST_PIXELS = 1 << 31  # pycocotools counts pixels by 32 bits
_HELP = "data/README.md lists where to get it"


@dataclass(frozen=True)
class ImageFolder:
    """A folder of images; with `bare_names`, COCO_train2014_000000000072.jpg is stored as 000000000072.jpg."""

    path: Path
    bare_names: bool

    def path_of(self, file_name: str) -> Path:
        """Return the path of the image that has this `file_name` in `instances.json`."""
        return path_in(self.path, _bare(file_name) if self.bare_names else file_name)


def find_annotations(root: str | Path, dataset: str, split_by: str) -> tuple[Path, Path]:
    """Return the paths of `refs(SPLIT_BY).p` (or `.json`, or gRefCOCO's `grefs(SPLIT_BY)`) and `instances.json`.

    Raises:
        UserError: a folder or file is missing; names the existing ones.
    """
    if not str(root):
        raise UserError(
            "config.input.source.root is empty; set it, or S2RM_DATA for the recipes, to the folder of the data "
            "(data/README.md)"
        )
    root = Path(root).expanduser()
    if not root.is_dir():
        raise UserError(f"the folder of the data, {root}, does not exist; {_HELP}")
    folder = root / dataset
    if not folder.is_dir():
        raise UserError(f"{folder} does not exist; folders in {root}: {_listing(root, '*/')}; {_HELP}")
    instances = folder / "instances.json"
    candidates = [folder / f"{stem}({split_by}){suffix}" for stem in ("refs", "grefs") for suffix in (".p", ".json")]
    refs = next((path for path in candidates if path.is_file()), None)
    if refs is None and any(folder.glob("*/*/dataset_info.json")):
        raise UserError(
            f"{folder} is a TFDS dataset of data/build.py, which only the source 'tfds' reads; give the folder of "
            f"the REFER files, with {candidates[0].name} ({_HELP})"
        )
    if refs is None:
        raise UserError(f"{candidates[0]} not found; similar files in {folder}: {_listing(folder, '*refs(*')}; {_HELP}")
    if not instances.is_file():
        raise UserError(f"{instances} not found; it comes in the same archive as {refs.name}; {_HELP}")
    return refs, instances


def is_generalized(refs_path: Path) -> bool:
    """Return whether a file of referents is in gRefCOCO's format."""
    return refs_path.name.startswith("grefs(")


def may_be_missing(dataset: str, file_name: str) -> bool:
    """Return whether an image is missing in the published archive of a dataset."""
    return file_name in _LOST.get(dataset, ())


def find_image_folder(root: Path, dataset: str, image_root: Path | None, *file_names: str) -> ImageFolder:
    """Return the first of the usual folders that has the first image; if none has it, try the second, and so on.

    The folders are searched under `image_root` if it is given, else under `root`; `image_root` may itself be the folder
    of the images. The dataset "refclef" has images of its own, all others COCO's.

    Raises:
        UserError: no folder has any of the images; names the folders that were tried.
    """
    variants = _CLEF_FOLDERS if dataset == "refclef" else _COCO_FOLDERS
    folders = [root / variant for variant in variants]
    if image_root is not None:
        folders = [image_root, *(image_root / variant for variant in variants)]
    candidates = [ImageFolder(folder, bare_names) for folder in folders for bare_names in (False, True)]
    for file_name in file_names:
        for images in candidates:
            if images.path_of(file_name).is_file():
                return images
        candidates = [images for images in candidates if images.path.is_dir()]
    there = [str(folder) for folder in folders if folder.is_dir()]
    state = f"these folders exist, without it: {', '.join(there)}" if there else "none of these folders exists"
    tried = ", ".join(str(folder) for folder in folders)
    bare = _bare(file_names[0])
    also = f" (or {bare})" if bare != file_names[0] else ""
    raise UserError(
        f"the image {file_names[0]}{also} was not found; {state}; tried {tried}; "
        "unpack the images into one of them, or give their folder as image_root (the recipes take it from S2RM_IMAGES);"
        " data/README.md lists where to get them"
    )


def _bare(file_name: str) -> str:
    match = _COCO_NAME.search(file_name)
    return match[1] if match else file_name


def _listing(folder: Path, pattern: str) -> str:
    names = sorted(path.name for path in folder.glob(pattern))
    return first_of(names, ", ", 8) or "none"


def read_json(path: Path) -> Any:
    """Return the contents of a JSON file; raise a UserError if it cannot be read or is damaged."""
    try:
        return json.loads(_read_bytes(path))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged or not JSON ({error}); download or copy it again") from error


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error


def read_instances(path: Path) -> tuple[dict[Any, ImageEntry], dict[Any, Annotation]]:
    """Return the images and the annotations of a file in COCO's format, each by id.

    Raises:
        UserError: the file cannot be read, is damaged, or is not in COCO's format; or two images or annotations have
            one id.
    """
    content = read_json(path)
    images: dict[Any, ImageEntry] = {}
    annotations: dict[Any, Annotation] = {}
    try:
        for entry in content["images"]:
            add_image(images, entry["id"], entry, path)
        for entry in content["annotations"]:
            add_annotation(annotations, entry["id"], entry, images, path)
    except MALFORMED as error:
        raise UserError(
            f"{path} is not in COCO's format ({error!r}): it needs images with id, file_name, height and width, and "
            "annotations with id and segmentation"
        ) from error
    return images, annotations


# What wrong types and missing fields in a record of COCO raise.
MALFORMED = (AttributeError, KeyError, TypeError, ValueError, OverflowError, RecursionError)


def add_image(images: dict[Any, ImageEntry], id: Any, entry: dict[str, Any], path: Path) -> None:
    """Add an image, given its entry in COCO's format, to those by id.

    Raises:
        UserError: the file, `path`, has another image of that id.
        MALFORMED: the entry is not in COCO's format, or the id is of another type than that of the first image.
    """
    if not isinstance(name := entry["file_name"], str):
        raise TypeError(f"{name!r:.40} is not a string")
    image = ImageEntry(id, name, int(entry["height"]), int(entry["width"]))
    if min(image.height, image.width) < 1 or image.height * image.width >= _MOST_PIXELS:
        raise ValueError(f"image {id} has {image.width:.5g} x {image.height:.5g} pixels")
    other = images.setdefault(id, image)
    if other != image:
        raise UserError(
            f"{path} has two images with the id {id}: {other.file_name} and {image.file_name}; give each its own"
        )
    first = next(iter(images))
    if type(id) is not type(first):  # the images are sorted by their ids
        raise TypeError(f"the image ids {first!r} and {id!r:.40} are of different types")


def add_annotation(
    annotations: dict[Any, Annotation], id: Any, entry: dict[str, Any], images: dict[Any, ImageEntry], path: Path
) -> None:
    """Add an annotation as `add_image` adds an image; `images` are for the message."""
    annotation = Annotation(entry.get("segmentation"), bool(entry.get("iscrowd")), entry.get("image_id"))
    first = annotations.setdefault(id, annotation)
    if first != annotation:
        names = " and ".join(
            images[one.image_id].file_name if one.image_id in images else f"image {one.image_id}"
            for one in (first, annotation)
        )
        raise UserError(f"{path} has two annotations with the id {id}, of {names}; give each its own")


def load_refs(path: str | Path) -> list[dict[str, Any]]:
    """Read the referents of a REFER dataset: a pickle of any protocol, including Python 2's, or a `.json` file.

    A pickle that could run code is refused, see `load_plain_pickle`.

    Args:
        path: `refs(SPLIT_BY).p`, or the same list as JSON, of one dict for each referent.

    Raises:
        UserError: the file is missing, damaged, refused, or not a list of dicts.
    """
    path = Path(path)
    refs = read_json(path) if path.suffix == ".json" else load_plain_pickle(_read_bytes(path), path)
    if not isinstance(refs, list) or not all(isinstance(ref, dict) for ref in refs):
        raise UserError(f"{path} does not hold a list of referents (one dict each); is it a file of the REFER layout?")
    return refs


@dataclass(frozen=True)
class Referent:
    """The expressions about one object, or in gRefCOCO about any number of objects, of an image."""

    image: ImageEntry
    expressions: tuple[Expression, ...]


@contextmanager
def collector_paused() -> Iterator[None]:
    """Pause the garbage collector while millions of small objects are read; it would double the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def select_referents(
    all_refs: list[dict[str, Any]],
    images: dict[Any, ImageEntry],
    annotations: dict[Any, Annotation],
    refs_path: Path,
    *,
    split: str,
    sentence_field: str,
    overlap: str,
) -> list[Referent]:
    """Return the referents of a split, ordered by the image's id, then as in the file.

    Referents without a usable mask and expressions without words are left out, and so are the parts of a mask that
    cannot be decoded; each of the three is counted in a warning. A mask is not usable if its polygons cover no pixel or
    its annotation belongs to another image. In gRefCOCO (`grefs(...)`) a referent has a list of annotations, and its
    mask is the union of their masks. If one of them has no mask, the referent is left out; one that covers no pixel
    adds nothing. Annotations of crowds are skipped, as in ReLA, and the list [-1] means that the expression refers to
    nothing (segmentation []).

    Args:
        all_refs: the records of the referents of all splits.
        images: by id.
        annotations: by id.
        refs_path: the file of the referents, for error messages; its name says whether it is gRefCOCO's.
        split: "train" and "val" match exactly; "test" matches every split with that word, "testA", "testB" and "testC"
            those of them with that letter (refclef has "testAB").
        sentence_field: "raw" or "sent".
        overlap: treatment of pixels in several polygons of one annotation: "union" or "drop", see ReferSource.

    Raises:
        UserError: the records do not fit together, or the split is empty.
    """
    splits = [split_of(ref, refs_path) for ref in all_refs]
    refs = [ref for ref, its_split in zip(all_refs, splits, strict=True) if in_split(its_split, split)]
    if not refs:
        raise split_error(split, refs_path, splits)
    check_splits(splits, split, refs_path)

    generalized = is_generalized(refs_path)
    masks = Masks(annotations, overlap)
    referents, without_mask, unusable = [], [], []
    for ref in refs:
        image = images.get(image_id := image_id_of(ref, refs_path))
        if image is None:
            raise _unknown("image", image_id, images, ref, refs_path)
        segmentation = _mask_of(ref, image, masks, refs_path)
        if isinstance(segmentation, str):
            without_mask.append(f"ann_id {ref['ann_id']}: {segmentation}")
            continue
        expressions = []
        for sent_id, text in _expressions(ref, sentence_field, refs_path):
            # gRefCOCO's sent_id may not be unique by itself.
            id = f"{ref.get('ref_id')}-{sent_id}" if generalized else sent_id
            if expression_problem(text):
                unusable.append(f"sent_id {id}")
            else:
                expressions.append(Expression(text, segmentation, id=id, referent=str(ref.get("ref_id", ""))))
        if expressions:
            referents.append(Referent(image, tuple(expressions)))

    if not referents:
        why = f"; without a usable mask: {_count(without_mask)}" if without_mask else ""
        raise UserError(f"no referent of split {split!r} in {refs_path} has both a mask and an expression{why}")
    bad = [f"ann_id {id}" for id in masks.bad]
    for what, cases in (
        ("referents left out because they have no usable mask", without_mask),
        ("annotations with parts that cannot be decoded; those parts were left out", bad),
        ("expressions left out because they have no words or are not valid Unicode", unusable),
    ):
        if cases:
            _LOG.warning("%s: %s: %s", refs_path, what, _count(cases))
    _check_ids(referents, refs_path)
    return sorted(referents, key=lambda referent: referent.image.id)


def split_of(ref: dict[str, Any], path: Path) -> str:
    """Return the split of a record in a file of referents; raise a UserError if it has none, or no string."""
    split = _field(ref, "split", path)
    if not isinstance(split, str):
        raise UserError(f"{path} has the split {split!r:.40}, which is not a string: {ref!s:.80}; correct it")
    return split


def check_splits(found: Collection[str], split: str, path: Path) -> None:
    """Raise a UserError if two splits, those of a file or the one wanted, differ only in case or spaces.

    One of the two is misspelt, and its referents would be lost, or be evaluated on after training on their images.
    """
    spellings: dict[str, set[str]] = {}
    for name in {*found, split}:
        spellings.setdefault("".join(name.split()).lower(), set()).add(name)
    for names in spellings.values():
        if len(names) > 1:
            listed = " and ".join(
                f"{name!r} ({counted(list(found).count(name), 'referent')})" for name in sorted(names)
            )
            raise UserError(f"{path}: the splits {listed} differ only in case or spaces; spell them alike")


def image_id_of(ref: dict[str, Any], path: Path) -> Any:
    """Return the image's id of a record; raise a UserError if it has none, or if an id of it cannot be looked up."""
    if not has_usable_ids(ref):
        raise UserError(f"{path} has a referent whose image_id or ann_id is not a number or a string: {ref!s:.80}")
    return _field(ref, "image_id", path)


def split_error(split: str, path: Path, found: Iterable[str]) -> UserError:
    """Return the error for a split that no referent of a file is in, given the split of each."""
    available = ", ".join(f"{name} ({counted(count, 'referent')})" for name, count in sorted(Counter(found).items()))
    return UserError(f"split {split!r} not found in {path}; available: {available or 'none'}")


def in_split(value: str, split: str) -> bool:
    """Return whether a record with this value of "split" is in a split, by the rule of `select_referents`."""
    if split in ("testA", "testB", "testC"):
        return "test" in value and split[-1] in value
    return "test" in value if split == "test" else value == split


def _mask_of(ref: dict[str, Any], image: ImageEntry, masks: Masks, path: Path) -> Segmentation | str:
    """Return the mask of a referent, [] if it refers to nothing, or a str that says why it has no mask."""
    ids = _field(ref, "ann_id", path)
    generalized = is_generalized(path)
    if not generalized and isinstance(ids, list):
        raise UserError(
            f"{path} has a list of annotations for referent {ref.get('ref_id')}, which only gRefCOCO's format has; "
            f"files in that format are named g{path.name}"
        )
    ids = ids if isinstance(ids, list) else [ids]
    if generalized and ids == [-1]:
        return []
    for id in ids:
        if id not in masks.annotations:
            raise _unknown("annotation", id, masks.annotations, ref, path)
    return masks.union(ids, image) if generalized else masks.single(ids[0], image)


def _unknown(what: str, id: Any, ids: Iterable[Any], ref: dict[str, Any], path: Path) -> UserError:
    advice = "take both files from the same archive"
    if id == -1:
        advice = "-1 means that the expression refers to nothing, and must be the only id"
    elif alike := id_of_other_kind(id, {str(one): one for one in ids}):
        advice = f"it has the id {alike}; write the ids of both files in the same way"
    return UserError(
        f"{path} refers to {what} {id!r} (referent {ref.get('ref_id')}), which is not in the instances.json beside "
        f"it; {advice}"
    )


def id_of_other_kind(id: Any, known: Mapping[str, Any]) -> str:
    """Return the known id that differs from an unknown one in its type only, such as 1 from "1" or 1.0, or "".

    `known` has the known ids by their text.
    """
    texts = (str(id), str(id).removesuffix(".0"))
    return next((repr(known[text]) for text in texts if text in known), "")


def _expressions(ref: dict[str, Any], field: str, path: Path) -> list[tuple[str, str]]:
    """Return (id, text) of each expression."""
    expressions = []
    entries = _field(ref, "sentences", path)
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise UserError(f"{path} has {entries!r:.40} instead of a list of expressions as 'sentences': {ref!s:.80}")
    for entry in entries:
        id, text = _field(entry, "sent_id", path), _field(entry, field, path)
        if not isinstance(text, str):
            raise UserError(
                f"{path} has {text!r:.40} instead of a string as {field!r} of the expression with sent_id {id}"
            )
        expressions.append((str(id), text))
    return expressions


def has_usable_ids(ref: dict[str, Any]) -> bool:
    """Return whether the ids of the image and of the annotations can be looked up."""
    return all(isinstance(id, Hashable) for id in (ref.get("image_id"), *annotation_ids(ref)))


def annotation_ids(ref: dict[str, Any]) -> list[Any]:
    """Return the annotation ids of a referent: one, or in gRefCOCO a list, in which -1 means "no target"."""
    ids = ref.get("ann_id")
    return [id for id in ids if id != -1] if isinstance(ids, list) else [ids]


def _field(record: dict[str, Any], name: str, path: Path) -> Any:
    if name not in record:
        raise UserError(f"{path}: a referent or an expression has no {name!r}: {record!s:.80}")
    return record[name]


def _check_ids(referents: list[Referent], path: Path) -> None:
    counts = Counter(expression.id for referent in referents for expression in referent.expressions)
    id, count = counts.most_common(1)[0]
    if count > 1:
        raise UserError(f"{path} has {count} expressions with the sent_id {id} in one split; each needs its own")


def _count(cases: list[str]) -> str:
    """Return the number of cases and the first of them."""
    return f"{len(cases)} ({first_of(cases)})"
