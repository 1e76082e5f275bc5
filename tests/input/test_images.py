"""Images of every kind, and files that are not images."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from s2rm_jax.errors import UserError
from s2rm_jax.input.check.examine import ImageFile, check_image
from s2rm_jax.input.images import FORMATS, decode_plain_jpeg, load_image, read_header, read_size
from s2rm_jax.prediction.image_lists import list_images

HEIGHT, WIDTH = 12, 16


def colours() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


def ramp() -> np.ndarray:
    """Grey values 0 ... 255 from left to right."""
    return np.tile(np.linspace(0, 255, WIDTH).round().astype(np.uint8), (HEIGHT, 1))


def saved(image: Image.Image, tmp_path: Path, name: str, **options) -> Path:
    path = tmp_path / name
    image.save(path, **options)
    return path


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.tiff", "a.ppm"])
def test_a_lossless_file_is_read_exactly(tmp_path, name):
    path = saved(Image.fromarray(colours()), tmp_path, name)
    for source in (path, str(path)):
        image = load_image(source)
        assert image.dtype == np.uint8
        np.testing.assert_array_equal(image, colours())
        image[0, 0] = 0  # a caller's own copy


@pytest.mark.parametrize(("name", "options"), [("a.jpg", {"quality": 95}), ("a.webp", {"quality": 95})])
def test_a_lossy_file_is_read_nearly(tmp_path, name, options):
    smooth = np.stack([ramp()] * 3, axis=-1)
    image = load_image(saved(Image.fromarray(smooth), tmp_path, name, **options)).astype(int)
    assert np.abs(image - smooth).mean() < 3


EXIF = Image.Exif()
EXIF[0x0112] = 6


@pytest.mark.parametrize("size", [(12, 16), (13, 17), (1, 1), (8, 33)])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"exif": EXIF, "quality": 30}])
def test_a_jpeg_is_what_pillow_makes_of_it_from_a_path_and_from_bytes(tmp_path, size, mode, options):
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    path = saved(Image.fromarray(pixels).convert(mode), tmp_path, "a.jpg", **options)
    with Image.open(path) as file:
        expected = np.asarray(file.convert("RGB"))
    for source in (path, path.read_bytes()):
        image = load_image(source)
        np.testing.assert_array_equal(image, expected, strict=True)
        image[0, 0] = 0  # a caller's own copy


def test_pillow_is_asked_for_all_but_plain_sound_jpegs(tmp_path, monkeypatch):
    """The fast decoder is strict: of damaged data, of more than three inks and of EXIF it knows nothing."""

    def jpeg(mode="RGB", **options):
        buffer = io.BytesIO()
        Image.fromarray(colours()).convert(mode).save(buffer, "JPEG", **options)
        return buffer.getvalue()

    def refuse(*_, **__):
        raise AssertionError

    whole = jpeg()
    damaged = whole[:-20] + b"\xff\xd9"
    for data in (jpeg("CMYK"), whole[:-20], damaged, encoded("PNG"), b"", b"\xff\xd8"):
        assert decode_plain_jpeg(data, WIDTH * HEIGHT) is None
    assert decode_plain_jpeg(whole, WIDTH * HEIGHT - 1) is None
    with Image.open(io.BytesIO(damaged)) as image:
        np.testing.assert_array_equal(load_image(damaged), np.asarray(image))  # what Pillow overlooks is overlooked
    turned = jpeg(exif=EXIF)
    np.testing.assert_array_equal(load_image(turned, apply_exif=True), np.rot90(load_image(turned), -1))
    monkeypatch.setattr(Image, "open", refuse)
    for data in (whole, turned, jpeg("L"), jpeg(progressive=True), jpeg(subsampling=0)):
        assert load_image(data).shape == (HEIGHT, WIDTH, 3)


def test_grey_palette_and_one_bit_images_become_rgb(tmp_path):
    grey = Image.fromarray(ramp())
    expected = np.stack([ramp()] * 3, axis=-1)
    np.testing.assert_array_equal(load_image(saved(grey, tmp_path, "grey.png")), expected)
    np.testing.assert_array_equal(load_image(saved(grey.convert("P"), tmp_path, "palette.png")), expected)
    black_white = load_image(saved(grey.point(lambda value: 255 * (value > 127)).convert("1"), tmp_path, "bits.png"))
    np.testing.assert_array_equal(black_white, np.where(expected > 127, 255, 0))


def test_cmyk_becomes_rgb(tmp_path):
    inks = Image.new("CMYK", (WIDTH, HEIGHT), (0, 255, 255, 0))  # magenta and yellow make red
    red, green, blue = load_image(saved(inks, tmp_path, "inks.jpg", quality=95))[5, 5].tolist()
    assert (red > 240, green < 15, blue < 15) == (True, True, True)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_shows_white(tmp_path, mode):
    original = Image.fromarray(colours()).convert(mode)
    alpha = np.zeros((HEIGHT, WIDTH), np.uint8)
    alpha[:, WIDTH // 2 :] = 255
    original.putalpha(Image.fromarray(alpha))
    image = load_image(saved(original, tmp_path, "cut_out.png"))
    assert (image[:, : WIDTH // 2] == 255).all()
    opaque = np.asarray(original.convert("RGB"))
    np.testing.assert_array_equal(image[:, WIDTH // 2 :], opaque[:, WIDTH // 2 :])


def test_a_transparent_colour_of_a_palette_shows_white(tmp_path):
    image = Image.new("P", (WIDTH, HEIGHT), 3)
    image.putpalette([value for value in range(256) for _ in "rgb"])
    path = saved(image, tmp_path, "icon.png", transparency=3)
    assert (load_image(path) == 255).all()


@pytest.mark.parametrize("name", ["deep.png", "deep.tiff"])
def test_16_bit_values_are_scaled_not_clipped(tmp_path, name):
    deep = ramp().astype(np.uint16) * 257
    image = load_image(saved(Image.fromarray(deep), tmp_path, name))
    np.testing.assert_array_equal(image, np.stack([ramp()] * 3, axis=-1))


def test_values_of_unknown_range_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"depth\.tiff has floating-point values"):
        load_image(saved(Image.fromarray(np.ones((4, 4), np.float32)), tmp_path, "depth.tiff"))
    for value in (200, 70_000):
        wide = Image.fromarray(np.full((4, 4), value, np.int32))
        with pytest.raises(UserError, match=r"wide\.tiff has 32-bit values of unknown range"):
            load_image(saved(wide, tmp_path, "wide.tiff"))
    with pytest.raises(UserError, match=r"has values that are not from 0 to 65,535"):
        load_image(wide)


def test_a_tiff_of_16_bits_with_a_sign_is_read(tmp_path):
    grey = Image.fromarray(np.array([[0, 257], [514, 32_639]], np.uint16))
    path = saved(grey, tmp_path, "signed.tiff", tiffinfo={339: 2})  # SampleFormat: with a sign
    with Image.open(path) as image:
        assert image.mode == "I"
    np.testing.assert_array_equal(load_image(path)[..., 0], [[0, 1], [2, 127]])


def test_transparent_grey_of_16_bits_is_white(tmp_path):
    grey = Image.fromarray(np.array([[0, 257], [514, 65_535]], np.uint16))
    loaded = load_image(saved(grey, tmp_path, "grey.png", transparency=257))
    np.testing.assert_array_equal(loaded[..., 0], [[0, 255], [2, 255]])


def test_the_exif_orientation_counts_only_where_asked(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show the image rotated by 90 degrees clockwise
    path = saved(Image.fromarray(colours()), tmp_path, "phone.png", exif=exif)
    np.testing.assert_array_equal(load_image(path), colours())
    np.testing.assert_array_equal(load_image(path, apply_exif=True), np.rot90(colours(), -1))
    with Image.open(path) as image:
        np.testing.assert_array_equal(load_image(image, apply_exif=True), np.rot90(colours(), -1))


def test_the_header_has_the_orientation_behind_the_pixels_of_a_png(tmp_path):
    exif = EXIF.tobytes().removeprefix(b"Exif\0\0")
    chunk = b"eXIf" + exif
    path = saved(Image.fromarray(colours()), tmp_path, "late.png")
    content = path.read_bytes()
    end = content.rindex(b"IEND") - 4
    chunk = struct.pack(">I", len(exif)) + chunk + struct.pack(">I", zlib.crc32(chunk))
    path.write_bytes(content[:end] + chunk + content[end:])
    assert read_header(path) == (HEIGHT, WIDTH, 6, "")
    np.testing.assert_array_equal(load_image(path), colours())
    np.testing.assert_array_equal(load_image(path, apply_exif=True), np.rot90(colours(), -1))


@pytest.mark.parametrize("kept", ["EXIF", "text", "XMP"])
def test_the_header_has_the_orientation_wherever_a_png_keeps_it(tmp_path, kept):
    text = PngImagePlugin.PngInfo()
    if kept == "text":  # as ImageMagick writes it
        content = EXIF.tobytes()
        text.add_text("Raw profile type exif", f"\nexif\n{len(content):8}\n{content.hex()}\n", zip=True)
    elif kept == "XMP":
        text.add_itxt("XML:com.adobe.xmp", '<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>')
    path = saved(
        Image.fromarray(colours()), tmp_path, "a.png", pnginfo=text, **({"exif": EXIF} if kept == "EXIF" else {})
    )
    assert read_header(path) == (HEIGHT, WIDTH, 6, "")
    np.testing.assert_array_equal(load_image(path, apply_exif=True), np.rot90(colours(), -1))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
def test_a_tiff_with_an_orientation_is_read_as_stored(tmp_path, orientation, compression):
    """Pillow rotates TIFFs by itself."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(Image.fromarray(colours()), tmp_path, "scan.tiff", exif=exif, compression=compression)
    as_png = load_image(saved(Image.fromarray(colours()), tmp_path, "same.png", exif=exif), apply_exif=True)
    np.testing.assert_array_equal(load_image(path), colours())
    np.testing.assert_array_equal(load_image(path, apply_exif=True), as_png)
    assert read_header(path) == (HEIGHT, WIDTH, orientation, "")
    assert read_size(path.read_bytes(), "scan") == (WIDTH, HEIGHT)
    for quick in (True, False):
        assert check_image(ImageFile(path, HEIGHT, WIDTH), quick) == ("", "")


