"""One's own data, whatever file it comes from: checked records become a source.

All that can be found out from the text of a file and the headers of its images is checked when it is read, since a
mistake in one's own data is otherwise found hours into a training. Only the pixels remain for later.

One's own data as JSON lines, a referent a line:

{"image": "kitchen.jpg", "mask": "cup.png", "expressions": ["the red cup", "cup on the left"], "split": "train"}
{"image": "kitchen.jpg", "polygon": [[12, 30, 60, 30, 60, 80]], "expressions": ["the kettle"], "split": "train"}
{"image": "garden.jpg", "rle": {"size": [480, 640], "counts": "..."}, "expressions": ["the dog"], "split": "val"}
{"image": "garden.jpg", "polygon": [], "expressions": ["the cat"], "split": "val"}   (there is none)

One's own data as JSON in COCO's format, whose annotations carry "expressions" and, if wanted, a "split".
"""

from __future__ import annotations

import json
import logging
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from s2rm_jax.errors import UserError
from s2rm_jax.input.example import Example, Expression, Segmentation, StoredSource
from s2rm_jax.input.images import Header, for_each, read_header
from s2rm_jax.input.masks import FARTHEST, problem_of_file

_LOG = logging.getLogger(__name__)
_SHOWN = 5  # mistakes in a message


@dataclass(frozen=True)
class Record:
    """What some expressions refer to in an image, and where that is written: "line 3" or "annotation 7"."""

    where: str
    id: str
    image_name: str
    image: Path
    expressions: tuple[str, ...]
    segmentation: Segmentation
    split: str
    size: tuple[int, int] | None = None  # height, width, where the file says them


@dataclass
class Mistakes:
    """What is wrong in a file, collected so that it is told all at once."""

    path: Path
    found: list[str] = field(default_factory=list)

    def add(self, where: str, *problems: str) -> None:
        """Note what is wrong at a place; empty texts are no problems."""
        self.found += [f"{where}: {problem}" for problem in problems if problem]

    def tell(self) -> None:
        """Raise a UserError of one line if anything was found."""
        if self.found:
            more = f"; and {len(self.found) - _SHOWN} more" if len(self.found) > _SHOWN else ""
            count = "a mistake" if len(self.found) == 1 else f"{len(self.found)} mistakes"
            raise UserError(f"{self.path} has {count}: {'; '.join(self.found[:_SHOWN])}{more} (docs/own_data.md)")


def file_of(root: str | Path, file: str, split: str) -> tuple[Path, str]:
    """Return the path of a file of one's own and the split of the records in it that name none.

    "{split}" in the file's name stands for the split: one file for each of them. Else those records are "train".
    """
    if not str(root):
        raise UserError("the folder of the data is not given; set the source's root to it (docs/own_data.md)")
    path = Path(root).expanduser() / file.replace("{split}", split)
    if not path.is_file():
        raise UserError(f"there is no file {path}; set the source's root and file to it (docs/own_data.md)")
    return path, split if "{split}" in file else "train"


def path_beside(folder: Path, name: str) -> Path:
    """The path of a file that is named relative to `folder` or absolutely, the same for every way to write it."""
    return Path(os.path.normpath(folder / name))


def problem_of_expressions(value: Any, name: str) -> str:
    """Say what is wrong with a list of expressions, or ""."""
    if not isinstance(value, list) or not value or not all(isinstance(text, str) for text in value):
        return f'{name!r} must be a list of texts, such as ["the red cup"], got {value!r:.40}'
    return "" if all(text.strip() for text in value) else f"{name!r} has an empty expression"


def problem_of_segmentation(value: Any) -> str:
    """Say what is wrong with a COCO segmentation (polygons, RLE, or a list of RLEs) by itself, or ""."""
    parts = [value] if isinstance(value, dict) else value
    if not isinstance(parts, list):
        return f"a mask must be a list of polygons or an RLE, got {value!r:.40}"
    problems = (_problem_of_rle(part) if isinstance(part, dict) else _problem_of_polygon(part) for part in parts)
    return next(filter(None, problems), "")


