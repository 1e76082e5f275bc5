"""What a prediction leaves in a folder: a mask for each expression, an overlay, figures, and result.json."""

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
from s2rm_jax.evaluation.explain import explain_figure
from s2rm_jax.evaluation.overlay import overlay_with_legend
from s2rm_jax.io import save_image, slug, writing

if TYPE_CHECKING:
    from s2rm_jax.segmenter import Result

RESULT_FILE = "result.json"
OVERLAY_FILE = "overlay.png"
SAMPLE_FILE = "image.png"  # the image itself, where it was one of the run's data


def require_name_of_its_own(explain: Path) -> None:
    """Checks that figures of this name, which lie in the folder of a prediction, replace nothing else in it.

    Raises:
        UserError: it is a name that masks, overlay or image have.
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
    """Writes masks, overlay and figures of one image into `folder`, which is there.

    Args:
        folder: receives mask_1_the_man_in_red.png and so on, and overlay.png.
        image: as it was segmented.
        result: what was found in it.
        figures: the PNG for each expression that shows how the network came to its mask; none are drawn if empty.
        labels: for the legend of the overlay; by default the expressions and what came of them.

    Returns:
        What result.json says of each expression: `box` is [left, top, right, bottom] in pixels, right and bottom
        exclusive, or null for an empty mask; `area` counts the pixels of the mask; `score` is the mean probability of
        foreground over it; `no_target`, where the network has a head for it, the probability that the expression refers
        to nothing.

    Raises:
        UserError: a file cannot be written.
    """
    found = [_write_mask(folder, result, row) for row in range(len(result.expressions))]
    overlay = overlay_with_legend(image, result.masks, labels or outcomes(found))
    save_image(overlay, folder / OVERLAY_FILE)
    for row, path in enumerate(figures):
        assert result.explanations is not None  # asked for
        told = outcome(found[row])
        figure = explain_figure(image, result.expressions[row], told, result.masks[row], result.explanations[row])
        save_image(figure, path, "--explain")
    return found


def write_result(out: Path, content: dict[str, Any]) -> None:
    """Writes result.json; raises UserError where that is not possible."""
    with writing(out / RESULT_FILE):
        (out / RESULT_FILE).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def remove_earlier_prediction(out: Path) -> None:
    """Removes the masks that the result.json of an earlier prediction lists, and nothing else of a single image's.

    Of several images it removes their overlays too, and their folders where nothing else is in them, so that whoever
    puts the overlays together again finds those of one prediction only.
    """
    try:
        content = json.loads((out / RESULT_FILE).read_text(encoding="utf-8"))
        listed = list(_listed(content))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # there is none, or it is not of this program
        return
    for path in listed:
        if re.fullmatch(rf"mask_\d+_[a-z0-9_]+\.png|{OVERLAY_FILE}", path.name) and _inside(path):
            with suppress(OSError):
                (out / path).unlink()
                (out / path).parent.rmdir()  # where it is empty


def outcomes(found: Sequence[dict[str, Any]]) -> list[str]:
    """Returns a line for each expression: its number, itself, and what came of it."""
    return [f"{number}. {entry['sentence']} ({outcome(entry)})" for number, entry in enumerate(found, start=1)]


def outcome(entry: dict[str, Any]) -> str:
    """Returns what came of one expression."""
    return f"score {entry['score']:.2f}" if entry["area"] else "nothing found"


def _write_mask(folder: Path, result: Result, row: int) -> dict[str, Any]:
    expression, mask = result.expressions[row], result.masks[row]
    name = f"mask_{row + 1}_{slug(expression)}.png"
    image = Image.fromarray(mask.astype(np.uint8) * 255)
    save_image(image, folder / name)
    entry = {
        "sentence": expression,
        "score": round(float(result.scores[row]), 4),
        "area": int(np.count_nonzero(mask)),
        "box": image.getbbox(),
        "file": name,
    }
    if result.no_target is not None:
        entry["no_target"] = round(float(result.no_target[row]), 4)
    return entry


def _listed(content: dict[str, Any]) -> Iterator[PurePath]:
    """The files of an earlier prediction that are to go."""
    for image in content.get("images", [content]):
        folder = PurePath(image.get("folder", ""))
        yield from [folder / entry["file"] for entry in image["results"]]
        if "folder" in image:
            yield folder / OVERLAY_FILE


def _inside(path: PurePath) -> bool:
    return not path.is_absolute() and ".." not in path.parts
