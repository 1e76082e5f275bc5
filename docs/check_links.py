"""Check the relative links and anchors of all Markdown files of the repository, without a network.

    python -m docs.check_links

`make lint` runs it. A link must lead to a file or folder, and its anchor to a heading that has this anchor on GitHub
and in MkDocs alike. Prints each link that does not, and exits with status 1 if there are any.
"""

from __future__ import annotations

import re
import sys
import unicodedata
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = ("*.md", "docs/**/*.md", "data/**/*.md", "launch/**/*.md", "s2rm_jax/**/*.md", ".github/**/*.md")

_LINK = re.compile(r"\]\((?![a-z]+:)(?P<target>[^)\s#]*)(?:#(?P<anchor>[^)\s]+))?\)")
_FENCED = re.compile(r"^ *```.*?^ *```$", re.DOTALL | re.MULTILINE)


def main() -> None:
    """Print the broken links of all pages."""
    broken = [problem for pattern in PAGES for page in sorted(ROOT.glob(pattern)) for problem in broken_links(page)]
    if broken:
        sys.exit("\n".join(broken))


def broken_links(page: Path) -> Iterator[str]:
    """Yield a line for each link of a page that leads nowhere."""
    for link in _LINK.finditer(_without_code(page)):
        target, anchor = link["target"], link["anchor"]
        file = page.parent / target if target else page
        if not file.exists():
            yield f"{_name(page)}: link to {target}, which does not exist"
        elif anchor and anchor not in anchors(file.resolve()):
            yield f"{_name(page)}: link to {target}#{anchor}, which is no heading of {file.name}"


@cache
def anchors(page: Path) -> frozenset[str]:
    """Return the anchors of the headings of a page that are the same on GitHub and in MkDocs."""
    if page.suffix != ".md":
        return frozenset()
    seen: dict[str, int] = {}
    found = set()
    for heading in re.findall(r"^#+ +(.+?) *$", _without_code(page), re.MULTILINE):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)|[*`]", r"\1", heading)
        on_github = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
        ascii_text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
        in_mkdocs = re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", ascii_text).strip().lower())
        seen[on_github] = seen.get(on_github, 0) + 1
        if on_github == in_mkdocs and seen[on_github] == 1:  # a repeated heading has another suffix in each
            found.add(on_github)
    return frozenset(found)


def _without_code(page: Path) -> str:
    return _FENCED.sub("", page.read_text(encoding="utf-8"))


def _name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix() if page.is_relative_to(ROOT) else page.name


if __name__ == "__main__":
    main()
