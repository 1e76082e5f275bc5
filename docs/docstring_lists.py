"""A Griffe extension that shows the aligned lists of docstrings as lists on the API pages.

Docstrings describe fields as a name, two or more spaces and a meaning, which Markdown would join into one paragraph.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

_ITEM = re.compile(r"(?P<name>\S+(?:, \S+)*) {2,}(?P<meaning>\S.*)")


class DocstringLists(griffe.Extension):
    """Convert the docstring of every object."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Replace the docstring of `obj`."""
        if obj.docstring is not None:
            obj.docstring.value = as_lists(obj.docstring.value)


def as_lists(docstring: str) -> str:
    """Return a docstring whose aligned lists are Markdown lists.

    A list is a paragraph that begins with an item, and whose other lines are items or indented as continuations.
    """
    return re.sub(r"(?:^.*\S.*(?:\n|\Z))+", lambda paragraph: _as_list(paragraph[0]), docstring, flags=re.MULTILINE)


def _as_list(paragraph: str) -> str:
    lines = paragraph.splitlines()
    if not _ITEM.fullmatch(lines[0]) or not all(_ITEM.fullmatch(line) or line.startswith("  ") for line in lines):
        return paragraph
    shown = []
    for line in lines:
        item = _ITEM.fullmatch(line)
        shown.append(f"- `{item['name']}`: {item['meaning']}" if item else f"  {line.strip()}")
    return "\n".join(shown) + "\n" * paragraph.endswith("\n")
