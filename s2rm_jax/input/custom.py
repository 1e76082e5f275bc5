"""Custom data as a source: JSON lines, or JSON in COCO's format.

JSON lines have one referent per line:

{"image": "kitchen.jpg", "mask": "cup.png", "expressions": ["the red cup", "cup on the left"], "split": "train"}
{"image": "kitchen.jpg", "polygon": [[12, 30, 60, 30, 60, 80]], "expressions": ["the kettle"], "split": "train"}
{"image": "garden.jpg", "rle": {"size": [480, 640], "counts": "..."}, "expressions": ["the dog"], "split": "val"}
{"image": "garden.jpg", "polygon": [], "expressions": ["the cat"], "split": "val"}   (refers to nothing)

In COCO's format, annotations have the additional field "expressions" and, optionally, "split", which images may have
instead.

The text of the file and the headers of the split's images are checked when the file is read, so that no mistake in them
stops a training run after hours. Only the pixels are read later. docs/own_data.md describes what happens to bad
examples.
"""

from __future__ import annotations

import json
import logging
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from s2rm_jax.errors import UserError
from s2rm_jax.input.custom_checks import NO_MASK_IN_BOX, Mistakes, Record, check_against_images
from s2rm_jax.input.example import (
    Example,
    Expression,
    Segmentation,
    StoredSource,
    consecutive_groups,
    expressions_problem,
    near_miss,
)
from s2rm_jax.input.images import map_files, path_in, read_header
from s2rm_jax.input.masks import fractions_problem, part_problem
from s2rm_jax.input.refer_annotations import check_splits, id_of_other_kind, split_error

_LOG = logging.getLogger(__name__)
_MASK_KINDS = ("mask", "polygon", "rle")


def json_lines_source(
    split: str,
    *,
    root: str | Path,
    file: str = "data.jsonl",
    apply_exif: bool = False,
    on_bad_example: str = "stop",
) -> StoredSource:
    """Read one split of a JSON-lines file; the lines of one image become one example, each line a referent.

    Args:
        split: lines with this value of "split" are used; a line without it is in "train".
        root: folder of the file.
        file: name of the file. With "{split}" in it there is one file per split, whose lines need no "split".
        apply_exif: whether masks belong to the image as viewers show it, rotated by its EXIF orientation.
        on_bad_example: config.input.on_bad_example; "skip" leaves lines with mistakes out, with a warning.

    Raises:
        UserError: the file or the split was not found, or lines have mistakes; names the lines.
    """
    path, default_split = find_file(root, file, split)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as UTF-8 text ({error}); save it as UTF-8") from error
    if text.lstrip().startswith("["):
        raise UserError(f"{path} holds a JSON array; write one object on each line (jq -c '.[]' FILE does it)")
    if text.lstrip().partition("\n")[0].strip() == "{":
        raise UserError(f"{path} has objects of several lines; write each on one line (jq -c . FILE does it)")
    mistakes = Mistakes(path, on_bad_example == "skip", default_split)
    records = []
    for number, line in enumerate(text.split("\n"), start=1):
        where = f"line {number}"
        try:
            entry: Any = json.loads(line) if line.strip() else None
        except (ValueError, RecursionError) as error:
            place = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else error
            mistakes.leave_out(where, [f"not JSON ({place})"])
            continue
        if line.strip() and mistakes.has_none(where, entry, _line_problems):
            image = _resolve(path.parent, entry["image"])
            if "mask" in entry:
                segmentation: Segmentation = {"png": str(_resolve(path.parent, entry["mask"]))}
            else:
                segmentation = entry["polygon"] if "polygon" in entry else entry["rle"]
            records.append(
                Record(
                    where,
                    id=str(number),
                    image_name=entry["image"],
                    image=image,
                    expressions=tuple(entry["expressions"]),
                    segmentation=segmentation,
                    split=entry.get("split", default_split),
                    size=_size_in(entry),
                )
            )
    return _make_source(path.name, records, split, mistakes, apply_exif)


