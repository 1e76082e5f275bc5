"""Small image files that take minutes or gigabytes to decode are rejected; ordinary files are accepted."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from s2rm_jax.errors import UserError
from s2rm_jax.input.images import load_image
from s2rm_jax.serving.limits import Limits, RequestError, check_image


def saved(kind, image=None, **options):
    buffer = io.BytesIO()
    (image or Image.new("RGB", (12, 10), (200, 30, 60))).save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(name, data=b""):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def inserted(content, place, parts):
    return content[:place] + parts + content[place:]


def exif(size):
    """Return EXIF data with many entries that all point to the whole data."""
    count = min(size // 12 - 2, 65_000)
    entries = b"".join(struct.pack("<HHII", tag, 7, size - 8, 8) for tag in range(1, 1 + count))
    return (b"II*\0" + struct.pack("<IH", 8, count) + entries).ljust(size, b"\0")


JPEG, PNG = saved("JPEG"), saved("PNG")
PROGRESSIVE = saved("JPEG", progressive=True)
LAST_SCAN = PROGRESSIVE[PROGRESSIVE.rindex(b"\xff\xda") : -2]


@pytest.mark.parametrize(
    "content",
    [
        JPEG,
        PNG,
        PROGRESSIVE,
        saved("WEBP"),
        saved("JPEG", exif=b"Exif\0\0" + b"II*\0" + struct.pack("<IHHHIII", 8, 1, 0x0112, 3, 1, 1, 0)),
        saved("PNG", Image.new("RGBA", (12, 10)), pnginfo=None),
        saved("JPEG", Image.new("CMYK", (12, 10))),
        saved("JPEG", comment=b"a" * 60_000, icc_profile=bytes(3_000_000)),
        inserted(JPEG, 2, (b"\xff\xe1\xff\xff" + bytes(65_533)) * 100),
        saved("JPEG", Image.effect_noise((1200, 1000), 90).convert("RGB"), progressive=True),
    ],
)
def test_ordinary_files_are_accepted(content):
    assert check_image(content, Limits()) == np.prod(load_image(content).shape[:2])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (PROGRESSIVE[:-2] + LAST_SCAN * 100 + b"\xff\xd9", "more than 100 scans"),
        (inserted(JPEG, 2, b"\xff\xfe\0\2" * 300), r"too many JPEG segments \(more than 300\)"),
        (inserted(JPEG, 2, b"\xff\xff" * 200), r"too many JPEG segments \(more than 300\)"),
        (inserted(JPEG, 2, b"\xff\xd8" * 200), r"too many JPEG segments \(more than 300\)"),
        (inserted(JPEG, 2, b"a" * 301), r"too many JPEG segments \(more than 300\)"),
        (inserted(JPEG, 2, (b"\xff\xe1\xff\xffExif\0\0" + bytes(65_527)) * 2), "too much EXIF data"),
        (inserted(PNG, -12, chunk(b"aaAa") * 20_000), "more than 20,000 chunks"),
        (inserted(PNG, 33, chunk(b"aaAa") * 20_000), "more than 20,000 chunks"),
        (saved("GIF"), "not a readable JPEG, PNG or WebP image"),
        (saved("BMP"), "not a readable JPEG, PNG or WebP image"),
        (saved("TIFF"), "not a readable JPEG, PNG or WebP image"),
        (b"P1 2 2\n1 0 0 1", "not a readable JPEG, PNG or WebP image"),
        (b"\xff\xd8\xff", "not a readable JPEG, PNG or WebP image"),
        (PNG[:20], "the image is damaged"),
        (b"a", "not a readable JPEG, PNG or WebP image"),
    ],
)
def test_files_that_are_slow_to_decode_are_rejected(content, message):
    with pytest.raises(RequestError, match=message) as rejected:
        check_image(content, Limits())
    assert rejected.value.status == 400


def test_limits_of_bytes_and_pixels(enormous_image):
    assert check_image(PNG, Limits(bytes=len(PNG), pixels=120)) == 120
    for limits, message in (
        (Limits(bytes=len(PNG) - 1), "bytes, more than"),
        (Limits(pixels=119), "more than 119 pixels"),
    ):
        with pytest.raises(RequestError, match=message):
            check_image(PNG, limits)
    with pytest.raises(RequestError, match="more than 25,000,000 pixels"):
        check_image(enormous_image, Limits())


@pytest.mark.parametrize("apply_exif", [True, False])
@pytest.mark.parametrize(
    ("parts", "message"),
    [
        # Pillow joins the segments, and expands what they point to when it opens the file.
        ([exif(1 << 20)[place : place + 65_000] for place in range(0, 1 << 20, 65_000)], "too much EXIF data"),
        ([b""] * 10_001, r"too many JPEG segments \(more than 10,000\)"),
    ],
)
def test_a_jpeg_that_takes_minutes_to_open_is_refused_as_a_file_too(tmp_path, parts, message, apply_exif):
    segments = b"".join(b"\xff\xe1" + struct.pack(">H", 8 + len(part)) + b"Exif\0\0" + part for part in parts)
    content = inserted(saved("JPEG", Image.new("CMYK", (12, 10))), 2, segments)
    (tmp_path / "slow.jpg").write_bytes(content)
    for source in (content, tmp_path / "slow.jpg"):
        with pytest.raises(UserError, match=message):
            load_image(source, apply_exif=apply_exif)


@pytest.mark.parametrize("place", [33, -12])
def test_exif_data_that_needs_too_much_memory(place):
    """Pillow would expand this megabyte to 60 GB, at either position in a PNG."""
    content = inserted(PNG, place, chunk(b"eXIf", exif(1 << 20)))
    with pytest.raises(UserError, match="too much EXIF data"):
        load_image(content, apply_exif=True)
    hexadecimal = exif(1 << 19).hex().encode()
    content = inserted(
        PNG, place, chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(b"\nexif\n1\n" + hexadecimal))
    )
    with pytest.raises(UserError, match=r"too much EXIF data|too large"):
        load_image(content, apply_exif=True)
