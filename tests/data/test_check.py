"""The command of the data check: its output, its files and its exit status."""

from __future__ import annotations

import io
import json
import sys

from s2rm_jax.input.check.examine import examine
from s2rm_jax.input.check.report import (
    CheckReport,
    DatasetReport,
    format_report,
)
from s2rm_jax.input.split_sizes import SPLIT_SIZES, SplitSize
from tests.command import ROOT, run_command, run_process
from tests.input import refer_fixture
from tests.input.refer_fixture import COCO_NAME, FOLDER


def check(*arguments):
    return run_command("data.check", *arguments)


def test_the_command_prints_a_report_writes_json_and_sets_its_exit_status(tmp_path):
    refer_fixture.write_refer_layout(tmp_path / "data", "mine", "me")
    intact = check("--root", tmp_path / "data", "--json_file", tmp_path / "report.json")
    assert (intact.returncode, intact.stderr) == (0, "")
    assert "✓ mine, split by me" in intact.stdout and intact.stdout.endswith("✓ no problems found\n")
    assert json.loads((tmp_path / "report.json").read_text())["ok"] is True

    (tmp_path / "data" / FOLDER / COCO_NAME.format(100)).unlink()
    asked = ("--root", tmp_path / "data", "--dataset=mine", "--split_by=me", "--json_file", tmp_path / "report.json")
    damaged = check(*asked)
    assert damaged.returncode == 1 and "✗ missing images: 1" in damaged.stdout
    (dataset,) = json.loads((tmp_path / "report.json").read_text())["datasets"]
    assert dataset["problems"][0]["cases"] == ["COCO_train2014_000000000100.jpg"]
    assert dataset["counts"]["val"] == {"images": 2, "referents": 4, "expressions": 8}

    # From another folder, as somebody would who has not installed the package.
    elsewhere = run_process(ROOT / "data/check.py", *asked, cwd="/")
    for one, other in ((elsewhere.returncode, damaged.returncode), (elsewhere.stdout, damaged.stdout)):
        assert one == other
    assert elsewhere.stderr == damaged.stderr

    impossible = check("--root", tmp_path / "nowhere")
    assert impossible.returncode == 2 and impossible.stderr.count("\n") == 1
    unwritable = check("--root", tmp_path / "data", "--json_file", tmp_path / "no/report.json")
    assert unwritable.returncode == 2 and "no/report.json cannot be written" in unwritable.stderr


def test_the_screen_shows_counts_and_five_cases(monkeypatch):
    published = {"train": SplitSize(2, 4, 8), "val": SplitSize(2, 4, 8)}
    monkeypatch.setitem(SPLIT_SIZES, ("refcoco", "unc"), published)
    dataset = DatasetReport("refcoco", "unc", "refs", counts={"train": SplitSize(2, 3, 8)})
    dataset.add_wrong_counts("download or copy it again")
    dataset.add("missing images", [f"{i}.jpg" for i in range(7)], "unpack")
    text = format_report(CheckReport("DIR", False, (dataset,), ("refclef",)))
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "train 2 ✓ 3 ✗ 4 8 ✓" in lines and "val 0 ✗ 2 0 ✗ 4 0 ✗ 8" in lines and "all 8" in lines
    assert "✗ missing images: 7" in lines and "4.jpg" in lines and "5.jpg" not in lines
    more = "... and 2 more (in Python, s2rm_jax.input.check.examine.examine(ROOT).as_json() lists them all)"
    assert more in lines and "Not found: refclef (get them with: s2rm download NAME --root DIR)" in lines
    assert lines[-1] == "✗ 2 problems in 1 of 1 dataset"


def test_progress_is_shown_on_a_terminal_only(tmp_path, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    root = refer_fixture.write_refer_layout(tmp_path)
    terminal, file = Terminal(), io.StringIO()
    monkeypatch.setattr(sys, "stderr", terminal)
    examine(root)
    assert "\rrefcoco: images:   0%|" in terminal.getvalue() and "| 0/8 [" in terminal.getvalue()
    assert terminal.getvalue().endswith("\r")  # the line is removed at the end
    monkeypatch.setattr(sys, "stderr", file)
    examine(root)
    assert file.getvalue() == ""
