"""Tables in four formats, and plots that show the numbers they are given."""

import re
from xml.etree import ElementTree

import pytest

from s2rm_jax.evaluation.bootstrap import PLACES, ScoreGroup
from s2rm_jax.evaluation.plots import groups_plot, histogram_plot, places_plot, standalone
from s2rm_jax.evaluation.tables import Table, as_html, as_latex, as_markdown, as_text, without

TABLE = Table(
    "A & B", ("", "kind|of", "mIoU"), (("a_b", "<x>", "1.00"), ("all", "–", "12.00")), (1,), 1, text_columns=2
)


def test_text_is_aligned_and_ruled():
    assert as_text(TABLE).splitlines() == [
        "     kind|of   mIoU",
        "-------------------",
        "a_b  <x>       1.00",
        "-------------------",
        "all  –        12.00",
    ]


def test_markdown_escapes_what_it_would_read_as_marks():
    lines = as_markdown(TABLE).splitlines()
    assert lines[2:] == [
        "|  | kind\\|of | mIoU |",
        "| :-- | :-- | --: |",
        "| a\\_b | \\<x\\> | 1.00 |",
        "| all | – | 12.00 |",
    ]


def test_latex():
    latex = as_latex(TABLE)
    assert "\\caption{A \\& B}" in latex
    assert "\\begin{tabular}{llr}" in latex
    assert "    a\\_b & <x> & 1.00 \\\\\n    \\midrule\n    all & -- & 12.00 \\\\\n    \\bottomrule" in latex


def test_html():
    html = as_html(TABLE)
    tree = ElementTree.fromstring(html.replace("class=text", 'class="text"'))
    rows = tree.findall("table/tbody/tr")
    assert [cell.text for cell in rows[0]] == ["a_b", "<x>", "1.00"]
    assert rows[1].attrib["class"] == "strong rule"
    assert [cell.get("class") for cell in rows[0]] == ["text", "text", None]
    assert tree.find("figcaption").text == "A & B"


def test_a_column_is_removed():
    fewer = without(TABLE, "kind|of")
    assert (fewer.header, fewer.rows[0], fewer.text_columns) == (("", "mIoU"), ("a_b", "1.00"), 1)


def bars(svg):
    """The heights of a figure's bars, and the words on it."""
    tree = ElementTree.fromstring(svg)
    name = "{http://www.w3.org/2000/svg}"
    heights = [float(box.get("height")) for box in tree.iter(f"{name}rect")]
    return heights, [text.text for text in tree.iter(f"{name}text")]


def test_histogram_bars_are_shares():
    heights, words = bars(histogram_plot([5] * 10 + [10] * 5 + [0] * 5))
    assert heights[10] == pytest.approx(2 * heights[0], abs=0.1)
    assert heights[-1] == 0
    assert {"IoU of an expression, %", "share of expressions, %", "0", "100", "10"} <= set(words)


def test_bars_stand_on_an_axis_to_100():
    groups = [ScoreGroup("1", 1234, 50.0, (40.0, 60.0)), ScoreGroup("<2>", 2, 100.0, (100.0, 100.0))]
    heights, words = bars(groups_plot("By length", "words", groups))
    assert heights[1] == pytest.approx(2 * heights[0], abs=0.1)
    assert {"50.0", "100.0", "<2>", "n = 1,234", "mean IoU, %", "words", "By length"} <= set(words)


def test_places_without_expressions_are_empty():
    groups = [ScoreGroup(place, index, 10.0 * index, (0.0, 0.0)) for index, place in enumerate(PLACES)]
    _, words = bars(places_plot("By place", groups))
    assert {"none", "80.0", "n = 8", "top", "right"} <= set(words)
    assert "0.0" not in words


def test_standalone_figures_need_no_page():
    svg = standalone(histogram_plot([1] * 20))
    assert "var(" not in svg
    assert re.search(r"<rect width=\"520\" height=\"300\" style=\"fill:#ffffff\"/>", svg)
    ElementTree.fromstring(svg)
