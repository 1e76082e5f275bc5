"""The images of a folder or of a pattern, in the order in which a person counts them.

Reads of many image files what their first bytes say: that they can be read, and how large they are.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import NamedTuple, TypeVar

from PIL import Image

from s2rm_jax.errors import UserError
from s2rm_jax.input.images import FORMATS


def list_images(given: str) -> list[Path]:
    """Returns the images of a folder, or the files that fit a pattern such as frames/*.jpg; `**` goes into folders.

    They are in natural order: frame9.jpg comes before frame10.jpg. Of a folder, files count by their suffix. The name
    of a file that is there is no pattern, whatever letters it has.

    Raises:
        UserError: there are none.
    """
    folder = Path(given).expanduser()
    if folder.is_dir():
        suffixes = {suffix for suffix, name in Image.registered_extensions().items() if name in FORMATS}
        paths = [path for path in folder.iterdir() if path.suffix.lower() in suffixes and path.is_file()]
        missing = f"the folder {given} holds no images ({', '.join(FORMATS)}); name another, or a pattern"
    else:
        found = [str(folder)] if folder.is_file() else glob.glob(str(folder), recursive=True)
        paths = [path for path in map(Path, found) if path.is_file()]
        missing = f"no file fits {given}; check the pattern, which is best put into quotes"
    if not paths:
        raise UserError(missing)
    return sorted(set(paths), key=_natural)  # two ** of a pattern find a file more than once


def result_folders(paths: Sequence[Path], taken: str) -> list[Path]:
    """Returns a relative path for the results of each image: its place below the folder that all share.

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


_THREADS = 8  # for the waiting on disks and networks; the reading itself takes 0.1 ms a file
_RUN = 64  # files that a thread takes at a time; handing them over one by one takes as long as reading them
_ORIENTATION = 0x0112  # the EXIF tag
_Key = TypeVar("_Key")
_Value = TypeVar("_Value")


class Header(NamedTuple):
    """Height and width in pixels as stored; whether EXIF asks viewers to turn the image; or else what is wrong."""

    height: int = 0
    width: int = 0
    is_turned: bool = False
    problem: str = ""


def read_header(path: Path) -> Header:
    """Reads the header of one file; a problem is returned and not raised, so that all can be told together."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            turned = "exif" in image.info and image.getexif().get(_ORIENTATION, 1) != 1
            return Header(image.height, image.width, turned)
    except FileNotFoundError:
        return Header(problem=f"there is no image at {path}")
    except Exception as error:  # readers raise nearly anything on damaged data
        return Header(problem=f"{path} cannot be read as an image ({' '.join(str(error).split())})")


def for_each(function: Callable[[_Key], _Value], keys: Iterable[_Key]) -> dict[_Key, _Value]:
    """Calls a function that waits for files, once for each different key and several at a time."""
    different = list(dict.fromkeys(keys))
    runs = [different[first : first + _RUN] for first in range(0, len(different), _RUN)]
    with ThreadPoolExecutor(_THREADS) as pool:
        values = pool.map(lambda run: [function(key) for key in run], runs)
        return dict(zip(different, chain.from_iterable(values), strict=True))