def _problem_of_polygon(value: Any) -> str:
    if not isinstance(value, list):
        return f"a polygon must be a list [x0, y0, x1, y1, ...] in a list of polygons, got {value!r:.40}"
    if not all(isinstance(number, int | float) and abs(number) < FARTHEST for number in value):  # NaN is not less
        return f"a polygon has something that is no pixel coordinate: {value!r:.40}"
    if len(value) % 2:
        return f"a polygon has an odd number of coordinates ({len(value)})"
    return "" if len(value) >= 6 else f"a polygon has {len(value) // 2} corners; it needs at least 3"


def _problem_of_rle(value: dict[str, Any]) -> str:
    size, counts = value.get("size"), value.get("counts")
    if not (isinstance(size, list) and len(size) == 2 and all(isinstance(side, int) for side in size)):
        return f"an RLE needs a size [height, width], got {size!r:.40}"
    if isinstance(counts, str) and counts:
        return ""
    if not isinstance(counts, list) or not all(isinstance(run, int) and run >= 0 for run in counts):
        return f"an RLE needs counts, as text or a list of run lengths, got {counts!r:.40}"
    covered, pixels = sum(counts), size[0] * size[1]
    return "" if covered == pixels else f"an RLE covers {covered} pixels, its size has {pixels}"


def source_of(name: str, records: Sequence[Record], split: str, mistakes: Mistakes) -> StoredSource:
    """Make the source of one split: an example for each image, in the order of the file.

    Args:
      name: for messages.
      records: of all splits.
      split: which to take.
      mistakes: those found so far, to be told with those of the images.

    Raises:
      UserError: there are mistakes, or no record is in the split.
    """
    mistakes.tell()
    chosen = [record for record in records if record.split == split]
    if not chosen:
        counts = Counter(record.split for record in records)
        known = ", ".join(f"{name} ({count} referents)" for name, count in sorted(counts.items()))
        raise UserError(f"{mistakes.path} has no split {split!r}; it has {known or 'nothing at all'}")
    _warn_of_shared_images(records, mistakes.path)
    headers = for_each(read_header, (record.image for record in chosen))
    _check_against_images(chosen, headers, mistakes)
    mistakes.tell()
    turned = [path.name for path, header in headers.items() if header.is_turned]
    if turned:
        _LOG.warning(
            "%s: images to be turned by their viewer (EXIF): %d, such as %s; they are taken as they are stored, "
            "so their masks must be drawn on the stored image",
            *(mistakes.path, len(turned), turned[0]),
        )
    on_image: defaultdict[Path, list[Record]] = defaultdict(list)
    for record in chosen:
        on_image[record.image].append(record)
    examples = [_example(group, headers[image]) for image, group in on_image.items()]
    return StoredSource(f"{name} {split}", examples, [_groups(group) for group in on_image.values()])


def _check_against_images(records: Iterable[Record], headers: dict[Path, Header], mistakes: Mistakes) -> None:
    mask_files = {}
    for record in records:
        header = headers[record.image]
        size = (header.height, header.width)
        if header.problem:
            mistakes.add(record.where, header.problem)
        elif record.size and record.size != size:
            mistakes.add(record.where, f"{record.image} has {_sides(size)} pixels, the file says {_sides(record.size)}")
        elif isinstance(record.segmentation, dict) and "png" in record.segmentation:
            mask_files[record.where] = (record.segmentation["png"], *size)
        else:
            mistakes.add(record.where, _misfit(record.segmentation, *size))
    problems = for_each(lambda job: problem_of_file(*job), mask_files.values())
    for where, job in mask_files.items():
        mistakes.add(where, problems[job])


def _misfit(segmentation: Any, height: int, width: int) -> str:
    for part in [segmentation] if isinstance(segmentation, dict) else segmentation:
        if isinstance(part, dict):
            if part["size"] != [height, width]:
                return f"an RLE has size {part['size']}, its image {[height, width]}"
        elif min(part[::2]) >= width or min(part[1::2]) >= height or max(part[::2]) <= 0 or max(part[1::2]) <= 0:
            return f"a polygon lies outside of its image of {_sides((height, width))} pixels: {part!r:.40}"
    return ""


def _sides(size: tuple[int, int]) -> str:
    return f"{size[1]} x {size[0]}"


