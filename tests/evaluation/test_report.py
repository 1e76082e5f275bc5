"""The table on the screen, metrics.json and sentences.csv."""

import csv
import json

from s2rm_jax.evaluation.metrics import SentenceScore
from s2rm_jax.evaluation.report import Report, table, write_csv, write_json

ODD_SENTENCE = 'the "big", red one;\nor, the émigré\'s <b>hat</b>'
REPORT = Report(
    (
        SentenceScore("7-0", "7", "relation", ODD_SENTENCE, 1, 3),
        SentenceScore("7-1", "7", "attribute", "the red circle", 9, 10),
    )
)


def test_the_table_has_a_row_per_kind_and_one_for_all():
    lines = table(REPORT).splitlines()
    assert lines[0].split() == ["oIoU", "mIoU", "P@0.5", "P@0.6", "P@0.7", "P@0.8", "P@0.9", "sentences"]
    rows = {line.split()[0]: line.split()[1:] for line in lines[2:] if not line.startswith("-")}
    assert rows["attribute"] == ["90.00", "90.00", "100.00", "100.00", "100.00", "100.00", "100.00", "1"]
    assert rows["relation"] == ["33.33", "33.33", "0.00", "0.00", "0.00", "0.00", "0.00", "1"]
    assert rows["all"] == ["76.92", "61.67", "50.00", "50.00", "50.00", "50.00", "50.00", "2"]  # 10/13, (90 + 33.3)/2
    assert "original resolution" in lines[-2]
    assert "Empty union" in lines[-1]
    assert max(map(len, lines)) <= 120


def test_without_kinds_there_is_one_row():
    plain = Report((SentenceScore("0", "0", "", "a dog", 1, 2),))
    assert plain.by_kind == {}
    assert len(table(plain).splitlines()) == 5  # header, rule, all, two lines of definitions


def test_json_round_trip(tmp_path):
    path = tmp_path / "metrics.json"
    write_json(REPORT, path, split="val", step=12)
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content["split"] == "val"
    assert content["step"] == 12
    assert {name: content["all"][name] for name in REPORT.metrics} == REPORT.metrics
    assert (content["all"]["intersection"], content["all"]["union"], content["all"]["sentences"]) == (10, 13, 2)
    assert content["by_kind"]["relation"]["sentences"] == 1
    assert "original resolution" in content["definitions"]


def test_csv_round_trip_keeps_every_character(tmp_path):
    path = tmp_path / "sentences.csv"
    write_csv(REPORT, path)
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == ["7-0", "7-1"]
    assert rows[0]["sentence"] == ODD_SENTENCE
    assert rows[0] | {"sentence": ""} == {
        "id": "7-0",
        "example": "7",
        "kind": "relation",
        "sentence": "",
        "intersection": "1",
        "union": "3",
        "iou": "0.333333",
    }
