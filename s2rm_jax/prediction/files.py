"""The files of the prediction of an image, result.json, and removing those of an earlier prediction."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from s2rm_jax.errors import UserError
from s2rm_jax.evaluation.exchange_formats import (
    IMAGES_FILE,
    LABEL_STUDIO,
    LABEL_STUDIO_FILES,
    RESULTS_FILE,
    find_naming,
    remove_result_files,
    write_coco,
    write_label_studio,
)
from s2rm_jax.input.images import load_image
from s2rm_jax.input.masks import encode_rle, mask_box
from s2rm_jax.io import file_identity, read_object, slug, write_atomically, writing

if TYPE_CHECKING:
    from s2rm_jax.segmenter import Result

RESULT_FILE = "result.json"
OVERLAY_FILE = "overlay.png"
SAMPLE_FILE = "image.png"  # the image itself, if it comes from the run's data
JOB_FILE = "job.json"  # of an unfinished job on many images
_OURS = rf"mask_\d+_[a-z0-9_]+\.png|{re.escape(OVERLAY_FILE)}"
# The names in the folder of the results of many images that are not those of images.
NAMES_OF_JOB = re.compile(
    "|".join(map(re.escape, (RESULT_FILE, JOB_FILE, RESULTS_FILE, IMAGES_FILE, LABEL_STUDIO))) + r"|part-.*\.jsonl"
)
_EXPORTS = (re.escape(RESULTS_FILE), re.escape(IMAGES_FILE), LABEL_STUDIO_FILES)


@dataclass(frozen=True)
class Options:
    """What is written for an image.

    Attributes:
        overlay: whether to write overlay.png.
        masks: "png", a file per mask; or "rle", COCO's compressed RLE in the entries of the results.
        explain: the file name of the figures in the folder of each of many images; "" draws none.
        coco: whether to write COCO's results of all images.
        label_studio: the address of the images for the tasks of Label Studio; "" writes none.
    """

    overlay: bool = True
    masks: str = "png"
    explain: str = ""
    coco: bool = False
    label_studio: str = ""

    @property
    def exports(self) -> bool:
        """Whether files for other programs are written, which need the masks in the entries of the results."""
        return self.coco or bool(self.label_studio)


def require_free_name(explain: Path) -> None:
    """Check that figures with this name do not replace another file of the prediction.

    Raises:
        UserError: the name is that of a mask, the overlay or the image.
    """
    if re.fullmatch(rf"mask_\d+.*|{re.escape(OVERLAY_FILE)}|{re.escape(SAMPLE_FILE)}", explain.name, re.IGNORECASE):
        raise UserError(f"--explain: {explain} would replace a file of the result; give another name, such as how.png")


def require_inputs_kept(inputs: Iterable[str], outputs: Iterable[Path], flag: str = "--out") -> None:
    """Check that no file of the input would be replaced or removed; links count as the files they lead to.

    Args:
        inputs: files; addresses are passed over.
        outputs: files that are replaced or removed, as `outputs_of` and `earlier_files` give them.
        flag: names the outputs.

    Raises:
        UserError: one of the inputs is an output.
    """
    existing = {identity: path for path in outputs if (identity := file_identity(path))}
    for name in inputs if existing else ():
        identity = file_identity(name)  # None: missing or an address, which reading reports
        if identity and (replaced := existing.get(identity)):
            problem = f"the prediction would replace or remove the input {replaced}"
            raise UserError(f"{flag}: {problem}; give another {flag}")


def figure_paths(given: str | Path, count: int, out: Path) -> list[Path]:
    """Return the path itself for one figure, or NAME_1.png, NAME_2.png and so on for several.

    Raises:
        UserError: the path is not that of a PNG, or its folder neither exists nor is `out`, which is created later.
    """
    path = Path(given)
    has_folder = path.parent.is_dir() or path.parent.resolve() == out.resolve()
    if path.suffix.lower() != ".png" or path.is_dir() or not has_folder:
        raise UserError(f"--explain: {given} must be the path of a PNG in an existing folder; give another --explain")
    numbered = [path.with_name(f"{path.stem}_{number}{path.suffix}") for number in range(1, count + 1)]
    return [path] if count == 1 else numbered


def outputs_of(folder: Path, expressions: Sequence[str], options: Options) -> Iterator[Path]:
    """Yield the masks and the overlay that `write_prediction` writes."""
    if options.masks != "rle":
        yield from (folder / _mask_name(number, text) for number, text in enumerate(expressions, start=1))
    if options.overlay:
        yield folder / OVERLAY_FILE


def require_own_result(out: Path) -> None:
    """Check that a result.json in the folder was written by a prediction, which the next one may replace.

    Raises:
        UserError: it is a file of another program.
    """
    path = out / RESULT_FILE
    if path.is_file() and not {"results", "images"} & read_object(out / RESULT_FILE).keys():
        raise UserError(f"--out: {path} was probably not written by predict; remove it, or give another --out")


def require_own_sample(out: Path, image: UInt8[np.ndarray, "height width 3"]) -> None:
    """Check that image.png in the folder is the image of an earlier prediction that took one of the run's data.

    Raises:
        UserError: it is another one, and not equal to `image` either, which would replace it.
    """
    path = out / SAMPLE_FILE
    if not path.exists() or read_object(out / RESULT_FILE).get("sample"):
        return
    with suppress(UserError):
        if np.array_equal(load_image(path), image):
            return
    raise UserError(f"--out: {path} was probably not written by predict; remove it, or give another --out")


def write_prediction(
    folder: Path,
    image: UInt8[np.ndarray, "height width 3"],
    result: Result,
    options: Options = Options(),
    *,
    figures: Sequence[Path] = (),
    labels: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """Write masks, overlay and figures of one image into an existing folder.

    Args:
        folder: receives mask_1_the_man_in_red.png and so on, and overlay.png.
        image: the image that was segmented.
        result: its masks.
        options: which files to write.
        figures: the PNG of the explanation of each expression; empty: none are drawn.
        labels: the labels of the overlay's legend; by default the expressions with their scores.

    Returns:
        The entry of each expression in result.json: `expression`; `score`, as in `Result.scores`; `area`, the mask's
        pixels; `box`, [left, top, right, bottom] in pixels, right and bottom exclusive, or null for an empty mask;
        `file`, the mask's name in `folder`, or `mask`, the mask as RLE; and, if the network has that output,
        `no_target`, the probability that the expression refers to nothing.

    Raises:
        UserError: a file cannot be written.
    """
    from s2rm_jax.evaluation.explain import explain_figure
    from s2rm_jax.evaluation.overlay import overlay_with_legend

    entries = []
    for row in range(len(result.expressions)):
        entries.append(_write_mask(folder, result, row, options))
    if options.overlay:
        overlay = overlay_with_legend(image, result.masks, labels or outcomes(entries))
        save_image(overlay, folder / OVERLAY_FILE)
    for row, path in enumerate(figures):
        assert result.explanations is not None
        explanation, line = result.explanations[row], outcome(entries[row])
        figure = explain_figure(image, result.expressions[row], line, result.masks[row], explanation)
        save_image(figure, path, "--explain")
    return entries


def save_image(image: Image.Image, path: Path, flag: str = "--out") -> None:
    """Save an image, mask or figure as PNG; raise UserError if it cannot be written.

    Matching runs only takes a quarter of the time of zlib's default. Masks are as small then, photographs 5 % larger.
    """
    with writing(path, flag):
        image.save(path, compress_level=1, compress_type=zlib.Z_RLE)


def write_result(out: Path, content: dict[str, Any]) -> None:
    """Write result.json; raise UserError if that is not possible."""
    write_json(out / RESULT_FILE, [json.dumps(content, indent=2, ensure_ascii=False), "\n"])


def write_json(path: Path, parts: Iterable[str]) -> None:
    """Write the parts of a JSON text; raise UserError if that is not possible."""
    with writing(path):
        # Bytes of file names that are not UTF-8 are surrogates in Python; they become escapes of JSON.
        write_atomically(path, parts, errors="backslashreplace")


def write_exports(out: Path, content: dict[str, Any], options: Options) -> None:
    """Write the files of one image for other programs; `content` is that of result.json."""
    naming = find_naming([content])
    if options.coco:
        write_coco(out, lambda: [content], naming)
    if options.label_studio:
        write_label_studio(out, [content], naming, options.label_studio)


def require_no_prediction(out: Path) -> None:
    """Check that an evaluation would not replace files of a prediction in the same folder.

    Raises:
        UserError: the folder has a prediction, or an unfinished one.
    """
    if has_prediction(out):
        raise UserError(f"--out: {out} has a {RESULT_FILE} or {JOB_FILE} of predict; give another --out")


def remove_earlier_prediction(out: Path) -> None:
    """Remove the masks listed in the result.json of an earlier prediction, and its files for other programs.

    If it lists several images, their overlays and their empty folders are removed too, so that a video made of the
    overlays has the frames of one prediction only. All other files are kept, and all files of a folder that has neither
    a result.json nor a job.json.

    Raises:
        UserError: a file for other programs cannot be removed.
    """
    if has_prediction(out):
        remove_result_files(out, _EXPORTS)
    remove_listed(out, earlier_images(out))


def earlier_images(out: Path) -> Iterable[Any]:
    """Return the entries of the images in result.json, of any content if another program wrote it."""
    content = read_object(out / RESULT_FILE)
    return content.get("images", [content])


def remove_listed(out: Path, images: Iterable[Any]) -> None:
    """Remove the files that records of an earlier prediction list, and the folders that become empty."""
    for path in listed_files(out, images):
        with suppress(OSError):
            path.unlink()
            path.parent.rmdir()  # fails unless it is empty


def listed_files(out: Path, images: Iterable[Any]) -> Iterator[Path]:
    """Yield the masks and overlays that records of an earlier prediction list."""
    with suppress(KeyError, TypeError, AttributeError):  # written by another program
        for image in images:
            folder = PurePath(image.get("folder", ""))
            names = [entry["file"] for entry in image.get("results", ()) if "file" in entry]
            names += [OVERLAY_FILE] if "folder" in image or image.get("overlay") else []
            for path in [folder / name for name in names]:
                inside = not path.is_absolute() and ".." not in path.parts
                if inside and re.fullmatch(_OURS, path.name):
                    yield out / path


def has_prediction(out: Path) -> bool:
    """Return whether the folder has the results of a prediction, or an unfinished one."""
    return (out / RESULT_FILE).exists() or (out / JOB_FILE).exists()


def is_result(path: Path, out: Path, explain: str = "") -> bool:
    """Return whether a file under `out` has the name of a mask or an overlay, or in a folder there that of a figure.

    `explain` is the name of figures.
    """
    if re.fullmatch(_OURS, path.name):
        return out.resolve() in path.resolve().parents
    figure = rf"{re.escape(Path(explain).stem)}(_\d+)?{re.escape(Path(explain).suffix)}"
    return bool(explain and re.fullmatch(figure, path.name)) and out.resolve() in path.resolve().parent.parents


def outcomes(entries: Sequence[dict[str, Any]]) -> list[str]:
    """Return a line for each expression: its number, its text and its outcome."""
    return [f"{number}. {entry['expression']} ({outcome(entry)})" for number, entry in enumerate(entries, start=1)]


def outcome(entry: dict[str, Any]) -> str:
    """Return the score of an expression, or that its mask is empty."""
    return f"score {entry['score']:.2f}" if entry["area"] else "nothing found"


def _mask_name(number: int, expression: str) -> str:
    return f"mask_{number}_{slug(expression)}.png"


def _write_mask(folder: Path, result: Result, row: int, options: Options) -> dict[str, Any]:
    """Write the mask of an expression, unless masks are RLE; return its entry in result.json."""
    expression, mask = result.expressions[row], result.masks[row]
    image = Image.fromarray(mask.astype(np.uint8) * 255)
    entry: dict[str, Any] = {
        "expression": expression,
        "score": round(float(result.scores[row]), 4),
        "area": int(np.count_nonzero(mask)),
        "box": mask_box(mask),
    }
    if options.masks == "rle" or options.exports:
        entry["mask"] = encode_rle(mask)
    if options.masks != "rle":
        entry["file"] = _mask_name(row + 1, expression)
        save_image(image, folder / entry["file"])
    if result.no_target is not None:
        entry["no_target"] = round(float(result.no_target[row]), 4)
    return entry
