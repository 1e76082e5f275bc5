"""What the TFDS builders of the REFER datasets share: they read the files as training does, and store them as they are.

`manual_dir` is the folder of the REFER layout. One record is one image with all its expressions in the split: the
file of the image, byte for byte, and the polygons or RLEs of the annotations.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import tensorflow_datasets as tfds

from s2rm_jax.errors import UserError
from s2rm_jax.input.check.files import ImageFile, ailment
from s2rm_jax.input.example import Example
from s2rm_jax.input.progress_bar import progress_bar
from s2rm_jax.input.refer import ReferSource
from s2rm_jax.input.refer_annotations import TEXT_FIELDS, find_annotations, load_refs, split_of
from s2rm_jax.input.tfds import encode


class ReferConfig(tfds.core.BuilderConfig):
    """One way to split a dataset; its name is the SPLIT_BY of `refs(SPLIT_BY).p`."""

    def __init__(self, split_by: str):
        super().__init__(name=split_by, description=f"split by {split_by}")


class ReferBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Build one dataset of the REFER layout; a subclass names its folder and its ways to split it."""

    FOLDER: str
    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "First version."}
    MANUAL_DOWNLOAD_INSTRUCTIONS = "manual_dir is a folder in the REFER layout; data/README.md describes it."

    image_root = ""  # the folder of the images, where it is not in the layout
    quiet = False  # whether to show no progress

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(encoding_format="jpeg", doc="the file as it was found"),
                "image/id": tfds.features.Text(),
                "image/height": np.int32,
                "image/width": np.int32,
                "segmentations": tfds.features.Sequence(
                    tfds.features.Text(doc="JSON: COCO polygons or RLEs; what is covered_once excludes overlaps")
                ),
                "expressions": tfds.features.Sequence(
                    {
                        "id": tfds.features.Text(),
                        "raw": tfds.features.Text(doc="as typed"),
                        "sent": tfds.features.Text(doc="cleaned, in lower case"),
                        "segmentation": tfds.features.Scalar(np.int32, doc="index into segmentations"),
                    }
                ),
            }
        )
        return self.dataset_info_from_configs(
            features=features,
            homepage="https://github.com/lichengunc/refer",
            disable_shuffling=True,  # in the order of ReferSource
            metadata=tfds.core.MetadataDict(referents={}),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator[tuple[int, Any]]]:
        root = Path(dl_manager.manual_dir)
        return {split: self._generate_examples(root, split) for split in splits_of(root, self.FOLDER, self.split_by)}

    @property
    def split_by(self) -> str:
        """Who made the splits."""
        return self.builder_config.name

    def _generate_examples(self, root: Path, split: str) -> Iterator[tuple[int, Any]]:
        raw, sent = (self._source(root, split, field) for field in ("raw", "sent"))
        cleaned = {expression.id: expression.text for example in sent for expression in example.expressions}
        sizes = [group_sizes(raw, index, cleaned) for index in range(len(raw))]
        self.info.metadata["referents"][split] = {
            field: [by_field[field] for by_field in sizes] for field in TEXT_FIELDS
        }
        for index, example in enumerate(progress_bar(raw, f"{self.FOLDER} {split}", len(raw), quiet=self.quiet)):
            yield index, encode(whole_file(example), example, cleaned)

    def _source(self, root: Path, split: str, field: Literal["raw", "sent"]) -> ReferSource:
        return ReferSource(
            split,
            root=root,
            dataset=self.FOLDER,
            split_by=self.split_by,
            sentence_field=field,
            overlap="drop",  # keeps apart what the union joins; TfdsSource makes either of it
            image_root=self.image_root,
        )


def group_sizes(source: ReferSource, index: int, cleaned: dict[str, str]) -> dict[str, list[int]]:
    """Return, for each field, how many expressions each referent of an image has; `cleaned` has those of "sent"."""
    expressions, groups = source[index].expressions, source.referents(index)
    if [position for group in groups for position in group] != list(range(len(expressions))):
        raise AssertionError("ReferSource puts the expressions of one referent next to each other")
    sent = [sum(expressions[position].id in cleaned for position in group) for group in groups]
    return {"raw": [len(group) for group in groups], "sent": [size for size in sent if size]}


def whole_file(example: Example) -> bytes:
    """Return the file of an image, byte for byte; a UserError if it is damaged or not of the annotated size."""
    path = Path(str(example.image))
    kind, case = ailment(ImageFile(path, example.height, example.width))
    if kind:
        raise UserError(f"{kind} in {path.parent}: {case}; data/check.py finds all of them and says what to do")
    return path.read_bytes()


def splits_of(root: Path, folder: str, split_by: str) -> list[str]:
    """Return the splits to write: train, val and all kinds of test, each where the file of referents has it.

    "test" is written where the file itself has a split of that name.
    """
    refs_path, _ = find_annotations(root, folder, split_by)
    values = sorted({split_of(ref, refs_path) for ref in load_refs(refs_path)})
    lettered = [
        name for name in ("testA", "testB", "testC") if any("test" in value and name[-1] in value for value in values)
    ]
    whole = ["test"] if any(value == "test" for value in values) else []
    return [name for name in ("train", "val") if name in values] + lettered + whole
