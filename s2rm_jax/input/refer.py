"""RefCOCO, RefCOCO+, RefCOCOg, ReferIt (refclef) and one's own data in the REFER layout, as a Source of pictures."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Literal

from s2rm_jax.errors import UserError
from s2rm_jax.input.example import Example
from s2rm_jax.input.refer_annotations import Picture, Referent, read_referents
from s2rm_jax.input.refer_layout import PictureFolder, find_annotations, find_pictures


class ReferSource:
    """The pictures of one split, each with all the split's expressions that refer to something in it.

    Pictures are in the order of their ids, expressions in the order of the file. Masks stay as they are stored
    (polygons or RLE) until `masks.rasterize` is called; pictures are paths. The `file_name` of a referent is ignored,
    as it is the name of a cut-out: a picture's name and size come from `instances.json`.
    """

    def __init__(
        self,
        split: str,
        *,
        root: str | Path,
        dataset: str = "refcoco",
        split_by: str = "unc",
        sentence_field: Literal["raw", "sent"] = "raw",
        limit_referents: int = 0,
        image_root: str | Path = "",
    ):
        """Reads the annotations and looks for the first picture.

        Args:
          split: a split of the file; "test" takes all test splits together, see `read_referents`.
          root: the folder of the layout, see refer_layout.py.
          dataset: the folder under `root`: refcoco, refcoco+, refcocog, refclef, or one's own.
          split_by: who made the splits, as in `refs(SPLIT_BY).p`: unc, google, umd, berkeley, ...
          sentence_field: "raw", the words as they were typed, on which LAVT and ReLA train and which most resemble
            what a user will type; or "sent", cleaned and in lower case, as CRIS, CARIS and ReMamber take.
          limit_referents: keeps only the first so many referents, in the order of the pictures; 0 keeps all.
          image_root: the folder of the pictures, where it is not under `root`.

        Raises:
          UserError: something is missing or damaged, or the split has nothing to train on or to score.
        """
        if not str(root):
            raise UserError("the folder of the data is not given; set the source's root to it (data/README.md)")
        if limit_referents < 0:
            raise UserError(f"limit_referents is {limit_referents}; give a number of referents, or 0 for all")
        root = Path(root).expanduser()
        refs_path, instances_path = find_annotations(root, dataset, split_by)
        referents = read_referents(refs_path, instances_path, split, sentence_field)
        if limit_referents:
            referents = referents[:limit_referents]
        first = referents[0].picture.file_name
        folder = find_pictures(root, dataset, Path(image_root).expanduser() if image_root else None, first)
        self.num_referents = len(referents)
        self.num_expressions = sum(len(referent.expressions) for referent in referents)
        self._name = f"{dataset} {split}"
        self._examples = tuple(
            _example(picture, list(group), folder)
            for picture, group in groupby(referents, key=lambda referent: referent.picture)
        )

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> Example:
        """Returns a picture's path, size and expressions; raises a UserError if its file is not there."""
        example = self._examples[index]
        if not Path(str(example.image)).is_file():
            raise UserError(f"the picture {example.image} of {self._name} is missing; unpack all of the pictures again")
        return example

    def expression_count(self, index: int) -> int:
        """Returns how many expressions the picture has."""
        return len(self._examples[index].expressions)

    def __iter__(self) -> Iterator[Example]:
        return (self[index] for index in range(len(self)))


def _example(picture: Picture, referents: list[Referent], folder: PictureFolder) -> Example:
    return Example(
        id=str(picture.id),
        image=folder.path_of(picture.file_name),
        height=picture.height,
        width=picture.width,
        expressions=tuple(expression for referent in referents for expression in referent.expressions),
    )
