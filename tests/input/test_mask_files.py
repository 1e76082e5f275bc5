"""Mask files: those that are read, and ambiguous ones that are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from s2rm_jax.errors import UserError
from s2rm_jax.input.encode import view_of
from s2rm_jax.input.example import Example, Expression
from s2rm_jax.input.masks import has_mask, mask_file_problem, rasterize, read_mask

HEIGHT, WIDTH = 6, 9
MASK = np.zeros((HEIGHT, WIDTH), bool)
MASK[1:4, 2:7] = True
UPSIDE_DOWN = Image.Exif()
UPSIDE_DOWN[0x0112] = 3


def palette() -> Image.Image:
    """Index 1 on index 0, of which the colours say nothing: the object is black."""
    image = Image.fromarray(MASK.astype(np.uint8)).convert("P")
    image.putpalette([255, 255, 255, 0, 0, 0])
    image.putdata(MASK.ravel().astype(int).tolist())
    return image


def transparent() -> Image.Image:
    """White where the object is, transparent elsewhere."""
    image = Image.new("RGBA", (WIDTH, HEIGHT), "white")
    image.putalpha(Image.fromarray(MASK.astype(np.uint8) * 255))
    return image


KINDS = {
    "255": Image.fromarray(MASK.astype(np.uint8) * 255),
    "1": Image.fromarray(MASK.astype(np.uint8)),
    "1 bit": Image.fromarray(MASK),
    "16 bits": Image.fromarray(MASK.astype(np.uint16) * 300),
    "palette": palette(),
    "opaque RGBA": Image.fromarray(MASK.astype(np.uint8) * 255).convert("RGBA"),
    "opaque grey and alpha": Image.fromarray(MASK.astype(np.uint8) * 255).convert("LA"),
    "colour": Image.fromarray(np.stack([MASK * 0, MASK * 40, MASK * 0], axis=-1).astype(np.uint8)),
}


def saved(tmp_path: Path, image: Image.Image, name: str = "mask.png", **options) -> Path:
    image.save(tmp_path / name, **options)
    return tmp_path / name


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_zero_is_the_mask(tmp_path, kind):
    path = saved(tmp_path, KINDS[kind])
    mask = read_mask(path, HEIGHT, WIDTH)
    assert mask.dtype == bool
    np.testing.assert_array_equal(mask, MASK)
    assert mask_file_problem(path, HEIGHT, WIDTH) == ""


def test_a_file_is_a_segmentation(tmp_path):
    segmentation = {"png": str(saved(tmp_path, KINDS["1"]))}
    assert has_mask(segmentation)
    np.testing.assert_array_equal(rasterize(segmentation, HEIGHT, WIDTH), MASK)


def test_a_black_file_says_that_the_expressions_refer_to_nothing(tmp_path):
    shape = {"png": str(saved(tmp_path, KINDS["1"]))}
    black = {"png": str(saved(tmp_path, Image.new("L", (WIDTH, HEIGHT)), "black.png"))}
    segmentations = (black, shape, black, [], shape)
    expressions = tuple(Expression("a", segmentation, id=str(i)) for i, segmentation in enumerate(segmentations))
    view = view_of(Example("p", np.zeros((HEIGHT, WIDTH, 3), np.uint8), HEIGHT, WIDTH, expressions), [0, 1, 2, 3, 4])
    assert view.referents == (None, 0, None, None, 0)
    assert len(view.masks()) == 1


def without_pixels(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[:-30])
    return path


def text_file(path: Path) -> Path:
    path.write_text("no image")
    return path


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder / "absent.png", r"mask .*absent\.png not found"),
        (lambda folder: text_file(folder / "text.png"), r"text\.png cannot be read \(cannot identify"),
        (lambda folder: saved(folder, Image.new("L", (HEIGHT, WIDTH))), r"has 9 x 6 pixels, its image 6 x 9"),
        (
            lambda folder: saved(folder, KINDS["255"], "mask.jpg"),
            "has the format JPEG, which may be lossy; save it as PNG",
        ),
        (
            lambda folder: saved(folder, KINDS["255"], "mask.webp"),
            "has the format WEBP, which may be lossy; save it as PNG",
        ),
        (
            lambda folder: saved(folder, KINDS["255"], "mask.avif"),
            "has the format AVIF, which may be lossy; save it as PNG",
        ),
        (lambda folder: saved(folder, transparent()), "transparent pixels"),
        (lambda folder: saved(folder, Image.new("F", (WIDTH, HEIGHT)), "mask.tiff"), "values of an unknown kind"),
        (lambda folder: saved(folder, KINDS["1"], "m.tiff", exif=UPSIDE_DOWN), "is a TIFF with an EXIF orientation"),
    ],
)
def test_what_is_no_mask_of_the_image_is_refused_by_its_header(tmp_path, make, message):
    path = make(tmp_path)
    with pytest.raises(UserError, match=message) as raised:
        read_mask(path, HEIGHT, WIDTH)
    assert mask_file_problem(path, HEIGHT, WIDTH) == str(raised.value)
    assert "\n" not in str(raised.value)


def test_damaged_pixels_are_found_when_they_are_read(tmp_path):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 2, (60, 90), dtype=np.uint8))
    path = without_pixels(saved(tmp_path, noise))
    assert mask_file_problem(path, 60, 90) == ""
    with pytest.raises(UserError, match=r"mask\.png cannot be read"):
        read_mask(path, 60, 90)