@pytest.mark.parametrize(
    ("kind", "value"), [(3, b"\0\0\0\0"), (3, b"\0\x09\0\0"), (2, b"6\0\0\0")], ids=["0", "9", "text"]
)
def test_an_exif_orientation_that_does_not_exist_is_no_rotation(tmp_path, kind, value):
    count = 2 if kind == 2 else 1
    exif = b"Exif\0\0MM\0*" + struct.pack(">IHHHI4sI", 8, 1, 0x0112, kind, count, value, 0)
    path = saved(Image.fromarray(colours()), tmp_path, "phone.png", exif=exif)
    assert read_header(path).orientation == 1
    np.testing.assert_array_equal(load_image(path, apply_exif=True), colours())


def test_arrays_and_pil_images_are_taken_as_they_are():
    rgb, grey = colours(), ramp()
    np.testing.assert_array_equal(load_image(rgb), rgb)
    np.testing.assert_array_equal(load_image(rgb[:, ::-1]), rgb[:, ::-1])
    np.testing.assert_array_equal(load_image(Image.fromarray(rgb)), rgb)
    for array in (grey, grey[..., None], grey.astype(np.uint16) * 257, (grey.astype(np.uint16) * 257).astype(">u2")):
        np.testing.assert_array_equal(load_image(array), np.stack([grey] * 3, axis=-1))
    np.testing.assert_array_equal(load_image(grey > 127)[..., 0], np.where(grey > 127, 255, 0))
    transparent = np.concatenate([rgb, np.zeros((HEIGHT, WIDTH, 1), np.uint8)], axis=-1)
    assert (load_image(transparent) == 255).all()


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.ones((4, 4, 3), np.float32), r"got float32; convert values in \[0, 1\] by"),
        (np.ones((4, 4, 3), np.int64), r"got int64; if the values are 0 \.\.\. 255, use image\.astype\(np\.uint8\)$"),
        (np.ones((3, 4, 5), np.uint8), r"got \[3, 4, 5\]; move the channels to the end: image\.transpose\(1, 2, 0\)$"),
        (np.ones((2, 4, 4, 3), np.uint8), r"got \[2, 4, 4, 3\]; give one image of them: images\[0\]$"),
        (np.ones((0, 4, 3), np.uint8), r"got \[0, 4, 3\]"),
    ],
)
def test_arrays_that_are_not_images_are_refused(array, message):
    with pytest.raises(UserError, match=message):
        load_image(array)


