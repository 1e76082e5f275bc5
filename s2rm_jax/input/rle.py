"""COCO's run-length encoding of masks.

pycocotools can decode it too, but returns uninitialised memory for damaged codes and warns on every call under NumPy 2.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Bool

from s2rm_jax.errors import UserError


def decode_rle(rle: dict[str, Any], height: int, width: int) -> Bool[np.ndarray, "height width"]:
    """Decodes {"size": [H, W], "counts": ...}: run lengths in column order that begin with the background's.

    Args:
      rle: its counts are a list of run lengths, or their compressed form as text or bytes.
      height: of the picture, in pixels.
      width: of the picture, in pixels.

    Raises:
      UserError: the size is not the picture's, or the counts are damaged.
    """
    size = list(rle.get("size", ()))
    if size != [height, width]:
        raise UserError(f"the RLE of a mask has size {size}, its picture is {height} x {width} pixels (height x width)")
    counts = rle.get("counts")
    runs = _decompress(counts) if isinstance(counts, str | bytes) else counts
    if not isinstance(runs, list) or not all(isinstance(run, int) and run >= 0 for run in runs):
        raise UserError(f"the RLE of a mask is damaged: its counts are no run lengths: {counts!r:.60}")
    if sum(runs) != height * width:
        raise UserError(f"the RLE of a mask is damaged: it covers {sum(runs)} pixels, the picture has {height * width}")
    is_foreground = np.arange(len(runs)) % 2 == 1
    return np.repeat(is_foreground, runs).reshape(width, height).T


def _decompress(counts: str | bytes) -> list[int] | None:
    """Returns the run lengths, or None if there is a character that the code does not have.

    Each number is written in characters of six bits (from "0" on), the least significant first: five of them are the
    number's, in two's complement, the sixth says that another character follows. From the fourth number on, what is
    written is the difference to the number two before, the last run of the same colour.
    """
    runs: list[int] = []
    value = shift = 0
    for character in counts.encode() if isinstance(counts, str) else counts:
        bits = character - ord("0")
        if not 0 <= bits < 64:
            return None
        value |= (bits & 0b011111) << shift
        shift += 5
        if bits & 0b100000:
            continue
        if bits & 0b010000:
            value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        value = shift = 0
    return runs
