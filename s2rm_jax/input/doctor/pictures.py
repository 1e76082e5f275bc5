"""Looks at picture files: are they there, whole, and of the size that their annotation says?"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from PIL import Image, UnidentifiedImageError

from s2rm_jax.input.images import FORMATS

_CHUNK = 512  # pictures handed to the threads at a time, so that Ctrl-C is heard


class PictureFile(NamedTuple):
    """A file and the size in pixels that it should have."""

    path: Path
    height: int
    width: int


def ailment(picture: PictureFile, quick: bool = False) -> tuple[str, str]:
    """Returns the kind of what is wrong with a file, and the case in words; two empty texts if it is well.

    The whole file is decoded, unless `quick`: then its header is read and nothing else. A JPEG is decoded to an eighth
    of its size, which still reads every byte of it and is several times as fast. What libjpeg can decode counts as
    whole: a flipped bit in the middle of a file often only changes some colours.
    """
    path, height, width = picture
    try:
        with Image.open(path, formats=FORMATS) as file:
            size = file.size
            if not quick:
                file.draft(file.mode, (size[0] // 8, size[1] // 8))
                file.load()
    except FileNotFoundError:
        return "missing pictures", path.name
    except UnidentifiedImageError:
        reason = "not a picture" if path.stat().st_size else "an empty file"
        return "damaged pictures", f"{path.name} ({reason})"
    except Exception as error:  # of damaged data Pillow raises nearly anything
        reason = " ".join(str(error).split()) or type(error).__name__
        return "damaged pictures", f"{path.name} ({reason})"
    if size != (width, height):
        found = f"{size[0]} x {size[1]} instead of {width} x {height}"
        return "pictures of another size than annotated", f"{path.name} ({found})"
    return "", ""


def ailments(pictures: Sequence[PictureFile], quick: bool = False, threads: int = 0) -> Iterator[tuple[str, str]]:
    """Yields the ailment of each picture, in order; Pillow lets threads decode on all cores at once."""
    with ThreadPoolExecutor(threads or os.cpu_count() or 1) as pool:
        for first in range(0, len(pictures), _CHUNK):
            yield from pool.map(lambda picture: ailment(picture, quick), pictures[first : first + _CHUNK])
