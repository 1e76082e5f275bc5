"""Segment what expressions refer to in an image, or in each of many images.

    python -m s2rm_jax.predict --workdir runs/synthetic --image street.jpg --text "the man in red" --out result
    python -m s2rm_jax.predict ... --text "the man in red" --text "the car behind him"
    python -m s2rm_jax.predict ... --explain how.png   # also draws how the network came to the mask
    python -m s2rm_jax.predict --workdir runs/synthetic --images 'frames/*.jpg' --text "the man in red" --out result
    python -m s2rm_jax.predict --workdir runs/synthetic --out result   # a held-out image and its own expressions
    python -m s2rm_jax.predict --out result   # the same with the network that comes with the package

Writes to --out: mask_1_the_man_in_red.png and so on, one per expression (8 bits, 0 or 255, in the image's own size,
upright as a viewer shows it); overlay.png, all masks on the image with a legend; and result.json. The masks of an
earlier prediction in that folder are removed. Without --image, the first image on which the run is evaluated is taken
and also written, as image.png; its own expressions are used unless --text is given. With --explain there is one figure
per expression: how.png, or how_1.png, how_2.png and so on for several.

--images takes a folder or a quoted pattern, and segments every expression in every image; frame9 comes before frame10.
Each image has its own folder in --out, for which --explain is a file name, and result.json lists all images. An image
that cannot be read is reported and skipped; the exit status is then 4. docs/command_line.md covers videos, --json and
--quiet.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from absl import flags
from PIL import Image
from tqdm import tqdm

from s2rm_jax import command_line, default_network
from s2rm_jax.errors import PartlyDone, UserError
from s2rm_jax.input.images import list_images, load_image, result_folders
from s2rm_jax.io import figure_paths, make_output_folder, save_image
from s2rm_jax.prediction_files import (
    RESULT_FILE,
    SAMPLE_FILE,
    outcomes,
    remove_earlier_prediction,
    require_free_name,
    write_prediction,
    write_result,
)
from s2rm_jax.training.logging import counted

if TYPE_CHECKING:
    from s2rm_jax.input.example import Example
    from s2rm_jax.segmenter import Segmenter

FLAGS = flags.FlagValues()
WORKDIR = flags.DEFINE_string(
    "workdir",
    str(default_network.FOLDER),
    "the workdir of a training run; by default the network of the package, which is trained on generated shapes",
    flag_values=FLAGS,
)
IMAGE = flags.DEFINE_string("image", None, "the image; by default a held-out one of the run's data", flag_values=FLAGS)
IMAGES = flags.DEFINE_string(
    "images", None, "many images: a folder, or a pattern in quotes such as 'frames/*.jpg'", flag_values=FLAGS
)
TEXT = flags.DEFINE_multi_string("text", None, "an expression; give the flag once per expression", flag_values=FLAGS)
OUT = flags.DEFINE_string("out", None, "the folder for masks and overlay", flag_values=FLAGS)
EXPLAIN = flags.DEFINE_string(
    "explain", None, "a PNG for the figure of words, directions and stages, one per expression", flag_values=FLAGS
)
CHECKPOINT = flags.DEFINE_enum("checkpoint", "best", ["best", "latest"], "which checkpoint", flag_values=FLAGS)


@command_line.returns_result(FLAGS)
def main() -> dict[str, Any]:
    """Segment one image or many; return the content of result.json."""
    if IMAGE.value and IMAGES.value:
        raise UserError("--image and --images are both given; use --image for one image, --images for many")
    if (IMAGE.value or IMAGES.value) and not TEXT.value:
        raise UserError("--text is missing; give it once per expression (see --help)")
    # The tokenizer logs only the first expression that is too long; `_warn` below reports each.
    logging.getLogger("s2rm_jax.input.tokens").setLevel(logging.ERROR)
    assert OUT.value is not None  # required
    with _compilation_cache():
        return _predict_images(IMAGES.value, Path(OUT.value)) if IMAGES.value else _predict_image(Path(OUT.value))


def segment_images(
    segmenter: Segmenter,
    paths: Sequence[Path],
    expressions: Sequence[str],
    out: Path,
    *,
    explain: str = "",
    quiet: bool = False,
) -> dict[str, Any]:
    """Segment the expressions in each image and write the results.

    Each image has a folder in `out` with the files of `write_prediction`. An image that cannot be read is reported on
    stderr and skipped. result.json is written even if the work is interrupted.

    Args:
        segmenter: the network.
        paths: the images.
        expressions: the expressions, the same for all images.
        out: the folder for all results.
        explain: the file name of the figures in each image's folder; "" draws none.
        quiet: whether to hide the progress bar.

    Returns:
        The content of result.json: {"images": [{"image", "folder", "width", "height", "results"}, ...], "failed":
        [{"image", "error"}, ...]}.

    Raises:
        PartlyDone: some images could not be read; the others are done.
        UserError: no image could be read, or `out` cannot be written to.
    """
    remove_earlier_prediction(make_output_folder(out))
    # Labels without scores: a legend that changes from frame to frame would change the size of the overlay.
    labels = [f"{number}. {expression}" for number, expression in enumerate(expressions, start=1)]
    done: list[dict[str, Any]] = []
    failed: list[dict[str, str]] = []
    content: dict[str, Any] = {"images": done, "failed": failed}
    pairs = list(zip(paths, result_folders(paths, taken=RESULT_FILE), strict=True))
    try:
        for path, folder in tqdm(pairs, "segmenting images", disable=quiet or None, leave=False):
            try:
                encoded = segmenter.encode(path)
            except UserError as error:
                failed.append({"image": str(path), "error": str(error)})
                tqdm.write(f"warning: skipped: {error}", file=sys.stderr)
                continue
            result = segmenter.segment(encoded, expressions, explain=bool(explain))
            image_folder = make_output_folder(out / folder)
            figures = figure_paths(image_folder / explain, len(expressions)) if explain else []
            entries = write_prediction(image_folder, encoded.image, result, figures, labels)
            height, width = encoded.image.shape[:2]
            entry = {"image": str(path), "folder": folder.as_posix(), "width": width, "height": height}
            done.append(entry | {"results": entries})
    except BaseException:
        with suppress(UserError):  # a full disk fails twice, and the first error counts
            write_result(out, content)
        raise
    write_result(out, content)
    if not done:
        raise UserError(f"none of {counted(len(paths), 'image')} could be read; see the warnings above")
    if failed:
        raise PartlyDone(
            f"{len(failed)} of {counted(len(paths), 'image')} could not be read; they are listed above and under "
            f'"failed" in {out / RESULT_FILE}, and all others are done',
            content,
        )
    return content


def _predict_images(images: str, out: Path) -> dict[str, Any]:
    expressions, explain = TEXT.value or [], EXPLAIN.value or ""
    if explain and (Path(explain).name != explain or Path(explain).suffix.lower() != ".png"):
        raise UserError(f"--explain: {explain} must be a file name ending in .png, used in each image's folder")
    require_free_name(Path(explain))
    paths = list_images(images)
    segmenter = _segmenter()
    _warn(segmenter, expressions)
    quiet = bool(FLAGS["quiet"].value)
    content = segment_images(segmenter, paths, expressions, out, explain=explain, quiet=quiet)
    total, masks = counted(len(content["images"]), "image"), counted(len(expressions), "mask")
    print(f"{total} with {masks} each; result.json and a folder for each image are in {out}")
    return content


def _predict_image(out: Path) -> dict[str, Any]:
    if IMAGE.value:
        image, expressions = load_image(IMAGE.value, apply_exif=True), TEXT.value or []
    else:
        example = _held_out_example()
        image = example.load_image()
        expressions = TEXT.value or [expression.text for expression in example.expressions]
    figures = figure_paths(EXPLAIN.value, len(expressions)) if EXPLAIN.value else []
    if EXPLAIN.value and Path(EXPLAIN.value).parent.resolve() == out.resolve():
        require_free_name(Path(EXPLAIN.value))
    segmenter = _segmenter()
    result = segmenter.segment(image, expressions, explain=bool(figures))
    _warn(segmenter, expressions)

    make_output_folder(out)  # not earlier, so that an error leaves no empty folder
    remove_earlier_prediction(out)
    entries = write_prediction(out, image, result, figures)
    if not IMAGE.value:
        save_image(Image.fromarray(image), out / SAMPLE_FILE)
    height, width = image.shape[:2]
    content = {"image": str(IMAGE.value or out / SAMPLE_FILE), "width": width, "height": height, "results": entries}
    write_result(out, content)
    print("\n".join(outcomes(entries)))
    if figures:
        print(f"how the network came to them: {', '.join(map(str, figures))}")
    print(f"{counted(len(entries), 'mask')} of {width} x {height} pixels, overlay.png and result.json are in {out}")
    return content


def _segmenter() -> Segmenter:
    from s2rm_jax.segmenter import Segmenter

    return Segmenter.from_checkpoint(str(WORKDIR.value), cast(Literal["best", "latest"], CHECKPOINT.value))


def _warn(segmenter: Segmenter, expressions: Sequence[str]) -> None:
    for expression in expressions:
        for remark in segmenter.remarks(expression):
            print(f"warning: {remark}", file=sys.stderr)


def _held_out_example() -> Example:
    """Return the first example of the split on which the run is evaluated."""
    from s2rm_jax.input.sources import build_source
    from s2rm_jax.training.run import find_run, load_config

    config = load_config(find_run(str(WORKDIR.value)))
    try:
        return build_source(config.input.source, config.eval.split, on_bad_example=config.input.on_bad_example)[0]
    except UserError as error:
        raise UserError(f"--image is missing, and the run's own data cannot be used instead: {error}") from error


def _compilation_cache() -> AbstractContextManager[None]:
    """Keep compiled programs in the workdir of a training run; not for a run without a cache or for weights alone.

    The cache directory of the run is not used: it may belong to another machine.
    """
    from s2rm_jax.training.checkpoint import has_checkpoint
    from s2rm_jax.training.compile import OFF, compilation_cache
    from s2rm_jax.training.run import find_run, load_config

    workdir = find_run(str(WORKDIR.value))
    if not has_checkpoint(workdir):
        return nullcontext()
    config = load_config(workdir).unlock()
    if config.get("compilation_cache") != OFF:
        config.compilation_cache = ""
    return compilation_cache(config, workdir)


if __name__ == "__main__":
    command_line.run(main, FLAGS, __doc__, required=("out",))
