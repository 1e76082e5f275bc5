"""Paired differences in cases whose result is known in advance, and the checks of what is compared."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from s2rm_jax.errors import UserError
from s2rm_jax.evaluation.evaluator import Report
from s2rm_jax.evaluation.metrics import ExpressionScore
from s2rm_jax.evaluation.paired import by_kind, changes, differences, pair, read_evaluation
from s2rm_jax.evaluation.protocols import ORIGINAL, PROTOCOLS
from s2rm_jax.evaluation.report import write_report


def score(id, intersection, union, **more):
    return ExpressionScore(id, more.pop("example", id), more.pop("kind", ""), "the man", intersection, union, **more)


A = [
    score("0", 1, 4, example="a", kind="relation"),
    score("1", 6, 10, example="a", kind="attribute"),
    score("2", 9, 10, example="b", kind="attribute", area=0.25, centre=(0.5, 0.5)),
]
B = [replace(A[0], intersection=3), replace(A[1], union=12), replace(A[2], intersection=8)]


def evaluation(folder, scores, protocol="original", **about):
    folder.mkdir()
    write_report(folder, Report(tuple(scores), PROTOCOLS[protocol]), {}, title="", **({"split": "val"} | about))
    return read_evaluation(folder)


def test_repeated_ids_are_named(tmp_path):
    with pytest.raises(UserError, match=r"expressions.csv: several expressions have the same id; give each"):
        evaluation(tmp_path / "a", [A[0], replace(A[1], id="0")])


def test_values_computed_by_hand():
    found = differences(list(zip(A, B, strict=True)), ORIGINAL)
    # A: oIoU 16 / 24, mIoU (0.25 + 0.6 + 0.9) / 3. B: oIoU 17 / 26, mIoU (0.75 + 0.5 + 0.8) / 3.
    overall, mean = found["overall_iou"], found["mean_iou"]
    assert (overall.a, overall.b) == pytest.approx((100 * 16 / 24, 100 * 17 / 26))
    assert (mean.a, mean.b, mean.difference) == pytest.approx((100 * 1.75 / 3, 100 * 2.05 / 3, 10))
    # A resample of two images has a twice, both once, or b twice: with chances of 1/4, 1/2, 1/4 the interval is from
    # the least to the greatest difference. a alone: 9 / 16 - 7 / 14 and (0.5 - 0.1) / 2; b alone: 8 / 10 - 9 / 10.
    assert overall.interval_95 == pytest.approx((-10, 100 * (9 / 16 - 7 / 14)))
    assert mean.interval_95 == pytest.approx((-10, 20))
    assert not overall.significant and not mean.significant
    assert list(found) == list(ORIGINAL.columns)
    assert (found["precision@0.7"].a, found["precision@0.7"].b) == pytest.approx((100 / 3, 200 / 3))
    assert found["precision@0.9"].difference == pytest.approx(-100 / 3)


def test_the_interval_of_a_mean_is_that_of_the_paired_differences():
    # The mean of 400 independent changes of IoU, 0.01 or 0.03: 1.96 standard errors are 0.01 * 1.96 / sqrt(400). The
    # IoUs themselves scatter so much that unpaired intervals would be 30 times as wide, and not exclude 0.
    base = np.random.default_rng(0).integers(0, 900, 400)
    pairs = [(score(f"{i}", n, 1000), score(f"{i}", n + 10 + 20 * (i % 2), 1000)) for i, n in enumerate(base.tolist())]
    for name in ("mean_iou", "overall_iou"):
        found = differences(pairs, ORIGINAL)[name]
        assert found.interval_95 == pytest.approx((2 - 0.098, 2 + 0.098), abs=0.02) and found.significant


def test_an_evaluation_does_not_differ_from_itself():
    rng = np.random.default_rng(0)
    scores = [score(f"{i}", int(rng.integers(0, 90)), 91 + i, example=f"{i // 3}") for i in range(300)]
    for found in differences([(one, one) for one in scores], ORIGINAL).values():
        assert (found.difference, found.interval_95, found.significant) == (0, (0, 0), False)


def test_swapped_evaluations_have_the_negative_difference():
    rng = np.random.default_rng(1)
    a, b = ([score(f"{i}", int(n), 100) for i, n in enumerate(rng.integers(0, 100, 50))] for _ in range(2))
    there, back = (differences(list(zip(*two, strict=True)), ORIGINAL) for two in ((a, b), (b, a)))
    for name, one in there.items():
        low, high = one.interval_95
        assert low < one.difference < high
        assert (back[name].difference, *back[name].interval_95) == pytest.approx((-one.difference, -high, -low))


def test_metrics_of_expressions_without_a_target():
    protocol = PROTOCOLS["rela_gref"]
    nothing = score("3", 0, 0, empty_iou=1.0, targeted=False, answered=False)
    assert "no_target_accuracy" not in differences(list(zip(A, B, strict=True)), protocol)
    found = differences([*zip(A, B, strict=True), (nothing, replace(nothing, union=5, answered=True))], protocol)
    assert (found["no_target_accuracy"].a, found["no_target_accuracy"].b) == (100, 0)
    assert found["target_accuracy"].difference == 0


def test_kinds_and_changes():
    pairs = list(zip(A, B, strict=True))
    assert by_kind(pairs) == {"attribute": pairs[1:], "relation": pairs[:1]}
    assert by_kind([(score("0", 1, 2), score("0", 1, 2))]) == {}
    assert [(row["id"], round(row["change"], 6)) for row in changes(pairs)] == [("1", -0.1), ("2", -0.1), ("0", 0.5)]
    excluded = score("0", 0, 0, empty_iou=None)
    assert changes([(excluded, score("0", 1, 2))])[0]["change"] == 0


def test_the_order_of_the_expressions_is_not_compared(tmp_path):
    a, b = evaluation(tmp_path / "a", A), evaluation(tmp_path / "b", B[::-1])
    assert [(one.id, other.id, other.intersection) for one, other in pair(a, b)] == [
        ("0", "0", 3),
        ("1", "1", 6),
        ("2", "2", 8),
    ]
    assert differences(pair(a, b), ORIGINAL) == differences(list(zip(A, B, strict=True)), ORIGINAL)


def test_folders_and_the_name_of_the_part_may_differ(tmp_path):
    a = evaluation(tmp_path / "a", A, dataset="refcoco", root="/here", images=2, split="refcoco:val")
    b = evaluation(tmp_path / "b", B, dataset="refcoco", root="/there")
    assert len(pair(a, b)) == 3


@pytest.mark.parametrize(
    ("scores", "about", "message"),
    [
        (
            B,
            {"protocol": "lavt480"},
            "b: protocol is 'lavt480', but 'original' in A; run evaluate with the same --prot",
        ),
        (B, {"split": "test"}, "b: split is 'test', but 'val' in A; "),
        (B, {"dataset": "refcocog"}, "b: dataset is 'refcocog', but 'refcoco' in A; "),
        (B, {"overlap": "drop"}, "b: overlap is 'drop', but 'union' in A; "),
        (B[:1], {}, r"b: 2 expressions of A not found \(1, 2\); run evaluate on the same data for both"),
        ([*B, score("3", 1, 2)], {}, r"A: 1 expression of b not found \(3\); "),
        ([*B[:2], replace(B[2], expression="a man")], {}, "b: expression 2 has another text, .* than in A; "),
        ([*B[:2], replace(B[2], area=0.26)], {}, "b: expression 2 has another text, kind, image or true mask than in"),
        ([*B[:2], replace(B[2], example_id="c")], {}, "b: expression 2 has another"),
    ],
)
def test_what_differs_is_an_error(tmp_path, scores, about, message):
    of_data = {"dataset": "refcoco", "overlap": "union"}
    a = replace(evaluation(tmp_path / "a", A, **of_data), folder=Path("A"))
    b = replace(evaluation(tmp_path / "b", scores, **(of_data | about)), folder=Path("b"))
    with pytest.raises(UserError, match=f"^{message}"):
        pair(a, b)


def damage(name, function):
    def apply(folder):
        (folder / name).write_text(function((folder / name).read_text()))

    return apply


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "metrics.json").unlink(), "eval: metrics.json is missing, is damaged, or was not"),
        (damage("metrics.json", lambda text: text[:50]), "eval: metrics.json is missing, is damaged, or was not"),
        (
            damage("metrics.json", lambda _: json.dumps({"step": 3})),
            "eval: metrics.json is missing, is damaged, or was not",
        ),
        (lambda folder: (folder / "expressions.csv").unlink(), r"expressions.csv cannot be read \(No such file or dir"),
        (
            damage("expressions.csv", lambda _: ""),
            r"expressions.csv cannot be read \(its columns are not those of this",
        ),
        (
            damage("expressions.csv", lambda text: text.replace("centre_x,", "")),
            r"cannot be read \(its columns are not",
        ),
        (
            damage("expressions.csv", lambda text: text[: text.rindex("\n2")]),
            r"cannot be read \(it is incomplete, or",
        ),
        (
            damage("expressions.csv", lambda text: text[:-9]),
            r"expressions.csv cannot be read \(.*\); run evaluate again",
        ),
        (
            damage("expressions.csv", lambda text: text.replace(",9,", ",x,")),
            r"cannot be read \(invalid literal for int",
        ),
    ],
)
def test_missing_and_damaged_files_are_named(tmp_path, change, message):
    evaluation(tmp_path / "eval", A)
    change(tmp_path / "eval")
    with pytest.raises(UserError, match=message):
        read_evaluation(tmp_path / "eval")


def test_reports_in_the_folder_of_a_run_are_suggested(tmp_path):
    for name in ("eval-val", "eval-test"):
        evaluation(tmp_path / name, A)
    give = f"give {tmp_path / 'eval-test'} or {tmp_path / 'eval-val'}"
    with pytest.raises(UserError, match=f"{re.escape(give)}$"):
        read_evaluation(tmp_path)
