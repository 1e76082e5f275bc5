"""Masks drawn on images, and text that keeps within its width."""

import numpy as np
import pytest
from PIL import Image, ImageFilter, ImageFont

from s2rm_jax.evaluation import overlay as module
from s2rm_jax.evaluation.overlay import DISTINCT_COLOURS, _grow, draw_lines, font, mask_layer, overlay_with_legend, wrap


def test_the_layer_shades_outside_and_tints_inside():
    mask = np.zeros((20, 40), bool)
    mask[5:15, 10:30] = True
    layer = np.asarray(mask_layer([mask], [(255, 122, 0)], (80, 40), fill=0.4, shade=0.6))
    assert layer.shape == (40, 80, 4)
    assert layer[20, 40].tolist() == [255, 122, 0, 102]  # inside: the colour at 0.4
    assert layer[2, 2].tolist() == [0, 0, 0, 153]  # outside: black at 0.6
    assert layer[20, 18].tolist() == [255, 122, 0, 255]  # just outside the left edge at x = 20: the outline


def test_an_empty_mask_shades_everything():
    layer = np.asarray(mask_layer([np.zeros((4, 4), bool)], [(1, 2, 3)], (8, 8)))
    assert (layer == layer[0, 0]).all()
    assert layer[0, 0, 3] > 0


