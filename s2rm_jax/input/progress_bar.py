"""One line that says how far a long job over many items is, how fast, and how long still."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from datetime import timedelta
from typing import TypeVar

Item = TypeVar("Item")

_EVERY_ON_SCREEN = 0.2  # seconds; the line is written over
_EVERY_IN_A_FILE = 15.0  # seconds; each line stays


def progress_bar(items: Iterable[Item], what: str, total: int, *, quiet: bool = False) -> Iterator[Item]:
    """Yield the items and says on stderr how many of `total` are done.

    On a terminal the line is redrawn in place and removed at the end; in a file a new line is written now and then.
    """
    if quiet:
        yield from items
        return
    stream = sys.stderr
    on_screen = stream.isatty()
    every = _EVERY_ON_SCREEN if on_screen else _EVERY_IN_A_FILE
    began = said = time.monotonic()
    for done, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        if now - said < every or not total:
            continue
        said = now
        line = _line(what, done, total, now - began)
        print(f"\r{line}\033[K" if on_screen else line, end="" if on_screen else "\n", file=stream, flush=True)
    if said > began:
        clear_line()


def clear_line() -> None:
    """Make room on a terminal for something else to be said on stderr while a bar is shown."""
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr, flush=True)


def _line(what: str, done: int, total: int, seconds: float) -> str:
    cells = 24 * done // total
    left = timedelta(seconds=round(seconds / done * (total - done)))
    bar = "█" * cells + "░" * (24 - cells)
    return f"{what} {bar} {done:,}/{total:,} ({100 * done // total}%) | {done / seconds:,.0f}/s | ETA {left}"
