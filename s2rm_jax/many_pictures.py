"""The same sentences asked of many pictures, one after another: the frames of a video, a folder of photographs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from s2rm_jax.errors import PartlyDone, UserError
from s2rm_jax.evaluation.output_files import figure_paths, make_output_folder
from s2rm_jax.evaluation.prediction_files import (
    RESULT_FILE,
    remove_earlier_prediction,
    write_prediction,
    write_result,
)
from s2rm_jax.input.picture_files import result_folders
from s2rm_jax.input.progress_bar import clear_line, progress_bar
from s2rm_jax.segmenter import Segmenter
from s2rm_jax.training.progress import counted


def segment_pictures(
    segmenter: Segmenter,
    paths: Sequence[Path],
    sentences: Sequence[str],
    out: Path,
    *,
    explain: str = "",
    quiet: bool = False,
) -> dict[str, Any]:
    """Segments what the sentences refer to in each picture, and tells on stderr how far it is.

    Each picture has a folder in `out` with what `write_prediction` writes; `explain` is the name of a PNG in it.
    A picture that cannot be read is told of and left out. result.json, which is written in any case, even where the
    work is broken off, holds all: {"pictures": [{"image", "folder", "width", "height", "results"}, ...], "failed":
    [{"image", "error"}, ...]}; its content is returned.

    Raises:
        PartlyDone: some pictures could not be read; the others are done.
        UserError: none could be read, or `out` cannot be written to.
    """
    remove_earlier_prediction(make_output_folder(out))
    # The scores would change from frame to frame, and with them the lines of the legend and the size of the overlay.
    labels = [f"{number}. {sentence}" for number, sentence in enumerate(sentences, start=1)]
    done: list[dict[str, Any]] = []
    failed: list[dict[str, str]] = []
    content: dict[str, Any] = {"pictures": done, "failed": failed}
    pairs = list(zip(paths, result_folders(paths, taken=RESULT_FILE), strict=True))
    try:
        for path, folder in progress_bar(pairs, "segmenting pictures", len(pairs), quiet=quiet):
            try:
                encoded = segmenter.encode(path)
            except UserError as error:
                failed.append({"image": str(path), "error": str(error)})
                clear_line()
                print(f"warning: left out: {error}", file=sys.stderr)
                continue
            result = segmenter.segment(encoded, sentences, explain=bool(explain))
            there = make_output_folder(out / folder)
            figures = figure_paths(there / explain, len(sentences)) if explain else []
            found = write_prediction(there, encoded.picture, result, figures, labels)
            height, width = encoded.picture.shape[:2]
            place = {"image": str(path), "folder": folder.as_posix(), "width": width, "height": height}
            done.append(place | {"results": found})
    except BaseException:
        with suppress(UserError):  # a full disk fails twice, and the first error counts
            write_result(out, content)
        raise
    write_result(out, content)
    if not done:
        raise UserError(f"none of {counted(len(paths), 'picture')} could be read; each was told of above")
    if failed:
        raise PartlyDone(
            f"{len(failed)} of {counted(len(paths), 'picture')} could not be read, each told of above and under "
            f'"failed" in {out / RESULT_FILE}; all others are done',
            content,
        )
    return content
