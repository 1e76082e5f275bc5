"""Writes a folder whole or not at all."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from s2rm_jax.errors import UserError
from s2rm_jax.training.workdir_files import on_bucket


@contextmanager
def whole_folder(out: str | Path, flag: str) -> Iterator[Path]:
    """Gives a fresh folder beside `out` to write to, and puts it in the place of `out` when all went well.

    If anything fails, whatever was written is removed. A folder that has something in it is never touched.

    Args:
        out: the folder to be made; an empty one may be there already.
        flag: what the person called it, for the error: "--out".

    Raises:
        UserError: there is something at `out`, or it cannot be written to (no space, no permission).
    """
    if on_bucket(out):
        raise UserError(f"{flag}: {out} is on a bucket; give a folder of this machine, and copy it from there")
    out = Path(out).expanduser()
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"{flag}: {out} is already there; give another {flag}, or remove it first")
    partial = out.absolute().parent / f".{out.name}.partial"
    try:
        shutil.rmtree(partial, ignore_errors=True)  # of an earlier try that was killed
        partial.mkdir(parents=True)
        yield partial
        partial.replace(out)
    except OSError as error:
        raise UserError(
            f"{flag}: {out} cannot be written ({error.strerror or error}); nothing was left there"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def require_space(folder: Path, size: int) -> None:
    """Raises OSError unless `size` bytes fit on the disk of `folder`, so that a long work does not begin in vain."""
    free = shutil.disk_usage(folder).free
    if free < size:
        raise OSError(errno.ENOSPC, f"it takes {size / 1e6:,.0f} MB, and {free / 1e6:,.0f} MB are free")
