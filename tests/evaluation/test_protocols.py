"""Every protocol on cases small enough to be worked out by hand."""

import numpy as np
import pytest

from s2rm_jax.errors import UserError
from s2rm_jax.evaluation.metrics import ExpressionScore, count_pixels, score_masks, total
from s2rm_jax.evaluation.protocols import ARANGE_THRESHOLDS, ORIGINAL, PROTOCOLS, protocol_named


def scores_under(protocol, *cases):
    """Scores of (true pixels, predicted pixels) given as sets, all expressions about one row of ten pixels."""
    scores = []
    for true, predicted, *answered in cases:
        masks = [np.isin(np.arange(10), list(pixels))[None] for pixels in (true, predicted)]
        targeted, answer = bool(true), answered[0] if answered else bool(predicted)
        judged = score_masks(protocol, *count_pixels(*masks), targeted, answer)
        scores.append(ExpressionScore("s", "e", "", "w", *judged, targeted=targeted, answered=answer))
    return scores


def numbers(name, *cases):
    protocol = PROTOCOLS[name]
    return total(scores_under(protocol, *cases), protocol).metrics(protocol)


FIRST = set(range(6))  # six true pixels in all of the plain cases
# IoU 3/5 (I = 3 of a union of 5: true 0-4, predicted 0-2), IoU 6/6, IoU 0 of 6 + 2 = 8.
PLAIN = [(set(range(5)), {0, 1, 2}), (FIRST, FIRST), (FIRST, {8, 9})]


@pytest.mark.parametrize("name", ["original", "lavt480"])
def test_lavt_counts_ties(name):
    # oIoU (3 + 6 + 0) / (5 + 6 + 8) = 9/19; mIoU (3/5 + 1 + 0) / 3 = 1.6/3; 3/5 and 1 reach 0.6, only 1 reaches 0.7.
    found = numbers(name, *PLAIN)
    assert list(found) == ["overall_iou", "mean_iou", *(f"precision@0.{t}" for t in range(5, 10))]
    assert found["overall_iou"] == pytest.approx(900 / 19)
    assert found["mean_iou"] == pytest.approx(160 / 3)
    assert [found[f"precision@0.{t}"] for t in range(5, 10)] == pytest.approx([200 / 3, 200 / 3, *[100 / 3] * 3])


def test_an_empty_union_is_zero_for_lavt():
    # Two empty masks and an IoU of 1/2 (true 0-1, predicted 0): mean (0 + 1/2) / 2, overall 1/2.
    found = numbers("lavt480", (set(), set()), ({0, 1}, {0}))
    assert (found["mean_iou"], found["overall_iou"], found["precision@0.5"]) == (25, 50, 50)


def test_cris_does_not_count_ties_and_has_no_overall_iou():
    # 3/5 > 0.5, but not > 0.6; 1 is above all.
    found = numbers("cris", *PLAIN)
    assert list(found) == ["mean_iou", *(f"precision@0.{t}" for t in range(5, 10))]
    assert found["mean_iou"] == pytest.approx(160 / 3)
    assert [found[f"precision@0.{t}"] for t in range(5, 10)] == pytest.approx([200 / 3, *[100 / 3] * 4])


def test_cgformer_does_not_count_small_ties_and_has_both():
    found = numbers("cgformer", *PLAIN)
    assert found["overall_iou"] == pytest.approx(900 / 19)
    assert (found["precision@0.5"], found["precision@0.6"]) == pytest.approx((200 / 3, 100 / 3))


@pytest.mark.parametrize(
    ("tenths", "intersection", "union", "reached"),
    [
        # x is float32: 0.5, 0.60000002384, 0.69999998808, 0.80000001192, 0.89999997616.
        (5, 500, 1000, False),  # 0.4999999995
        (5, 501, 1000, True),
        (6, 600, 1000, False),
        (6, 601, 1000, True),
        (7, 700, 1000, True),  # 0.6999999993 > 0.69999998808
        (7, 7, 10, False),  # 0.69999993
        (7, 699, 1000, False),
        (8, 800, 1000, False),
        (9, 900, 1000, True),
        (9, 9, 10, False),  # 0.89999991
        (9, 0, 0, False),
    ],
)
def test_cris_and_cgformer_compare_with_float32_thresholds(tenths, intersection, union, reached):
    score = ExpressionScore("s", "e", "", "w", intersection, union)
    for name in ("cris", "cgformer"):
        assert total([score], PROTOCOLS[name]).metrics(PROTOCOLS[name])[f"precision@0.{tenths}"] == 100 * reached
    exactly = 10 * intersection >= tenths * union > 0
    assert total([score]).metrics()[f"precision@0.{tenths}"] == 100 * exactly


def test_the_thresholds_are_those_of_torch_arange():
    torch = pytest.importorskip("torch")
    assert list(ARANGE_THRESHOLDS.values()) == [float(x) for x in torch.arange(0.5, 1.0, 0.1)]


def test_caris_leaves_empty_unions_out_of_the_mean_only():
    # IoUs 1/2, 1 and 0/0: mean (1/2 + 1) / 2 = 3/4; overall (1 + 6) / (2 + 6) = 7/8; of three expressions two reach 0.5
    # (one of them by a tie) and one reaches 0.7.
    found = numbers("caris448", ({0, 1}, {0}), (FIRST, FIRST), (set(), set()))
    assert list(found) == ["overall_iou", "mean_iou", "precision@0.5", "precision@0.7", "precision@0.9"]
    assert found["mean_iou"] == 75
    assert found["overall_iou"] == 87.5
    assert found["precision@0.5"] == pytest.approx(200 / 3)
    assert found["precision@0.7"] == pytest.approx(100 / 3)