def encoded(kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (encoded("JPEG")[:2000], "is damaged"),
        (encoded("PNG")[:5000], "is damaged"),
        (encoded("TIFF")[:5000], "is damaged"),
        (encoded("PNG")[:60] + b"\0" * 100 + encoded("PNG")[160:], "is damaged"),
        (b"\xff\xd8\xff" + bytes(100), r"is damaged or of an unsupported kind \(it begins as JPEG\); download or copy"),
        (encoded("PNG")[:12] + bytes(100), r"is damaged .* \(it begins as PNG\)"),
        (encoded("WEBP")[:12] + bytes(100), r"is damaged .* \(it begins as WEBP\)"),
        (encoded("GIF")[:8], r"is damaged .* \(it begins as GIF\)"),
        (encoded("TIFF")[:8] + bytes(100), r"is damaged .* \(it begins as TIFF\)"),
        (b"P6, the sixth of the BMW cars", "is not an image in a supported format"),
        (b"", r"is empty \(0 bytes\)"),
        (b"\n<html>not found</html>", "is a web page"),
        (b"\xef\xbb\xbf<!DOCTYPE html>\n<title>404</title>", "is a web page"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "is not an image in a supported format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "is not an image in a supported format"),
    ],
)
def test_a_file_that_is_damaged_or_no_image_is_named(tmp_path, data, message):
    path = tmp_path / "image.jpg"
    path.write_bytes(data)
    with pytest.raises(UserError, match=message) as raised:
        load_image(path)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)
    with pytest.raises(UserError, match=f"^the image {message}[^\n]*$"):
        load_image(data)


