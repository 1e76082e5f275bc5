"""Mistakes in custom data: collecting them, and finding those that the images of the records show."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from s2rm_jax.errors import UserError, first_of
from s2rm_jax.input.example import Segmentation
from s2rm_jax.input.images import Header, map_files
from s2rm_jax.input.masks import mask_file_problem, usable_parts

_LOG = logging.getLogger(__name__)

NO_MASK_IN_BOX = "has a box or an area but no mask; add a mask, or remove both if it refers to nothing"
# How far polygons are drawn across the border of an image: in pixels, and as a part of its side. COCO's by a pixel.
_LEAST_MARGIN, _MARGIN = 2, 0.02


@dataclass(frozen=True)
class Record:
    """A referent in an image with its expressions; `where` is its place in the file, as "line 3" or "annotation 7"."""

    where: str
    id: str
    image_name: str
    image: Path
    expressions: tuple[str, ...]
    segmentation: Segmentation
    split: str
    size: tuple[int, int] | None = None  # height and width, if the file has them
    has_box: bool = False  # so it needs a mask with pixels


@dataclass
class Mistakes:
    """The mistakes in a file, collected to report them together; with `skip` in a warning.

    `default_split` is the split of entries that name none.
    """

    path: Path
    skip: bool
    default_split: str
    found: list[str] = field(default_factory=list)
    left_out: list[tuple[str | None, str]] = field(default_factory=list)  # see `leave_out`

    def add(self, where: str, *problems: str) -> None:
        """Add the problems at a place; empty strings are ignored."""
        self.found += [f"{where}: {problem}" for problem in problems if problem]

    def leave_out(self, where: str, problems: Sequence[str], split: str | None = None, expressions: int = 1) -> None:
        """Add the problems of an entry that is left out, and note the first one for each of its expressions.

        The split of an entry that cannot be read is None: it may belong to any. An entry that has no problem itself is
        left out because of its image, whose problem was added already.
        """
        self.add(where, *problems)
        reason = problems[0] if problems else "its image is left out"
        self.left_out += [(split, f"{self.path}: {where}: {reason}")] * expressions

    def left_out_of(self, split: str) -> tuple[str, ...]:
        """Return the problem of each expression of a split that was left out."""
        return tuple(problem for its_split, problem in self.left_out if its_split in (split, None))

    def has_none(self, where: str, entry: Any, find_problems: Callable[[dict[str, Any]], list[str]]) -> bool:
        """Return whether an entry of a file has no problems; leave it out if it has any."""
        if not isinstance(entry, dict):
            self.leave_out(where, [f"must be an object {{...}}, got {entry!r:.40}"])
            return False
        problems = [problem for problem in find_problems(entry) if problem]
        if problems:
            split, expressions = entry.get("split", self.default_split), entry.get("expressions")
            count = len(expressions) if isinstance(expressions, list) else 1
            self.leave_out(where, problems, split if isinstance(split, str) else None, max(1, count))
        return not problems

    def settle(self) -> None:
        """Raise a UserError of one line if there are mistakes, or with `skip` warn of them and forget them."""
        if self.found:
            count = "a mistake" if len(self.found) == 1 else f"{len(self.found)} mistakes"
            message = f"{self.path} has {count}: {first_of(self.found)} (docs/own_data.md)"
            if not self.skip:
                raise UserError(message)
            _LOG.warning(
                "%s; as config.input.on_bad_example is skip, such entries are left out, and images that cannot be read "
                "are replaced by the next ones when they are read",
                message,
            )
            self.found.clear()


def check_against_images(records: Iterable[Record], headers: dict[Path, Header], mistakes: Mistakes) -> list[Record]:
    """Add the mistakes that the headers of images and mask files show, and decode the masks.

    Return the records that have a mask, without its bad parts; also those whose files are at fault.
    """
    kept, mask_files, empty, bad_parts, reach_out = [], {}, [], [], []
    for record in records:
        header = headers[record.image]
        size = (header.height, header.width)
        hint = "; EXIF rotates the image: set apply_exif=True in config.input.source" if header.orientation > 1 else ""
        if header.problem:
            mistakes.add(record.where, header.problem)
        elif record.size and record.size != size:
            problem = f"{record.image} has {_sides(size)} pixels, its entry says {_sides(record.size)}"
            mistakes.add(record.where, problem + hint)
        elif isinstance(record.segmentation, dict) and "png" in record.segmentation:
            mask_files[record.where] = (record.segmentation["png"], *size), hint
        elif record.segmentation:
            segmentation, problems, is_empty, has_pixels = usable_parts(record.segmentation, *size)
            if is_empty and all(_lies_outside(part, *size) for part in segmentation):
                problem = f"a polygon lies outside of its image of {_sides(size)} pixels: {segmentation[0]!r:.40}"
                mistakes.leave_out(record.where, [problem + hint], record.split, len(record.expressions))
            elif is_empty:
                empty.append(record.where)
            elif not segmentation or (record.has_box and not has_pixels):
                problem = problems[0] + hint if problems else NO_MASK_IN_BOX
                mistakes.leave_out(record.where, [problem], record.split, len(record.expressions))
            else:
                bad_parts += [f"{record.where}: {problem}" for problem in problems]
                if reach := _reach_out(segmentation, *size):
                    reach_out.append(f"{record.where}: {reach}")
                kept.append(replace(record, segmentation=segmentation))
            continue
        kept.append(record)
    file_problems = map_files(lambda job: mask_file_problem(*job), (job for job, _ in mask_files.values()))
    for where, (job, hint) in mask_files.items():
        mistakes.add(where, file_problems[job] and file_problems[job] + hint)
    _warn(mistakes.path, "referents left out because their polygons cover no pixel", empty)
    _warn(mistakes.path, "undecodable parts left out of masks that also have valid parts", bad_parts)
    _warn(
        mistakes.path,
        "referents whose polygons reach out of their image, where they are cut off; were they drawn at another size?",
        reach_out,
    )
    return kept


def _reach_out(segmentation: Segmentation, height: int, width: int) -> str:
    """Return how far a polygon reaches out of its image, or "" where none does by more than its drawing explains."""
    for polygon in (part for part in segmentation if isinstance(part, list)):
        for name, numbers, side in (("x", polygon[::2], width), ("y", polygon[1::2], height)):
            low, high, margin = min(numbers), max(numbers), max(_LEAST_MARGIN, _MARGIN * side)
            if low < -margin or high > side + margin:
                return f"{name} from {low:g} to {high:g} in {side} pixels"
    return ""


def _lies_outside(polygon: list[int | float], height: int, width: int) -> bool:
    xs, ys = polygon[::2], polygon[1::2]
    return min(xs) >= width or min(ys) >= height or max(xs) <= 0 or max(ys) <= 0


def _warn(path: Path, what: str, cases: list[str]) -> None:
    if cases:
        _LOG.warning("%s: %s: %d (%s)", path, what, len(cases), first_of(cases))


def _sides(size: tuple[int, int]) -> str:
    return f"{size[1]} x {size[0]}"
