"""Tables and conclusions, with intervals over seeds."""

import json
from dataclasses import replace
from xml.etree import ElementTree

import pytest
from scipy import stats

from s2rm_jax.errors import UserError
from s2rm_jax.evaluation.metrics import ExpressionScore
from s2rm_jax.measure.ablation_plots import differences_plot
from s2rm_jax.measure.ablation_report import (
    collect,
    gains_plot,
    mean_and_deviation,
    paired_difference,
    write_ablations,
)
from s2rm_jax.measure.ablation_runs import RunResult, Score, by_number, mean_ious
from s2rm_jax.measure.ablation_suites import FULL, STEPWISE, SUITES, Variant


def result(name, seed, mean_iou, curve=((10, 20.0), (20, 40.0))):
    score = Score(mean_iou, mean_iou - 5, 8, {"attribute": mean_iou + 1, "relation": mean_iou - 1}, {"5": mean_iou})
    return RunResult(name, seed, 1_000_000, 0.25, {"test": score, "compositional": score}, curve, "train")


VARIANTS = (
    FULL,
    Variant("worse", "much"),
    Variant("alike", "hardly"),
    Variant("once", "one seed"),
    Variant("none", "-"),
)
RESULTS = {
    "full": [result("full", seed, value) for seed, value in enumerate((60.0, 61.0, 62.0))],
    "worse": [result("worse", seed, value) for seed, value in enumerate((50.0, 51.0, 52.5))],
    "alike": [result("alike", seed, value) for seed, value in enumerate((60.5, 59.0, 62.0))],
    "once": [result("once", 0, 20.0)],
}


def test_the_interval_of_a_difference_is_that_of_the_paired_t_test():
    one, other = ({r.seed: r.scores["test"].mean_iou for r in RESULTS[name]} for name in ("worse", "full"))
    mean, low, high = paired_difference(one, {**other, 7: 99.0})  # seed 7 has no partner
    expected = stats.ttest_rel(list(one.values()), list(other.values())).confidence_interval(0.95)
    assert (low, high) == pytest.approx((expected.low, expected.high))
    assert mean == pytest.approx((low + high) / 2)
    assert paired_difference({0: 1.0}, {0: 1.0, 1: 2.0}) is None
    assert paired_difference({0: 3.0, 1: 4.0}, {1: 2.0, 0: 1.0}) == (2.0, 2.0, 2.0)


def test_a_cumulative_suite_compares_each_row_with_the_row_above(tmp_path):
    write_ablations(tmp_path, "cumulative", 20, VARIANTS, RESULTS)
    text = (tmp_path / "ablations.md").read_text(encoding="utf-8")
    assert "| difference from the row above, test |" in text
    (alike,) = (line for line in text.splitlines() if line.startswith("| alike | hardly |"))
    # 60.5 - 50, 59 - 51 and 62 - 52.5: mean 9.33, standard deviation 1.26, 4.303 x 1.26 / sqrt(3) = 3.13
    assert "| +9.33 (+6.21 to +12.46) |" in alike
    assert "Below the row above: worse." in text and "Above the row above: alike." in text


def test_a_variant_is_compared_with_the_one_that_it_names(tmp_path):
    variants = (FULL, Variant("worse", "much"), Variant("alike", "hardly", reference="worse"))
    write_ablations(tmp_path, "fusion_by_decoder", 20, variants, RESULTS)
    text = (tmp_path / "ablations.md").read_text(encoding="utf-8")
    assert "| difference from the reference, test |" in text
    assert "| -9.83 (-10.55 to -9.12) from full |" in text  # -10, -10, -9.5: sd 0.289, 4.303 x 0.289 / sqrt(3) = 0.72
    assert "| +9.33 (+6.21 to +12.46) from worse |" in text
    assert "Below the reference: worse." in text and "Above the reference: alike." in text


def test_a_variant_whose_reference_is_left_out_is_compared_with_the_first(tmp_path):
    write_ablations(tmp_path, "fusion_by_decoder", 20, (FULL, Variant("worse", "much", reference="gone")), RESULTS)
    assert "| difference from full, test |" in (tmp_path / "ablations.md").read_text(encoding="utf-8")