@pytest.mark.parametrize(("kind", "options"), [("JPEG", {}), ("JPEG", {"progressive": True}), ("PNG", {})])
def test_a_file_cut_anywhere_is_damaged_or_no_image(tmp_path, kind, options):
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x010F] = "a camera"
    Image.fromarray(colours()).save(buffer, kind, exif=exif, **options)
    whole, path = buffer.getvalue(), tmp_path / "cut"
    path.write_bytes(whole)
    pixels, found = load_image(path, apply_exif=True), []
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        try:
            np.testing.assert_array_equal(load_image(path, apply_exif=True), pixels)
        except UserError as error:
            found.append(str(error))
    assert len(found) > len(whole) - 40  # whole without its last few bytes, which hold no pixels
    for message in found:
        assert str(path) in message
        assert "is damaged" in message or "is not an image" in message or "is empty" in message
        assert "\n" not in message


@pytest.mark.parametrize(
    "failure", [OSError("Truncated File Read"), ValueError("bad\nbox"), SyntaxError(), KeyError("X")]
)
def test_whatever_a_reader_raises_while_opening_is_a_damaged_image(tmp_path, monkeypatch, failure):
    def fail(*_, **__):
        raise failure

    (tmp_path / "a.jpg").write_bytes(b"")
    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(UserError, match=r"^.*/a\.jpg is damaged or of an unsupported kind \(.+\)[^\n]*$"):
        load_image(tmp_path / "a.jpg")


def test_threads_may_open_the_first_images_of_a_process_together(tmp_path):
    path = saved(Image.fromarray(colours()), tmp_path, "a.jpg")
    code = (
        "import sys; from PIL import Image; import s2rm_jax.input.images;"
        "before = set(sys.modules); Image.open(sys.argv[1]).load(); Image.init();"
        "print(sorted(name for name in set(sys.modules) - before if name.startswith('PIL')))"
    )
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"  # no reader was left to be imported by whichever thread comes first


