import pytest

pytest.importorskip("mkdocs", reason="the documentation is built with mkdocs-material: pip install -e '.[docs]'")

from docs.site_pages import page_of, relink, source_of

PAGES = {"index.md", "network.md", "results/parity.md", "data/README.md", "data/refcoco/README.md"}


@pytest.mark.parametrize(
    ("source", "link", "expected"),
    [
        ("README.md", "[n](docs/network.md)", "[n](network.md)"),
        ("README.md", "[c](data/README.md#counts)", "[c](data/README.md#counts)"),
        ("README.md", "[code](s2rm_jax/config.py)", "code"),
        ("docs/network.md", "[d](../data/README.md)", "[d](data/README.md)"),
        ("docs/network.md", "[p](results/parity.md)", "[p](results/parity.md)"),
        ("docs/results/parity.md", "[n](../network.md#swin)", "[n](../network.md#swin)"),
        ("data/refcoco/README.md", "[all](../README.md)", "[all](../README.md)"),
        ("data/README.md", "[home](../README.md)", "[home](../index.md)"),
        ("docs/network.md", "[here](#swin) [away](https://arxiv.org)", "[here](#swin) [away](https://arxiv.org)"),
    ],
)
def test_links_are_rewritten_between_pages(source, link, expected):
    assert relink(link, source, PAGES) == expected


@pytest.mark.parametrize("source", ["README.md", "docs/network.md", "data/README.md", "CONTRIBUTING.md"])
def test_page_of_and_source_of_are_inverse(source):
    assert source_of(page_of(source)) == source


@pytest.mark.parametrize("link", ["docs/nothing.md", "s2rm_jax/nothing.py", "data/refcoco/nothing.png"])
def test_a_link_to_a_missing_file_is_a_warning(link, caplog):
    assert relink(f"[shown]({link})", "README.md", PAGES) == "shown"
    assert [record.getMessage() for record in caplog.records] == [
        f"README.md has a link to {link}, which does not exist"
    ]
    assert caplog.records[0].name.startswith("mkdocs.")  # which `mkdocs build --strict` counts


def test_a_link_to_a_file_without_a_page_is_no_warning(caplog):
    assert relink("[code](s2rm_jax/config.py) [folder](docs/results/)", "README.md", PAGES) == "code folder"
    assert not caplog.records
