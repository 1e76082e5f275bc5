"""COCO's run-length encoding of masks.

pycocotools can decode it too, but returns uninitialised memory for damaged codes and warns on every call under NumPy 2.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Bool, Int64

from s2rm_jax.errors import UserError
from s2rm_jax.input.grid import Grid, fill_runs

_LONGEST_NUMBER = 7  # characters, so 35 bits; more of them, in a damaged code, would not fit the arithmetic


def decode_rle(rle: dict[str, Any], height: int, width: int, grid: Grid | None = None) -> Bool[np.ndarray, "_ _"]:
    """Decodes {"size": [H, W], "counts": ...}: run lengths in column order that begin with the background's.

    Args:
      rle: its counts are a list of run lengths, or their compressed form as text or bytes.
      height: of the picture, in pixels.
      width: of the picture, in pixels.
      grid: which of its pixels are wanted; None for all. Those that are not are never made.

    Raises:
      UserError: the size is not the picture's, or the counts are damaged.
    """
    size = list(rle.get("size", ()))
    if size != [height, width]:
        raise UserError(f"the RLE of a mask has size {size}, its picture is {height} x {width} pixels (height x width)")
    counts = rle.get("counts")
    runs = _decompress(counts) if isinstance(counts, str | bytes) else _checked(counts)
    if runs is None or (runs < 0).any():
        raise UserError(f"the RLE of a mask is damaged: its counts are no run lengths: {counts!r:.60}")
    if runs.sum() != height * width:
        raise UserError(
            f"the RLE of a mask is damaged: it covers {runs.sum()} pixels, the picture has {height * width}"
        )
    return fill_runs(runs, height, width) if grid is None else grid.of_runs(runs)


def _checked(counts: object) -> Int64[np.ndarray, " runs"] | None:
    if not isinstance(counts, list) or not all(isinstance(run, int) and abs(run) < 2**35 for run in counts):
        return None
    return np.array(counts, np.int64)


def _decompress(counts: str | bytes) -> Int64[np.ndarray, " runs"] | None:
    """Returns the run lengths, or None if there is a character or a number that the code does not have.

    Each number is written in characters of six bits (from "0" on), the least significant first: five of them are the
    number's, in two's complement, the sixth says that another character follows. From the fourth number on, what is
    written is the difference to the number two before, the last run of the same colour.
    """
    codes = np.frombuffer(counts.encode() if isinstance(counts, str) else counts, np.uint8).astype(np.int64) - ord("0")
    if ((codes < 0) | (codes >= 64)).any():
        return None
    last = np.flatnonzero(codes < 0b100000)  # of each number
    if len(last) == 0:
        return last
    first = np.concatenate([[0], last[:-1] + 1])
    length = last - first + 1
    if length.max() > _LONGEST_NUMBER:
        return None
    codes = codes[: last[-1] + 1]
    place = np.arange(len(codes)) - np.repeat(first, length)
    runs = np.add.reduceat((codes & 0b011111) << 5 * place, first)
    runs -= np.where(codes[last] & 0b010000, 1 << 5 * length, 0)
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    return runs
