"""The data check: examine the annotations, masks and images of all datasets in a folder of the REFER layout.

It reads the same files as training, but tolerates damaged entries, so that one run finds all problems.
"""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from s2rm_jax.errors import UserError, explaining, one_line, reason_of
from s2rm_jax.input.check.report import (
    KNOWN,
    MISSING_IMAGES,
    NOTES,
    CheckReport,
    DatasetReport,
    where_annotations,
    where_images,
)
from s2rm_jax.input.example import expression_problem
from s2rm_jax.input.images import FORMATS, MAX_PIXELS, describe_unknown, image_problem, map_ahead, stored_size
from s2rm_jax.input.masks import decode_rle, fractions_problem, has_mask, usable_parts
from s2rm_jax.input.refer_annotations import (
    TEXT_FIELDS,
    ImageFolder,
    annotation_ids,
    find_image_folder,
    has_usable_ids,
    is_generalized,
    load_refs,
    may_be_missing,
    read_json,
)
from s2rm_jax.input.split_sizes import SplitSize
from s2rm_jax.input.transfer import DOWNLOADS_FILE

Ref = dict[str, Any]

_REFS_NAME = re.compile(r"g?refs\((.+)\)\.(p|json)")
_SAME_ARCHIVE = "take the file of referents and instances.json from the same archive"
_REFERENTS_AGAIN = "download or copy the file of referents again"
_AHEAD = 512  # images given to the threads in advance, so few that Ctrl-C takes effect soon


def examine(
    root: str | Path,
    dataset: str = "",
    split_by: str = "",
    *,
    image_root: str | Path = "",
    quick: bool = False,
    threads: int = 0,
) -> CheckReport:
    """Examine all datasets under `root`, or a selection of them.

    Args:
        root: folder in the REFER layout (data/README.md).
        dataset: the only dataset to examine, such as "refcoco"; "" for all.
        split_by: the only set of splits to examine, such as "unc"; "" for all.
        image_root: folder of the images if they are not under `root`.
        quick: read only the headers of images. This finds missing images and wrong sizes, but no truncated ones.
        threads: number of threads that decode images; 0 for one per core.

    Raises:
        UserError: nothing to examine was found. Problems of the data are in the report.
    """
    root = Path(root).expanduser()
    images_root = Path(image_root).expanduser() if image_root else None
    found = discover(root, dataset, split_by)
    checked: dict[ImageFile, tuple[str, str]] = {}  # datasets share images; each is checked once
    reports = []
    for item in found:
        report = DatasetReport(item.dataset, item.split_by, str(item.refs))
        reports.append(report)
        images = _examine_files(report, item)
        folder = _find_folder(report, root, images_root, [image["file_name"] for image in images])
        if folder is None:
            continue
        files = [ImageFile(folder.path_of(p["file_name"]), p["height"], p["width"]) for p in images]
        new = [file for file in dict.fromkeys(files) if file not in checked]
        bar = tqdm(new, f"{item.dataset}: images", disable=None, leave=False)
        checked.update(zip(bar, _check_images(new, quick, threads), strict=True))
        results = [checked[file] for file in files]
        report.images_checked = len(files)
        report.images_read = sum(kind not in (MISSING_IMAGES, _DAMAGED, _UNUSABLE) for kind, _ in results)
        _add_image_problems(report, results)
    names = {item.dataset for item in found}
    absent = () if dataset else tuple(name for name in KNOWN if name not in names)
    return CheckReport(str(root), quick, tuple(reports), absent)


class Found(NamedTuple):
    """A file of referents and the path of the instances.json beside it, which may not exist."""

    dataset: str
    split_by: str
    refs: Path
    instances: Path


