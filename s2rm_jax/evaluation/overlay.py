"""Draw masks, heat maps and text on images, with Pillow only; all functions take and return RGB or RGBA images."""

from __future__ import annotations

import base64
import io
import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image, ImageChops, ImageDraw, ImageFont

Colour = tuple[int, int, int]

TRUE_COLOUR: Colour = (0, 168, 120)
PREDICTED_COLOUR: Colour = (255, 122, 0)
# For several masks on one image: easy to tell apart, even with most kinds of colour blindness.
DISTINCT_COLOURS: tuple[Colour, ...] = (
    (255, 122, 0),
    (0, 150, 255),
    (0, 178, 120),
    (232, 62, 140),
    (250, 204, 21),
    (140, 90, 240),
    (102, 210, 240),
    (190, 60, 30),
)
INK: Colour = (24, 28, 33)
MUTED: Colour = (104, 112, 122)
PAPER: Colour = (255, 255, 255)

# The colours of heat maps, from low to high, evenly spaced. Lightness increases monotonically, so the ramp works in
# greyscale too.
RAMP = ((26, 18, 64), (110, 30, 118), (198, 58, 92), (245, 130, 48), (255, 236, 150))
_LOWEST_OPACITY, _HIGHEST_OPACITY = 0.35, 0.85

# Nearly identical masks are outlined by at most _MOST_RINGS rings; further outlines coincide with the outermost. All
# rings together are at most _MOST_STROKES strokes wide, so that they stay near the object.
_MOST_RINGS = len(DISTINCT_COLOURS)
_MOST_STROKES = 4
_SUPERSAMPLING = 2  # outlines are drawn at this scale and reduced, which smooths their edges


_FONT = str(Path(__file__).with_name("fonts") / "DejaVuSans.ttf")  # has Latin, Greek and Cyrillic
# For other scripts; Pillow finds these by name where operating systems keep fonts.
_SYSTEM_FONTS = (
    *("NotoSansCJK-Regular.ttc", "NotoSansCJKsc-Regular.otf", "NotoSansSC-Regular.otf", "wqy-zenhei.ttc"),
    *("wqy-microhei.ttc", "DroidSansFallbackFull.ttf", "ipag.ttf", "NanumGothic.ttf"),  # Linux
    *("PingFang.ttc", "Hiragino Sans GB.ttc", "AppleSDGothicNeo.ttc", "Arial Unicode.ttf"),  # macOS
    *("msyh.ttc", "msgothic.ttc", "malgun.ttf", "arial.ttf"),  # Windows
    *("NotoSans-Regular.ttf", "DejaVuSans.ttf", "FreeSans.ttf", "unifont.otf"),
)


def font(size: int, text: str = "") -> ImageFont.FreeTypeFont:
    """Return a font of `size` pixels for `text`: the bundled one, or one of the system if only that has all characters.

    Where no font has them, the bundled one draws boxes.
    """
    for name in (_FONT, *_SYSTEM_FONTS):
        face = _load_font(name, size)
        if face is not None and all(_has_glyph(face, character) for character in set(text)):
            return face
    face = _load_font(_FONT, size)
    assert face is not None  # it is part of the package
    return face


@lru_cache
def _load_font(name: str, size: int) -> ImageFont.FreeTypeFont | None:
    try:
        return ImageFont.truetype(name, size)
    except OSError:
        return None


@lru_cache(maxsize=4096)
def _has_glyph(face: ImageFont.FreeTypeFont, character: str) -> bool:
    """Return whether a font draws a character other than U+FFFF, which no font has."""
    return character.isspace() or _glyph(face, character) != _glyph(face, "\uffff")


def _glyph(face: ImageFont.FreeTypeFont, character: str) -> tuple[object, bytes]:
    return face.getbbox(character), bytes(face.getmask(character))


def fit_size(height: int, width: int, box: int) -> tuple[int, int]:
    """Return the (width, height) of an image scaled so that its longer side has `box` pixels."""
    scale = box / max(height, width)
    return max(1, round(width * scale)), max(1, round(height * scale))


def fit_image(image: UInt8[np.ndarray, "h w 3"], size: tuple[int, int]) -> Image.Image:
    """Return the image resized to `size` (width, height)."""
    return Image.fromarray(image).resize(size, Image.Resampling.BICUBIC)