def coco_json_source(
    split: str,
    *,
    root: str | Path,
    file: str = "annotations.json",
    image_root: str | Path = "",
    apply_exif: bool = False,
    on_bad_example: str = "stop",
) -> StoredSource:
    """Read one split of a file in COCO's format; annotations without "expressions" are skipped.

    Args:
        split: annotations with this value of "split" are used; one without it has that of its image, or is in "train".
        root: folder of the file.
        file: name of the file. With "{split}" in it there is one file per split, whose annotations need no "split".
        image_root: folder to which each "file_name" is relative if it is not `root`.
        apply_exif: see `json_lines_source`.
        on_bad_example: see `json_lines_source`.

    Raises:
        UserError: the file or the split was not found, or annotations have mistakes; names the annotations.
    """
    path, default_split = find_file(root, file, split)
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as JSON ({error}); fix the JSON") from error
    lists = ("images", "annotations")
    if not (isinstance(content, dict) and all(isinstance(content.get(name), list) for name in lists)):
        raise UserError(f"{path} is not in COCO's format: it needs the lists 'images' and 'annotations'")
    mistakes = Mistakes(path, on_bad_example == "skip", default_split)
    folder = Path(image_root).expanduser() if str(image_root) else path.parent
    images = _coco_images(content["images"], mistakes)
    known = {str(id): id for id in images}
    records: list[Record] = []
    ids: set[str] = set()
    for position, stored in enumerate(content["annotations"]):
        where, entry = f"annotation {_coco_name(stored, position)}", _with_split(stored, images)
        if isinstance(entry, dict) and "expressions" not in entry and not near_miss("expressions", tuple(entry)):
            continue
        if mistakes.has_none(where, entry, lambda entry: _coco_problems(entry, images, known, ids)):
            ids.add(str(entry["id"]))
            image, its_split = images[entry["image_id"]], entry.get("split", default_split)
            if image is None:
                mistakes.leave_out(where, [], its_split, len(entry["expressions"]))
                continue
            records.append(
                Record(
                    where,
                    id=str(entry["id"]),
                    image_name=str(image["id"]),
                    image=_resolve(folder, image["file_name"]),
                    expressions=tuple(entry["expressions"]),
                    segmentation=entry["segmentation"],
                    split=its_split,
                    size=_size_in(image),
                    has_box=_has_box(entry),
                )
            )
    if not records and not mistakes.found:
        raise UserError(
            f"{path} has no annotation with 'expressions'; add the field to the referents (docs/own_data.md)"
        )
    return _make_source(path.name, records, split, mistakes, apply_exif)


def find_file(root: str | Path, file: str, split: str) -> tuple[Path, str]:
    """Return the path of a file and the split of its records that have no "split".

    "{split}" in the file's name is replaced by the split (one file per split); otherwise those records are in "train".
    """
    if not str(root):
        raise UserError("config.input.source.root is empty; set it to the folder of the data (docs/own_data.md)")
    path = Path(root).expanduser() / file.replace("{split}", split)
    if not path.is_file():
        raise UserError(
            f"file {path} not found; correct config.input.source.root or config.input.source.file (docs/own_data.md)"
        )
    return path, split if "{split}" in file else "train"


def _line_problems(entry: dict[str, Any]) -> list[str]:
    kinds = [kind for kind in _MASK_KINDS if kind in entry]
    problems = _problems(entry, ("image", "expressions"), ("image", "mask", "split"))
    if len(kinds) != 1:
        found = " and ".join(map(repr, kinds)) if kinds else "none"
        problems.append(f"needs one of 'mask', 'polygon' and 'rle', has {found}")
    for kind, type_, form in (("polygon", list, "be a list of lists"), ("rle", dict, "have a size and counts")):
        if kind in entry:
            right = isinstance(entry[kind], type_)
            problems.append(_segmentation_problem(entry[kind]) if right else f"{kind!r} must {form}")
    if "mask" in entry and entry["mask"] == entry.get("image"):
        problems.append("'mask' is the file of 'image'; give a file that is zero outside of the referent")
    return problems


def _size_in(entry: dict[str, Any]) -> tuple[int, int] | None:
    """Return the height and width of the image that an entry states, None if it does not state both.

    640.0 is read as 640: pandas writes floats if one value of the column is missing.
    """
    sides: list[Any] = [entry.get("height"), entry.get("width")]
    whole = all(isinstance(side, int) or (isinstance(side, float) and side.is_integer()) for side in sides)
    return (int(sides[0]), int(sides[1])) if whole else None