def test_a_spread_needs_two_values():
    assert mean_and_deviation([1.0]) == "1.00"
    assert mean_and_deviation([1.0, 3.0]) == "2.00 ± 1.41"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    write_ablations(folder, "casg", 20, VARIANTS, RESULTS)
    return folder


def test_the_tables_and_conclusions(folder):
    text = (folder / "ablations.md").read_text(encoding="utf-8")
    assert "| full | S2RM and CASG, unchanged | 61.00 ± 1.00 | 56.00 ± 1.00 |" in text
    assert "| once | one seed | 20.00 | 15.00 |" in text and "none" not in text
    assert "| worse | 52.17 ± 1.26 | 50.17 ± 1.26 |" in text  # by kind
    assert "Below full: worse." in text
    assert "No significant difference: alike." in text
    assert "Fewer than two seeds, no conclusion: once." in text
    assert "of 2, 0.1 are expected to be wrong" in text


def test_the_json_has_every_run(folder):
    content = json.loads((folder / "ablations.json").read_text(encoding="utf-8"))
    assert (content["suite"], content["steps"]) == ("casg", 20)
    assert {one["name"]: len(one["runs"]) for one in content["variants"]} == {n: len(r) for n, r in RESULTS.items()}
    assert content["variants"][1]["runs"][2]["scores"]["test"]["mean_iou"] == 52.5


def test_the_curve_names_the_split_of_the_evaluations(folder):
    assert "<title>Learning, on train</title>" in (folder / "plots" / "learning.svg").read_text(encoding="utf-8")


@pytest.mark.parametrize(("name", "marks"), [("by_kind", 8), ("by_objects", 4), ("learning", 8)])
def test_the_figures_have_a_mark_for_every_number(folder, name, marks):
    figure = ElementTree.parse(folder / "plots" / f"{name}.svg").getroot()
    circles = figure.findall("{http://www.w3.org/2000/svg}circle")
    assert len(circles) == marks
    assert all(0 < float(c.get("cx")) < 520 - 130 and 0 < float(c.get("cy")) < 300 for c in circles)
    assert f"]({'plots'}/{name}.svg)" in (folder / "ablations.md").read_text(encoding="utf-8")


def by_distance(name, seed, near, remote):
    score = Score(50.0, 50.0, 8, {"relation": 50.0}, {"8": 50.0}, {"1": near, "7+": remote}, {"relation, 1": near})
    return RunResult(name, seed, 1_000_000, 0.25, {"test": score}, (), "val")


def test_gains_by_distance(tmp_path):
    """Paired differences per group, and the gain of the first variant over each other with its interval."""
    results = {
        "full": [by_distance("full", seed, *values) for seed, values in enumerate(((50.0, 40.0), (52.0, 43.0)))],
        "worse": [by_distance("worse", seed, *values) for seed, values in enumerate(((49.0, 30.0), (51.5, 34.0)))],
    }
    write_ablations(tmp_path, "far", 20, VARIANTS, results)
    text = (tmp_path / "ablations.md").read_text(encoding="utf-8")
    # -1 and -0.5: mean -0.75, standard deviation 0.354, 12.706 x 0.354 / sqrt(2) = 3.18
    assert "**Difference of mean IoU from full by slices between referent and landmark, test" in text
    assert "| worse | -0.75 (-3.93 to +2.43) | -9.50 (-15.85 to -3.15) |" in text
    figure = ElementTree.parse(tmp_path / "plots/gain_by_distance.svg").getroot()
    near, remote = (float(c.get("cy")) for c in figure.findall("{http://www.w3.org/2000/svg}circle"))
    labels = {t.text: float(t.get("y")) for t in figure.iter("{http://www.w3.org/2000/svg}text")}
    assert remote < near < labels["0"], "higher gains are drawn further up"
    lines = [
        p.get("d") for p in figure.iter("{http://www.w3.org/2000/svg}path") if "stroke-width:1.2" in p.get("style")
    ]
    assert len(lines) == 2