def test_remamber_divides_the_mean_intersection_by_the_mean_union():
    # mean(I) = (3 + 6 + 0) / 3 = 3, mean(U) = (5 + 6 + 8) / 3 = 19/3: 3 / (19/3) = 9/19, the same as sum / sum.
    found = numbers("remamber", *PLAIN)
    assert list(found) == ["overall_iou", "mean_iou"]
    assert found["overall_iou"] == pytest.approx(100 * 3 / (19 / 3))


# The four answers of gRefCOCO, by what the network says (True: it refers to something), not by its mask:
GREF = [
    (set(), {0, 1}, False),  # nothing meant, "nothing" answered (TP), though its mask has two pixels
    (set(), {0, 1, 2}, True),  # nothing meant, three pixels answered (FN)
    (FIRST, {0, 1, 2, 3, 6}, False),  # meant, "nothing" answered (FP); masks: I = 4, U = 7
    ({0, 1, 2, 3, 4, 5, 6, 7, 8, 9}, {0, 1, 2, 3, 4, 5, 6}, True),  # meant and answered (TN): I = 7, U = 10
]


def test_rela_on_all_four_answers():
    # IoU: 1, 0, 0 (its intersection is lost), 7/10; I: 0, 0, 0, 7; U: 0, 3, 7 (its mask still counts), 10.
    # gIoU (1 + 0 + 0 + 0.7) / 4, cIoU 7 / 20, N-acc TP / (TP + FN) = 1/2, T-acc TN / (TN + FP) = 1/2.
    # Precision over the two that refer to something: 0.7 is a tie and counts, at 0.8 none is left.
    found = numbers("rela_gref", *GREF)
    assert found == pytest.approx(
        {
            "overall_iou": 100 * 7 / 20,
            "mean_iou": 100 * 1.7 / 4,
            "precision@0.7": 50,
            "precision@0.8": 0,
            "precision@0.9": 0,
            "no_target_accuracy": 50,
            "target_accuracy": 50,
        }
    )


def test_rela_without_a_head_takes_an_empty_mask_for_nothing():
    # Meant but an empty mask: "nothing" (FP), I = 0, U = 6. Nothing meant and an empty mask: TP, IoU 1.
    found = numbers("rela_gref", (FIRST, set()), (set(), set()), (FIRST, FIRST))
    assert found["overall_iou"] == 100 * 6 / 12
    assert found["mean_iou"] == pytest.approx(200 / 3)
    assert found["no_target_accuracy"] == 100
    assert found["target_accuracy"] == 50
    assert found["precision@0.9"] == 50


def test_rela_says_something_and_shows_nothing():
    # A head that says "something" over an empty mask: nothing meant (FN, U = 0), then meant (TN, I = 0, U = 6).
    found = numbers("rela_gref", (set(), set(), True), (FIRST, set(), True))
    assert (found["overall_iou"], found["mean_iou"]) == (0, 0)
    assert (found["no_target_accuracy"], found["target_accuracy"]) == (0, 100)


def test_lisa_scores_the_masks_themselves_and_has_no_accuracies():
    # Two empty masks: IoU 1. Three pixels for nothing: IoU 0, U = 3. I = 4, U = 7. An empty mask for six: I = 0, U = 6.
    # gIoU (1 + 0 + 4/7 + 0) / 4, cIoU 4 / 16.
    found = numbers("lisa", (set(), set()), (set(), {0, 1, 2}), (FIRST, {0, 1, 2, 3, 6}), (FIRST, set()))
    assert found == pytest.approx({"overall_iou": 25, "mean_iou": 100 * (1 + 4 / 7) / 4})


def test_no_accuracy_where_every_expression_refers_to_something():
    found = numbers("rela_gref", (FIRST, FIRST))
    assert "no_target_accuracy" not in found
    assert "target_accuracy" not in found
    assert "no_target_accuracy" in PROTOCOLS["rela_gref"].columns


@pytest.mark.parametrize("name", PROTOCOLS)
def test_parts_of_the_data_add_up(name):
    protocol = PROTOCOLS[name]
    scores = scores_under(protocol, *GREF, *PLAIN, (set(), set()))
    whole = total(scores, protocol)
    parts = total(scores[:3], protocol) + total(scores[3:], protocol)
    assert parts.metrics(protocol) == pytest.approx(whole.metrics(protocol))
    assert (parts.intersection, parts.union, parts.hits) == (whole.intersection, whole.union, whole.hits)


@pytest.mark.parametrize("name", PROTOCOLS)
def test_the_definition_says_what_is_done(name):
    protocol = PROTOCOLS[name]
    text = " ".join(protocol.definition)
    assert text.startswith(f"Protocol {name}: ")
    assert ("original resolution" in text) == (protocol.size is None)
    assert ("0.35" in text) == (name == "cris")
    float32 = "I / (U + 1e-6) > x, where x is a float32 number: 0.50000000, 0.60000002, 0.69999999, 0.80000001"
    assert (float32 in text) == (name in ("cris", "cgformer"))
    assert ("N-acc" in text) == (name == "rela_gref")
    assert ("overlap = drop" in text) == (name not in ("original", "cris", "rela_gref"))
    assert ("480 x 480" in text) == (name in ("lavt480", "rela_gref"))
    assert ("left out" in text) == (name == "caris448")


def test_names():
    assert protocol_named("original") is ORIGINAL
    with pytest.raises(UserError, match=r"protocol 'lavt' not found; available: original, lavt480, .*lisa") as raised:
        protocol_named("lavt")
    assert "\n" not in str(raised.value)