def _problems(entry: dict[str, Any], required: Sequence[str], strings: Sequence[str]) -> list[str]:
    """Return what is wrong with the fields that both formats have; "" is no problem."""
    problems = [f"{name!r} is missing" for name in required if name not in entry]
    problems += [near_miss(name, tuple(entry)) for name in ("split", "expressions")]
    problems += [_string_problem(name, entry) for name in strings]
    problems += [_address_problem(name, entry[name]) for name in ("image", "mask") if name in entry]
    return [*problems, expressions_problem(entry["expressions"]) if "expressions" in entry else ""]


def _string_problem(name: str, entry: dict[str, Any]) -> str:
    """Return what is wrong with a field that must be a string and not empty, "" if nothing or if it does not exist."""
    if name not in entry or (isinstance(entry[name], str) and entry[name]):
        return ""
    return f"{name!r} must be a string, got {entry[name]!r:.40}"


def _address_problem(name: str, value: Any) -> str:
    is_address = isinstance(value, str) and "://" in value
    return f"{name!r} is the address {value!r:.60}; download the file and give its path" if is_address else ""


def _coco_images(entries: list[Any], mistakes: Mistakes) -> dict[Any, dict[str, Any] | None]:
    """Return the entries of images by id, None for an id whose image has a mistake or is not known."""
    images: dict[Any, dict[str, Any] | None] = {}
    by_name: dict[str, dict[str, Any]] = {}  # 7 and "7" would give examples of one name
    for position, entry in enumerate(entries):
        fields = {"id": int | str, "file_name": str, "height": int, "width": int}
        wrong = [
            name for name, kind in fields.items() if not (isinstance(entry, dict) and isinstance(entry.get(name), kind))
        ]
        problem = _wrong_fields(entry, wrong, fields) if wrong else _image_problem(entry)
        if problem:
            mistakes.add(f"image {_coco_name(entry, position)}", problem)
            if "id" not in wrong:
                images[entry["id"]] = None
            continue
        first = by_name.setdefault(str(entry["id"]), entry)
        if first["file_name"] == entry["file_name"]:
            images.setdefault(entry["id"], entry)
        else:
            both = f"{first['file_name']} and {entry['file_name']}"
            mistakes.add(f"image {entry['id']}", f"two images have this id: {both}")
            images[first["id"]] = images[entry["id"]] = None  # it is unknown to which of them the annotations belong
    return images


def _image_problem(entry: dict[str, Any]) -> str:
    """Return what is wrong with the name or the split of an image entry, or ""."""
    return (
        _string_problem("split", entry)
        or _address_problem("file_name", entry["file_name"])
        or near_miss("split", tuple(entry))
    )


def _with_split(entry: Any, images: Mapping[Any, Any]) -> Any:
    """Return the entry of an annotation, with the split of its image if it has none."""
    if not isinstance(entry, dict) or near_miss("split", tuple(entry)):
        return entry
    image_id = entry.get("image_id")
    image = images.get(image_id) if isinstance(image_id, int | str) else None
    return {"split": image["split"]} | entry if image and "split" in image else entry


def _wrong_fields(entry: Any, wrong: Sequence[str], kinds: Mapping[str, Any]) -> str:
    """Return what the fields of an image entry must be, and what they are."""
    if not isinstance(entry, dict):
        return f"must be an object, got {entry!r:.40}"
    words = {int: "an integer", str: "a string"}
    return ", ".join(
        f"{name!r} must be {words.get(kinds[name], 'an integer or a string')}, got {entry[name]!r:.40}"
        if name in entry
        else f"{name!r} is missing"
        for name in wrong
    )


def _coco_name(entry: Any, position: int) -> str:
    return str(entry["id"]) if isinstance(entry, dict) and "id" in entry else f"at position {position}"


def _coco_problems(
    entry: dict[str, Any], images: Mapping[Any, Any], known: Mapping[str, Any], ids: set[str]
) -> list[str]:
    """Return the mistakes of an annotation; `known` has the ids of `images` by their text.

    `ids` are those of the annotations before it.
    """
    problems = _problems(entry, ("id", "image_id", "segmentation"), ("split",))
    if "image_id" in entry and (not isinstance(id := entry["image_id"], int | str) or id not in images):
        alike = id_of_other_kind(id, known)
        hint = f"; there is one with the id {alike}: write both in the same way" if alike else ""
        problems.append(f"no image has the id {id!r:.40}{hint}")
    elif (its_split := entry.get("split")) and (image := images.get(id)) and image.get("split", its_split) != its_split:
        problems.append(
            f"its split is {its_split!r:.40}, that of its image {image['split']!r:.40}; correct one of them"
        )
    if "segmentation" in entry:
        problems.append(_segmentation_problem(entry["segmentation"]))
        box = entry.get("bbox") or []
        if not isinstance(box, list):
            problems.append(f"'bbox' must be a list of four numbers, got {box!r:.40}")
        elif entry["segmentation"] == [] and _has_box(entry):
            problems.append(NO_MASK_IN_BOX)
    if not any(problems) and str(entry["id"]) in ids:
        problems.append("another annotation has this id")
    return problems