def discover(root: Path, dataset: str = "", split_by: str = "") -> list[Found]:
    """Return the selected datasets under `root`, those of KNOWN first, then by name.

    Raises:
        UserError: the folder or the selection was not found; names what is there and where to get the rest.
    """
    if not root.is_dir():
        raise UserError(f"the folder {root} does not exist; give the one that holds refcoco, refcocog, ... as --root")
    with explaining(lambda error: f"the folder {root} cannot be read ({reason_of(error)}); correct its permissions"):
        folders = sorted(path for path in root.iterdir() if path.is_dir())
    found = [item for folder in folders for item in _in_folder(folder)]
    if not found:
        if _in_folder(root):
            raise UserError(f"{root} is the folder of one dataset; give the folder above it, {root.resolve().parent}")
        if own := sorted(path.name for path in root.glob("*.json*") if path.name != DOWNLOADS_FILE):
            raise UserError(
                f"{root} has no data in the REFER layout; JSON lines and COCO JSON, as {own[0]} may be, are checked "
                "when training starts, and by python -m s2rm_jax.show_input --config FILE --out input.png "
                "(docs/own_data.md)"
            )
        raise UserError(
            f"{root} has no folder with a file refs(...).p in it; unpack the annotations of a dataset there, for "
            f"example {where_annotations('refcoco')}; and the images: {where_images('refcoco')}"
        )
    selected = [item for item in found if dataset in ("", item.dataset) and split_by in ("", item.split_by)]
    if not selected:
        name = " ".join(part for part in (dataset, split_by and f"split by {split_by}") if part)
        available = ", ".join(f"{item.dataset} split by {item.split_by}" for item in found)
        advice = f"; get {where_annotations(dataset)}" if dataset in KNOWN else ""
        raise UserError(f"{root} has no {name}; available: {available}{advice}")
    order = {name: number for number, name in enumerate(KNOWN)}
    return sorted(selected, key=lambda item: (order.get(item.dataset, len(KNOWN)), item.dataset, item.split_by))


def _in_folder(folder: Path) -> list[Found]:
    """Return the files of referents in a folder; a pickle goes before a JSON file of the same name, as in training.

    Folders that cannot be read, such as lost+found, have none; a UserError names those of published datasets.
    """
    by_name: dict[str, Found] = {}
    try:
        for path in sorted(folder.iterdir(), reverse=True):  # .p before .json
            match = _REFS_NAME.fullmatch(path.name)
            if match and path.is_file():
                by_name.setdefault(match[1], Found(folder.name, match[1], path, folder / "instances.json"))
    except OSError as error:
        if folder.name in KNOWN:
            raise UserError(
                f"the folder {folder} cannot be read ({reason_of(error)}); correct its permissions"
            ) from error
    return list(by_name.values())


def _examine_files(report: DatasetReport, item: Found) -> list[dict[str, Any]]:
    """Examine the two annotation files; return the entries of the images that have referents."""
    try:
        refs = load_refs(item.refs)
        instances = _load_instances(item.instances)
    except UserError as error:
        report.add("annotation files that cannot be read", [str(error)], f"get {where_annotations(item.dataset)}")
        return []
    ids = _examine_annotations(report, refs, instances)
    if report.key in NOTES:
        report.notes.append(NOTES[report.key])
    return [instances.images[id] for id in ids]


@dataclass(frozen=True)
class _Instances:
    """The images and annotations of a file in COCO's format by id, and the defects of its lists."""

    images: dict[Any, dict[str, Any]]
    annotations: dict[Any, dict[str, Any]]
    duplicate_ids: list[str]
    unusable: list[str]  # entries that lack a required field


def _load_instances(path: Path) -> _Instances:
    """Read instances.json; raise a UserError if it is not in COCO's format at all."""
    content = read_json(path)
    lists = [content.get(name) for name in ("images", "annotations")] if isinstance(content, dict) else [None]
    if not all(isinstance(entries, list) for entries in lists):
        problem = "it has no lists 'images' and 'annotations'; download or copy it again"
        raise UserError(f"{path} is not in COCO's format: {problem}")
    images, bad_images = _usable(lists[0], "image", {"file_name": str, "height": int, "width": int})
    annotations, bad_annotations = _usable(lists[1], "annotation", {})
    return _Instances(
        images={entry["id"]: entry for entry in images},
        annotations={entry["id"]: entry for entry in annotations},
        duplicate_ids=_duplicates(images, "image") + _duplicates(annotations, "annotation"),
        unusable=bad_images + bad_annotations,
    )