def test_a_wrong_path_is_named(tmp_path):
    with pytest.raises(UserError, match=r"image .*missing\.jpg not found"):
        load_image(tmp_path / "missing.jpg")
    with pytest.raises(UserError, match="is a folder"):
        load_image(tmp_path)
    with pytest.raises(UserError, match="the path of the image is empty; give the path of an image"):
        load_image("")
    (tmp_path / "file.txt").write_text("text")
    with pytest.raises(UserError, match=r"cannot read .*Not a directory"):
        load_image(tmp_path / "file.txt" / "image.jpg")


@pytest.mark.parametrize("kind", [str, Path])
def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch, kind):
    saved(Image.fromarray(colours()), tmp_path, "a.png")
    monkeypatch.setenv("HOME", str(tmp_path))
    np.testing.assert_array_equal(load_image(kind("~/a.png")), colours())
    monkeypatch.chdir(tmp_path)
    saved(Image.fromarray(colours()), tmp_path, "~a.png")
    np.testing.assert_array_equal(load_image(kind("~a.png")), colours())


@pytest.mark.parametrize("url", ["gs://bucket/a.png", "s3://bucket/a.png", "hdfs://host/a.png", "S3://bucket/a.png"])
@pytest.mark.parametrize("kind", [str, Path])
def test_a_url_that_is_not_read_is_no_missing_path(url, kind):
    with pytest.raises(UserError, match=r"^\w+:/.*a\.png is not a local path; download it first$"):
        load_image(kind(url))


def test_a_file_url_is_no_missing_path(tmp_path):
    path = saved(Image.fromarray(colours()), tmp_path, "a.png")
    with pytest.raises(UserError, match=rf"^file://{path} is not a local path; give the path without file://$"):
        load_image(f"file://{path}")
    with pytest.raises(UserError, match=r"image C:/a\.png not found; check the path"):
        load_image("C:/a.png")


@pytest.mark.parametrize(
    ("name", "stored", "how"),
    [
        ("a.PNG", "a.png", "case"),
        ("Fotos/a.png", "fotos", "case"),
        ("cafe\u0301.png", "caf\u00e9.png", r"its Unicode form \(NFC or NFD\)"),
        ("CAFE\u0301.png", "caf\u00e9.png", "case"),
    ],
)
def test_a_missing_file_of_which_a_similar_name_exists(tmp_path, name, stored, how):
    for one in ("b.png", stored):
        (tmp_path / one).touch()
    if (tmp_path / name).exists():
        pytest.skip("the file system does not distinguish them")
    message = rf"^image .*/{name} not found; there is {tmp_path}/{stored}, which differs in {how}; correct the path$"
    with pytest.raises(UserError, match=message):
        load_image(tmp_path / name)


