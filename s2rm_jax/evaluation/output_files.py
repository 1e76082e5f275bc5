"""Where results go: folders that can be written to, and file names made of free text."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from etils import epath
from PIL import Image

from s2rm_jax.errors import UserError
from s2rm_jax.training.workdir_files import on_bucket


def make_output_folder(path: epath.PathLike) -> Path:
    """Makes the folder with its parents, unless it is there already, and returns it.

    Raises:
        UserError: a file is in the way, or the folder may not be made or written to.
    """
    if on_bucket(path):
        raise UserError(f"--out: {path} is on a bucket; give a folder of this machine, and copy it from there")
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise UserError(f"--out: {path} cannot be a folder, a file is in the way; give another --out") from error
    except OSError as error:
        raise UserError(f"--out: {path} cannot be made ({error.strerror}); give another --out") from error
    if not os.access(path, os.W_OK | os.X_OK):
        raise UserError(f"--out: {path} may not be written to; give another --out")
    return path


def remove_earlier(folder: Path, name: str) -> None:
    """Removes what an earlier run of the same command left in its folder, so that old results do not mix with new ones.

    Args:
        folder: the folder of the results.
        name: a regular expression for the whole name of the files that the command writes; no others are touched.
    """
    for path in folder.iterdir():
        if re.fullmatch(name, path.name) and path.is_file():
            path.unlink()


def figure_paths(given: str | Path, count: int) -> list[Path]:
    """Returns the path itself for one figure, NAME_1.png, NAME_2.png and so on for several.

    Raises:
        UserError: it is no PNG, or its folder is not there.
    """
    path = Path(given)
    if path.suffix.lower() != ".png" or path.is_dir() or not path.parent.is_dir():
        raise UserError(
            f"--explain: {given} must be the path of a PNG in a folder that is there; give another --explain"
        )
    numbered = [path.with_name(f"{path.stem}_{number}{path.suffix}") for number in range(1, count + 1)]
    return [path] if count == 1 else numbered


@contextmanager
def writing(path: Path, flag: str = "--out") -> Iterator[None]:
    """While inside, `path` is written, which `flag` has named; raises UserError where that is not possible."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{flag}: {path} cannot be written ({error.strerror or error}); give another {flag}") from error


def save_picture(picture: Image.Image, path: Path, flag: str = "--out") -> None:
    """Writes a picture, mask or figure; raises UserError where that is not possible."""
    with writing(path, flag):
        picture.save(path)


def slug(text: str, limit: int = 40) -> str:
    """Returns `text` as lower-case ASCII letters, digits and underscores, at most `limit` of them, never empty."""
    ascii_text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]+", "_", ascii_text.lower()).strip("_")[:limit].rstrip("_") or "untitled"
