"""Segment what expressions refer to in an image, or in each of many images.

    python -m s2rm_jax.predict --out scene   # a held-out image, scene/image.png, and its own expressions
    python -m s2rm_jax.predict --image scene/image.png --text "the red star" --out result
    python -m s2rm_jax.predict ... --text "the red star" --text "the leftmost shape"
    python -m s2rm_jax.predict ... --explain how.png   # also draws an explanation of each mask
    python -m s2rm_jax.predict ... --workdir runs/demo   # a network other than the bundled one
    python -m s2rm_jax.predict --images 'frames/*.jpg' --text "the red star" --out result

Writes to --out: mask_1_the_red_star.png and so on, one per expression (8 bits, 0 or 255, in the image's own size,
upright as a viewer shows it); overlay.png, all masks on the image with a legend; and result.json. The masks of an
earlier prediction in that folder are removed; a file that would replace the input is an error. Without --image, the
first image on which the run is evaluated is taken and also written, as image.png; its own expressions are used unless
--text is given. With --explain there is one figure per expression: how.png, or how_1.png, how_2.png and so on for
several.

--images takes a folder, a quoted pattern, or a list of images, which may have expressions of its own. Each image has
its own folder in --out, for which --explain is a file name, and result.json lists all images. An image that cannot be
read is reported and skipped; the exit status is then 4. The same command continues a job that was stopped. Several
processes share the images if --shard is given, or if SLURM or another launcher starts them; each then writes a part
file instead of result.json. docs/command_line.md covers lists, jobs, videos, --json and --quiet.

--coco also writes coco_results.json and coco_images.json, and --label_studio tasks with the masks as pre-annotations;
docs/other_tools.md shows how pycocotools, FiftyOne and Label Studio read them.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags
from etils import epath
from PIL import Image

from s2rm_jax import command_line, default_network
from s2rm_jax.errors import PartlyDone, UserError, counted
from s2rm_jax.evaluation.evaluation_files import require_no_report
from s2rm_jax.evaluation.exchange_formats import check_address
from s2rm_jax.input.images import load_image
from s2rm_jax.input.tokens import silence_tokenizer
from s2rm_jax.io import make_output_folder
from s2rm_jax.prediction.files import (
    OVERLAY_FILE,
    RESULT_FILE,
    SAMPLE_FILE,
    Options,
    figure_paths,
    outcomes,
    outputs_of,
    require_free_name,
    require_inputs_kept,
    require_own_result,
    require_own_sample,
    save_image,
    write_exports,
    write_prediction,
    write_result,
)
from s2rm_jax.prediction.image_lists import list_items
from s2rm_jax.prediction.job import find_share, raise_none_segmented, run_job
from s2rm_jax.prediction.job_files import earlier_files, replace_earlier
from s2rm_jax.training.logging import log

if TYPE_CHECKING:
    from s2rm_jax.input.example import Example
    from s2rm_jax.segmenter import Segmenter

FLAGS = flags.FlagValues()
WORKDIR = flags.DEFINE_string(
    "workdir",
    str(default_network.FOLDER),
    "the workdir of a training run; by default the small network bundled with the package, trained on generated shapes",
    flag_values=FLAGS,
)
IMAGE = flags.DEFINE_string("image", None, "the image; by default a held-out image of the run", flag_values=FLAGS)
IMAGES = flags.DEFINE_string(
    "images",
    None,
    "many images: a folder, a pattern in quotes such as 'frames/*.jpg', or a list (.txt, .jsonl or .parquet)",
    flag_values=FLAGS,
)
TEXT = flags.DEFINE_multi_string("text", None, "an expression; give the flag once per expression", flag_values=FLAGS)
OUT = flags.DEFINE_string("out", None, "the folder for masks and overlay", flag_values=FLAGS)
EXPLAIN = flags.DEFINE_string(
    "explain",
    None,
    "also draw an explanation of each mask (word attention, scan directions, decoder stages) to this PNG",
    flag_values=FLAGS,
)
OVERLAY = flags.DEFINE_enum("overlay", "on", ["on", "off"], "whether to write overlay.png", flag_values=FLAGS)
MASKS = flags.DEFINE_enum(
    "masks", "png", ["png", "rle"], "write masks as PNG files, or as COCO's RLE in the results", flag_values=FLAGS
)
COCO = flags.DEFINE_bool(
    "coco", False, "also write COCO's results and images, coco_results.json and coco_images.json", flag_values=FLAGS
)
LABEL_STUDIO = command_line.define_label_studio(FLAGS)
SHARD = flags.DEFINE_string(
    "shard", None, "I/N: this process segments share I of N of --images, such as 0/4", flag_values=FLAGS
)
BATCH_SIZE = flags.DEFINE_integer(
    "batch_size",
    None,
    "images per batch, for --images; by default 1 on a CPU, else 8",
    lower_bound=1,
    flag_values=FLAGS,
)
CHECKPOINT = command_line.define_checkpoint(FLAGS)


@command_line.returns_result(FLAGS)
def main() -> dict[str, Any]:
    """Segment one image or many; return the content of result.json."""
    for flag in ("image", "images"):
        if FLAGS[flag].value == "":  # for example from an unset shell variable
            raise UserError(f"--{flag} is empty: {FLAGS[flag].help}")
    if IMAGE.value and IMAGES.value:
        raise UserError("--image and --images are both given; use --image for one image, --images for many")
    if IMAGE.value and not TEXT.value:
        raise UserError("--text is missing; give it once per expression (see --help)")
    if SHARD.value and not IMAGES.value:
        raise UserError("--shard is given without --images; only many images are shared")
    if BATCH_SIZE.value and not IMAGES.value:
        raise UserError("--batch_size is given without --images; it is for many images")
    silence_tokenizer()
    assert OUT.value is not None  # required
    check_address(LABEL_STUDIO.value)
    require_no_report(Path(OUT.value))
    options = Options(
        OVERLAY.value == "on", str(MASKS.value), EXPLAIN.value or "", bool(COCO.value), LABEL_STUDIO.value or ""
    )
    # First, because it decides which accelerators this process opens.
    share = find_share(SHARD.value) if IMAGES.value else (0, 1)
    workdir = _find_workdir()
    with _compilation_cache(workdir):
        if IMAGES.value:
            return _predict_many(Path(OUT.value), options, workdir, share)
        return _predict_image(Path(OUT.value), options, workdir)


def _find_workdir() -> epath.Path:
    """Return the folder of --workdir; a network on the Hugging Face Hub is looked up here only."""
    from s2rm_jax.training.run import find_run

    return find_run(str(WORKDIR.value))


def _predict_many(out: Path, options: Options, workdir: epath.Path, share: tuple[int, int]) -> dict[str, Any]:
    name = Path(options.explain)
    if options.explain and (name.name != options.explain or name.suffix.lower() != ".png"):
        raise UserError(f"--explain: {name} must be a file name ending in .png, used in each image's folder")
    require_free_name(name)
    index, number = share
    items = list_items(str(IMAGES.value), TEXT.value or [], out, options.explain)
    segmenter = _segmenter(workdir)
    _warn(segmenter, TEXT.value or [])
    quiet, as_json = bool(FLAGS["quiet"].value), bool(FLAGS["json"].value)
    source = os.path.expanduser(str(IMAGES.value))
    part = run_job(segmenter, items, share, out, options, batch_size=BATCH_SIZE.value, quiet=quiet, source=source)

    content: dict[str, Any] = {"part": str(part.path), "images": part.count, "failed": part.failed}
    if number == 1:  # read only where it is printed: it may list a million images
        content = json.loads((out / RESULT_FILE).read_text(encoding="utf-8")) if as_json else {}
    listed, failed, total = part.path if number > 1 else out / RESULT_FILE, len(part.failed), len(items[index::number])
    if failed and not part.count:
        raise_none_segmented(counted(total, "image"))
    if failed:
        message = f"{failed} of {counted(total, 'image')} could not be segmented; they are listed above and in {listed}"
        raise PartlyDone(f"{message}, and all others are done", content)
    share_of = f" (share {index} of {number} of {counted(len(items), 'image')})" if number > 1 else ""
    print(f"{counted(total, 'image')} done{share_of}; the results are in {out}, listed in {listed.name}")
    return content


def _predict_image(out: Path, options: Options, workdir: epath.Path) -> dict[str, Any]:
    if IMAGE.value:
        image, expressions = load_image(IMAGE.value, apply_exif=True), TEXT.value or []
    else:
        example = _held_out_example(workdir)
        image = example.load_image()
        expressions = TEXT.value or [expression.text for expression in example.expressions]
    figures = figure_paths(EXPLAIN.value, len(expressions), out) if EXPLAIN.value else []
    if EXPLAIN.value and Path(EXPLAIN.value).parent.resolve() == out.resolve():
        require_free_name(Path(EXPLAIN.value))
    require_own_result(out)
    if IMAGE.value:
        require_inputs_kept([IMAGE.value], figures, "--explain")
        require_inputs_kept([IMAGE.value], chain(earlier_files(out), outputs_of(out, expressions, options)))
    else:
        require_own_sample(out, image)
    segmenter = _segmenter(workdir)
    result = segmenter.segment(image, expressions, explain=bool(figures))
    _warn(segmenter, expressions)

    make_output_folder(out)  # not earlier, so that an error leaves no empty folder
    replace_earlier(out)
    entries = write_prediction(out, image, result, options, figures=figures)
    if not IMAGE.value:
        save_image(Image.fromarray(image), out / SAMPLE_FILE)
    height, width = image.shape[:2]
    content = {"image": str(IMAGE.value or out / SAMPLE_FILE), "width": width, "height": height, "results": entries}
    if options.overlay:
        content["overlay"] = OVERLAY_FILE
    if not IMAGE.value:
        content["sample"] = True
    write_result(out, content)  # first: without it, the next prediction in this folder would keep the exports
    write_exports(out, content, options)
    print("\n".join(outcomes(entries)))
    if figures:
        print(f"explanations of the masks: {', '.join(map(str, figures))}")
    files = "overlay.png and result.json" if options.overlay else "result.json"
    print(f"{counted(len(entries), 'mask')} of {width} x {height} pixels and {files} are in {out}")
    return content


def _segmenter(workdir: epath.Path) -> Segmenter:
    from s2rm_jax.segmenter import Segmenter

    if (IMAGE.value or IMAGES.value) and default_network.is_default_network(str(WORKDIR.value)):
        log("the bundled network is trained on generated shapes only; for other images give --workdir")
    return Segmenter.from_checkpoint(str(workdir), CHECKPOINT.value, keep_programs=True)


def _warn(segmenter: Segmenter, expressions: Sequence[str]) -> None:
    for expression in expressions:
        for remark in segmenter.remarks(expression):
            print(f"warning: {remark}", file=sys.stderr)


def _held_out_example(workdir: epath.Path) -> Example:
    """Return the first example of the split on which the run is evaluated."""
    from s2rm_jax.input.sources import build_source
    from s2rm_jax.training.run import load_config

    config = load_config(workdir)
    try:
        return build_source(config.input.source, config.eval.split, on_bad_example=config.input.on_bad_example)[0]
    except UserError as error:
        raise UserError(f"--image is missing, and the run's own data cannot be used instead: {error}") from error


def _compilation_cache(workdir: epath.Path) -> AbstractContextManager[None]:
    """On accelerators, let JAX cache compiled programs; on CPUs, the Segmenter keeps them."""
    import jax

    from s2rm_jax.parallel.programs import private_compilation_cache
    from s2rm_jax.training.run import load_config

    return nullcontext() if jax.default_backend() == "cpu" else private_compilation_cache(load_config(workdir))


if __name__ == "__main__":
    command_line.run_and_exit(main, FLAGS, __doc__, required=("out",))
