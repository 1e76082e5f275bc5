"""Encoding of examples: one mask per referent, and errors for unreadable images."""

import io

import numpy as np
import pytest
from PIL import Image

from s2rm_jax.errors import UserError
from s2rm_jax.input import encode
from s2rm_jax.input.encode import Encoder, unpack_masks, view_of
from s2rm_jax.input.example import Example, Expression, Source
from s2rm_jax.input.masks import rasterize, resize_mask
from s2rm_jax.input.tokens import Tokenizer

LEFT, RIGHT = [[1, 2, 15, 2, 15, 27, 1, 27]], [[20, 5, 38, 5, 38, 20, 20, 20], [25, 22, 30, 22, 30, 28, 25, 28]]
SIZE = (30, 40)


def png(size=SIZE) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def example(image) -> Example:
    meant = (LEFT, RIGHT, LEFT, [], RIGHT)
    expressions = tuple(Expression("red dog", polygons, id=str(number)) for number, polygons in enumerate(meant))
    return Example("7", image, *SIZE, expressions)


def encoder() -> Encoder:
    return Encoder(Tokenizer(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "red", "dog")), (24, 24), 6)


def test_polygons_of_a_source_in_fractions_are_refused_with_the_name_of_the_expression():
    fractions = Example("7", png(), *SIZE, (Expression("red dog", [[0.1, 0.1, 0.5, 0.1, 0.5, 0.5]], id="3"),))
    with pytest.raises(UserError, match=r"image of example 7, expression 3: its polygons seem to be in fractions"):
        encoder()(fractions, [0])


@pytest.mark.parametrize("text", [None, ["red", "dog"]])
def test_an_expression_that_is_not_a_string_is_named(text, unchecked):
    with pytest.raises(UserError, match=r"expression '3': its text must be a string, got (None|\['red', 'dog'\])"):
        Expression(text, LEFT, id="3")


@pytest.mark.parametrize("missing", ["__len__", "__getitem__", "referents"])
def test_a_source_needs_its_methods(missing):
    methods = {name: lambda self, index=0: () for name in ("__len__", "__getitem__", "referents") if name != missing}
    with pytest.raises(TypeError, match=rf"abstract class Mine .*{missing}"):
        type("Mine", (Source,), methods)()


def test_every_expression_gets_its_mask_and_each_mask_is_made_once(monkeypatch):
    made = []

    def counted(segmentation, *where):
        made.append(segmentation)
        return rasterize(segmentation, *where)

    monkeypatch.setattr(encode, "rasterize", counted)
    arrays = encoder()(example(png()), [1, 0, 3, 2, 4])
    assert made == [RIGHT, LEFT]
    left, right = (resize_mask(rasterize(polygons, *SIZE), (24, 24)) for polygons in (LEFT, RIGHT))
    nothing = np.zeros((24, 24), bool)
    np.testing.assert_array_equal(unpack_masks(arrays.targets, 24), [right, left, nothing, left, right, nothing])
    assert arrays.has_target.tolist() == [True, True, False, True, True, False]
    assert arrays.valid.tolist() == [True] * 5 + [False]


def test_an_image_in_memory_and_in_a_file_give_the_same_arrays(tmp_path):
    path = tmp_path / "7.png"
    path.write_bytes(png())
    with Image.open(path) as file:
        pixels = np.array(file)
    for image in (png(), pixels):
        for ours, theirs in zip(encoder()(example(image), [0, 3]), encoder()(example(path), [0, 3]), strict=True):
            np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (png()[:500], r"^example 7: the image is damaged or of an unsupported kind \([^\n]+\)[^\n]*$"),
        (b"", r"^example 7: the image is empty \(0 bytes\)[^\n]*$"),
        (png((30, 41)), r"is 41 x 30 pixels, .* 40 x 30: replace the image of example 7, or correct the annotation$"),
    ],
)
def test_an_image_in_memory_that_does_not_do_is_named(data, message):
    with pytest.raises(UserError, match=message):
        view_of(example(data), [0])
