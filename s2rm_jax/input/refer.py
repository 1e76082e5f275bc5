"""RefCOCO, RefCOCO+, RefCOCOg, ReferIt (refclef), gRefCOCO and other data in the REFER layout, as a Source."""

from __future__ import annotations

import logging
from collections.abc import Collection
from itertools import chain, groupby
from pathlib import Path

from s2rm_jax.errors import UserError
from s2rm_jax.input.example import Example, Groups, StoredSource, consecutive_groups
from s2rm_jax.input.refer_annotations import (
    ImageFolder,
    Referent,
    check_choices,
    collector_paused,
    find_annotations,
    find_image_folder,
    is_generalized,
    load_refs,
    may_be_missing,
    read_instances,
    select_referents,
)

_LOG = logging.getLogger(__name__)


class ReferSource(StoredSource):
    """The images of one split, each with all expressions of the split that refer to it.

    Images are in the order of their ids, expressions in the order of the file. Masks keep their stored form (polygons
    or RLE) until `masks.rasterize`; images are paths. The name and size of an image come from `instances.json`; the
    `file_name` of a referent, which names a crop, is ignored.
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
        """Read the annotations and find the folder of the images.

        Args:
            split: a split of the file; "test" joins all test splits, see `select_referents`.
            root: folder in the REFER layout, see refer_annotations.py.
            dataset: the folder under `root`: refcoco, refcoco+, refcocog, refclef, grefcoco, or custom data.
            split_by: who made the splits, as in `refs(SPLIT_BY).p`: unc, google, umd, berkeley, ...
            sentence_field: "raw", the expressions as typed, on which LAVT and ReLA train and which are closest to what
                users type; or "sent", cleaned and in lower case, as CRIS, CARIS and ReMamber use.
            overlap: how to join the polygons (or RLEs) of one annotation. "union" is what the annotation means. "drop"
                makes the pixels that several of them cover background, as the training and test code of LAVT, CARIS and
                ReMamber does: the REFER tools sum the polygons, and these projects keep the pixels whose sum is 1.
            limit_referents: keep only this many referents, in the order of the images; 0 keeps all.
            image_root: folder of the images if they are not under `root`.
            leave_out: ids of images to leave out.

        Raises:
            UserError: something is missing or damaged, or the split has no usable expression.
        """
        if limit_referents < 0:
            raise UserError(f"limit_referents is {limit_referents}; give a number of referents, or 0 for all")
        check_choices(sentence_field, overlap)
        refs_path, instances_path = find_annotations(root, dataset, split_by)
        with collector_paused():
            refs, (images, annotations) = load_refs(refs_path), read_instances(instances_path)
            referents = select_referents(
                refs, images, annotations, refs_path, split=split, sentence_field=sentence_field, overlap=overlap
            )
        referents = [referent for referent in referents if referent.image.id not in leave_out]
        if not referents:
            raise UserError(f"all images of split {split!r} in {refs_path} are left out, so nothing remains")
        names = list(dict.fromkeys(referent.image.file_name for referent in referents))
        names.sort(key=lambda name: may_be_missing(dataset, name))  # any other image shows where all of them are
        images_root = Path(image_root).expanduser() if image_root else None
        folder = find_image_folder(Path(root).expanduser(), dataset, images_root, *names)
        referents = _without_lost_images(referents, dataset, folder)
        if limit_referents:
            referents = referents[:limit_referents]
        self.num_referents = len(referents)
        # In gRefCOCO each expression is a referent of its own, as ReLA samples.
        examples, groups = group_by_image(referents, folder, single=is_generalized(refs_path))
        # Google's splits divide referents, not images.
        super().__init__(f"{dataset} {split}", examples, groups, splits_compared=split_by == "google")


def group_by_image(
    referents: list[Referent], folder: ImageFolder | None, *, single: bool = False
) -> tuple[list[Example], list[Groups]]:
    """Return one example for each image and the groups of its expressions by referent.

    Args:
        referents: ordered by image.
        folder: the folder of the images; without it, the examples have no images (empty bytes).
        single: make each expression a group of its own.
    """
    examples, groups = [], []
    for image, group in groupby(referents, key=lambda referent: referent.image):
        by_referent = [referent.expressions for referent in group]
        expressions = tuple(chain.from_iterable(by_referent))
        path = folder.path_of(image.file_name) if folder else b""
        examples.append(Example(str(image.id), path, image.height, image.width, expressions))
        groups.append(consecutive_groups([1] * len(expressions) if single else list(map(len, by_referent))))
    return examples, groups


def _without_lost_images(referents: list[Referent], dataset: str, folder: ImageFolder) -> list[Referent]:
    names = {referent.image.file_name for referent in referents}
    lost = {name for name in names if may_be_missing(dataset, name) and not folder.path_of(name).is_file()}
    if lost:
        _LOG.warning(
            "%s: images that the archive lacks are left out, with their referents: %s", dataset, ", ".join(sorted(lost))
        )
    return [referent for referent in referents if referent.image.file_name not in lost]
