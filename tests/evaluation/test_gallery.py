"""The images of an evaluation: which are chosen, which files appear, and what is on the page."""

import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
from PIL import Image

from s2rm_jax.evaluation.evaluator import Prediction, Report
from s2rm_jax.evaluation.gallery import PANEL, Cases, contact_sheet, gallery_html, outcome, write_gallery
from s2rm_jax.evaluation.metrics import ExpressionScore
from s2rm_jax.evaluation.report import metrics_table, report_page

NASTY = "</style><script>alert(\"x\")</script> & 'quoted'"


def predictions_of(example, predicted=None):
    scores = [ExpressionScore(e.id, example.id, e.kind, e.text, 3, 4) for e in example.expressions]
    masks = [np.asarray(e.segmentation) for e in example.expressions]
    return [
        Prediction(example, mask, mask if predicted is None else predicted, score)
        for mask, score in zip(masks, scores, strict=True)
    ]


class Reader(HTMLParser):
    """Collects tags with their attributes and the text outside style and script."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.text, self._inside = [], [], None
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._inside = tag

    def handle_data(self, data):
        if self._inside not in ("style", "script"):
            self.text.append(data)


def test_files_with_the_right_sizes(tmp_path, make_example):
    wide, tall = make_example("val/wide", ["red", "blue"], 48, 96), make_example("tall", ["red"], 640, 320)
    sections = {"worst": predictions_of(wide)[:1], "best": predictions_of(wide)[1:] + predictions_of(tall)}
    paths = write_gallery(tmp_path / "gallery", sections)
    names = ["worst_001_val_wide_0.png", "worst.png", "best_001_val_wide_1.png", "best_002_tall_0.png", "best.png"]
    assert [path.name for path in paths] == names
    with Image.open(paths[0]) as case:
        # A 48 x 96 image is enlarged to 320 across, twice side by side, 160 high, below the key and the expression.
        assert case.width >= 2 * PANEL
        assert 160 < case.height < 160 + 150
    with Image.open(paths[3]) as case:
        assert PANEL < case.height < PANEL + 150  # the longer side of a large image is reduced to PANEL
    with Image.open(paths[4]) as both:
        assert both.width > 4 * 240


def test_only_cases_of_an_earlier_gallery_are_removed(tmp_path, make_example):
    for name in ("best_001_old.png", "worst_1000_old.png", "random.png", "holiday.png", "best_of_mine.png"):
        (tmp_path / name).write_text("")
    write_gallery(tmp_path, {"best": predictions_of(make_example("new", ["red"]))})
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["best.png", "best_001_new_0.png", "best_of_mine.png", "holiday.png"]


def test_true_and_predicted_masks_stand_side_by_side(make_example):
    example = make_example("e", ["red"], 80, 160)
    nothing = np.zeros((80, 160), bool)
    sheet = np.asarray(contact_sheet(predictions_of(example, predicted=nothing), panel=PANEL)).astype(int)
    true, predicted = sheet[-100:-40, 24 : 24 + PANEL], sheet[-100:-40, 36 + PANEL : 36 + 2 * PANEL]
    red_true, red_predicted = true[:, 20:100, 0].mean(), predicted[:, 20:100, 0].mean()  # the red part, inside the mask
    assert red_true > 200  # in the light
    assert red_predicted < 140  # in the shade, as nothing was predicted


def test_masks_of_another_size_than_the_image_fit_over_it(make_example):
    example = make_example("e", ["red"], 80, 160)
    square = np.zeros((480, 480), bool)
    square[:, :240] = True  # the left half, as in the example
    same, other = predictions_of(example), predictions_of(example)
    other = [Prediction(example, square, square, other[0].score)]
    difference = np.abs(np.asarray(contact_sheet(same)).astype(int) - np.asarray(contact_sheet(other)))
    assert difference.mean() < 2


def test_outcome_of_a_case(make_example):
    (case,) = predictions_of(make_example("e", ["red"], 8, 16, kind="colour"))
    nothing = np.zeros((8, 16), bool)
    assert outcome(case) == "colour, IoU 75.0 %"
    empty = Prediction(case.example, nothing, nothing, replace(case.score, union=0, empty_iou=None, answered=False))
    assert outcome(empty) == "colour, no IoU, empty union, nothing predicted"
    rejected = Prediction(case.example, nothing, case.true, replace(case.score, targeted=False, answered=False))
    assert outcome(rejected) == "colour, IoU 75.0 %, refers to nothing, answered with 'nothing'"


def test_the_page_is_self_contained_and_escapes_text(make_example):
    predictions = predictions_of(make_example(NASTY, [NASTY, "red"], kind=NASTY))
    report = Report(tuple(p.score for p in predictions))
    sections = {"random": predictions, "worst": predictions[:1]}
    page = report_page(NASTY, [metrics_table(report)], {"plot": "<svg></svg>"}, [NASTY], sections)
    reader = Reader(page)
    tags = [tag for tag, _ in reader.tags]
    assert tags.count("script") == 1
    assert tags.count("article") == 3
    assert "link" not in tags
    sources = [attributes["src"] for tag, attributes in reader.tags if tag == "img"]
    assert len(sources) == 6
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert len(re.findall(r"url\(data:", page)) == 1  # one image for all of its expressions
    assert set(re.findall(r"url\((.{5})", page)) == {"data:"}
    assert "".join(reader.text).count(NASTY) >= 5  # title, heading, note, kind, expression: as they were written
    cards = [attributes for tag, attributes in reader.tags if tag == "article"]
    assert cards[0]["data-kind"] == NASTY
    assert cards[0]["data-iou"] == "0.750000"
    assert "75.00" in "".join(reader.text)
    headings = re.findall(r"<h2[^>]*>([^<]*)", page)
    assert headings == ["Breakdown", "Random cases", "Worst cases"]


def test_kinds_are_offered_only_where_there_are_any(make_example):
    plain = predictions_of(make_example("e", ["red"]))
    assert 'id="kind"' not in gallery_html({"best": plain})
    assert 'id="kind"' in gallery_html({"best": predictions_of(make_example("e", ["red"], kind="a"))})


def test_long_expressions_lengthen_the_contact_sheet(make_example):
    short, long = (
        contact_sheet(predictions_of(make_example("e", [expression], 96, 96)))
        for expression in ("red", "the part " * 20 + "x" * 200)
    )
    assert long.width == short.width
    assert long.height > short.height


def chosen_of(make_example, count, *ious, **more):
    """What is chosen of images with an expression for each IoU of `ious`, in hundredths; ids are "IMAGE-EXPRESSION"."""
    cases = Cases(count)
    for number, of_image in enumerate(ious):
        example = make_example(f"e{number}", ["red"] * len(of_image))
        for prediction, iou in zip(predictions_of(example), of_image, strict=True):
            score = replace(prediction.score, intersection=iou or 0, union=0 if iou is None else 100, empty_iou=None)
            cases(Prediction(example, prediction.true, prediction.predicted, replace(score, **more)))
    return {name: [p.score.id for p in predictions] for name, predictions in cases.sections().items()}


def test_best_and_worst_are_of_different_images(make_example):
    chosen = chosen_of(make_example, 2, [10, 20, 90], [50, 40], [30, 95], [60])
    assert chosen["worst"] == ["e0-0", "e2-0"]
    assert chosen["best"] == ["e2-1", "e0-2"]
    assert len(set(chosen["random"])) == 2


def test_the_random_ones_do_not_depend_on_what_was_predicted(make_example):
    ious = [[i % 100, (7 * i) % 100] for i in range(40)]
    one = chosen_of(make_example, 5, *ious)
    other = chosen_of(make_example, 5, *([99 - a, 99 - b] for a, b in ious))
    assert one["random"] == other["random"]
    assert len({name.split("-")[0] for name in one["random"]}) == 5
    positions = sorted(int(name.split("-")[0][1:]) for name in one["random"])
    assert positions != list(range(5))  # not simply the first


def test_best_cases_refer_to_something(make_example):
    assert set(chosen_of(make_example, 2, [100], [100], targeted=False)) == {"random", "worst"}


def test_expressions_without_an_iou_are_neither_best_nor_worst(make_example):
    assert chosen_of(make_example, 2, [None]) == {"random": ["e0-0"]}


def test_a_count_of_zero_keeps_no_cases(make_example):
    assert chosen_of(make_example, 0, [1], [2]) == {}


def test_random_cases_are_not_the_first_ones(make_example):
    predictions = [predictions_of(make_example(f"image {number}", ["red"]))[0] for number in range(40)]
    orders = []
    for given in (predictions, predictions[::-1]):
        cases = Cases(8)
        for prediction in given:
            cases(prediction)
        orders.append([prediction.example.id for prediction in cases.sections()["random"]])
    assert orders[0] == orders[1]  # whatever the order of the evaluation
    numbers = [int(name.split()[1]) for name in orders[0]]
    assert numbers != sorted(numbers) and min(numbers) < 20 <= max(numbers)
