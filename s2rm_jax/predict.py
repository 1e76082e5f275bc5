"""Segments what sentences refer to in a picture.

    python -m s2rm_jax.predict --workdir runs/synthetic --image street.jpg --text "the man in red" --out result
    python -m s2rm_jax.predict ... --text "the man in red" --text "the car behind him"
    python -m s2rm_jax.predict ... --explain how.png   # also draws how the network came to the mask
    python -m s2rm_jax.predict --workdir runs/synthetic --out result   # a held-out picture and its own sentences

Writes to --out: mask_1_the_man_in_red.png and so on, one per sentence (8 bits, 0 or 255, the picture's own size,
upright as a viewer shows it); overlay.png, all masks on the picture with a legend; and result.json. Masks that an
earlier prediction left there are removed. Without --image it takes the first picture on which the run is evaluated,
writes it there too, as picture.png, and asks for what --text says or else the sentences that belong to it.
With --explain there is one figure per sentence: how.png, or for several how_1.png, how_2.png and so on.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

import numpy as np
from absl import flags
from PIL import Image

from s2rm_jax import command_line
from s2rm_jax.errors import UserError

if TYPE_CHECKING:
    from s2rm_jax.input.example import Example
    from s2rm_jax.segmenter import Result

FLAGS = flags.FlagValues()
WORKDIR = flags.DEFINE_string("workdir", None, "the directory of a training run", flag_values=FLAGS)
IMAGE = flags.DEFINE_string(
    "image", None, "the picture; by default a held-out one of the run's data", flag_values=FLAGS
)
TEXT = flags.DEFINE_multi_string("text", None, "a sentence; give the flag once per sentence", flag_values=FLAGS)
OUT = flags.DEFINE_string("out", None, "the folder that receives masks and overlay", flag_values=FLAGS)
EXPLAIN = flags.DEFINE_string(
    "explain", None, "a PNG to draw words, directions and stages into, one per sentence", flag_values=FLAGS
)
CHECKPOINT = flags.DEFINE_enum("checkpoint", "best", ["best", "latest"], "which checkpoint", flag_values=FLAGS)


RESULT_FILE = "result.json"
SAMPLE_FILE = "picture.png"


def main() -> None:
    """Segments as the flags say."""
    from s2rm_jax.evaluation.explain_figure import explain_figure
    from s2rm_jax.evaluation.output_files import figure_paths, make_output_folder, save_figure
    from s2rm_jax.evaluation.overlay import overlay_with_legend
    from s2rm_jax.input.images import load_image
    from s2rm_jax.segmenter import Segmenter
    from s2rm_jax.training.compilation_cache import compilation_cache
    from s2rm_jax.training.progress import counted
    from s2rm_jax.training.run_config import load_config
    from s2rm_jax.training.workdir_files import workdir_path

    assert WORKDIR.value is not None and OUT.value is not None  # required
    if IMAGE.value and not TEXT.value:
        raise UserError("--text is missing: say what is to be found, once per sentence (see --help)")
    # The tokenizer's log tells of the first sentence that is too long; here each is told of below.
    logging.getLogger("s2rm_jax.input.tokens").setLevel(logging.ERROR)
    if IMAGE.value:
        picture, sentences = load_image(IMAGE.value, apply_exif=True), TEXT.value or []
    else:
        example = _held_out(WORKDIR.value)
        picture = load_image(example.image)
        sentences = TEXT.value or [expression.sentence for expression in example.expressions]
    figures = figure_paths(EXPLAIN.value, len(sentences)) if EXPLAIN.value else []
    with compilation_cache(load_config(WORKDIR.value), workdir_path(WORKDIR.value)):
        segmenter = Segmenter.from_checkpoint(WORKDIR.value, cast(Literal["best", "latest"], CHECKPOINT.value))
        result = segmenter.segment(picture, sentences, explain=bool(figures))
    for sentence in result.sentences:
        for remark in segmenter.remarks(sentence):
            print(f"warning: {remark}", file=sys.stderr)

    out = make_output_folder(OUT.value)  # only now, so that a mistake leaves no empty folder behind
    found = _write_masks(out, result)
    labels = [f"{number}. {entry['sentence']} ({_outcome(entry)})" for number, entry in enumerate(found, start=1)]
    overlay_with_legend(picture, result.masks, labels).save(out / "overlay.png")
    if not IMAGE.value:
        Image.fromarray(picture).save(out / SAMPLE_FILE)
    height, width = picture.shape[:2]
    content = {"image": str(IMAGE.value or out / SAMPLE_FILE), "width": width, "height": height, "results": found}
    (out / RESULT_FILE).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    for row, path in enumerate(figures):
        assert result.explanations is not None  # asked for
        explanation = result.explanations[row]
        figure = explain_figure(picture, result.sentences[row], _outcome(found[row]), result.masks[row], explanation)
        save_figure(figure, path)
    print("\n".join(labels))
    if figures:
        print(f"how the network came to them: {', '.join(map(str, figures))}")
    print(f"{counted(len(found), 'mask')} of {width} x {height} pixels, overlay.png and result.json are in {out}")


def _held_out(workdir: str) -> Example:
    """Returns the first picture of the split on which a run is evaluated."""
    from s2rm_jax.input.sources import build_source
    from s2rm_jax.training.run_config import load_config

    config = load_config(workdir)
    try:
        return build_source(config.input.source, config.eval.split)[0]
    except UserError as error:
        raise UserError(f"without --image, a picture of the run's own data is taken, but {error}") from error


def _write_masks(out: Path, result: Result) -> list[dict]:
    """Writes one PNG per sentence in place of those of an earlier prediction; returns what result.json says of each.

    `box` is [left, top, right, bottom] in pixels, right and bottom exclusive, or null for an empty mask; `area` counts
    the pixels of the mask; `score` is the mean probability of foreground over it; `no_target`, where the network has
    a head for it, the probability that the sentence refers to nothing.
    """
    from s2rm_jax.evaluation.output_files import slug

    _remove_earlier(out)
    found = []
    for number, (sentence, mask, score) in enumerate(
        zip(result.sentences, result.masks, result.scores, strict=True), start=1
    ):
        name = f"mask_{number}_{slug(sentence)}.png"
        picture = Image.fromarray(mask.astype(np.uint8) * 255)
        picture.save(out / name)
        entry = {
            "sentence": sentence,
            "score": round(float(score), 4),
            "area": int(np.count_nonzero(mask)),
            "box": picture.getbbox(),
            "file": name,
        }
        if result.no_target is not None:
            entry["no_target"] = round(float(result.no_target[number - 1]), 4)
        found.append(entry)
    return found


def _remove_earlier(out: Path) -> None:
    """Removes the masks that the result.json of an earlier prediction lists, and nothing else."""
    try:
        listed = [entry["file"] for entry in json.loads((out / RESULT_FILE).read_text(encoding="utf-8"))["results"]]
    except (OSError, ValueError, KeyError, TypeError):  # there is none, or it is not of this program
        return
    for name in listed:
        if re.fullmatch(r"mask_\d+_[a-z0-9_]+\.png", str(name)):
            (out / name).unlink(missing_ok=True)


def _outcome(entry: dict) -> str:
    return f"score {entry['score']:.2f}" if entry["area"] else "nothing found"


if __name__ == "__main__":
    command_line.run(main, FLAGS, __doc__, required=("workdir", "out"))
