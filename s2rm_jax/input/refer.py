"""RefCOCO, RefCOCO+, RefCOCOg, ReferIt (refclef), gRefCOCO and one's own data in the REFER layout, as a Source."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from itertools import groupby
from pathlib import Path

from s2rm_jax.errors import UserError
from s2rm_jax.input.example import Example, Groups, StoredSource
from s2rm_jax.input.refer_annotations import (
    OVERLAPS,
    TEXT_FIELDS,
    Image,
    ImageFolder,
    Referent,
    find_annotations,
    find_image_folder,
    is_generalised,
    may_be_missing,
    read_referents,
)

_LOG = logging.getLogger(__name__)


class ReferSource(StoredSource):
    """The images of one split, each with all the split's expressions that refer to something in it.

    Images are in the order of their ids, expressions in the order of the file. Masks stay as they are stored
    (polygons or RLE) until `masks.rasterize` is called; images are paths. The `file_name` of a referent is ignored,
    as it is the name of a cut-out: an image's name and size come from `instances.json`.
    """

    def __init__(
        self,
        split: str,
        *,
        root: str | Path,
        dataset: str = "refcoco",
        split_by: str = "unc",
        sentence_field: str = "raw",
        overlap: str = "union",
        limit_referents: int = 0,
        image_root: str | Path = "",
        leave_out: Collection[int] = (),
    ):
        """Read the annotations and looks for the first image.

        Args:
          split: a split of the file; "test" takes all test splits together, see `read_referents`.
          root: the folder of the layout, see refer_layout.py.
          dataset: the folder under `root`: refcoco, refcoco+, refcocog, refclef, grefcoco, or one's own.
          split_by: who made the splits, as in `refs(SPLIT_BY).p`: unc, google, umd, berkeley, ...
          sentence_field: "raw", the words as they were typed, on which LAVT and ReLA train and which most resemble
            what a user will type; or "sent", cleaned and in lower case, as CRIS, CARIS and ReMamber take.
          overlap: of the polygons (or RLEs) of one annotation. "union" is what the annotation means. "drop" makes the
            pixels that several of them cover background, as the training and test code of LAVT, CARIS and ReMamber
            does: the REFER tools add the polygons up, and these keep the pixels whose sum is 1.
          limit_referents: keeps only the first so many referents, in the order of the images; 0 keeps all.
          image_root: the folder of the images, where it is not under `root`.
          leave_out: ids of images that are not to be in the source.

        Raises:
          UserError: something is missing or damaged, or the split has nothing to train on or to score.
        """
        if limit_referents < 0:
            raise UserError(f"limit_referents is {limit_referents}; give a number of referents, or 0 for all")
        for name, value, choices in (("sentence_field", sentence_field, TEXT_FIELDS), ("overlap", overlap, OVERLAPS)):
            if value not in choices:
                raise UserError(f"{name} is {value!r}; it must be one of: {', '.join(choices)}")
        refs_path, instances_path = find_annotations(root, dataset, split_by)
        referents = read_referents(refs_path, instances_path, split, sentence_field, overlap)
        referents = [referent for referent in referents if referent.image.id not in leave_out]
        if not referents:
            raise UserError(f"all images of split {split!r} in {refs_path} are left out, so nothing remains")
        # Where one of the images is that everybody has, the others are.
        usual = next((one for one in referents if not may_be_missing(dataset, one.image.file_name)), referents[0])
        images_at = Path(image_root).expanduser() if image_root else None
        folder = find_image_folder(Path(root).expanduser(), dataset, images_at, usual.image.file_name)
        referents = _without_lost_images(referents, dataset, folder)
        if limit_referents:
            referents = referents[:limit_referents]
        self.num_referents = len(referents)
        on_images = [(image, list(group)) for image, group in groupby(referents, key=lambda referent: referent.image)]
        super().__init__(
            f"{dataset} {split}",
            [_example(image, group, folder) for image, group in on_images],
            [_groups(group, each_alone=is_generalised(refs_path)) for _, group in on_images],
        )


def _without_lost_images(referents: list[Referent], dataset: str, folder: ImageFolder) -> list[Referent]:
    lost = {
        referent.image.file_name
        for referent in referents
        if may_be_missing(dataset, referent.image.file_name) and not folder.path_of(referent.image.file_name).is_file()
    }
    if lost:
        _LOG.warning(
            "%s: images that its archive lacks, left out with their referents: %s", dataset, ", ".join(sorted(lost))
        )
    return [referent for referent in referents if referent.image.file_name not in lost]


def _example(image: Image, referents: Sequence[Referent], folder: ImageFolder) -> Example:
    return Example(
        id=str(image.id),
        image=folder.path_of(image.file_name),
        height=image.height,
        width=image.width,
        expressions=tuple(expression for referent in referents for expression in referent.expressions),
    )


def _groups(referents: Sequence[Referent], each_alone: bool) -> Groups:
    """The positions of the expressions of each referent; in gRefCOCO each expression counts as one, as ReLA samples."""
    groups: list[tuple[int, ...]] = []
    first = 0
    for referent in referents:
        positions = tuple(range(first, first + len(referent.expressions)))
        groups += [(position,) for position in positions] if each_alone else [positions]
        first += len(positions)
    return tuple(groups)
