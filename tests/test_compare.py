"""The command that compares two evaluations."""

import csv
import json
from dataclasses import replace

import pytest

from s2rm_jax.evaluation.evaluator import Report
from s2rm_jax.evaluation.metrics import ExpressionScore
from s2rm_jax.evaluation.report import write_report
from tests.command import run_command, run_process

KINDS = ("relation", "attribute")
A = [ExpressionScore(f"{i}", f"{i // 2}", KINDS[i % 2], f"the {i}th | man", 50 + i, 100) for i in range(40)]
# The relations gain 10, an attribute loses 20.
B = [replace(one, intersection=one.intersection + (10 if one.kind == "relation" else 0)) for one in A]
B[7] = replace(B[7], intersection=B[7].intersection - 20)


@pytest.fixture
def folders(tmp_path):
    for name, scores in (("a", A), ("b", B)):
        (tmp_path / name).mkdir()
        write_report(tmp_path / name, Report(tuple(scores)), {}, title="", split="val", workdir=f"runs/{name}", step=9)
    return tmp_path


def test_tables(folders):
    done = run_command("compare", "a", "b", cwd=folders)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[:2] == ["A: a, workdir runs/a, step 9", "B: b, workdir runs/b, step 9"]
    assert "Protocol original, 40 expressions of 20 images" in lines
    rows = {line.split("  ")[0]: line.split() for line in lines}
    assert rows["mIoU"][1:4] == ["69.50", "74.00", "+4.50"] and rows["mIoU"][-1] == "yes"
    assert rows["P@0.5"][1:4] == ["100.00", "97.50", "-2.50"] and rows["P@0.5"][-2:] == ["+0.00", "no"]
    assert rows["relation (20)"][4:] == ["+10.00", "+10.00", "to", "+10.00", "yes"]
    assert rows["attribute (20)"][4] == "-1.00" and rows["attribute (20)"][-1] == "no"
    loss = lines[lines.index("Largest losses, IoU in percent") + 4]
    assert loss.split("  ")[0] == "the 7th | man" and loss.split()[-4:] == ["7", "57.0", "37.0", "-20.0"]
    assert "Largest losses, IoU in percent" not in run_command("compare", "a", "a", cwd=folders).stdout
    assert max(map(len, lines)) <= 120


@pytest.mark.parametrize("arguments", ["a b --json --quiet", "--json a --quiet b", "--eval_b=b --quiet a --json"])
def test_json_and_the_places_of_the_folders(folders, arguments):
    done = run_command("compare", *arguments.split(), cwd=folders)
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert {name: found[name] for name in ("a", "b", "protocol", "split", "images", "expressions")} == {
        **{"a": "a", "b": "b", "protocol": "original", "split": "val"},
        **{"images": 20, "expressions": 40},
    }
    assert found["all"]["mean_iou"]["difference"] == pytest.approx(4.5) and found["all"]["mean_iou"]["significant"]
    assert found["by_kind"]["relation"]["expressions"] == 20
    assert found["by_kind"]["relation"]["overall_iou"]["interval_95"] == pytest.approx([10, 10])
    assert len(found["gains"]) == 5 and {row["kind"] for row in found["gains"]} == {"relation"}
    (loss,) = found["losses"]
    assert (loss["id"], loss["iou_a"], loss["iou_b"], loss["change"]) == ("7", 0.57, 0.37, pytest.approx(-0.2))


def test_files(folders):
    done = run_command("compare", "a", "b", "--out", "both", cwd=folders)
    assert done.returncode == 0 and done.stdout.endswith("\ncomparison.md and changes.csv are in both\n")
    assert sorted(path.name for path in (folders / "both").iterdir()) == ["changes.csv", "comparison.md"]
    with (folders / "both" / "changes.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 40 and (rows[0]["id"], rows[0]["expression"], rows[0]["iou_b"]) == (
        "7",
        "the 7th | man",
        "0.37",
    )
    changes = [float(row["change"]) for row in rows]
    assert changes == sorted(changes) and changes[-1] == pytest.approx(0.1)
    markdown = (folders / "both" / "comparison.md").read_text()
    assert (
        "| mIoU | 69.50 | 74.00 | +4.50 |" in markdown and "| the 7th \\| man | 7 | 57.0 | 37.0 | -20.0 |" in markdown
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            "",
            "error: --eval_a is missing: the first argument: a folder that evaluate wrote, such as runs/a/eval-val; --",
        ),
        ("a", "error: --eval_b is missing: the second argument: "),
        ("a b c", "error: unexpected argument 'c': every other argument is a flag, such as --out=...; "),
        ("a b --outt=c", "error: Unknown command line flag 'outt'. Did you mean: out ? (see --help)"),
        (
            "a nowhere",
            "error: nowhere: metrics.json is missing, is damaged, or was not written by evaluate; give a folder that ",
        ),
        ("a b --out a/metrics.json", "error: --out: a/metrics.json is an existing file"),
    ],
)
def test_errors(folders, arguments, message):
    done = run_command("compare", *arguments.split(), cwd=folders)
    assert (done.returncode, done.stdout) == (2, "") and done.stderr.startswith(message)


def test_it_does_not_import_jax():
    code = "import sys, s2rm_jax.compare; print({'jax', 'flax', 'torch'} & {*sys.modules})"
    assert run_process("-c", code).stdout == "set()\n"