def mask_layer(
    masks: Sequence[Bool[np.ndarray, "h w"]],
    colours: Sequence[Colour],
    size: tuple[int, int],
    *,
    fill: float = 0.15,
    shade: float = 0.5,
) -> Image.Image:
    """Return a transparent RGBA layer of `size` (width, height) to lay over the image.

    Each mask is filled with its colour at the opacity `fill` and outlined in it. Nearly identical masks share that
    opacity, and their outlines are drawn as rings around each other: up to eight, which are thinner the more there are.
    The area outside all masks is darkened with the opacity `shade`. The defaults highlight a single mask and hardly
    change the colours of the image, to which expressions refer.
    """
    # Masks of the layer's own size need no smoothing: supersampled twice, each pixel would be a block of equal pixels.
    scale = 1 if all(mask.shape == size[::-1] for mask in masks) else _SUPERSAMPLING
    large = (size[0] * scale, size[1] * scale)
    shapes = [_at_size(mask, large) for mask in masks]
    layer = Image.new("RGBA", size, (0, 0, 0, 0))
    if shade:
        outside = Image.new("L", large, 255)
        for shape in shapes:
            outside = ImageChops.subtract(outside, shape)
        layer.putalpha(_reduce(outside, size, shade))
    stroke = scale * max(2, round(max(size) / 150))
    fills, edges = [], []
    for shape, (later, alike) in zip(shapes, _count_alike(masks), strict=True):
        fills.append((shape, 1 - (1 - fill) ** (1 / alike)))
        ring = min(later + 1, _MOST_RINGS)
        width = ring * min(stroke, max(1, _MOST_STROKES * stroke // min(alike, _MOST_RINGS)))
        edges.append((ImageChops.subtract(_grow(shape, width), shape), 1.0))
    for areas in (fills, edges):
        for (area, opacity), colour in zip(areas, colours, strict=True):
            tint = Image.new("RGBA", size, (*colour, 255))
            tint.putalpha(_reduce(area, size, opacity))
            layer = Image.alpha_composite(layer, tint)
    return layer


def _count_alike(masks: Sequence[Bool[np.ndarray, "h w"]]) -> list[tuple[int, int]]:
    """Return for each mask how many later ones are nearly identical, and how many of all, with itself."""
    alike = np.eye(len(masks), dtype=bool)
    for i, mask in enumerate(masks):
        for j in range(i + 1, len(masks)):
            alike[i, j] = alike[j, i] = _nearly_identical(mask, masks[j])
    return [(int(np.count_nonzero(row[i + 1 :])), int(np.count_nonzero(row))) for i, row in enumerate(alike)]


def image_bytes(image: Image.Image, form: str = "PNG", **options: int) -> bytes:
    """Return an image as the bytes of a file; `options` are those of Pillow for the format."""
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def data_url(image: Image.Image, form: str = "PNG", **options: int) -> str:
    """Return an image as an address that HTML can embed; `options` are those of Pillow for the format."""
    return f"data:image/{form.lower()};base64,{base64.b64encode(image_bytes(image, form, **options)).decode()}"


def lay_over(image: Image.Image, layer: Image.Image) -> Image.Image:
    """Return the RGB image with an RGBA layer of the same size over it."""
    return Image.alpha_composite(image.convert("RGBA"), layer).convert("RGB")


def stack(images: Sequence[Image.Image], gap: int = 0) -> Image.Image:
    """Return the images below each other on white, with `gap` pixels before, between and after them."""
    height = sum(image.height + gap for image in images) + gap
    page = Image.new("RGB", (max(image.width for image in images), height), PAPER)
    y = gap
    for image in images:
        page.paste(image, (0, y))
        y += image.height + gap
    return page


def wrap(text: str, width: int, size: int, max_lines: int = 4) -> list[str]:
    """Break `text` into at most `max_lines` lines of at most `width` pixels at font `size`; the rest becomes "...".

    Lines are broken at spaces, and inside a word only if the word alone is wider than a line.
    """
    text = unicodedata.normalize("NFC", text)  # an accent of its own would be drawn beside its letter
    face = font(size, text)
    lines = [""]
    for word in re.findall(r"\S+", text):
        for piece in _pieces(word, width, face):
            joined = f"{lines[-1]} {piece}".strip()
            if face.getlength(joined) <= width:
                lines[-1] = joined
            else:
                lines.append(piece)
    if len(lines) > max_lines:
        last = lines[max_lines - 1]
        while last and face.getlength(last + "...") > width:
            last = last[:-1]
        lines = [*lines[: max_lines - 1], last.rstrip() + "..."]
    return lines


def line_height(size: int) -> int:
    """Return the distance between lines in pixels."""
    return round(size * 1.35)


def draw_lines(canvas: Image.Image, lines: Sequence[str], at: tuple[int, int], size: int, colour: Colour = INK) -> int:
    """Draw `lines` below each other from the top left corner `at`; return the y below the last one."""
    pen, y, face = ImageDraw.Draw(canvas), at[1], font(size, "".join(lines))
    for line in lines:
        pen.text((at[0], y), line, fill=colour, font=face)
        y += line_height(size)
    return y


def overlay_with_legend(
    image: UInt8[np.ndarray, "h w 3"], masks: Bool[np.ndarray, "k h w"], labels: Sequence[str]
) -> Image.Image:
    """Return the image with all masks in distinct colours, and below it a legend with one label per mask.

    Pixels outside all masks are desaturated. An image smaller than 480 pixels is enlarged to that size, so that its
    legend is legible.
    """
    height, width = image.shape[:2]
    size = (width, height) if max(height, width) >= 480 else fit_size(height, width, 480)
    colours = [DISTINCT_COLOURS[i % len(DISTINCT_COLOURS)] for i in range(len(masks))]
    shown = fit_image(image, size)
    pale = Image.blend(shown, shown.convert("L").convert("RGB"), 0.6)
    shown = Image.composite(shown, pale, _at_size(np.any(masks, axis=0), size))
    shown = lay_over(shown, mask_layer(list(masks), colours, size, fill=0.3, shade=0.0))

    text = max(15, round(min(max(size), 3 * min(size)) / 45))
    space = text // 2
    page_width = max(size[0], 22 * text)  # a tall, narrow image still leaves room for its legend
    wrapped = [wrap(label, page_width - 4 * space - text, text) for label in labels]
    legend_height = sum(len(lines) * line_height(text) + space for lines in wrapped) + 2 * space
    page = Image.new("RGB", (page_width, size[1] + legend_height), PAPER)
    page.paste(shown, ((page_width - size[0]) // 2, 0))
    y = size[1] + 2 * space
    for lines, colour in zip(wrapped, colours, strict=True):
        ImageDraw.Draw(page).rounded_rectangle((space, y, space + text, y + text), text // 5, fill=colour)
        y = draw_lines(page, lines, (2 * space + text, y - text // 10), text) + space
    return page


def _pieces(word: str, width: int, face: ImageFont.FreeTypeFont) -> list[str]:
    if face.getlength(word) <= width:
        return [word]
    pieces = [""]
    for letter in word:
        if pieces[-1] and face.getlength(pieces[-1] + letter) > width:
            pieces.append("")
        pieces[-1] += letter
    return pieces


def _at_size(mask: Bool[np.ndarray, "h w"], size: tuple[int, int]) -> Image.Image:
    """Return the mask as 0 or 255, with a smooth outline if it is enlarged."""
    soft = Image.fromarray(mask.astype(np.uint8) * 255).resize(size, Image.Resampling.BILINEAR)
    return soft.point(lambda v: 255 if v >= 128 else 0)


def _reduce(area: Image.Image, size: tuple[int, int], opacity: float) -> Image.Image:
    return area.resize(size, Image.Resampling.BOX).point([round(value * opacity) for value in range(256)])


def _nearly_identical(one: Bool[np.ndarray, "h w"], other: Bool[np.ndarray, "h w"]) -> bool:
    return bool(np.count_nonzero(one & other) > 0.8 * np.count_nonzero(one | other))


def _grow(shape: Image.Image, pixels: int) -> Image.Image:
    """Return the maximum of each pixel and all within `pixels` of it, in both directions.

    The window doubles with every step, so that wide strokes cost little more than narrow ones; Pillow's MaxFilter
    takes a second for the outline of one mask of the size that the demo shows.
    """
    grown, window = np.pad(np.asarray(shape), pixels), 2 * pixels + 1
    for _ in ("rows", "columns"):
        covered = 1
        while covered < window:
            step = min(covered, window - covered)
            grown = np.maximum(grown[:-step], grown[step:])
            covered += step
        grown = grown.T
    return Image.fromarray(grown)


def span(values: np.ndarray) -> tuple[float, float]:
    """Return the lowest and the highest value, as the ends of a scale."""
    return float(values.min()), float(values.max())


def heat_image(values: Float[np.ndarray, "h w"], scale: tuple[float, float]) -> Image.Image:
    """Return an RGBA image with one pixel per value; the ends of `scale` get the darkest and the brightest colour.

    It is to be enlarged smoothly over a grey image. If the ends are equal, all values get the middle of the ramp.
    """
    low, high = scale
    fraction = np.clip((values - low) / (high - low), 0, 1) if high > low else np.full(values.shape, 0.5)
    opacity = _LOWEST_OPACITY + (_HIGHEST_OPACITY - _LOWEST_OPACITY) * fraction
    return Image.fromarray(np.dstack([_colours(fraction), np.rint(255 * opacity).astype(np.uint8)]), "RGBA")


def heat_over(image: Image.Image, values: Float[np.ndarray, "h w"], scale: tuple[float, float]) -> Image.Image:
    """Return the image in grey with the heat map of the values over it, enlarged smoothly."""
    layer = heat_image(values, scale).resize(image.size, Image.Resampling.BILINEAR)
    return Image.alpha_composite(image.convert("L").convert("RGBA"), layer).convert("RGB")


def heat_bar(width: int, height: int) -> Image.Image:
    """Return the colours of the scale from low to high, for a legend."""
    return Image.fromarray(_colours(np.broadcast_to(np.linspace(0, 1, width), (height, width))))


def _colours(fraction: np.ndarray) -> UInt8[np.ndarray, "h w 3"]:
    positions = np.linspace(0, 1, len(RAMP))
    channels = [np.interp(fraction, positions, channel) for channel in np.transpose(RAMP)]
    return np.rint(np.dstack(channels)).astype(np.uint8)
