"""The pictures of a folder or of a pattern, in the order in which a person counts them."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from s2rm_jax.errors import UserError
from s2rm_jax.input.images import FORMATS


def find_pictures(given: str) -> list[Path]:
    """Returns the pictures of a folder, or the files that fit a pattern such as frames/*.jpg; `**` goes into folders.

    They are in natural order: frame9.jpg comes before frame10.jpg. Of a folder, files count by their suffix. The name
    of a file that is there is no pattern, whatever letters it has.

    Raises:
        UserError: there are none.
    """
    folder = Path(given).expanduser()
    if folder.is_dir():
        suffixes = {suffix for suffix, name in Image.registered_extensions().items() if name in FORMATS}
        paths = [path for path in folder.iterdir() if path.suffix.lower() in suffixes and path.is_file()]
        missing = f"the folder {given} holds no pictures ({', '.join(FORMATS)}); name another, or a pattern"
    else:
        found = [str(folder)] if folder.is_file() else glob.glob(str(folder), recursive=True)
        paths = [path for path in map(Path, found) if path.is_file()]
        missing = f"no file fits {given}; check the pattern, which is best put into quotes"
    if not paths:
        raise UserError(missing)
    return sorted(set(paths), key=_natural)  # two ** of a pattern find a file more than once


def result_folders(paths: Sequence[Path], taken: str) -> list[Path]:
    """Returns a relative path for the results of each picture: its place below the folder that all share.

    The suffixes are left out if all paths still differ, and none is the file `taken`.
    """
    absolute = [path.absolute() for path in paths]
    common = os.path.commonpath([path.parent for path in absolute])
    places = [path.relative_to(common) for path in absolute]
    bare = [place.with_suffix("") for place in places]
    return bare if len({*bare, Path(taken)}) == len(bare) + 1 else places


def _natural(path: Path) -> tuple[list[tuple[int, str]], str]:
    parts = re.split(r"(\d+)", str(path).lower())
    numbered = [(int(part), "") if place % 2 else (-1, part) for place, part in enumerate(parts)]
    return numbered, str(path)
