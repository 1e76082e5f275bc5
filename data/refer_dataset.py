"""The base class of the TFDS builders of the REFER datasets.

`manual_dir` is a folder in the REFER layout, which is read as in training. One record is one image with all its
expressions in the split: the file of the image, byte for byte, and the polygons or RLEs of the annotations.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import tensorflow_datasets as tfds
from tqdm import tqdm

from s2rm_jax.errors import UserError
from s2rm_jax.input.check.examine import ImageFile, check_image
from s2rm_jax.input.example import Example
from s2rm_jax.input.refer import ReferSource
from s2rm_jax.input.refer_annotations import TEXT_FIELDS, find_annotations, load_refs, split_of
from s2rm_jax.input.tfds import encode


class ReferConfig(tfds.core.BuilderConfig):
    """The splits of a dataset by one author; its name is the SPLIT_BY of `refs(SPLIT_BY).p`."""

    def __init__(self, split_by: str):
        super().__init__(name=split_by, description=f"split by {split_by}")


class ReferBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Builder of one dataset; a subclass gives its folder and its sets of splits."""

    FOLDER: str
    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "First version."}
    MANUAL_DOWNLOAD_INSTRUCTIONS = "manual_dir is a folder in the REFER layout; data/README.md describes it."

    image_root = ""  # folder of the images if it is not in the layout
    quiet = False  # show no progress bar

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(encoding_format="jpeg", doc="the original file"),
                "image/id": tfds.features.Text(),
                "image/height": np.int32,
                "image/width": np.int32,
                "segmentations": tfds.features.Sequence(
                    tfds.features.Text(
                        doc="JSON: COCO polygons or RLEs; overlaps in a covered_once list are background"
                    )
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
        """The name of the set of splits."""
        return self.builder_config.name

    def _generate_examples(self, root: Path, split: str) -> Iterator[tuple[int, Any]]:
        raw, sent = (self._source(root, split, field) for field in ("raw", "sent"))
        cleaned = {expression.id: expression.text for example in sent for expression in example.expressions}
        sizes = [group_sizes(raw, index, cleaned) for index in range(len(raw))]
        self.info.metadata["referents"][split] = {
            field: [by_field[field] for by_field in sizes] for field in TEXT_FIELDS
        }
        for index, example in enumerate(tqdm(raw, f"{self.FOLDER} {split}", disable=self.quiet or None, leave=False)):
            yield index, encode(read_image(example), example, cleaned)

    def _source(self, root: Path, split: str, field: Literal["raw", "sent"]) -> ReferSource:
        return ReferSource(
            split,
            root=root,
            dataset=self.FOLDER,
            split_by=self.split_by,
            sentence_field=field,
            overlap="drop",  # keeps polygons apart; TfdsSource can make the union of them
            image_root=self.image_root,
        )


def group_sizes(source: ReferSource, index: int, cleaned: dict[str, str]) -> dict[str, list[int]]:
    """Return for each text field the number of expressions of each referent; `cleaned` holds the texts of "sent"."""
    expressions, groups = source[index].expressions, source.referents(index)
    if [position for group in groups for position in group] != list(range(len(expressions))):
        raise AssertionError("ReferSource puts the expressions of one referent next to each other")
    sent = [sum(expressions[position].id in cleaned for position in group) for group in groups]
    return {"raw": [len(group) for group in groups], "sent": [size for size in sent if size]}


def read_image(example: Example) -> bytes:
    """Return the bytes of an image file; raise a UserError if it is damaged or not of the annotated size."""
    path = Path(str(example.image))
    kind, case = check_image(ImageFile(path, example.height, example.width))
    if kind:
        raise UserError(f"{kind} in {path.parent}: {case}; run data/check.py to list all problems and their remedies")
    return path.read_bytes()


def splits_of(root: Path, folder: str, split_by: str) -> list[str]:
    """Return the splits to write: those of train, val, testA, testB, testC and test that the file of referents has.

    "test" is written only if the file itself has a split of that name.
    """
    refs_path, _ = find_annotations(root, folder, split_by)
    values = sorted({split_of(ref, refs_path) for ref in load_refs(refs_path)})
    lettered = [
        name for name in ("testA", "testB", "testC") if any("test" in value and name[-1] in value for value in values)
    ]
    test = ["test"] if any(value == "test" for value in values) else []
    return [name for name in ("train", "val") if name in values] + lettered + test
