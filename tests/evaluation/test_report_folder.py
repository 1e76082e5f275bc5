"""The files of a report."""

import errno
import json
import re
from xml.etree import ElementTree

import numpy as np
import pytest

from s2rm_jax.errors import UserError
from s2rm_jax.evaluation import report as report_module
from s2rm_jax.evaluation.evaluator import Prediction, Report
from s2rm_jax.evaluation.gallery import Cases
from s2rm_jax.evaluation.metrics import ExpressionScore
from s2rm_jax.evaluation.protocols import PROTOCOLS
from s2rm_jax.evaluation.published import Benchmark
from s2rm_jax.evaluation.report import require_own_report, write_report

SCORES = (
    ExpressionScore("0", "a", "relation", "one two", 1, 3, area=0.3, centre=(0.1, 0.1)),
    ExpressionScore("1", "b", "attribute", "one", 9, 10, area=0.3, centre=(0.9, 0.9)),
)
NOTHING = ExpressionScore("2", "b", "attribute", "one", 0, 4, targeted=False)


def test_files(tmp_path):
    page = write_report(tmp_path, Report(SCORES), {}, title="A run", split="val")
    assert page == tmp_path / "index.html"
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()) == [
        "expressions.csv",
        "index.html",
        "metrics.json",
        *(f"plots/iou_{name}.svg" for name in ("by_area", "by_length", "by_place", "histogram")),
        "table.md",
        "table.tex",
    ]
    for figure in (tmp_path / "plots").iterdir():
        ElementTree.parse(figure)
    markdown = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert "| all | 76.92 | 61.67 |" in markdown  # 10/13 and (1/3 + 9/10) / 2
    assert "Protocol original" in markdown
    assert "Published" not in markdown
    html = page.read_text(encoding="utf-8")
    assert html.count("<svg") == 4
    assert "Published results" not in html


def test_cases_of_an_earlier_evaluation_are_removed_even_if_there_are_no_new_ones(tmp_path):
    (tmp_path / "gallery").mkdir()
    for name in ("worst_001_a_how.png", "best.png", "mine.png"):
        (tmp_path / "gallery" / name).touch()
    write_report(tmp_path, Report(SCORES), {}, title="A run", split="val")
    assert [path.name for path in (tmp_path / "gallery").iterdir()] == ["mine.png"]


@pytest.mark.parametrize("has_report", [True, False])
def test_a_full_disk_leaves_no_partial_report(tmp_path, monkeypatch, has_report):
    (tmp_path / "mine.txt").touch()
    if has_report:
        write_report(tmp_path, Report(SCORES), {}, title="A run", split="val")

    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(report_module, "report_page", fail)
    with pytest.raises(OSError, match="No space left"):
        write_report(tmp_path, Report(SCORES), {}, title="A run", split="val")
    names = {path.name for path in tmp_path.iterdir()}
    assert "mine.txt" in names and ("index.html" in names) == has_report and (len(names) == 1) != has_report


def test_json(tmp_path):
    write_report(tmp_path, Report(SCORES), {}, title="A run", split="val", step=12)
    content = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))
    assert (content["split"], content["step"], content["protocol"]) == ("val", 12, "original")
    assert content["all"]["mean_iou"] == pytest.approx(100 * (1 / 3 + 0.9) / 2)
    assert (content["all"]["intersection"], content["all"]["union"], content["all"]["expressions"]) == (10, 13, 2)
    low, high = content["all"]["interval_95"]["mean_iou"]
    assert (low, high) == pytest.approx((100 / 3, 90))  # two images: now and then one of them twice
    assert content["by_kind"]["relation"]["expressions"] == 1
    assert "original resolution" in content["definitions"]
    assert content["iou_histogram"][6] == content["iou_histogram"][18] == 1
    assert [group["label"] for group in content["by"]["length"]] == ["1", "2"]
    assert content["by"]["place"][0]["mean_iou"] == pytest.approx(100 / 3)
    assert "published" not in content


def test_the_numbers_of_grefcoco_are_null_where_there_are_none(tmp_path):
    write_report(tmp_path, Report(SCORES, PROTOCOLS["rela_gref"]), {}, title="A run")
    content = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))
    assert content["all"]["no_target_accuracy"] is None
    assert (content["all"]["no_target"], content["all"]["targeted"], content["all"]["answered"]) == (0, 2, 2)
    write_report(tmp_path, Report((*SCORES, NOTHING), PROTOCOLS["rela_gref"]), {}, title="A run")
    content = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))
    assert (content["all"]["no_target_accuracy"], content["all"]["target_accuracy"]) == (0, 100)


