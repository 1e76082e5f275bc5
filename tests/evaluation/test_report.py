"""The table on the screen and expressions.csv."""

import csv
from dataclasses import replace

import pytest

from s2rm_jax.evaluation.evaluator import Report
from s2rm_jax.evaluation.metrics import ExpressionScore, read_scores, write_scores
from s2rm_jax.evaluation.protocols import PROTOCOLS
from s2rm_jax.evaluation.report import as_screen_text, remarks

ODD_EXPRESSION = 'the "big", red one;\nor, the émigré\'s <b>hat</b>'
REPORT = Report(
    (
        ExpressionScore("7-0", "7", "relation", ODD_EXPRESSION, 1, 3, area=0.25, centre=(0.5, 0.125)),
        ExpressionScore("7-1", "7", "attribute", "the red circle", 9, 10),
    )
)


def test_the_table_has_a_row_per_kind_and_one_for_all():
    lines = as_screen_text(REPORT).splitlines()
    assert lines[0].split() == ["oIoU", "mIoU", "P@0.5", "P@0.6", "P@0.7", "P@0.8", "P@0.9", "expressions"]
    rows = {line.split()[0]: line.split()[1:] for line in lines[2:] if not line.startswith("-")}
    assert rows["attribute"] == ["90.00", "90.00", "100.00", "100.00", "100.00", "100.00", "100.00", "1"]
    assert rows["relation"] == ["33.33", "33.33", "0.00", "0.00", "0.00", "0.00", "0.00", "1"]
    assert rows["all"] == ["76.92", "61.67", "50.00", "50.00", "50.00", "50.00", "50.00", "2"]  # 10/13, (90 + 33.3)/2
    assert "images drawn with replacement: 1, 1,000 times): oIoU 76.92 to 76.92" in lines[6]
    assert "original resolution" in " ".join(lines[7:])
    assert "Empty union" in lines[-1]
    assert max(map(len, lines)) <= 120


def test_without_kinds_there_is_one_row():
    plain = Report((ExpressionScore("0", "0", "", "a dog", 1, 2),))
    assert plain.by_kind == {}
    assert [line.split()[:1] for line in as_screen_text(plain).splitlines()[2:4]] == [
        ["all"],
        ["95"],
    ]  # below header and rule


def test_csv_round_trip_keeps_every_character(tmp_path):
    path = tmp_path / "expressions.csv"
    write_scores(REPORT.expressions, path)
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == ["7-0", "7-1"]
    assert rows[0]["expression"] == ODD_EXPRESSION
    assert rows[0] | {"expression": ""} == {
        "id": "7-0",
        "example": "7",
        "kind": "relation",
        "expression": "",
        "intersection": "1",
        "union": "3",
        "iou": "0.333333",
        "targeted": "1",
        "answered": "1",
        "area": "0.250000",
        "centre_x": "0.5000",
        "centre_y": "0.1250",
        "image": "0",
    }
    assert (rows[1]["centre_x"], rows[1]["centre_y"]) == ("", "")


@pytest.mark.parametrize("text", ["=1+2", "+left", "-left", "@SUM(A1)", " =1+2", "\t=1+2", "\r\n-1", "＝1"])
def test_no_cell_is_a_formula_of_a_spreadsheet(text, tmp_path):
    write_scores([ExpressionScore(text, text, text, text, 1, 2)], tmp_path / "expressions.csv")
    with (tmp_path / "expressions.csv").open(encoding="utf-8", newline="") as file:
        (row,) = csv.DictReader(file)
    assert [row[name] for name in ("id", "example", "kind", "expression")] == ["'" + text] * 4


@pytest.mark.parametrize("text", ["left - right", "a=b", "", "'quoted'", "1-2"])
def test_other_cells_are_not_changed(text, tmp_path):
    write_scores([ExpressionScore("0", "0", text, text, 1, 2)], tmp_path / "expressions.csv")
    with (tmp_path / "expressions.csv").open(encoding="utf-8", newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["kind"], row["expression"]) == (text, text)


def test_expressions_without_an_iou_have_an_empty_cell(tmp_path):
    left_out = ExpressionScore("0", "0", "", "w", 0, 0, empty_iou=None)
    write_scores([left_out], tmp_path / "expressions.csv")
    assert (tmp_path / "expressions.csv").read_text().splitlines()[1] == "0,0,,w,0,0,,1,1,0.000000,,,0"


def test_scores_are_read_as_they_were_written(tmp_path):
    path = tmp_path / "expressions.csv"
    scores = [
        ExpressionScore("1", "p/a", "kind", 'one, \n"two"', 1, 3, area=0.25, centre=(0.5, 0.125), image="a.jpg"),
        ExpressionScore("2", "q/a", "", "", 0, 0, empty_iou=1.0, targeted=False, answered=False, image="a.jpg"),
        ExpressionScore("3", "b", "", "w", 0, 0, empty_iou=None),
    ]
    write_scores(scores, path)
    found = read_scores(path)
    assert [score.iou for score in found] == [1 / 3, 1.0, None]
    assert [score.image_identity for score in found] == ["0", "0", "1"]  # two examples of a mixture show one image
    for one, other in zip(found, scores, strict=True):
        assert replace(one, image="", empty_iou=0.0) == replace(other, image="", empty_iou=0.0)


def test_the_table_has_the_columns_of_its_protocol():
    lines = as_screen_text(Report(REPORT.expressions, PROTOCOLS["cris"])).splitlines()
    assert lines[0].split() == ["mIoU", "P@0.5", "P@0.6", "P@0.7", "P@0.8", "P@0.9", "expressions"]
    assert lines[5].split()[:2] == ["all", "61.67"]
    assert lines[6].endswith("mIoU 61.67 to 61.67.")
    assert "oIoU" not in " ".join(lines)
    gref = as_screen_text(Report(REPORT.expressions, PROTOCOLS["rela_gref"])).splitlines()
    assert gref[0].split() == ["cIoU", "gIoU", "P@0.7", "P@0.8", "P@0.9", "N-acc", "T-acc", "expressions"]
    assert gref[5].split()[-3:] == ["–", "–", "2"]
    assert "Every expression refers to something" in gref[-1]


def test_remarks_on_what_a_protocol_does_not_support():
    nothing = replace(REPORT.expressions[0], targeted=False)
    (remark,) = remarks(Report((nothing,), PROTOCOLS["lavt480"]))
    assert remark.startswith("Expressions that refer to nothing: 1. lavt480 does not support them")
    left_out = replace(REPORT.expressions[0], union=0, empty_iou=None)
    (remark,) = remarks(Report((left_out, *REPORT.expressions), PROTOCOLS["caris448"]))
    assert remark.startswith("Expressions with an empty union: 1. They are excluded from mIoU")
    assert remarks(REPORT) == []