def _usable(entries: Any, name: str, required: dict[str, type]) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the entries with an id and every required field of the right type, and descriptions of the others."""

    def fits(entry: Any) -> bool:
        if not isinstance(entry, dict) or not isinstance(entry.get("id"), int | str):
            return False
        return all(isinstance(entry.get(field), type_) for field, type_ in required.items())

    good = [entry for entry in entries if fits(entry)]
    bad = [f"{name} {entry!s:.60}" for entry in entries if not fits(entry)]
    return good, bad


def _duplicates(entries: list[dict[str, Any]], name: str) -> list[str]:
    alike = defaultdict(list)
    for entry in entries:
        alike[entry["id"]].append(str(entry.get("file_name", "")))
    cases = []
    for id, files in alike.items():
        if len(files) > 1:
            named = f": {', '.join(files)}" if len(set(files)) > 1 else ""
            cases.append(f"{name} {id} ({len(files)} times{named})")
    return cases


def _examine_annotations(report: DatasetReport, refs: list[Ref], instances: _Instances) -> list[Any]:
    """Add counts and problems to the report; return the ids of the images that have referents, each once.

    Annotations that no referent uses are not examined.
    """
    unusable = [f"{ref!s:.80}" for ref in refs if not has_usable_ids(ref)]
    report.add("unusable referents", unusable, f"their ids are not usable; {_REFERENTS_AGAIN}")
    refs = [ref for ref in refs if has_usable_ids(ref)]
    report.counts = _count_by_split(refs)
    report.add_wrong_counts(
        f"the files are of another version or incomplete; {_SAME_ARCHIVE}, and download or copy both again"
    )
    copy_again = "download or copy instances.json again"
    report.add("unusable entries of instances.json", instances.unusable, copy_again)
    report.add("ids that occur twice in instances.json", instances.duplicate_ids, copy_again)
    _examine_fields(report, refs)
    _examine_ids(report, refs)
    _examine_expressions(report, refs)
    used = _examine_links(report, refs, instances)
    _examine_masks(report, used, instances)
    ids = dict.fromkeys(ref.get("image_id") for ref in refs)
    return [id for id in ids if id in instances.images]


def _count_by_split(refs: list[Ref]) -> dict[str, SplitSize]:
    """Count images, referents and expressions by split, in the order train, val, then by name."""
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


def _examine_fields(report: DatasetReport, refs: list[Ref]) -> None:
    """Report the referents and expressions at which training stops because a field is missing or of another format."""
    path = Path(report.annotations)
    no_split = [f"ref_id {ref.get('ref_id')}" for ref in refs if "split" not in ref]
    report.add("referents without a split", no_split, f"training stops at them; {_REFERENTS_AGAIN}")
    if not is_generalized(path):
        lists = [f"ref_id {ref.get('ref_id')}" for ref in refs if isinstance(ref.get("ann_id"), list)]
        report.add(
            "referents with a list of annotations", lists, f"that is gRefCOCO's format: call the file g{path.name}"
        )
    cases = []
    for ref in refs:
        for entry in _expressions(ref):
            missing = [repr(field) for field in ("sent_id", "raw") if field not in entry]
            if missing:
                of = f"{entry.get('sent', '')!r:.40} of ref_id {ref.get('ref_id')}"
                cases.append(f"{of}: {' and '.join(missing)} missing")
    remedy = (
        "training stops at them; add the fields, or where 'raw' is missing set the source's sentence_field to 'sent'"
    )
    report.add("expressions without a field", cases, remedy)


def _examine_ids(report: DatasetReport, refs: list[Ref]) -> None:
    names = [f"ref_id {ref['ref_id']}" for ref in refs if ref.get("ref_id") is not None]
    generalized = is_generalized(Path(report.annotations))  # in gRefCOCO a sent_id is unique within its referent
    for ref in refs:
        where = f"{ref.get('split')}, ref_id {ref.get('ref_id')}" if generalized else ref.get("split")
        names += [f"sent_id {entry.get('sent_id')} in {where}" for entry in _expressions(ref)]
    cases = [f"{name} ({count} times)" for name, count in Counter(names).items() if count > 1]
    report.add("ids that occur twice among the referents", cases, _REFERENTS_AGAIN)


def _examine_expressions(report: DatasetReport, refs: list[Ref]) -> None:
    cases = [f"ref_id {ref.get('ref_id')} has none" for ref in refs if not _expressions(ref)]
    for ref in refs:
        for entry in _expressions(ref):
            texts = [entry[field] for field in TEXT_FIELDS if field in entry]
            if not all(isinstance(text, str) and not expression_problem(text) for text in texts):
                cases.append(f"sent_id {entry.get('sent_id')} of ref_id {ref.get('ref_id')}")
    report.add("expressions without words", cases, "harmless if few: they are left out of training and evaluation")


def _examine_links(report: DatasetReport, refs: list[Ref], instances: _Instances) -> dict[Any, Any]:
    """Check that the images and annotations of referents exist and belong together.

    Return the image id of each annotation that is used and whose image exists.
    """
    missing, elsewhere, used = [], [], {}
    for ref in refs:
        image, name = ref.get("image_id"), f"ref_id {ref.get('ref_id')}"
        if image not in instances.images:
            missing.append(f"image {image} of {name}")
        for id in annotation_ids(ref):
            annotation = instances.annotations.get(id)
            if annotation is None:
                missing.append(f"annotation {id} of {name}")
            elif annotation.get("image_id", image) != image:
                elsewhere.append(f"{name}: image {image}, its annotation {id}: image {annotation['image_id']}")
            elif image in instances.images:
                used[id] = image
    report.add("referents whose image or annotation is not in instances.json", missing, _SAME_ARCHIVE)
    report.add("referents whose annotation is of another image", elsewhere, _SAME_ARCHIVE)
    return used


def _expressions(ref: Ref) -> list[dict[str, Any]]:
    expressions = ref.get("sentences")
    return [entry for entry in expressions if isinstance(entry, dict)] if isinstance(expressions, list) else []


# Pixels. COCO's boxes equal the extent of the polygons; other tools count pixels from 1 or leave out the last row and
# column, each of which moves an edge by one pixel.
TOLERANCE = 2.0

Extent = tuple[float, float, float, float]  # left, top, right, bottom in pixels


def _examine_masks(report: DatasetReport, used: dict[Any, Any], instances: _Instances) -> None:
    without, empty, misfits = [], [], []
    for id, image_id in tqdm(used.items(), f"{report.dataset}: masks", disable=None, leave=False):
        annotation, image = instances.annotations[id], instances.images[image_id]
        height, width = image["height"], image["width"]
        stored = annotation.get("segmentation")
        try:
            if not has_mask(stored):
                without.append(f"annotation {id}")
                continue
        except UserError as error:
            misfits.append(f"annotation {id}: {error}")
            continue
        parts, problems, is_empty, _ = usable_parts(stored, height, width)
        if problem := fractions_problem(parts):
            misfits.append(f"annotation {id}: {problem}")
            continue
        extent = extent_of(parts, height, width)
        if extent is not None:
            problems.append(misfit(extent, annotation.get("bbox"), height, width))
        elif parts:
            empty.append(f"annotation {id}")
        if is_empty:
            without.append(f"annotation {id}: its polygons cover no pixel")
        misfits += [f"annotation {id}: {problem}" for problem in problems if problem][:1]
    harmless = "harmless if few: their referents are left out of training and evaluation"
    trained = "correct if their expressions refer to nothing; they are trained and scored that way"
    damaged = "damaged; damaged parts are left out of training and evaluation"
    report.add("annotations without a mask", without, harmless)
    report.add("RLEs without a pixel", empty, trained)
    report.add("masks that do not fit", misfits, f"more than {TOLERANCE:g} pixels off, or {damaged}; {_SAME_ARCHIVE}")


def extent_of(segmentation: Any, height: int, width: int) -> Extent | None:
    """Return the extent of intact polygons (from their corners) or RLEs; None without a part or a pixel."""
    parts = [segmentation] if isinstance(segmentation, dict) else segmentation
    corners = []  # of polygons and of the boxes of RLEs
    for part in parts:
        if not isinstance(part, dict):
            corners.append(np.asarray(part, np.float64).reshape(-1, 2))
        elif box := Image.fromarray(decode_rle(part, height, width)).getbbox():
            corners.append(np.array(box, np.float64).reshape(2, 2))
    if not corners:
        return None
    (left, top), (right, bottom) = (f(np.concatenate(corners), axis=0).tolist() for f in (np.min, np.max))
    return left, top, right, bottom


def misfit(extent: Extent, box: Any, height: int, width: int) -> str:
    """Return how a mask's extent disagrees with its image or its box, or "".

    `box` is x, y, width, height in pixels, or None if the annotation has none.
    """
    outside = max(-extent[0], -extent[1], extent[2] - width, extent[3] - height)
    if outside > TOLERANCE:
        return f"the mask ends {outside:.0f} pixels outside the image of {width} x {height}"
    if box is None:
        return ""
    try:
        left, top, wide, high = (float(value) for value in box)
    except (TypeError, ValueError):
        return f"the bbox is {box!r:.40}, not x, y, width, height"
    off = max(abs(a - b) for a, b in zip(extent, (left, top, left + wide, top + high), strict=True))
    return f"mask and box differ by {off:.0f} pixels" if off > TOLERANCE else ""


_DAMAGED = "damaged images"
_UNUSABLE = "images that are too large or have floating-point values"


class ImageFile(NamedTuple):
    """The path of an image and its annotated size in pixels."""

    path: Path
    height: int
    width: int


def check_image(image: ImageFile, quick: bool = False) -> tuple[str, str]:
    """Return the kind of problem of an image file and its description; two empty strings if there is none.

    The whole file is decoded, or with `quick` only its header. A JPEG is decoded to an eighth of its size, which reads
    every byte and is several times as fast. A file that libjpeg can decode counts as intact; a flipped bit in the
    middle often only changes some colours.
    """
    path, height, width = image
    try:
        with Image.open(path, formats=FORMATS) as file:
            size = stored_size(file)
            if problem := image_problem(file):
                return _UNUSABLE, f"{path.name} ({problem.removeprefix('has ').partition(';')[0]})"
            if not quick:
                file.draft(file.mode, (size[0] // 8, size[1] // 8))
                file.load()
    except Exception as error:
        return _reading_fault(path, error)
    if size != (width, height):
        found = f"{size[0]} x {size[1]} instead of {width} x {height}"
        return "images whose size differs from the annotation", f"{path.name} ({found})"
    return "", ""


def _reading_fault(path: Path, error: Exception) -> tuple[str, str]:
    """Return the kind of problem that an error of reading an image shows, and its description."""
    if isinstance(error, FileNotFoundError):
        return MISSING_IMAGES, path.name
    if isinstance(error, UnidentifiedImageError):
        reason, _, _ = describe_unknown(path).removeprefix("is ").partition(";")
        return _DAMAGED, f"{path.name} ({reason})"
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return _UNUSABLE, f"{path.name} (more than {MAX_PIXELS:,} pixels)"
    return _DAMAGED, f"{path.name} ({one_line(error)})"  # Pillow raises nearly any exception on damaged data


def _check_images(images: Sequence[ImageFile], quick: bool, threads: int) -> Iterator[tuple[str, str]]:
    """Yield the result of `check_image` for each image, in order. Pillow decodes in parallel threads."""
    with ThreadPoolExecutor(threads or os.cpu_count() or 1) as pool:
        yield from map_ahead(pool, partial(check_image, quick=quick), images, _AHEAD)


def _find_folder(
    report: DatasetReport, root: Path, image_root: Path | None, file_names: list[str]
) -> ImageFolder | None:
    """Return the folder of the first image that is found anywhere; add a problem if none is."""
    if not file_names:
        return None
    try:
        folder = find_image_folder(root, report.dataset, image_root, *file_names)
    except UserError as error:
        report.add(MISSING_IMAGES, file_names, f"none was found: {error}; get {where_images(report.dataset)}")
        return None
    report.images = str(folder.path)
    return folder


def _add_image_problems(report: DatasetReport, results: list[tuple[str, str]]) -> None:
    cases = defaultdict(list)
    lost = []
    for kind, case in results:
        if kind == MISSING_IMAGES and may_be_missing(report.dataset, case):
            lost.append(case)
        elif kind:
            cases[kind].append(case)
    if lost:
        report.notes.append(f"missing in every known copy: {', '.join(lost)}")
    get_again = f"unpack the archive of the images again, or get {where_images(report.dataset)}"
    for kind, names in cases.items():
        report.add(kind, names, "scale them down, or save them with 8 bits" if kind == _UNUSABLE else get_again)
