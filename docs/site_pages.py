"""A MkDocs hook that adds files outside docs/ (README, dataset cards, CHANGELOG) as pages of the site.

Their links are relative to their place in the repository. The hook rewrites them as links between pages; a link to a
file without a page, such as a source file, becomes its text.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
DOCS = "docs"
HOME = "README.md"
LINK = re.compile(r"(?P<shown>!?\[[^\]]*\])\((?P<target>[^)\s#:]*)(?P<anchor>#[^)\s]*)?\)")


def on_files(files: Any, config: Any) -> Any:
    """Add the pages from outside docs/."""
    for path in [
        ROOT / HOME,
        ROOT / "CHANGELOG.md",
        ROOT / "CONTRIBUTING.md",
        ROOT / "SECURITY.md",
        *sorted(ROOT.glob("data/**/*.md")),
    ]:
        source = path.relative_to(ROOT).as_posix()
        files.append(File.generated(config, page_of(source), content=path.read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Any) -> str:
    """Rewrite the links of a page."""
    uri = page.file.src_uri
    return relink(markdown, source_of(uri), {file.src_uri for file in files})


def page_of(source: str) -> str:
    """Return the path in the site of a file of the repository."""
    return "index.md" if source == HOME else source.removeprefix(f"{DOCS}/")


def source_of(page: str) -> str:
    """Return the file of the repository that a page of the site shows."""
    if page == "index.md":
        return HOME
    return page if (ROOT / page).is_file() else f"{DOCS}/{page}"


def relink(markdown: str, source: str, pages: set[str]) -> str:
    """Rewrite relative links of the file `source` as links between pages."""
    here = posixpath.dirname(page_of(source))

    def replace(match: re.Match[str]) -> str:
        target, anchor = match["target"], match["anchor"] or ""
        if not target:
            return match[0]
        page = page_of(posixpath.normpath(posixpath.join(posixpath.dirname(source), target)))
        if page in pages:
            return f"{match['shown']}({posixpath.relpath(page, here or '.')}{anchor})"
        return match["shown"].strip("![]")

    return LINK.sub(replace, markdown)
