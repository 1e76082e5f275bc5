"""One's own data, whatever file it comes from: checked records become a source.

All that can be found out from the text of a file and the headers of its pictures is checked when it is read, since a
mistake in one's own data is otherwise found hours into a training. Only the pixels remain for later.
"""

from __future__ import annotations

import logging
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from s2rm_jax.errors import UserError
from s2rm_jax.input.example import Example, Expression, Segmentation
from s2rm_jax.input.mask_files import problem_of_file
from s2rm_jax.input.masks import FARTHEST
from s2rm_jax.input.picture_headers import Header, for_each, read_header
from s2rm_jax.input.stored import StoredSource

_LOG = logging.getLogger(__name__)
_SHOWN = 5  # mistakes in a message


@dataclass(frozen=True)
class Record:
    """What some sentences refer to in a picture, and where that is written: "line 3" or "annotation 7"."""

    where: str
    id: str
    image_name: str
    image: Path
    sentences: tuple[str, ...]
    segmentation: Segmentation
    split: str
    size: tuple[int, int] | None = None  # height, width, where the file says them


@dataclass
class Mistakes:
    """What is wrong in a file, collected so that it is told all at once."""

    path: Path
    found: list[str] = field(default_factory=list)

    def add(self, where: str, *problems: str) -> None:
        """Notes what is wrong at a place; empty texts are no problems."""
        self.found += [f"{where}: {problem}" for problem in problems if problem]

    def tell(self) -> None:
        """Raises a UserError of one line if anything was found."""
        if self.found:
            more = f"; and {len(self.found) - _SHOWN} more" if len(self.found) > _SHOWN else ""
            count = "a mistake" if len(self.found) == 1 else f"{len(self.found)} mistakes"
            raise UserError(f"{self.path} has {count}: {'; '.join(self.found[:_SHOWN])}{more} (docs/own_data.md)")


def file_of(root: str | Path, file: str, split: str) -> tuple[Path, str]:
    """Returns the path of a file of one's own and the split of the records in it that name none.

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


def problem_of_sentences(value: Any, name: str) -> str:
    """Says what is wrong with a list of sentences, or ""."""
    if not isinstance(value, list) or not value or not all(isinstance(text, str) for text in value):
        return f'{name!r} must be a list of texts, such as ["the red cup"], got {value!r:.40}'
    return "" if all(text.strip() for text in value) else f"{name!r} has an empty sentence"


def problem_of_segmentation(value: Any) -> str:
    """Says what is wrong with a COCO segmentation (polygons, RLE, or a list of RLEs) by itself, or ""."""
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
    """Makes the source of one split: an example for each picture, in the order of the file.

    Args:
      name: for messages.
      records: of all splits.
      split: which to take.
      mistakes: those found so far, to be told with those of the pictures.

    Raises:
      UserError: there are mistakes, or no record is in the split.
    """
    mistakes.tell()
    chosen = [record for record in records if record.split == split]
    if not chosen:
        counts = Counter(record.split for record in records)
        known = ", ".join(f"{name} ({count} referents)" for name, count in sorted(counts.items()))
        raise UserError(f"{mistakes.path} has no split {split!r}; it has {known or 'nothing at all'}")
    _warn_of_shared_pictures(records, mistakes.path)
    headers = for_each(read_header, (record.image for record in chosen))
    _check_against_pictures(chosen, headers, mistakes)
    mistakes.tell()
    turned = [path.name for path, header in headers.items() if header.is_turned]
    if turned:
        _LOG.warning(
            "%s: pictures to be turned by their viewer (EXIF): %d, such as %s; they are taken as they are stored, "
            "so their masks must be drawn on the stored picture",
            *(mistakes.path, len(turned), turned[0]),
        )
    on_picture: defaultdict[Path, list[Record]] = defaultdict(list)
    for record in chosen:
        on_picture[record.image].append(record)
    examples = [_example(group, headers[image]) for image, group in on_picture.items()]
    return StoredSource(f"{name} {split}", examples, [_groups(group) for group in on_picture.values()])


def _check_against_pictures(records: Iterable[Record], headers: dict[Path, Header], mistakes: Mistakes) -> None:
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
                return f"an RLE has size {part['size']}, its picture {[height, width]}"
        elif min(part[::2]) >= width or min(part[1::2]) >= height or max(part[::2]) <= 0 or max(part[1::2]) <= 0:
            return f"a polygon lies outside of its picture of {_sides((height, width))} pixels: {part!r:.40}"
    return ""


def _sides(size: tuple[int, int]) -> str:
    return f"{size[1]} x {size[0]}"


def _warn_of_shared_pictures(records: Sequence[Record], path: Path) -> None:
    splits = defaultdict(set)
    for record in records:
        splits[record.image].add(record.split)
    shared = [image.name for image, names in splits.items() if len(names) > 1]
    if shared:
        _LOG.warning(
            "%s: pictures in more than one split: %d, such as %s; a score on them is not one on unseen pictures",
            *(path, len(shared), shared[0]),
        )


def _example(records: Sequence[Record], header: Header) -> Example:
    expressions = tuple(
        Expression(text, record.segmentation, id=f"{record.id}-{number}")
        for record in records
        for number, text in enumerate(record.sentences)
    )
    return Example(records[0].image_name, records[0].image, header.height, header.width, expressions)


def _groups(records: Sequence[Record]) -> tuple[tuple[int, ...], ...]:
    groups, first = [], 0
    for record in records:
        groups.append(tuple(range(first, first + len(record.sentences))))
        first += len(record.sentences)
    return tuple(groups)
