"""Every relative link in a Markdown file of the repository leads to a file that exists.

`mkdocs build --strict` also checks the anchors, of the files that are pages of the site.
"""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted(
    path for pattern in ("*.md", "docs/**/*.md", "data/**/*.md", "s2rm_jax/**/*.md") for path in ROOT.glob(pattern)
)
LINK = re.compile(r"\]\((?![a-z]+:|#)([^)\s#]+)")


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_links_lead_to_files(file):
    text = re.sub(r"```.*?```", "", file.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert not [target for target in LINK.findall(text) if not (file.parent / target).exists()]