def test_groups_are_in_the_order_of_their_numbers(tmp_path):
    """Also of results that earlier versions wrote, sorted as text."""
    names = ("10", "12", "8", "9")
    expressions = [ExpressionScore(f"{name}-0", name, "attribute", "a star", 1, 2) for name in names]
    assert list(mean_ious(expressions, names)) == ["8", "9", "10", "12"]
    assert sorted(["near, 10", "near, 7+", "far, 2", "near, 7"], key=by_number) == [
        *("far, 2", "near, 7", "near, 7+", "near, 10")
    ]
    score = Score(50.0, 50.0, 8, {"relation": 50.0}, {"10": 50.0, "8": 40.0, "9": 45.0})
    results = {
        name: [RunResult(name, seed, 1000, 0.25, {"test": score}, (), "val") for seed in range(2)]
        for name in ("full", "worse")
    }
    write_ablations(tmp_path, "casg", 20, VARIANTS, results)
    text = (tmp_path / "ablations.md").read_text(encoding="utf-8")
    assert text.count("| variant | 8 | 9 | 10 |") == 2  # the means and the differences
    figure = ElementTree.parse(tmp_path / "plots/by_objects.svg").getroot()
    labels = {t.text: float(t.get("x")) for t in figure.iter("{http://www.w3.org/2000/svg}text")}
    assert labels["8"] < labels["9"] < labels["10"]


@pytest.mark.parametrize("suite", SUITES)
def test_the_variants_of_a_suite_look_different_and_fit_into_the_legend(tmp_path, suite):
    results = {
        variant.name: [by_distance(variant.name, seed, 50.0 + index, 40.0) for seed in range(2)]
        for index, variant in enumerate(SUITES[suite])
    }
    results = {name: [replace(run, curve=((10, 20.0), (20, 40.0))) for run in runs] for name, runs in results.items()}
    write_ablations(tmp_path, suite, 20, SUITES[suite], results)
    for name in ("by_kind", "learning", *(["gain_by_distance"] if suite not in STEPWISE else [])):
        figure = ElementTree.parse(tmp_path / f"plots/{name}.svg").getroot()
        shown = set(results) - ({"full"} if name == "gain_by_distance" else set())
        legend = {t.text: t for t in figure.iter("{http://www.w3.org/2000/svg}text") if t.text in shown}
        assert legend.keys() == shown
        for variant, label in legend.items():
            assert float(label.get("x")) + 0.58 * 11 * len(variant) < 520 and float(label.get("y")) < 300
        styles = [circle.get("style") for circle in figure.findall("{http://www.w3.org/2000/svg}circle")]
        assert len(set(styles)) == len(shown)


@pytest.mark.parametrize(
    ("interval", "step", "drawn"), [((-3.0, 5.0), 2, 8.0), ((-50.0, 70.0), 10, 50.0), ((-20.0, -18.0), 5, 2.0)]
)
def test_intervals_of_gains_are_drawn_up_to_20_points(interval, step, drawn):
    """A longer one ends at the borders, here -20 and 30. Zero is always on the axis."""
    figure = ElementTree.fromstring(gains_plot("", "", {"sum": {"near": (sum(interval) / 2, *interval)}}))
    labels = {t.text: float(t.get("y")) for t in figure.iter("{http://www.w3.org/2000/svg}text")}
    point = (labels["0"] - labels[str(step)]) / step  # of mean IoU, in units of the figure
    (line,) = (
        p.get("d") for p in figure.iter("{http://www.w3.org/2000/svg}path") if "stroke-width:1.2" in p.get("style")
    )
    low, high = (float(end) for end in line.split()[1].split("V"))
    assert (low - high) / point == pytest.approx(drawn, abs=0.1)


