"""Reads of many picture files what their first bytes say: that they can be read, and how large they are."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import NamedTuple, TypeVar

from PIL import Image

from s2rm_jax.input.images import FORMATS

_THREADS = 8  # for the waiting on disks and networks; the reading itself takes 0.1 ms a file
_RUN = 64  # files that a thread takes at a time; handing them over one by one takes as long as reading them
_ORIENTATION = 0x0112  # the EXIF tag
_Key = TypeVar("_Key")
_Value = TypeVar("_Value")


class Header(NamedTuple):
    """Height and width in pixels as stored; whether EXIF asks viewers to turn the picture; or else what is wrong."""

    height: int = 0
    width: int = 0
    is_turned: bool = False
    problem: str = ""


def read_header(path: Path) -> Header:
    """Reads the header of one file; a problem is returned and not raised, so that all can be told together."""
    try:
        with Image.open(path, formats=FORMATS) as picture:
            turned = "exif" in picture.info and picture.getexif().get(_ORIENTATION, 1) != 1
            return Header(picture.height, picture.width, turned)
    except FileNotFoundError:
        return Header(problem=f"there is no picture at {path}")
    except Exception as error:  # readers raise nearly anything on damaged data
        return Header(problem=f"{path} cannot be read as a picture ({' '.join(str(error).split())})")


def for_each(function: Callable[[_Key], _Value], keys: Iterable[_Key]) -> dict[_Key, _Value]:
    """Calls a function that waits for files, once for each different key and several at a time."""
    different = list(dict.fromkeys(keys))
    runs = [different[first : first + _RUN] for first in range(0, len(different), _RUN)]
    with ThreadPoolExecutor(_THREADS) as pool:
        values = pool.map(lambda run: [function(key) for key in run], runs)
        return dict(zip(different, chain.from_iterable(values), strict=True))
