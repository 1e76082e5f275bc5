"""The pictures of an evaluation: which are chosen, which files appear, and what is on the page."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from s2rm_jax.evaluation.evaluator import Prediction
from s2rm_jax.evaluation.gallery import PANEL, Chosen, contact_sheet, example_sheet, one_of_each, write_gallery
from s2rm_jax.evaluation.gallery_page import outcome
from s2rm_jax.evaluation.metrics import SentenceScore
from s2rm_jax.evaluation.report import Report

NASTY = "</style><script>alert(\"x\")</script> & 'quoted'"


def predictions_of(example, predicted=None):
    scores = [SentenceScore(e.id, example.id, e.kind, e.sentence, 3, 4) for e in example.expressions]
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
    wide, tall = make_example("val/wide", ["red", "blue"], 48, 96, "a"), make_example("tall", ["red"], 640, 320, "b")
    examples = [predictions_of(wide), predictions_of(tall)]
    report = Report(tuple(p.score for example in examples for p in example))
    paths = write_gallery(tmp_path / "gallery", examples, report, "A run")
    assert [path.name for path in paths] == ["001_val_wide.png", "002_tall.png", "gallery.png", "index.html"]
    with Image.open(paths[0]) as sheet:
        # A 48 x 96 picture is enlarged to 320 across: the bare picture and two rows of it, 160 high each, with text.
        assert sheet.width >= 2 * PANEL
        assert 3 * 160 < sheet.height < 3 * 160 + 250
    with Image.open(paths[1]) as sheet:
        assert 2 * PANEL < sheet.height < 2 * PANEL + 250  # the longer side of a large picture is reduced to PANEL
    assert not re.search(rb"https?:", paths[-1].read_bytes())


def test_examples_of_an_earlier_gallery_are_gone_and_nothing_else(tmp_path, make_example):
    for name in ("001_old.png", "1000_old.png", "holiday.png", "001_Mine.png"):
        (tmp_path / name).write_text("")
    examples = [predictions_of(make_example("new", ["red"]))]
    write_gallery(tmp_path, examples, Report((examples[0][0].score,)), "A run")
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["001_Mine.png", "001_new.png", "gallery.png", "holiday.png", "index.html"]


def test_true_and_predicted_masks_stand_side_by_side(make_example):
    example = make_example("e", ["red"], 80, 160)
    nothing = np.zeros((80, 160), bool)
    sheet = np.asarray(example_sheet(predictions_of(example, predicted=nothing))).astype(int)
    true, predicted = sheet[-100:-40, 24 : 24 + PANEL], sheet[-100:-40, 36 + PANEL : 36 + 2 * PANEL]
    red_true, red_predicted = true[:, 20:100, 0].mean(), predicted[:, 20:100, 0].mean()  # the red part, inside the mask
    assert red_true > 200  # in the light
    assert red_predicted < 140  # in the shade, as nothing was predicted
    assert "nothing predicted" in outcome(predictions_of(example, predicted=nothing)[0])
    assert outcome(predictions_of(example)[0]) == "IoU 75.0 %"


def test_the_page_is_self_contained_and_escapes_text(tmp_path, make_example):
    examples = [predictions_of(make_example(NASTY, [NASTY, "red"], kind=NASTY))]
    report = Report(tuple(p.score for p in examples[0]))
    *_, index = write_gallery(tmp_path, examples, report, NASTY)
    page = index.read_text(encoding="utf-8")
    reader = Reader(page)
    tags = [tag for tag, _ in reader.tags]
    assert tags.count("script") == 1
    assert tags.count("style") == 1
    assert tags.count("article") == 2
    assert "link" not in tags
    sources = [attributes["src"] for tag, attributes in reader.tags if tag == "img"]
    assert len(sources) == 4
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert set(re.findall(r"url\((.{5})", page)) == {"data:"}
    assert "".join(reader.text).count(NASTY) >= 4  # title, heading, kind, sentence: readable as they were written
    cards = [attributes for tag, attributes in reader.tags if tag == "article"]
    assert cards[0]["data-kind"] == NASTY
    assert cards[0]["data-iou"] == "0.750000"
    assert "75.00" in "".join(reader.text)


@pytest.mark.parametrize(("examples", "count", "expected"), [(10, 4, [0, 2, 5, 7]), (3, 9, [0, 1, 2]), (5, 0, [])])
def test_the_chosen_are_spread_evenly(make_example, examples, count, expected):
    chosen = Chosen(examples, count)
    for number in range(examples):
        for prediction in predictions_of(make_example(f"e{number}", ["red", "blue"])):
            chosen(prediction)
    assert [[p.score.id for p in kept] for kept in chosen.examples] == [[f"e{n}-0", f"e{n}-1"] for n in expected]


def test_kinds_take_turns_on_the_contact_sheet(make_example):
    both = [make_example(f"e{n}", ["red"], kind="a") for n in range(4)]
    examples = [predictions_of(a) + predictions_of(make_example(a.id, ["blue"], kind="b")) for a in both]
    picked = one_of_each(examples, count=3)
    assert [p.score.kind for p in picked] == ["a", "b", "a"]
    assert [p.example.id for p in picked] == ["e0", "e1", "e2"]


def test_long_sentences_lengthen_the_contact_sheet(make_example):
    short, long = (
        contact_sheet(predictions_of(make_example("e", [sentence], 96, 96)))
        for sentence in ("red", "the part " * 20 + "x" * 200)
    )
    assert long.width == short.width
    assert long.height > short.height
