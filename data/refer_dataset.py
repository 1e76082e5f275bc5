"""What the TFDS builders of the REFER datasets share: they read the files as training does, and store them as they are.

`manual_dir` is the folder of the REFER layout. One record is one picture with all its expressions in the split: the
file of the picture, byte for byte, and the polygons or RLEs of the annotations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from s2rm_jax.errors import UserError
from s2rm_jax.input import tfds_records
from s2rm_jax.input.doctor.pictures import PictureFile, ailment
from s2rm_jax.input.refer import ReferSource
from s2rm_jax.input.refer_layout import find_annotations
from s2rm_jax.input.unpickle import load_refs


class ReferConfig(tfds.core.BuilderConfig):
    """One way to split a dataset; its name is the SPLIT_BY of `refs(SPLIT_BY).p`."""

    def __init__(self, split_by: str, image_root: str = ""):
        """`image_root`: the folder of the pictures, where it is not in the layout."""
        super().__init__(name=split_by, description=f"split by {split_by}")
        self.image_root = image_root


class ReferBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Builds one dataset of the REFER layout; a subclass names its folder and its ways to split it."""

    FOLDER: str
    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First version."}
    MANUAL_DOWNLOAD_INSTRUCTIONS = "manual_dir is a folder in the REFER layout; data/README.md describes it."

    announce: Callable[[str, int], None] = staticmethod(lambda split, pictures: None)  # told of each split's size
    step: Callable[[], None] = staticmethod(lambda: None)  # told of each picture

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
        sources = {
            field: ReferSource(
                split,
                root=root,
                dataset=self.FOLDER,
                split_by=self.split_by,
                sentence_field=field,
                overlap="drop",
                image_root=self.builder_config.image_root,
            )
            for field in tfds_records.TEXT_FIELDS
        }
        pictures = merge(sources)
        self.info.metadata["referents"][split] = {
            field: [picture.group_sizes[field] for picture in pictures] for field in tfds_records.TEXT_FIELDS
        }
        self.announce(split, len(pictures))
        for number, picture in enumerate(pictures):
            yield number, tfds_records.encode(read_whole(picture.example), picture.example, picture.texts)
            self.step()
