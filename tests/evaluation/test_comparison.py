"""Published results beside ours: which splits have any, and that nothing is mixed up."""

from zlib import crc32

import pytest
from ml_collections import ConfigDict

from s2rm_jax.evaluation.evaluator import Report
from s2rm_jax.evaluation.metrics import ExpressionScore
from s2rm_jax.evaluation.protocols import PROTOCOLS
from s2rm_jax.evaluation.published import (
    BENCHMARKS,
    COMBINED,
    PUBLISHED,
    SINGLE,
    Benchmark,
    benchmark_of,
    published_on,
)
from s2rm_jax.evaluation.report import comparison
from s2rm_jax.input.sources import describe

NOT_OFFERED = {"polygons, 512", "big_vision", "own (original size)", "own (code not read)"}
METRICS = {"overall_iou", "mean_iou", "no_target_accuracy", *(f"precision@0.{tenths}" for tenths in (5, 6, 7, 8, 9))}


PARTS = {"a": {"name": "refer", "root": "somewhere", "weight": 2.0}}


@pytest.mark.parametrize(
    ("fields", "split", "expected"),
    [
        ({}, "val", Benchmark("refcoco", "unc", "val")),  # the defaults of the source itself
        ({"dataset": "refcoco+", "split_by": "unc"}, "testB", Benchmark("refcoco+", "unc", "testB")),
        ({"dataset": "refcocog", "split_by": "umd"}, "test", Benchmark("refcocog", "umd", "test")),
        ({"dataset": "grefcoco"}, "testA", Benchmark("grefcoco", "unc", "testA")),
        ({"dataset": "refclef", "split_by": "berkeley"}, "test", Benchmark("refclef", "berkeley", "test")),
        ({}, "train", None),
        ({}, "test", None),
        ({"dataset": "refcoco", "split_by": "google"}, "val", None),
        ({"split_by": "mini"}, "val", None),
        ({"dataset": "mine"}, "val", None),
        ({"name": "json_lines"}, "val", None),
        ({"name": "tfds"}, "testA", Benchmark("refcoco", "unc", "testA")),  # the same data in other files
        ({"name": "tfds", "dataset": "ref_coco", "split_by": "refcoco_unc"}, "testA", None),
        ({"name": "combined"}, "refcoco+:testA", Benchmark("refcoco+", "unc", "testA")),
        ({"name": "combined"}, "val", None),
        (
            {"name": "combined", "datasets": ("refcocog/google",)},
            "refcocog:val",
            Benchmark("refcocog", "google", "val"),
        ),
        ({"name": "mixture", "parts": PARTS}, "a:testB", Benchmark("refcoco", "unc", "testB")),
        ({"name": "mixture", "parts": PARTS}, "testB", None),
    ],
)
def test_which_benchmark_it_is(fields, split, expected):
    source = ConfigDict({"name": "refer"} | ({} if "parts" in fields else {"root": "somewhere"}) | fields)
    assert benchmark_of(describe(source, split)) == expected


def test_a_benchmark_is_known_by_its_size():
    # RefCOCO (unc): images by TFDS's catalogue, expressions by FlagEval's documentation.
    test_a = Benchmark("refcoco", "unc", "testA")
    assert test_a.difference(750, 5657) == ""
    assert test_a.difference(2, 7) == (
        "refcoco (unc) testA has 750 images and 5,657 expressions, but 2 images and 7 expressions were evaluated"
    )
    assert test_a.difference(750, 5656)
    assert Benchmark("refcoco", "unc", "val").difference(1500, 10834) == ""
    # What is not known is not compared.
    assert Benchmark("grefcoco", "unc", "testB").difference(750, 1) == ""
    assert Benchmark("grefcoco", "unc", "val").difference(2, 7) == (
        "grefcoco (unc) val has 1,500 images, but 2 images were evaluated"
    )
    assert Benchmark("refclef", "berkeley", "test").difference(1, 60103) == ""


def test_rows_stand_beside_each_other_with_their_own_metric():
    scores = (ExpressionScore("0", "a", "", "w", 1, 2), ExpressionScore("1", "b", "", "w", 10, 10))
    table = comparison(Report(scores, PROTOCOLS["lavt480"]), Benchmark("refcoco", "unc", "val"))
    precisions = tuple(f"P@0.{tenths}" for tenths in (5, 6, 7, 8, 9))
    assert table.header == ("method", "trained on", "protocol", "source", "oIoU", "mIoU", *precisions)
    rows = {(row[0], row[1]): row[2:] for row in table.rows}
    lavt = ("lavt480", "LAVT-RIS README", "72.73", "74.46", "84.46", "80.90", "75.28", "64.71", "34.30")
    assert rows["LAVT (Swin-B)", SINGLE] == lavt
    assert rows["CRIS (R101)", SINGLE][:4] == ("cris", "CRIS.pytorch README", "–", "70.47")
    assert rows["EVF-SAM", COMBINED][2:] == ("82.4", *"––––––")
    # Ours: (1 + 10) / (2 + 10) and (0.5 + 1) / 2; an IoU of exactly 0.5 counts at 0.5.
    assert table.rows[-1][4:] == ("91.67", "75.00", "100.00", *["50.00"] * 4)
    assert table.rows[table.rules[0]][1] == COMBINED
    assert table.rows[table.rules[0] - 1][1] == SINGLE
    assert table.rules[-1] == table.strong == len(table.rows) - 1


