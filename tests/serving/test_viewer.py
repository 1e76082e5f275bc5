"""The HTML of the viewer, without a browser."""

import base64
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
from PIL import Image

from s2rm_jax.input.masks import rasterize
from s2rm_jax.serving.viewer import answer_html, image_html
from tests.serving.standin import HTML


class Reader(HTMLParser):
    def __init__(self, page):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def content(url):
    return base64.b64decode(url.partition("base64,")[2])


def test_masks_words_directions_and_downloads(explaining_service, striped_file):
    answer = explaining_service.segment(striped_file(3, 16, 24), ["red", "the <i>blue</i> part"], explain=True)
    page = Reader(answer_html(answer))
    masks = [image for image in page.all("img") if "data-mask" in image]
    assert [image["data-mask"] for image in masks] == [box["data-shows"] for box in page.all("input")] == ["0", "1"]
    for image, mask in zip(masks, answer.result.masks, strict=True):
        with Image.open(io.BytesIO(content(image["src"]))) as layer:
            assert layer.size == (24, 16)
            shown = np.asarray(layer)[..., 3] > 0
        assert shown[mask].all()
    downloads = {link["download"]: content(link["href"]) for link in page.all("a")}
    assert list(downloads)[:3] == ["mask_1_red.png", "mask_1_red_polygons.json", "mask_1_red_rle.json"]
    np.testing.assert_array_equal(
        rasterize(json.loads(downloads["mask_1_red_rle.json"]), 16, 24), answer.result.masks[0]
    )
    assert json.loads(downloads["mask_1_red_polygons.json"])["holes"] == []
    buttons = page.all("button")
    # [CLS] red [SEP]; four directions of two pairs; two stages.
    assert len([b for b in buttons if "attention" in b["data-legend"]]) == 3 + 6
    assert len([b for b in buttons if "direction" in b["data-legend"]]) == 2 * 8
    assert len([b for b in buttons if "stage" in b["data-legend"]]) == 2 * 2
    text = answer_html(answer)
    assert [f"{share} %" in text for share in (10, 20, 30, 40)] == [True] * 4
    assert "<i>blue</i>" not in text  # expressions are escaped
    assert "2 expressions segmented in" in text
    assert not re.search(r"(?:src|href)=\"(?!data:)", text)


def test_expressions_and_words_are_escaped(explaining_service, striped_file):
    """The stand-in's tokenizer returns HTML for the word "part"."""
    written = "part <script>alert(1)</script>"
    page = Reader(answer_html(explaining_service.segment(striped_file(), [written], explain=True)))
    assert [
        tag
        for tag, attributes in page.tags
        if tag == "script" or attributes.get("src") == "x" or "onerror" in attributes
    ] == []
    assert written in page.text
    assert HTML in page.text
    legends = [button["data-legend"] for button in page.all("button")]
    assert any(legend.startswith(f"attention to “{HTML}”, from 0") for legend in legends)


def test_a_cached_image_has_no_encoding_time(explaining_service, striped_file):
    first, second = (image_html(explaining_service.encode(striped_file())) for _ in range(2))
    assert "Image encoded in" in first
    assert "already encoded" in second
    assert "8 × 8 pixels" in second


def test_nothing_found(explaining_service, striped_file):
    assert "nothing found" in answer_html(explaining_service.segment(striped_file(), ["green"]))
