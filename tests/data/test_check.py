"""The door of the doctor: what it prints, writes and exits with."""

from __future__ import annotations

import io
import itertools
import json
import subprocess
import sys
import time
from pathlib import Path

from s2rm_jax.input.check.files import PUBLISHED, PUBLISHED_EXPRESSIONS, SplitSize
from s2rm_jax.input.check.report import Diagnosis, Report, show
from s2rm_jax.input.progress_bar import progress_bar
from tests.input import refer_fixture
from tests.input.refer_fixture import COCO_NAME, FOLDER

CHECK = Path(__file__).parents[2] / "data/check.py"


def check(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the door from another folder, as somebody would who has not installed the package."""
    command = [sys.executable, str(CHECK), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd="/", check=False)


def test_the_door_tells_people_programs_and_shells(tmp_path):
    refer_fixture.write_refer_layout(tmp_path / "data", "mine", "me")
    well = check("--root", tmp_path / "data", "--json", tmp_path / "report.json")
    assert (well.returncode, well.stderr) == (0, "")
    assert "✓ mine, split by me" in well.stdout and well.stdout.endswith("✓ all well\n")
    assert json.loads((tmp_path / "report.json").read_text())["well"] is True

    (tmp_path / "data" / FOLDER / COCO_NAME.format(100)).unlink()
    sick = check("--root", tmp_path / "data", "--dataset=mine", "--split-by=me", "--json", tmp_path / "report.json")
    assert sick.returncode == 1 and "✗ missing images: 1" in sick.stdout
    (diagnosis,) = json.loads((tmp_path / "report.json").read_text())["diagnoses"]
    assert diagnosis["problems"][0]["cases"] == ["COCO_train2014_000000000100.jpg"]
    assert diagnosis["counts"]["val"] == {"images": 2, "referents": 4, "expressions": 8}

    impossible = check("--root", tmp_path / "nowhere")
    assert impossible.returncode == 2 and impossible.stderr.count("\n") == 1
    unwritable = check("--root", tmp_path / "data", "--json", tmp_path / "no/report.json")
    assert unwritable.returncode == 2 and "--json: cannot write" in unwritable.stderr


def test_the_screen_shows_counts_and_five_cases(monkeypatch):
    published = {"train": SplitSize(2, 4, 8), "val": SplitSize(2, 4, 8)}
    monkeypatch.setitem(PUBLISHED, ("refcoco", "unc"), published)
    monkeypatch.setitem(PUBLISHED_EXPRESSIONS, ("refcoco", "unc"), 16)
    diagnosis = Diagnosis("refcoco", "unc", "refs", counts={"train": SplitSize(2, 3, 8)})
    diagnosis.add_wrong_counts("get it again")
    diagnosis.add("missing images", [f"{i}.jpg" for i in range(7)], "unpack")
    lines = [" ".join(line.split()) for line in show(Report("DIR", False, (diagnosis,), ("refclef",))).splitlines()]
    assert "train 2 ✓ 3 ✗ 4 8 ✓" in lines and "val 0 ✗ 2 0 ✗ 4 0 ✗ 8" in lines and "all 8 ✗ 16" in lines
    assert "✗ missing images: 7" in lines and "4.jpg" in lines and "5.jpg" not in lines
    assert "... and 2 more (--json FILE lists them all)" in lines
    assert lines[-1] == "✗ 2 problems in 1 of 1 dataset"


def test_progress_is_a_line_in_place_on_a_terminal_and_rare_lines_in_a_file(monkeypatch):
    class Screen(io.StringIO):
        def isatty(self):
            return True

    ticks = itertools.count()
    monkeypatch.setattr(time, "monotonic", lambda: float(next(ticks)))
    screen, file = Screen(), io.StringIO()
    monkeypatch.setattr(sys, "stderr", screen)
    assert list(progress_bar("abcd", "images", 4)) == list("abcd")
    lines = screen.getvalue().split("\r")
    assert lines[1] == f"images {'█' * 6}{'░' * 18} 1/4 (25%) | 1/s | ETA 0:00:03\033[K" and lines[-1] == "\033[K"
    monkeypatch.setattr(sys, "stderr", file)
    assert list(progress_bar(range(40), "images", 40)) == list(range(40))
    assert [line.split(" | ")[-1] for line in file.getvalue().splitlines()] == ["ETA 0:00:25", "ETA 0:00:10"]