def test_a_link_to_a_missing_file_differs_in_nothing(tmp_path):
    (tmp_path / "a.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(UserError, match=r"a\.png not found; check the path$"):
        load_image(tmp_path / "a.png")


WRONG_TYPES = """
import io, sys
from s2rm_jax.input.images import load_image

class Tensor:
    __array__ = None

for source in (io.BytesIO(), open(sys.argv[1], "rb"), bytearray(1), memoryview(b"a"), Tensor(), ("a.png",),
               (path for path in ["a.png"]), None, 3, {}):
    try:
        load_image(source)
    except Exception as error:
        print(f"{type(error).__name__}: {error}")
"""


def test_an_object_of_another_type_is_not_called_damaged(tmp_path):
    """In a process of its own, because types are checked by the tests, but not where the package is used."""
    path = saved(Image.fromarray(colours()), tmp_path, "a.png")
    done = subprocess.run([sys.executable, "-c", WRONG_TYPES, path], capture_output=True, text=True, check=True)
    allowed = "a path, a web address, the bytes of a file, an array of uint8 or a PIL image"
    start = f"UserError: an image must be {allowed}, got "
    assert [line.removeprefix(start) for line in done.stdout.splitlines()] == [
        "BytesIO; give what its read() returns",
        "BufferedReader; give what its read() returns",
        "bytearray; convert it by bytes(...)",
        "memoryview; convert it by bytes(...)",
        "Tensor; convert it by np.asarray(...)",
        "tuple; give several images to Segmenter.segment as one list",
        "generator; give several images to Segmenter.segment as one list",
        "NoneType; give one of these",
        "int; give one of these",
        "dict; give one of these",
    ]


@pytest.mark.parametrize("closed", ["file", "file of the user", "image"])
def test_a_closed_pil_image_is_not_called_damaged(tmp_path, closed):
    path = saved(Image.fromarray(colours()), tmp_path, "a.png")
    with open(path, "rb") as file, Image.open(file if closed == "file of the user" else path) as image:
        if closed == "image":
            image.load()
            image.close()
    with pytest.raises(
        UserError, match=r"^the image cannot be read: it or its file is closed; give an earlier image\.copy"
    ):
        load_image(image)
    with Image.open(path) as image:
        copy = image.copy()
    np.testing.assert_array_equal(load_image(copy), colours())


def test_an_image_of_too_many_pixels_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    path = saved(Image.fromarray(colours()), tmp_path, "huge.png")
    with pytest.raises(UserError, match=r"huge\.png has 16 x 12 pixels, more than 191"):
        load_image(path, max_pixels=WIDTH * HEIGHT - 1)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)  # Pillow's own limit, at twice which it raises by itself
    with pytest.raises(UserError, match=r"huge\.png has more than 191 pixels"):
        load_image(path, max_pixels=WIDTH * HEIGHT - 1)


@pytest.mark.parametrize("kind", ["AVIF", "HEIF"])
def test_images_of_phones_are_read_where_a_decoder_is_installed(tmp_path, kind):
    if kind not in FORMATS:
        pytest.skip(f"no decoder of {kind}")
    flat = Image.new("RGB", (WIDTH, HEIGHT), (200, 40, 40))
    flat.save(tmp_path / f"photo.{kind.lower()}", kind)
    found = load_image(tmp_path / f"photo.{kind.lower()}")
    assert found.shape == (HEIGHT, WIDTH, 3) and np.abs(found.astype(int) - (200, 40, 40)).max() < 12
    assert [path.name for path in list_images(str(tmp_path))] == [f"photo.{kind.lower()}"]
    header = read_header(tmp_path / f"photo.{kind.lower()}")
    assert (header.height, header.width, header.problem) == (HEIGHT, WIDTH, "")


def test_a_photograph_without_a_decoder_is_called_so(tmp_path, monkeypatch):
    monkeypatch.setattr("s2rm_jax.input.images.FORMATS", ("JPEG", "PNG"))
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(64))
    with pytest.raises(UserError, match=r"a\.heic is a HEIC image; install its decoder"):
        load_image(tmp_path / "a.heic")


@pytest.mark.parametrize(("kind", "brand"), [("HEIF", b"heic"), ("HEIF", b"mif1"), ("AVIF", b"avif")])
def test_a_damaged_photograph_is_called_so_where_its_decoder_is_installed(tmp_path, kind, brand):
    if kind not in FORMATS:
        pytest.skip(f"no decoder of {kind}")
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftyp" + brand + b"\0\0\0\0mif1" + brand + bytes(64))
    with pytest.raises(UserError, match=rf"a\.heic is damaged or .* \(it begins as {kind}\); download or copy"):
        load_image(tmp_path / "a.heic")


def test_an_enormous_image_is_refused_without_a_warning_of_pillow(tmp_path):
    Image.new("1", (12_000, 10_000)).save(tmp_path / "large.png")
    code = "import sys; from s2rm_jax.input.images import load_image; load_image(sys.argv[1])"
    command = [sys.executable, "-c", code, str(tmp_path / "large.png")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.stderr.splitlines()[-1].endswith(
        "large.png has 12000 x 10000 pixels, more than 80,000,000; scale it down"
    )
    assert "DecompressionBombWarning" not in done.stderr
