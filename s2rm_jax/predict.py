"""Segments what expressions refer to in an image, or in each of many.

    python -m s2rm_jax.predict --workdir runs/synthetic --image street.jpg --text "the man in red" --out result
    python -m s2rm_jax.predict ... --text "the man in red" --text "the car behind him"
    python -m s2rm_jax.predict ... --explain how.png   # also draws how the network came to the mask
    python -m s2rm_jax.predict --workdir runs/synthetic --images 'frames/*.jpg' --text "the man in red" --out result
    python -m s2rm_jax.predict --workdir runs/synthetic --out result   # a held-out image and its own expressions
    python -m s2rm_jax.predict --out result   # the same with the network that comes with the package

Writes to --out: mask_1_the_man_in_red.png and so on, one per expression (8 bits, 0 or 255, the image's own size,
upright as a viewer shows it); overlay.png, all masks on the image with a legend; and result.json. Masks that an
earlier prediction left there are removed. Without an image it takes the first one on which the run is evaluated,
writes it there too, as image.png, and asks for what --text says or else the expressions that belong to it.
With --explain there is one figure per expression: how.png, or for several how_1.png, how_2.png and so on.

--images takes a folder or a pattern in quotes, and every expression is asked of every image, frame9 before frame10.
Each image has a folder of its own in --out, which --explain names a file in, and result.json lists them all. One that
cannot be read is told of and left out; the exit status is then 4. docs/command_line.md has videos, --json and --quiet.

The same expressions asked of many images, one after another: the frames of a video, a folder of photographs.
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
from s2rm_jax.evaluation.prediction_files import (
    RESULT_FILE,
    remove_earlier_prediction,
    write_prediction,
    write_result,
)
from s2rm_jax.input.images import result_folders
from s2rm_jax.io import figure_paths, make_output_folder
from s2rm_jax.segmenter import Segmenter
from s2rm_jax.training.logging import counted

if TYPE_CHECKING:
    from s2rm_jax.input.example import Example
    from s2rm_jax.segmenter import Segmenter

FLAGS = flags.FlagValues()
WORKDIR = flags.DEFINE_string(
    "workdir",
    str(default_network.FOLDER),
    "the directory of a training run; by default the network that comes with the package and knows generated shapes",
    flag_values=FLAGS,
)
IMAGE = flags.DEFINE_string("image", None, "the image; by default a held-out one of the run's data", flag_values=FLAGS)
IMAGES = flags.DEFINE_string(
    "images", None, "many images: a folder, or a pattern in quotes such as 'frames/*.jpg'", flag_values=FLAGS
)
TEXT = flags.DEFINE_multi_string("text", None, "an expression; give the flag once per expression", flag_values=FLAGS)
OUT = flags.DEFINE_string("out", None, "the folder that receives masks and overlay", flag_values=FLAGS)
EXPLAIN = flags.DEFINE_string(
    "explain", None, "a PNG to draw words, directions and stages into, one per expression", flag_values=FLAGS
)
CHECKPOINT = flags.DEFINE_enum("checkpoint", "best", ["best", "latest"], "which checkpoint", flag_values=FLAGS)


@command_line.returns_result(FLAGS)
def main() -> dict[str, Any]:
    """Segments as the flags say; returns the content of result.json."""
    if IMAGE.value and IMAGES.value:
        raise UserError("--image and --images are both given; one image has --image, many have --images")
    if (IMAGE.value or IMAGES.value) and not TEXT.value:
        raise UserError("--text is missing: say what is to be found, once per expression (see --help)")
    # The tokenizer's log tells of the first expression that is too long; here each is told of below.
    logging.getLogger("s2rm_jax.input.tokens").setLevel(logging.ERROR)
    assert OUT.value is not None  # required
    with _programs_kept():
        return _many(IMAGES.value, Path(OUT.value)) if IMAGES.value else _one(Path(OUT.value))


def _programs_kept() -> AbstractContextManager[None]:
    """Keeps compiled programs beside a training run, unless it kept none; not beside weights alone, as of the package.

    Where the run kept its own is not asked: it may be a folder of another machine.
    """
    from s2rm_jax.io import workdir_path
    from s2rm_jax.training.checkpoint import has_checkpoint
    from s2rm_jax.training.compile import OFF, compilation_cache
    from s2rm_jax.training.run import load_config

    config, workdir = load_config(_workdir()).unlock(), workdir_path(_workdir())
    if not has_checkpoint(workdir):
        return nullcontext()
    if config.get("compilation_cache") != OFF:
        config.compilation_cache = ""
    return compilation_cache(config, workdir)


def _many(images: str, out: Path) -> dict[str, Any]:
    from s2rm_jax.evaluation.prediction_files import require_name_of_its_own
    from s2rm_jax.input.images import list_images
    from s2rm_jax.training.logging import counted

    expressions, explain = TEXT.value or [], EXPLAIN.value or ""
    if explain and (Path(explain).name != explain or Path(explain).suffix.lower() != ".png"):
        raise UserError(f"--explain: {explain} must be the name of a PNG, which each image's folder receives")
    require_name_of_its_own(Path(explain))
    paths = list_images(images)
    segmenter = _segmenter()
    _warn(segmenter, expressions)
    quiet = bool(FLAGS["quiet"].value)
    content = segment_images(segmenter, paths, expressions, out, explain=explain, quiet=quiet)
    total, masks = counted(len(content["images"]), "image"), counted(len(expressions), "mask")
    print(f"{total} with {masks} each; result.json and a folder for each image are in {out}")
    return content


def _one(out: Path) -> dict[str, Any]:
    from s2rm_jax.evaluation.prediction_files import (
        SAMPLE_FILE,
        outcomes,
        remove_earlier_prediction,
        require_name_of_its_own,
        write_prediction,
        write_result,
    )
    from s2rm_jax.input.images import load_image
    from s2rm_jax.io import figure_paths, make_output_folder, save_image
    from s2rm_jax.training.logging import counted

    if IMAGE.value:
        image, expressions = load_image(IMAGE.value, apply_exif=True), TEXT.value or []
    else:
        example = _held_out()
        image = load_image(example.image)
        expressions = TEXT.value or [expression.text for expression in example.expressions]
    figures = figure_paths(EXPLAIN.value, len(expressions)) if EXPLAIN.value else []
    if EXPLAIN.value and Path(EXPLAIN.value).parent.resolve() == out.resolve():
        require_name_of_its_own(Path(EXPLAIN.value))
    segmenter = _segmenter()
    result = segmenter.segment(image, expressions, explain=bool(figures))
    _warn(segmenter, expressions)

    make_output_folder(out)  # only now, so that a mistake leaves no empty folder behind
    remove_earlier_prediction(out)
    found = write_prediction(out, image, result, figures)
    if not IMAGE.value:
        save_image(Image.fromarray(image), out / SAMPLE_FILE)
    height, width = image.shape[:2]
    content = {"image": str(IMAGE.value or out / SAMPLE_FILE), "width": width, "height": height, "results": found}
    write_result(out, content)
    print("\n".join(outcomes(found)))
    if figures:
        print(f"how the network came to them: {', '.join(map(str, figures))}")
    print(f"{counted(len(found), 'mask')} of {width} x {height} pixels, overlay.png and result.json are in {out}")
    return content


def _workdir() -> str:
    assert WORKDIR.value is not None  # has a default
    return WORKDIR.value


def _segmenter() -> Segmenter:
    from s2rm_jax.segmenter import Segmenter

    return Segmenter.from_checkpoint(_workdir(), cast(Literal["best", "latest"], CHECKPOINT.value))


def _warn(segmenter: Segmenter, expressions: Sequence[str]) -> None:
    for expression in expressions:
        for remark in segmenter.remarks(expression):
            print(f"warning: {remark}", file=sys.stderr)


def _held_out() -> Example:
    """Returns the first image of the split on which the run is evaluated."""
    from s2rm_jax.input.sources import build_source
    from s2rm_jax.training.run import load_config

    config = load_config(_workdir())
    try:
        return build_source(config.input.source, config.eval.split)[0]
    except UserError as error:
        raise UserError(f"without --image, an image of the run's own data is taken, but {error}") from error


if __name__ == "__main__":
    command_line.run(main, FLAGS, __doc__, required=("out",))


def segment_images(
    segmenter: Segmenter,
    paths: Sequence[Path],
    expressions: Sequence[str],
    out: Path,
    *,
    explain: str = "",
    quiet: bool = False,
) -> dict[str, Any]:
    """Segments what the expressions refer to in each image, and tells on stderr how far it is.

    Each image has a folder in `out` with what `write_prediction` writes; `explain` is the name of a PNG in it.
    An image that cannot be read is told of and left out. result.json, which is written in any case, even where the
    work is broken off, holds all: {"images": [{"image", "folder", "width", "height", "results"}, ...], "failed":
    [{"image", "error"}, ...]}; its content is returned.

    Raises:
        PartlyDone: some images could not be read; the others are done.
        UserError: none could be read, or `out` cannot be written to.
    """
    remove_earlier_prediction(make_output_folder(out))
    # The scores would change from frame to frame, and with them the lines of the legend and the size of the overlay.
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
                tqdm.write(f"warning: left out: {error}", file=sys.stderr)
                continue
            result = segmenter.segment(encoded, expressions, explain=bool(explain))
            there = make_output_folder(out / folder)
            figures = figure_paths(there / explain, len(expressions)) if explain else []
            found = write_prediction(there, encoded.image, result, figures, labels)
            height, width = encoded.image.shape[:2]
            place = {"image": str(path), "folder": folder.as_posix(), "width": width, "height": height}
            done.append(place | {"results": found})
    except BaseException:
        with suppress(UserError):  # a full disk fails twice, and the first error counts
            write_result(out, content)
        raise
    write_result(out, content)
    if not done:
        raise UserError(f"none of {counted(len(paths), 'image')} could be read; each was told of above")
    if failed:
        raise PartlyDone(
            f"{len(failed)} of {counted(len(paths), 'image')} could not be read, each told of above and under "
            f'"failed" in {out / RESULT_FILE}; all others are done',
            content,
        )
    return content
