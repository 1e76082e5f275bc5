"""Groups of expressions by length, size and place."""

import pytest

from s2rm_jax.evaluation.bootstrap import PLACES, by_area, by_length, by_place, histogram
from s2rm_jax.evaluation.metrics import ExpressionScore


def score(iou, *, words=1, area=0.5, centre=(0.5, 0.5), image="p", **more):
    return ExpressionScore("s", image, "", " ".join(["w"] * words), iou, 100, area=area, centre=centre, **more)


def test_lengths():
    groups = by_length([score(50, words=n) for n in (1, 2, 6, 7, 8, 15, 16, 40)] + [score(100, words=1)])
    assert [(g.label, g.expressions) for g in groups] == [
        ("1", 2), ("2", 1), ("6-7", 2), ("8-10", 1), ("11-15", 1), ("16+", 2),
    ]  # fmt: skip
    assert [g.mean_iou for g in groups] == [75, 50, 50, 50, 50, 50]
    assert groups[0].interval == (75, 75)  # all of one image


def test_areas_belong_to_the_bin_that_they_close():
    groups = by_area([score(40, area=a) for a in (0.0, 0.0001, 0.01, 0.0101, 0.4, 0.41, 1.0)])
    assert [(g.label, g.expressions) for g in groups] == [("0-1", 3), ("1-2", 1), ("20-40", 1), ("40-100", 2)]


def test_places():
    groups = by_place([score(30, centre=(0.9, 0.1)), score(60, centre=(0.1, 0.9)), score(80, centre=(0.32, 1.0))])
    found = {g.label: (g.expressions, g.mean_iou) for g in groups if g.expressions}
    assert found == {"top right": (1, 30), "bottom left": (2, 70)}
    assert [g.label for g in groups] == list(PLACES)


def test_what_refers_to_nothing_has_no_size_and_no_place():
    nothing = score(0, area=0.0, centre=None, targeted=False)
    assert by_area([nothing]) == []
    assert {g.expressions for g in by_place([nothing])} == {0}
    assert [g.expressions for g in by_length([nothing])] == [1]


def test_expressions_without_an_iou_are_in_no_group():
    left_out = ExpressionScore("s", "p", "", "w", 0, 0, empty_iou=None, area=0.1, centre=(0.5, 0.5))
    assert by_length([left_out]) == []
    assert sum(histogram([left_out])) == 0


def test_intervals_widen_with_scatter_over_images():
    steady = by_length([score(50, image=f"p{i}") for i in range(40)])[0]
    mixed = by_length([score(100 * (i % 2), image=f"p{i}") for i in range(40)])[0]
    assert steady.interval == (50, 50)
    # Standard error 50 / sqrt(40) = 7.9.
    assert mixed.interval == (pytest.approx(50 - 15.5, abs=3), pytest.approx(50 + 15.5, abs=3))


def test_histogram_includes_both_ends():
    counts = histogram([score(0), score(4), score(5), score(99), score(100)])
    assert (counts[0], counts[1], counts[19]) == (2, 1, 2)
    assert sum(counts) == 5
