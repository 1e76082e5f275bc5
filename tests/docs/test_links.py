"""Every relative link in a Markdown file of the repository leads to a file, and its anchor to a heading."""

import pytest

from docs.check_links import PAGES, ROOT, anchors, broken_links

FILES = sorted(path for pattern in PAGES for path in ROOT.glob(pattern))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_links_lead_to_files_and_headings(file):
    assert list(broken_links(file)) == []


@pytest.fixture
def pages(tmp_path):
    (tmp_path / "there.md").write_text(
        "# There\n\n## Two words\n\n## Flags: `--json`\n\n## Twice\n\n## Twice\n\n```sh\n# a comment\n```\n"
    )
    return tmp_path


@pytest.mark.parametrize(
    "link", ["there.md", "there.md#two-words", "#here", "https://example.org/gone", "mailto:a@example.org", "."]
)
def test_good_and_external_links_pass(pages, link):
    page = pages / "page.md"
    page.write_text(f"# Here\n\n[shown]({link})\n")
    assert list(broken_links(page)) == []


@pytest.mark.parametrize(
    ("link", "problem"),
    [
        ("gone.md", "page.md: link to gone.md, which does not exist"),
        ("there.md#gone", "page.md: link to there.md#gone, which is no heading of there.md"),
        ("there.md#a-comment", "page.md: link to there.md#a-comment, which is no heading of there.md"),
        ("#there", "page.md: link to #there, which is no heading of page.md"),
        # GitHub has flags---json, MkDocs flags-json.
        ("there.md#flags-json", "page.md: link to there.md#flags-json, which is no heading of there.md"),
    ],
)
def test_broken_links_are_named(pages, link, problem):
    page = pages / "page.md"
    page.write_text(f"# Here\n\n[shown]({link})\n\n```text\n[code](gone.md)\n```\n")
    assert list(broken_links(page)) == [problem]


def test_anchors_are_those_that_github_and_mkdocs_share(pages):
    assert anchors(pages / "there.md") == {"there", "two-words", "twice"}