def _warn_of_shared_images(records: Sequence[Record], path: Path) -> None:
    splits = defaultdict(set)
    for record in records:
        splits[record.image].add(record.split)
    shared = [image.name for image, names in splits.items() if len(names) > 1]
    if shared:
        _LOG.warning(
            "%s: images in more than one split: %d, such as %s; a score on them is not one on unseen images",
            *(path, len(shared), shared[0]),
        )


def _example(records: Sequence[Record], header: Header) -> Example:
    expressions = tuple(
        Expression(text, record.segmentation, id=f"{record.id}-{number}")
        for record in records
        for number, text in enumerate(record.expressions)
    )
    return Example(records[0].image_name, records[0].image, header.height, header.width, expressions)


def _groups(records: Sequence[Record]) -> tuple[tuple[int, ...], ...]:
    groups, first = [], 0
    for record in records:
        groups.append(tuple(range(first, first + len(record.expressions))))
        first += len(record.expressions)
    return tuple(groups)


_MASK_KINDS = ("mask", "polygon", "rle")


def json_lines_source(split: str, *, root: str | Path, file: str = "data.jsonl") -> StoredSource:
    """Read one split; the lines of one image become one example, each line a referent.

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
            record = _line_record(line, number, path.parent, default_split, mistakes)
            records += [record] if record else []
    return source_of(path.name, records, split, mistakes)


def _line_record(line: str, number: int, folder: Path, default_split: str, mistakes: Mistakes) -> Record | None:
    """Return the record of a line, or None if there is something wrong with it, which is noted."""
    where = f"line {number}"
    try:
        entry = json.loads(line)
    except ValueError as error:
        mistakes.add(where, f"not JSON ({error})")
        return None
    problems = list(filter(None, _line_problems(entry)))
    mistakes.add(where, *problems)
    if problems:
        return None
    return Record(
        where=where,
        id=str(number),
        image_name=entry["image"],
        image=path_beside(folder, entry["image"]),
        expressions=tuple(entry["expressions"]),
        segmentation=_segmentation(entry, folder),
        split=entry.get("split", default_split),
    )


def _line_problems(entry: Any) -> list[str]:
    if not isinstance(entry, dict):
        return [f"must be an object {{...}}, got {entry!r:.40}"]
    kinds = [kind for kind in _MASK_KINDS if kind in entry]
    problems = [f"{name!r} is missing" for name in ("image", "expressions") if name not in entry]
    if len(kinds) != 1:
        found = " and ".join(map(repr, kinds)) if kinds else "none"
        problems.append(f"needs one of 'mask', 'polygon' and 'rle', has {found}")
    problems += [
        f"{name!r} must be a text, got {entry[name]!r:.40}"
        for name in ("image", "mask", "split")
        if name in entry and not (isinstance(entry[name], str) and entry[name])
    ]
    if "expressions" in entry:
        problems.append(problem_of_expressions(entry["expressions"], "expressions"))
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


def coco_json_source(
    split: str, *, root: str | Path, file: str = "annotations.json", image_root: str | Path = ""
) -> StoredSource:
    """Read one split; annotations without "expressions" are not referred to and passed over.

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
            problems = list(filter(None, _coco_problems(entry, images)))
            mistakes.add(where, *problems)
            if not problems:
                records.append(_coco_record(where, entry, images[entry["image_id"]], folder, default_split))
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


def _coco_record(where: str, entry: dict[str, Any], image: dict[str, Any], folder: Path, default_split: str) -> Record:
    return Record(
        where=where,
        id=str(entry["id"]),
        image_name=str(image["id"]),
        image=path_beside(folder, image["file_name"]),
        expressions=tuple(entry["expressions"]),
        segmentation=entry["segmentation"],
        split=entry.get("split", default_split),
        size=(image["height"], image["width"]),
    )


def _coco_problems(entry: dict[str, Any], images: dict[Any, dict[str, Any]]) -> list[str]:
    problems = [f"{name!r} is missing" for name in ("id", "image_id", "segmentation") if name not in entry]
    problems.append(problem_of_expressions(entry["expressions"], "expressions"))
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
