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