@pytest.mark.parametrize(
    ("size", "shown"), [((96, 64), (480, 320)), ((500, 800), (500, 800)), ((20, 400), (24, 480)), ((1, 1), (480, 480))]
)
def test_overlay_keeps_large_images_and_enlarges_small_ones(size, shown):
    height, width = size
    image = np.full((height, width, 3), 200, np.uint8)
    overlay = overlay_with_legend(image, np.ones((1, height, width), bool), ["all of it"])
    assert overlay.width >= shown[1]
    assert shown[0] < overlay.height < shown[0] + 100
    middle = overlay.getpixel((overlay.width // 2, shown[0] // 2))
    expected = [round(0.7 * 200 + 0.3 * channel) for channel in DISTINCT_COLOURS[0]]
    assert middle == pytest.approx(expected, abs=2)


def test_the_overlay_of_a_tall_image_is_hardly_wider():
    """Such as a screenshot of a whole page: the size of the text follows from its width."""
    overlay = overlay_with_legend(np.zeros((9000, 600, 3), np.uint8), np.ones((1, 9000, 600), bool), ["all of it"])
    assert overlay.width < 900 and overlay.height < 9200


def test_the_image_stays_bright_and_overlapping_masks_all_show():
    image = np.full((480, 480, 3), (90, 180, 60), np.uint8)
    masks = np.zeros((3, 480, 480), bool)
    masks[0, 100:300, 100:300] = masks[2, 100:300, 100:300] = True  # the same
    masks[1, 200:400, 200:400] = True
    overlay = np.asarray(overlay_with_legend(image, masks, ["a", "b", "c"]).convert("RGB")).astype(int)
    corner = overlay[10, overlay.shape[1] // 2 - 230]
    assert np.ptp(corner) < 0.5 * np.ptp([90, 180, 60])  # paler
    assert corner @ [0.299, 0.587, 0.114] == pytest.approx(np.array([90, 180, 60]) @ [0.299, 0.587, 0.114], abs=2)
    left = overlay.shape[1] // 2 - 240
    row = {tuple(colour) for colour in overlay[150, left : left + 480]}
    assert {DISTINCT_COLOURS[0], DISTINCT_COLOURS[2]} <= row  # the two rings around what is the same
    assert DISTINCT_COLOURS[1] in {tuple(colour) for colour in overlay[250, left : left + 280]}  # within the others


@pytest.mark.parametrize("size", [(48, 64), (480, 640)])
@pytest.mark.parametrize("count", [5, 8, 9, 40])
def test_the_outlines_of_many_masks_that_are_alike_stay_near_the_object(size, count):
    height, width = size
    mask = np.zeros(size, bool)
    mask[height // 3 : 2 * height // 3, width // 3 : 2 * width // 3] = True
    shown = (480, 360) if width < 480 else (width, height)
    colours = [DISTINCT_COLOURS[i % len(DISTINCT_COLOURS)] for i in range(count)]
    layer = np.asarray(mask_layer([mask] * count, colours, shown, fill=0.3, shade=0.0))
    row = layer[shown[1] // 2, : width // 3 * shown[0] // width]  # up to the left edge
    drawn = np.flatnonzero(row[:, 3])
    assert 6 <= len(drawn) <= 4 * max(2, round(max(shown) / 150)) + 1
    assert len({tuple(one) for one in row[drawn]}) >= min(count, 8) - 1  # two may share a pixel
    assert layer[shown[1] // 2, shown[0] // 2, 3] == pytest.approx(0.3 * 255, abs=count)  # as of one mask


def test_more_masks_than_colours_begin_again_with_the_first():
    count = len(DISTINCT_COLOURS) + 1
    masks = np.zeros((count, 480, 480), bool)
    for i in range(count):
        masks[i, 10:470, 50 * i + 10 : 50 * i + 40] = True
    overlay = overlay_with_legend(np.zeros((480, 480, 3), np.uint8), masks, [str(i) for i in range(count)])
    left = overlay.width // 2 - 240
    for i in range(count):
        expected = [round(0.3 * channel) for channel in DISTINCT_COLOURS[i % len(DISTINCT_COLOURS)]]
        assert overlay.getpixel((left + 50 * i + 25, 240)) == pytest.approx(expected, abs=2)


@pytest.mark.parametrize("pixels", [0, 1, 2, 5, 12])
def test_growing_is_as_many_passes_of_a_maximum(pixels):
    shape = Image.fromarray(np.uint8(255) * (np.random.default_rng(0).random((40, 31)) < 0.02))
    passes = shape
    for _ in range(pixels):
        passes = passes.filter(ImageFilter.MaxFilter(3))
    np.testing.assert_array_equal(np.asarray(_grow(shape, pixels)), np.asarray(passes))


def ring(mask, pixels):
    """The pixels outside a mask with a pixel of it at most so far away in both directions, one by one."""
    ys, xs = np.nonzero(mask)
    found = np.zeros_like(mask)
    for y, x in np.ndindex(mask.shape):
        found[y, x] = not mask[y, x] and (np.maximum(abs(ys - y), abs(xs - x)) <= pixels).any()
    return found


def test_an_outline_is_what_lies_near_a_mask():
    """Of masks with ragged edges at the borders and inside, of which one is there twice."""
    mask = np.zeros((24, 30), bool)
    mask[:9, 3:12] = mask[15:, 20:] = mask[12, 2] = True
    other = np.zeros_like(mask)
    other[10:13, 14:17] = True
    colours = [(1, 2, 3), (9, 8, 7), (5, 5, 5)]
    layer = np.asarray(mask_layer([mask, other, mask], colours, (30, 24), fill=0.0, shade=0.0))
    inner, outer, apart = ring(mask, 2), ring(mask, 4), ring(other, 2)
    for colour, expected in zip(colours, (outer & ~inner & ~apart, apart & ~inner, inner), strict=True):
        np.testing.assert_array_equal((layer == (*colour, 255)).all(-1), expected)
    assert (layer[~(outer | apart)] == 0).all()


@pytest.mark.parametrize("size", [(60, 48), (90, 72), (15, 12)])
def test_a_straight_outline_on_a_layer_of_another_size(size):
    band = np.zeros((24, 30), bool)
    band[:, 10:20] = True
    layer = np.asarray(mask_layer([band], [(1, 2, 3)], size, fill=0.0, shade=0.0))
    columns = np.arange(size[0]) * 30 // size[0]
    expected = ring(np.broadcast_to((columns >= 10) & (columns < 20), size[::-1]), 2)
    np.testing.assert_array_equal((layer == (1, 2, 3, 255)).all(-1), expected)


@pytest.mark.parametrize("text", ["a word or two", "the " * 80, "x" * 300, "", "人" * 40])
def test_wrapped_lines_fit(text):
    lines = wrap(text, 200, 17, max_lines=3)
    assert 1 <= len(lines) <= 3
    assert all(font(17, text).getlength(line) <= 200 for line in lines)
    shown = "".join(lines).removesuffix("...").replace(" ", "")
    assert text.replace(" ", "").startswith(shown)
    assert (lines[-1].endswith("...")) == (len(shown) < len(text.replace(" ", "")))


def drawn(text):
    canvas = Image.new("RGB", (60, 40), "white")
    draw_lines(canvas, wrap(text, 60, 20), (5, 5), 20)
    return canvas.tobytes()


@pytest.mark.parametrize(
    "letters", ["é è e", "ñ n", "– - —", '“ ” "', "ß œ Ł ő", "Ж Ш Я ё е", "α λ Ω ά", "× ° ½ €", "ệ ế", "Ї І Ґ"]
)
def test_letters_of_latin_greek_and_cyrillic_are_no_boxes(letters):
    """A box would look like that of any other missing character."""
    pages = [drawn(letter) for letter in [*letters.split(), "\uffff"]]
    assert len(set(pages)) == len(pages)


def test_an_accent_of_its_own_is_drawn_on_its_letter():
    assert drawn("cafe\u0301") == drawn("café")


def test_a_font_of_the_system_is_taken_for_other_scripts(tmp_path, monkeypatch):
    (tmp_path / "ascii.ttf").write_bytes(ImageFont.load_default(20).font_bytes)
    bundled = module._FONT
    monkeypatch.setattr(module, "_FONT", str(tmp_path / "ascii.ttf"))
    monkeypatch.setattr(module, "_SYSTEM_FONTS", (str(tmp_path / "missing.ttf"), bundled))
    assert font(20, "the man").path == str(tmp_path / "ascii.ttf")
    assert font(20, "the man: мужчина").path == bundled
    assert font(20, "人").path == str(tmp_path / "ascii.ttf")  # no font has it


@pytest.mark.parametrize("text", ["\udce9 caf", "x\0y\x07", "🙂", "\u200b"])
def test_characters_without_a_glyph_are_drawn_as_something(text):
    page = overlay_with_legend(np.zeros((4, 4, 3), np.uint8), np.ones((1, 4, 4), bool), [text])
    assert page.height > 480