def test_a_protocol_without_overall_iou_leaves_that_cell_empty():
    scores = (ExpressionScore("0", "a", "", "w", 1, 2),)
    table = comparison(Report(scores, PROTOCOLS["cris"]), Benchmark("refcocog", "google", "val"))
    assert table.rows[-1][:6] == ("this run", "see its config.json", "cris", "measured here", "–", "50.00")
    remamber = comparison(Report(scores, PROTOCOLS["remamber"]), Benchmark("refcocog", "google", "val"))
    assert remamber.header[-2:] == ("oIoU", "mIoU")  # a protocol without precision shows none


def test_grefcoco_has_names_of_its_own():
    scores = (ExpressionScore("0", "a", "", "w", 1, 2),)
    table = comparison(Report(scores), Benchmark("grefcoco", "unc", "val"))
    assert table.header[-3:] == ("cIoU", "gIoU", "N-acc")
    assert ("ReLA (Swin-B)", SINGLE, "rela_gref", "ReLA README", "62.42", "63.60", "–") in table.rows
    deris = ("DeRIS-L", SINGLE, "own (code not read)", "DeRIS README", "73.73", "75.30", "78.30")
    assert deris in comparison(Report(scores), Benchmark("grefcoco", "unc", "testA")).rows
    alone = comparison(Report(scores), Benchmark("refclef", "berkeley", "test"))
    assert alone.header[-2:] == ("oIoU", "mIoU")


def test_the_published_results_are_consistent():
    seen = set()
    for figure in PUBLISHED:
        key = (figure.method, figure.trained, figure.benchmark, figure.metric)
        assert key not in seen
        seen.add(key)
        assert 20 < float(figure.value) < 100
        assert figure.protocol in PROTOCOLS or figure.protocol in NOT_OFFERED
        assert figure.metric in METRICS
        assert figure.trained in (SINGLE, COMBINED)
        assert figure.benchmark in BENCHMARKS
        assert "S2RM" not in figure.method
        if figure.method.startswith("LAVT") and figure.metric.startswith("precision"):
            assert figure.protocol == "lavt480"  # whose precision counts ties, as LAVT's does
        if figure.protocol == "cris":  # these repositories compute no overall IoU
            assert figure.metric == "mean_iou"
    assert len(published_on(Benchmark("refcocog", "google", "val"))) == 2 + 2 + 2 + 2 + 2 * 5


