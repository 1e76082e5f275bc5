"""Where the folders of a source lie now, if they have moved since a run was trained on them."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ml_collections import ConfigDict

from s2rm_jax.errors import UserError

_NAMED = re.compile(r"((?:[\w+-]+\.)*(?:image_)?root)=(.*)")


def with_folders(source: ConfigDict, moves: Sequence[str]) -> ConfigDict:
    """Returns the settings of a source with other folders.

    Args:
        source: what config.input.source holds.
        moves: each DIR, which becomes the root of a source that has one, or FIELD=DIR, where FIELD is root, image_root
            or, in a mixture, one of these behind the part, such as parts.mine.root.

    Raises:
        UserError: there is no such folder, or several of which DIR might be one; names those that there are.
    """
    fields = source.to_dict()
    roots = _roots(fields)
    for move in moves:
        named = _NAMED.fullmatch(move)
        name, folder = named.groups() if named else ("root", move)
        if not named and "root" not in roots and len(roots) == 1:
            (name,) = roots
        section, _, field = name.rpartition(".")
        if f"{section}.root".lstrip(".") not in roots:
            known = [
                f"--data {root.removesuffix('root')}{kind}=DIR" for root in roots for kind in ("root", "image_root")
            ]
            there = f"say which: {', '.join(known)}" if known else "it reads no files"
            raise UserError(f"--data {move}: the source {source.name!r} of this run has no folder {name!r}; {there}")
        roots[f"{section}.root".lstrip(".")][field] = folder
    return ConfigDict(fields)


def _roots(fields: dict, prefix: str = "") -> dict[str, dict]:
    """The sections that have a root, by its dotted name."""
    found = {f"{prefix}root": fields} if "root" in fields else {}
    for name, value in fields.items():
        if isinstance(value, dict):
            found |= _roots(value, f"{prefix}{name}.")
    return found
