"""What a prediction leaves in a folder: a mask for each sentence, an overlay, figures, and result.json."""

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
from s2rm_jax.io import save_picture, slug, writing

if TYPE_CHECKING:
    from s2rm_jax.segmenter import Result

RESULT_FILE = "result.json"
OVERLAY_FILE = "overlay.png"
SAMPLE_FILE = "picture.png"  # the picture itself, where it was one of the run's data


def require_name_of_its_own(explain: Path) -> None:
    """Checks that figures of this name, which lie in the folder of a prediction, replace nothing else in it.

    Raises:
        UserError: it is a name that masks, overlay or picture have.
    """
    if re.fullmatch(rf"mask_\d+.*|{OVERLAY_FILE}|{SAMPLE_FILE}", explain.name, re.IGNORECASE):
        raise UserError(f"--explain: {explain} would replace a file of the result; give another name, such as how.png")


def write_prediction(
    folder: Path,
    picture: UInt8[np.ndarray, "height width 3"],
    result: Result,
    figures: Sequence[Path] = (),
    labels: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """Writes masks, overlay and figures of one picture into `folder`, which is there.

    Args:
        folder: receives mask_1_the_man_in_red.png and so on, and overlay.png.
        picture: as it was segmented.
        result: what was found in it.
        figures: the PNG for each sentence that shows how the network came to its mask; none are drawn if empty.
        labels: for the legend of the overlay; by default the sentences and what came of them.

    Returns:
        What result.json says of each sentence: `box` is [left, top, right, bottom] in pixels, right and bottom
        exclusive, or null for an empty mask; `area` counts the pixels of the mask; `score` is the mean probability of
        foreground over it; `no_target`, where the network has a head for it, the probability that the sentence refers
        to nothing.

    Raises:
        UserError: a file cannot be written.
    """
    found = [_write_mask(folder, result, row) for row in range(len(result.sentences))]
    overlay = overlay_with_legend(picture, result.masks, labels or outcomes(found))
    save_picture(overlay, folder / OVERLAY_FILE)
    for row, path in enumerate(figures):
        assert result.explanations is not None  # asked for
        told = outcome(found[row])
        figure = explain_figure(picture, result.sentences[row], told, result.masks[row], result.explanations[row])
        save_picture(figure, path, "--explain")
    return found


def write_result(out: Path, content: dict[str, Any]) -> None:
    """Writes result.json; raises UserError where that is not possible."""
    with writing(out / RESULT_FILE):
        (out / RESULT_FILE).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def remove_earlier_prediction(out: Path) -> None:
    """Removes the masks that the result.json of an earlier prediction lists, and nothing else of a single picture's.

    Of several pictures it removes their overlays too, and their folders where nothing else is in them, so that whoever
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
    """Returns a line for each sentence: its number, itself, and what came of it."""
    return [f"{number}. {entry['sentence']} ({outcome(entry)})" for number, entry in enumerate(found, start=1)]


def outcome(entry: dict[str, Any]) -> str:
    """Returns what came of one sentence."""
    return f"score {entry['score']:.2f}" if entry["area"] else "nothing found"


def _write_mask(folder: Path, result: Result, row: int) -> dict[str, Any]:
    sentence, mask = result.sentences[row], result.masks[row]
    name = f"mask_{row + 1}_{slug(sentence)}.png"
    picture = Image.fromarray(mask.astype(np.uint8) * 255)
    save_picture(picture, folder / name)
    entry = {
        "sentence": sentence,
        "score": round(float(result.scores[row]), 4),
        "area": int(np.count_nonzero(mask)),
        "box": picture.getbbox(),
        "file": name,
    }
    if result.no_target is not None:
        entry["no_target"] = round(float(result.no_target[row]), 4)
    return entry


def _listed(content: dict[str, Any]) -> Iterator[PurePath]:
    """The files of an earlier prediction that are to go."""
    for picture in content.get("pictures", [content]):
        folder = PurePath(picture.get("folder", ""))
        yield from [folder / entry["file"] for entry in picture["results"]]
        if "folder" in picture:
            yield folder / OVERLAY_FILE


def _inside(path: PurePath) -> bool:
    return not path.is_absolute() and ".." not in path.parts
