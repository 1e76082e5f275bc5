"""The files of a prediction in its folder: a mask per expression, an overlay, figures, and result.json."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from s2rm_jax.errors import UserError
from s2rm_jax.io import save_image, slug, writing

if TYPE_CHECKING:
    from s2rm_jax.segmenter import Result

RESULT_FILE = "result.json"
OVERLAY_FILE = "overlay.png"
SAMPLE_FILE = "image.png"  # the image itself, if it comes from the run's data


def require_free_name(explain: Path) -> None:
    """Check that figures with this name do not replace another file of the prediction.

    Raises:
        UserError: the name is that of a mask, the overlay or the image.
    """
    if re.fullmatch(rf"mask_\d+.*|{OVERLAY_FILE}|{SAMPLE_FILE}", explain.name, re.IGNORECASE):
        raise UserError(f"--explain: {explain} would replace a file of the result; give another name, such as how.png")


def write_prediction(
    folder: Path,
    image: UInt8[np.ndarray, "height width 3"],
    result: Result,
    figures: Sequence[Path] = (),
    labels: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """Write masks, overlay and figures of one image into an existing folder.

    Args:
        folder: receives mask_1_the_man_in_red.png and so on, and overlay.png.
        image: the image that was segmented.
        result: its masks.
        figures: the PNG of the explanation of each expression; empty: none are drawn.
        labels: the labels of the overlay's legend; by default the expressions with their scores.

    Returns:
        The entry of each expression in result.json: `expression`; `score`, the mean probability of foreground over the
        mask; `area`, the mask's pixels; `box`, [left, top, right, bottom] in pixels, right and bottom exclusive, or
        null for an empty mask; `file`, the mask's name in `folder`; and, if the network has that output, `no_target`,
        the probability that the expression refers to nothing.

    Raises:
        UserError: a file cannot be written.
    """
    from s2rm_jax.evaluation.explain import explain_figure
    from s2rm_jax.evaluation.overlay import overlay_with_legend

    entries = [_write_mask(folder, result, row) for row in range(len(result.expressions))]
    overlay = overlay_with_legend(image, result.masks, labels or outcomes(entries))
    save_image(overlay, folder / OVERLAY_FILE)
    for row, path in enumerate(figures):
        assert result.explanations is not None
        explanation, line = result.explanations[row], outcome(entries[row])
        figure = explain_figure(image, result.expressions[row], line, result.masks[row], explanation)
        save_image(figure, path, "--explain")
    return entries


def write_result(out: Path, content: dict[str, Any]) -> None:
    """Write result.json; raise UserError if that is not possible."""
    with writing(out / RESULT_FILE):
        (out / RESULT_FILE).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def remove_earlier_prediction(out: Path) -> None:
    """Remove the masks listed in the result.json of an earlier prediction.

    If it lists several images, their overlays and their empty folders are removed too, so that a video made of the
    overlays has the frames of one prediction only. All other files are kept.
    """
    try:
        content = json.loads((out / RESULT_FILE).read_text(encoding="utf-8"))
        listed = list(_listed(content))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return  # missing, or written by another program
    for path in listed:
        inside = not path.is_absolute() and ".." not in path.parts
        if inside and re.fullmatch(rf"mask_\d+_[a-z0-9_]+\.png|{OVERLAY_FILE}", path.name):
            with suppress(OSError):
                (out / path).unlink()
                (out / path).parent.rmdir()  # fails unless it is empty


def outcomes(entries: Sequence[dict[str, Any]]) -> list[str]:
    """Return a line for each expression: its number, its text and its outcome."""
    return [f"{number}. {entry['expression']} ({outcome(entry)})" for number, entry in enumerate(entries, start=1)]


def outcome(entry: dict[str, Any]) -> str:
    """Return the score of an expression, or that its mask is empty."""
    return f"score {entry['score']:.2f}" if entry["area"] else "nothing found"


def _write_mask(folder: Path, result: Result, row: int) -> dict[str, Any]:
    expression, mask = result.expressions[row], result.masks[row]
    name = f"mask_{row + 1}_{slug(expression)}.png"
    image = Image.fromarray(mask.astype(np.uint8) * 255)
    save_image(image, folder / name)
    entry = {
        "expression": expression,
        "score": round(float(result.scores[row]), 4),
        "area": int(np.count_nonzero(mask)),
        "box": image.getbbox(),
        "file": name,
    }
    if result.no_target is not None:
        entry["no_target"] = round(float(result.no_target[row]), 4)
    return entry


def _listed(content: dict[str, Any]) -> Iterator[PurePath]:
    """Yield the files of an earlier prediction that may be removed."""
    for image in content.get("images", [content]):
        folder = PurePath(image.get("folder", ""))
        yield from [folder / entry["file"] for entry in image["results"]]
        if "folder" in image:
            yield folder / OVERLAY_FILE