def test_published_results_are_in_all_forms(tmp_path):
    where = Benchmark("refcoco", "unc", "testA")
    page = write_report(tmp_path, Report(SCORES, PROTOCOLS["lavt480"]), {}, title="A run", benchmark=where)
    content = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))
    assert content["benchmark"] == {"dataset": "refcoco", "split_by": "unc", "split": "testA"}
    lavt = {f["metric"]: f["value"] for f in content["published"] if f["method"] == "LAVT (Swin-B)"}
    assert (lavt["overall_iou"], lavt["mean_iou"], lavt["precision@0.5"]) == ("75.82", "76.89", "88.07")
    for path in (page, tmp_path / "table.md", tmp_path / "table.tex"):
        text = path.read_text(encoding="utf-8")
        assert "75.82" in text
        assert "this run" in text


def test_what_was_evaluated_is_in_all_forms(tmp_path):
    about = {
        "source": "refer", "dataset": "refcoco", "split_by": "unc", "split": "testA", "root": "/data/a_b",
        "image_root": "", "overlap": "drop", "checkpoint": "best", "step": 1200, "limit": None,
    }  # fmt: skip
    page = write_report(tmp_path, Report(SCORES), {}, title="A run", **about)
    content = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))
    assert {name: content[name] for name in about} == about
    line = (
        "Evaluated: source refer, dataset refcoco, split_by unc, split testA, root /data/a_b, overlap drop, checkpoint "
        "best, step 1200."
    )
    for path in (page, tmp_path / "table.md", tmp_path / "table.tex"):
        assert line in path.read_text(encoding="utf-8")


def test_a_report_on_other_data_is_not_replaced(tmp_path):
    settings = {"dataset": "refcoco", "root": "/data", "split": "testA"}
    require_own_report(tmp_path / "new", settings)
    write_report(tmp_path, Report(SCORES), {}, title="A run", **settings, step=12)
    require_own_report(tmp_path, settings | {"overlap": "union"})  # reports of earlier versions lack some settings
    for other in ({"root": "/other"}, {"dataset": "refcoco+"}, {"split": "testB"}):
        ((name, value),) = other.items()
        change = f"{name} was '{settings[name]}', now '{value}'"
        with pytest.raises(UserError, match=rf"different data \({re.escape(change)}\)"):
            require_own_report(tmp_path, settings | other)
    (tmp_path / "metrics.json").write_text("[1]")
    require_own_report(tmp_path, settings)
    (tmp_path / "metrics.json").write_text("{")
    require_own_report(tmp_path, settings)


@pytest.mark.parametrize("name", ["index.html", "expressions.csv", "table.md", "metrics.json"])
def test_files_of_others_are_not_replaced(tmp_path, name):
    (tmp_path / name).write_text('{"accuracy": 0.5}')
    (tmp_path / "image.png").touch()
    with pytest.raises(UserError, match=f"has {name}, but no report of evaluate; remove them, or give another --out"):
        require_own_report(tmp_path, {})
    (tmp_path / name).unlink()
    require_own_report(tmp_path, {})


def test_an_empty_split_of_everything(tmp_path):
    """No expression has an IoU, a place or a size: the report is written all the same."""
    lost = ExpressionScore("0", "a", "", "one", 0, 0, empty_iou=None, targeted=False)
    write_report(tmp_path, Report((lost,), PROTOCOLS["caris448"]), {}, title="A run")
    content = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))
    assert content["all"]["mean_iou"] == 0
    assert len(content["remarks"]) == 2


def test_ids_that_are_file_names_may_be_any_bytes(tmp_path, make_example):
    score = ExpressionScore("caf\udce9.jpg", "caf\udce9.jpg", "relation", "one", 1, 3)
    write_report(tmp_path, Report((score,)), {}, title="caf\udce9", split="val")
    assert "\\udce9.jpg,caf\\udce9.jpg,relation" in (tmp_path / "expressions.csv").read_text(encoding="utf-8")
    mask = np.zeros((4, 8), bool)
    cases, prediction = Cases(1), Prediction(make_example(score.id, ["one"]), mask, mask, score)
    cases(prediction)
    assert cases.sections()["random"] == [prediction]