def _has_box(entry: dict[str, Any]) -> bool:
    return bool(entry.get("area") or any(entry.get("bbox") or ()))


def _resolve(folder: Path, name: str) -> Path:
    """Return the path of a file named absolutely or relative to `folder`, normalized where that is the same file.

    After a symbolic link, ".." is the parent of the folder that it links to, so normalizing may name another file.
    """
    path = path_in(folder, os.path.expanduser(name))
    normal = Path(os.path.normpath(path))
    with suppress(OSError, ValueError):  # one of them does not exist, or has a NUL
        if normal == path or normal.samefile(path):
            return normal
    return path


def _segmentation_problem(value: Any) -> str:
    """Return why no part of a COCO segmentation (polygons, an RLE, or a list of RLEs) can be a mask, or ""."""
    parts = [value] if isinstance(value, dict) else value
    if not isinstance(parts, list):
        return f"a mask must be a list of polygons or an RLE, got {value!r:.40}"
    problems = [part_problem(part) for part in parts]
    return problems[0] if all(problems) and problems else fractions_problem(parts)


def _make_source(
    name: str, records: Sequence[Record], split: str, mistakes: Mistakes, apply_exif: bool
) -> StoredSource:
    """Return the source of one split of the records: one example for each image, in the order of the file.

    Raises:
        UserError: there are mistakes, those of the images included, or no record is in the split.
    """
    mistakes.settle()
    splits = [record.split for record in records]
    chosen = [record for record in records if record.split == split]
    if not chosen:
        raise split_error(split, mistakes.path, splits)
    check_splits(splits, split, mistakes.path)
    one_file = len(set(splits)) > 1
    if one_file and split != "train":
        _warn_of_shared_images(records, split, mistakes.path)
    headers = map_files(read_header, (record.image for record in chosen))
    if apply_exif:
        headers = {path: header.upright() for path, header in headers.items()}
    chosen = check_against_images(chosen, headers, mistakes)
    mistakes.settle()
    turned = [path.name for path, header in headers.items() if header.orientation != 1]
    if turned:
        _LOG.warning(
            "%s: images with an EXIF orientation: %d, such as %s; they are used as stored: if their masks were drawn "
            "on the upright image, set apply_exif=True in config.input.source",
            *(mistakes.path, len(turned), turned[0]),
        )
    if not chosen:
        raise UserError(f"no referent of split {split!r} in {mistakes.path} has a mask (docs/own_data.md)")
    by_image: defaultdict[tuple[Path, tuple[int, int]], list[Record]] = defaultdict(list)
    for record in chosen:  # with the annotated size, so that reading an image whose size differs fails
        header = headers[record.image]
        by_image[record.image, record.size or (header.height, header.width)].append(record)
    examples = [_example(group, size, apply_exif) for (_, size), group in by_image.items()]
    groups = [consecutive_groups([len(record.expressions) for record in group]) for group in by_image.values()]
    left_out = mistakes.left_out_of(split)
    return StoredSource(
        *(f"{name} {split}", examples, groups), images_checked=True, left_out=left_out, splits_compared=one_file
    )


def _warn_of_shared_images(records: Sequence[Record], split: str, path: Path) -> None:
    """Warn of images of a split that other splits of the file have too."""
    others = {record.image for record in records if record.split != split}
    shared = sorted({record.image.name for record in records if record.split == split and record.image in others})
    if shared:
        _LOG.warning(
            "%s: images of %s that are also in other splits: %d, such as %s; if they are trained on, scores on them are"
            " not scores on unseen images",
            *(path, split, len(shared), shared[0]),
        )


def _example(records: Sequence[Record], size: tuple[int, int], apply_exif: bool) -> Example:
    expressions = tuple(
        Expression(text, record.segmentation, id=f"{record.id}-{number}")
        for record in records
        for number, text in enumerate(record.expressions)
    )
    return Example(records[0].image_name, records[0].image, *size, expressions, apply_exif)
