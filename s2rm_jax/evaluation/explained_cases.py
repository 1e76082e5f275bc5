"""A figure of how the network came to its mask, for each case of a gallery."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from s2rm_jax.evaluation.evaluator import Prediction
from s2rm_jax.evaluation.explain_figure import explain_figure
from s2rm_jax.evaluation.gallery_page import outcome
from s2rm_jax.evaluation.output_files import slug
from s2rm_jax.explanation import Explanation
from s2rm_jax.input.images import load_image

Explain = Callable[[UInt8[np.ndarray, "height width 3"], str], Explanation]


def write_explained_cases(
    directory: Path, sections: Mapping[str, Sequence[Prediction]], explain: Explain
) -> list[Path]:
    """Writes `SECTION_NNN_ID_how.png` beside the pictures of a gallery; returns their paths.

    Args:
        directory: the folder of the gallery, which is there.
        sections: the cases of the gallery.
        explain: gives the explanation of a sentence in a picture.
    """
    paths = []
    for section, predictions in sections.items():
        for number, prediction in enumerate(predictions, start=1):
            picture, sentence = load_image(prediction.example.image), prediction.score.expression
            figure = explain_figure(
                picture,
                sentence,
                outcome(prediction),
                prediction.predicted,
                explain(picture, sentence),
                true=prediction.true,
            )
            paths.append(directory / f"{section}_{number:03d}_{slug(prediction.score.id)}_how.png")
            figure.save(paths[-1])
    return paths