def test_the_plot_of_differences_has_a_row_for_each_variant_with_two_seeds(folder):
    figure = ElementTree.parse(folder / "plots/differences.svg").getroot()
    svg = "{http://www.w3.org/2000/svg}"
    labels = {t.text: t for t in figure.iter(f"{svg}text")}
    zero, ten = (float(labels[tick].get("x")) for tick in ("0", "-10"))
    marks = {round(float(c.get("cy"))): c for c in figure.findall(f"{svg}circle")}
    paths = [path.get("d") for path in figure.iter(f"{svg}path")]
    spans = [[float(end) for end in path[1:].replace("H", " ").split()] for path in paths if "H" in path]
    # "worse": -10, -10 and -9.5 give -9.83 (-10.55 to -9.12); "alike": 0.5, -2 and 0 give -0.5 (-3.79 to 2.79).
    expected = {"worse": (-9.83, -10.55, -9.12), "alike": (-0.5, -3.79, 2.79)}
    assert labels.keys() & RESULTS.keys() == expected.keys()
    for name, (mean, low, high) in expected.items():
        y = float(labels[name].get("y")) - 4
        mark = marks[round(y)]
        ((left, _, right),) = (span for span in spans if round(span[1]) == round(y))
        found = [10 * (x - zero) / (zero - ten) for x in (float(mark.get("cx")), left, right)]
        assert found == pytest.approx((mean, low, high), abs=0.05)
        assert ("#ffffff" in mark.get("style")) == (name == "alike"), "hollow if the interval has 0"
        assert f"{mean:+.1f}" in labels


def test_long_names_have_space_in_the_plot_of_differences():
    name = "stages_attention from stages_only"
    figure = ElementTree.fromstring(differences_plot("Differences", {name: (-1.0, -2.0, 0.5)}))
    (label,) = (t for t in figure.iter() if t.text == name)
    assert float(label.get("x")) > 6 * len(name)  # it ends there, and a letter of this size has about 6 pixels


def test_results_without_distances_have_no_plot_of_gains(folder):
    assert not (folder / "plots/gain_by_distance.svg").exists()
    assert "slices between" not in (folder / "ablations.md").read_text(encoding="utf-8")


def test_collected_runs_replace_their_earlier_rows_and_keep_the_others(tmp_path):
    path = tmp_path / "runs.json"
    collect(path, "synthetic_benchmark", 20, {"full": RESULTS["full"][:2], "once": RESULTS["once"]})
    collect(path, "synthetic_benchmark", 10, {"full": RESULTS["full"][:1]})
    said = collect(path, "synthetic_benchmark", 20, {"full": [result("full", 1, 1 / 3)]})
    assert said == f"{path}: 4 runs, 1 of them from --out"
    rows = json.loads(path.read_text(encoding="utf-8"))
    found = [(row["steps"], row["variant"], row["seed"], row["scores"]["test"]["mean_iou"]) for row in rows]
    assert found == [(10, "full", 0, 60.0), (20, "full", 0, 60.0), (20, "full", 1, 0.3333), (20, "once", 0, 20.0)]
    assert len(path.read_text(encoding="utf-8").splitlines()) == 6, "a row is a line"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[", "is damaged"),
        (b"\xff", "is damaged"),
        (b"{}", "was not written by ablate --collect"),
        (b'[{"benchmark": "a", "steps": 1}]', "was not written by ablate --collect"),
        (b'[{"benchmark": "a", "steps": "1", "variant": "full", "seed": 0}]', "was not written by ablate --collect"),
        (b"[3]", "was not written by ablate --collect"),
    ],
)
def test_a_file_that_collect_has_not_written_stays_as_it_is(tmp_path, content, message):
    path = tmp_path / "runs.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"--collect: .*runs.json .*{message}"):
        collect(path, "synthetic_benchmark", 20, RESULTS)
    assert path.read_bytes() == content


def test_a_file_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"--collect: .*missing/runs.json cannot be written \(No such file"):
        collect(tmp_path / "missing" / "runs.json", "synthetic_benchmark", 20, RESULTS)
    with pytest.raises(UserError, match=r"--collect: .* cannot be read \(Is a directory\)"):
        collect(tmp_path, "synthetic_benchmark", 20, RESULTS)
    path = tmp_path / "runs.json"
    path.write_text("[]")
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(UserError, match=r"--collect: .*runs.json is read-only"):
        collect(path, "synthetic_benchmark", 20, RESULTS)
    assert path.read_text() == "[]"
