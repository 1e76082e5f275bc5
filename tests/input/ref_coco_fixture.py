"""Prepare TFDS's own `ref_coco` from a dataset of `write_refer_layout`."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest

from s2rm_jax.input.refer_annotations import load_refs
from tests.input.refer_fixture import FOLDER


def write_manual_folder(root: Path, manual: Path, dataset: str = "refcoco", split_by: str = "unc") -> Path:
    """Write refcoco.json and coco_train2014/, what the builder of `ref_coco` wants, from REFER's layout."""
    refs = load_refs(root / dataset / f"refs({split_by}).p")
    instances = json.loads((root / dataset / "instances.json").read_text())
    for annotation in instances["annotations"]:
        annotation["bbox"] = [0, 0, 10, 10]
    annotations = {annotation["id"]: annotation for annotation in instances["annotations"]}
    for ref in refs:
        ref |= {"ann": annotations[ref["ann_id"]], "dataset": dataset, "dataset_partition": split_by}
    images = {
        image["id"]: {
            "info": image,
            "anns": [entry for entry in annotations.values() if entry["image_id"] == image["id"]],
        }
        for image in instances["images"]
    }
    manual.mkdir()
    (manual / "refcoco.json").write_text(json.dumps({"ref": refs, "coco_anns": images}))
    (manual / "coco_train2014").symlink_to(root / FOLDER)
    return manual


def prepare_ref_coco(manual: Path, out: Path, monkeypatch: pytest.MonkeyPatch, config: str = "refcoco_unc") -> None:
    """Run the builder of TFDS as it is, which on 4.9.10 wants TensorFlow for one thing.

    Writing sequences of sequences, it asks TensorInfo.dtype for TensorFlow's name of int64, and then only uses NumPy's.
    """
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.features.feature import TensorInfo
    from tensorflow_datasets.datasets.ref_coco.ref_coco_dataset_builder import Builder

    tfds.disable_progress_bar()
    with monkeypatch.context() as patch, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning)  # pycocotools under NumPy 2
        patch.setattr(TensorInfo, "dtype", property(lambda info: info.np_dtype))
        builder = Builder(config=config, data_dir=out, file_format="array_record")
        builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=manual))
