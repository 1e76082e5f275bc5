"""Pictures with sentences for the first click, from the data that a run was trained for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ml_collections import ConfigDict
from PIL import Image

from s2rm_jax.errors import UserError
from s2rm_jax.input.images import load_image
from s2rm_jax.input.sources import build_source

_SENTENCES = 3
_QUALITY = 92


@dataclass(frozen=True)
class Case:
    """A picture, as a file in a format that browsers know, and sentences about it."""

    path: Path
    sentences: tuple[str, ...]


def example_cases(config: ConfigDict, folder: Path, count: int = 6, split: str | None = None) -> list[Case]:
    """Writes up to `count` pictures of the run's split into `folder`; returns none where its data is not at hand.

    Generated scenes are always at hand. The pictures are spread over the split, whose order often means something.
    """
    try:
        source = build_source(config.input.source, split or config.eval.split)
    except UserError:
        return []
    cases = []
    for number in range(min(count, len(source))):
        try:
            example = source[number * len(source) // min(count, len(source))]
            picture = Image.fromarray(load_image(example.image))
        except (UserError, OSError):  # a picture of the split is gone; the page has others
            continue
        path = folder / f"example_{number + 1}.{'jpg' if isinstance(example.image, Path) else 'png'}"
        picture.save(path, quality=_QUALITY)
        sentences = tuple(dict.fromkeys(expression.text for expression in example.expressions))[:_SENTENCES]
        cases.append(Case(path, sentences))
    return cases