# Of the figures of a row, after each was compared with its source: LAVT's with the two tables of its README, the others
# with the facts that were read in the places that published.py names.
CHECKSUMS = {
    ("LAVT (Swin-B)", "overall_iou", SINGLE): 0xC9DEBAD8,
    ("LAVT_one, Dice (Swin-B)", "overall_iou", SINGLE): 0x4E7A0600,
    ("ReLA (Swin-B)", "overall_iou", SINGLE): 0x5386BF02,
    ("ReLA, rerun by others", "overall_iou", SINGLE): 0x2BF10FE8,
    ("CGFormer (Swin-B)", "overall_iou", SINGLE): 0x412579E5,
    ("DMMI (Swin-B)", "overall_iou", SINGLE): 0x0048DC01,
    ("CARIS (Swin-B), rerun", "overall_iou", SINGLE): 0x60A801B1,
    ("MaskRIS (Swin-B)", "overall_iou", SINGLE): 0xE4158934,
    ("PolyFormer-B", "overall_iou", COMBINED): 0xDE9A18DD,
    ("PolyFormer-L", "overall_iou", COMBINED): 0x6C672D0C,
    ("CARIS (Swin-B)", "overall_iou", COMBINED): 0x157D6328,
    ("MaskRIS (Swin-B)", "overall_iou", COMBINED): 0x7B0C3EAA,
    ("LISA-7B, fine-tuned", "overall_iou", COMBINED): 0x2C4B11C2,
    ("EVF-SAM", "overall_iou", COMBINED): 0x560CC365,
    ("CRIS (R50)", "mean_iou", SINGLE): 0x20A588F0,
    ("CRIS (R101)", "mean_iou", SINGLE): 0x56F96634,
    ("ETRIS (R101)", "mean_iou", SINGLE): 0x584BD27A,
    ("LAVT (Swin-B)", "mean_iou", SINGLE): 0xF276DEF1,
    ("LAVT_one, Dice (Swin-B)", "mean_iou", SINGLE): 0xB7E9FA81,
    ("CGFormer (Swin-B)", "mean_iou", SINGLE): 0x483829D7,
    ("DMMI (Swin-B)", "mean_iou", SINGLE): 0xD02E0134,
    ("MaskRIS (Swin-B)", "mean_iou", SINGLE): 0x0CF0A905,
    ("DETRIS-B (DINOv2)", "mean_iou", SINGLE): 0x1DF470BB,
    ("DETRIS-L (DINOv2)", "mean_iou", SINGLE): 0x8DB643F3,
    ("LAVT (Swin-B)", "precision@0.5", SINGLE): 0xF46FA42E,
    ("LAVT_one, Dice (Swin-B)", "precision@0.5", SINGLE): 0x43624F8C,
    ("LAVT (Swin-B)", "precision@0.6", SINGLE): 0x585B53AD,
    ("LAVT_one, Dice (Swin-B)", "precision@0.6", SINGLE): 0xAED568BA,
    ("LAVT (Swin-B)", "precision@0.7", SINGLE): 0x557CECC6,
    ("LAVT_one, Dice (Swin-B)", "precision@0.7", SINGLE): 0x176F4CCB,
    ("LAVT (Swin-B)", "precision@0.8", SINGLE): 0x0ECE606D,
    ("LAVT_one, Dice (Swin-B)", "precision@0.8", SINGLE): 0x4B1A58CE,
    ("LAVT (Swin-B)", "precision@0.9", SINGLE): 0x0867BE04,
    ("LAVT_one, Dice (Swin-B)", "precision@0.9", SINGLE): 0x2EA1A248,
    ("PolyFormer-B", "mean_iou", COMBINED): 0xBDC4FC23,
    ("PolyFormer-L", "mean_iou", COMBINED): 0xA81F5EB1,
    ("PaliGemma-896", "mean_iou", COMBINED): 0xE02AE5A3,
    ("CMPC", "overall_iou", SINGLE): 0x4A84E64E,
    ("LSCM", "overall_iou", SINGLE): 0x5F5C8DB9,
    ("ReLA (R50)", "overall_iou", SINGLE): 0x9AF85840,
    ("ReLA (Swin-T)", "overall_iou", SINGLE): 0xC751B851,
    ("DeRIS-B", "overall_iou", SINGLE): 0xDEC61B1E,
    ("DeRIS-L", "overall_iou", SINGLE): 0xAE5BC2C3,
    ("ReLA (R50)", "mean_iou", SINGLE): 0x7E6E5C70,
    ("ReLA (Swin-T)", "mean_iou", SINGLE): 0x881F3774,
    ("ReLA (Swin-B)", "mean_iou", SINGLE): 0x8F81352D,
    ("DeRIS-B", "mean_iou", SINGLE): 0x144DDCD3,
    ("DeRIS-L", "mean_iou", SINGLE): 0x47BF4A8A,
    ("DeRIS-B", "no_target_accuracy", SINGLE): 0xEAE1AC25,
    ("DeRIS-L", "no_target_accuracy", SINGLE): 0xA40F2406,
}


def test_every_figure_is_the_one_that_was_read():
    rows = {}
    for figure in PUBLISHED:
        row = rows.setdefault((figure.method, figure.metric, figure.trained), [])
        row.append(f"{figure.benchmark} {figure.value}")
    assert {key: f"{crc32('; '.join(row).encode()):08X}" for key, row in rows.items()} == {
        key: f"{checksum:08X}" for key, checksum in CHECKSUMS.items()
    }


def test_figures_stand_at_their_own_splits():
    def value(method, metric, *benchmark):
        return next(f.value for f in published_on(Benchmark(*benchmark)) if (f.method, f.metric) == (method, metric))

    assert value("LAVT (Swin-B)", "overall_iou", "refcoco+", "unc", "testB") == "55.10"
    assert value("LAVT (Swin-B)", "precision@0.7", "refcoco", "unc", "testB") == "69.17"
    assert value("LAVT_one, Dice (Swin-B)", "precision@0.9", "refcocog", "google", "val") == "28.14"
    assert value("DMMI (Swin-B)", "overall_iou", "refcocog", "umd", "val") == "63.46"
    assert value("DETRIS-L (DINOv2)", "mean_iou", "refcocog", "google", "val") == "67.9"
    assert value("PaliGemma-896", "mean_iou", "refcocog", "umd", "val") == "72.22"
    assert value("LSCM", "overall_iou", "refclef", "berkeley", "test") == "66.57"
