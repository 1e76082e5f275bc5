"""TFDS datasets as a Source: those of our own builders (data/), and `ref_coco` of TFDS itself.

They are read without TensorFlow, from ArrayRecord files, by `builder.as_data_source`. A record is a serialized
tf.Example, which is parsed with the protocol buffers of TFDS and not by TFDS's feature decoder (4.9.10): that needs
TensorFlow for sequences of undecoded images, and would decode masks and images early.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from s2rm_jax.errors import UserError, one_line
from s2rm_jax.input.example import Example, Expression, Groups, Segmentation, Source, consecutive_groups
from s2rm_jax.input.images import read_size
from s2rm_jax.input.refer_annotations import check_choices


def encode(image: bytes, example: Example, cleaned: dict[str, str]) -> dict[str, Any]:
    """Return an example as the features of our own builders (data/refer_dataset.py).

    Without TensorFlow, TFDS can write only one level of sequences. So a segmentation (the polygons or RLEs of the
    annotation) is stored as JSON text, once for all its expressions.

    Args:
        image: the bytes of the file.
        example: an example whose expressions have the texts as typed.
        cleaned: the cleaned texts by the id of the expression; those without words are absent.
    """
    segmentations: dict[str, int] = {}
    expressions = []
    for expression in example.expressions:
        segmentation = json.dumps(expression.segmentation, separators=(",", ":"))
        number = segmentations.setdefault(segmentation, len(segmentations))
        texts = {"raw": expression.text, "sent": cleaned.get(expression.id, "")}
        expressions.append({"id": expression.id, "segmentation": number, **texts})
    return {
        "image": image,
        "image/id": example.id,
        "image/height": example.height,
        "image/width": example.width,
        "segmentations": list(segmentations),
        "expressions": expressions,
    }


def decode(record: bytes, text_field: str, overlap: str) -> Example:
    """Return the example of a record of our own builders, with the image as the bytes of the file.

    Expressions without a text in `text_field`, "raw" or "sent", are left out. For `overlap` see ReferSource.
    """
    features = _features(record)
    segmentations = [json.loads(text) for text in _bytes(features, "segmentations")]
    if overlap == "union":
        segmentations = [with_overlaps(segmentation) for segmentation in segmentations]
    expressions = tuple(
        Expression(text.decode(), segmentations[number], id=id.decode())
        for id, text, number in zip(
            _bytes(features, "expressions/id"),
            _bytes(features, f"expressions/{text_field}"),
            _ints(features, "expressions/segmentation"),
            strict=True,
        )
        if text
    )
    height, width = (_ints(features, f"image/{side}")[0] for side in ("height", "width"))
    return Example(_bytes(features, "image/id")[0].decode(), _bytes(features, "image")[0], height, width, expressions)


def with_overlaps(segmentation: Segmentation) -> Segmentation:
    """Convert a segmentation of ReferSource with overlap="drop" to that of overlap="union"."""
    if isinstance(segmentation, dict) and "covered_once" in segmentation:
        return segmentation["covered_once"]
    if not isinstance(segmentation, list):
        return segmentation
    parts: list[Any] = []
    for part in segmentation:
        parts += part["covered_once"] if isinstance(part, dict) and "covered_once" in part else [part]
    return parts


def decode_ref_coco(record: bytes) -> Example:
    """Return the example of a record of TFDS's own `ref_coco` (1.1.0, the first with masks).

    The image is the bytes of a file; masks are decoded.
    """
    features = _features(record)
    image_id = str(_ints(features, "image/id")[0])
    masks = [_mask(png, image_id) for png in _bytes(features, "objects/mask")]
    image = _bytes(features, "image")[0]
    width, height = read_size(image, f"the image of record {image_id}")
    ids, texts = _ints(features, _REFEXP_IDS), _bytes(features, "objects/refexp/raw/ragged_flat_values")
    expressions = [
        Expression(texts[position].decode(), mask, id=str(ids[position]))
        for mask, group in zip(masks, ref_coco_groups(record), strict=True)
        for position in group
    ]
    return Example(image_id, image, height, width, tuple(expressions))


def ref_coco_groups(record: bytes) -> Groups:
    """Return the positions of the expressions of each object in a record of `ref_coco`."""
    return consecutive_groups(_ints(_features(record), "objects/refexp/refexp_id/ragged_row_lengths_0"))


_REFEXP_IDS = "objects/refexp/refexp_id/ragged_flat_values"


def _features(record: bytes) -> Any:
    """Parse a record as a mapping from names to protocol buffers."""
    from tensorflow_datasets.proto import tf_example_pb2

    return tf_example_pb2.Example.FromString(record).features.feature


def _bytes(features: Any, name: str) -> Sequence[bytes]:
    return features[name].bytes_list.value if name in features else ()


def _ints(features: Any, name: str) -> Sequence[int]:
    return features[name].int64_list.value if name in features else ()


def _mask(png: bytes, id: str) -> np.ndarray:
    try:
        return np.asarray(Image.open(io.BytesIO(png), formats=("PNG",))) != 0
    except OSError as error:
        raise UserError(f"a mask of record {id} is damaged ({error}); prepare the dataset again") from error


BUILDER_NAMES = {"refcoco+": "refcocoplus"}  # TFDS allows no sign in dataset names
STOCK = "ref_coco"
METADATA = "metadata.json"


class TfdsSource(Source):
    """The images of one split with their expressions.

    The examples equal those of ReferSource, except that the image is the bytes of the file and not its path.
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
    ):
        """Open the newest version under `root`/`dataset`/`split_by`.

        Args:
            split: a split of the dataset: train, val, test, testA, testB, ...; for `ref_coco` both "val" and its own
                name "validation" are accepted.
            root: TFDS's data_dir, the --out of data/build.py.
            dataset: refcoco, refcoco+, refcocog, refclef or grefcoco of data/build.py; or "ref_coco", TFDS's own, with
                split_by refcoco_unc, refcoco_google, refcocoplus_unc, refcocog_google or refcocog_umd.
            split_by: who made the splits; this is the name of the TFDS config.
            sentence_field: "raw" or "sent"; `ref_coco` has "raw" only.
            overlap: "union" or "drop", see ReferSource; `ref_coco` has "union" only.

        Raises:
            UserError: TFDS is not installed, the dataset or split was not found, or the dataset lacks a requested
                option.
        """
        self._stock = dataset == STOCK
        check_choices(sentence_field, overlap)
        if self._stock and (sentence_field, overlap) != ("raw", "union"):
            raise UserError(
                f"sentence_field is {sentence_field!r}, overlap is {overlap!r}; {STOCK} of TFDS has only raw and union"
            )
        folder = newest_version(root, dataset, split_by)
        self._name = f"{dataset} {split} at {folder}"
        self._field, self._overlap = sentence_field, overlap
        self._records = _open(folder, "validation" if self._stock and split == "val" else split)
        self._groups: list[Groups] | None = None
        self._positions = list(range(len(self._records)))
        if not self._stock:
            groups = _written_groups(folder, split, sentence_field)
            self._positions = [position for position, group in enumerate(groups) if group]
            self._groups = [groups[position] for position in self._positions]

    def __len__(self) -> int:
        return len(self._positions)

    def __getitem__(self, index: int) -> Example:
        """Return the example of a record; its image is decoded later."""
        record = self._records[self._positions[index]]
        if self._stock:
            return decode_ref_coco(record)
        return decode(record, self._field, self._overlap)

    def referents(self, index: int) -> Groups:
        """Return the positions of the example's expressions, grouped by referent.

        Our own datasets store them in their metadata. For `ref_coco` the first call reads every record once.
        """
        if self._groups is None:
            self._groups = [ref_coco_groups(self._records[position]) for position in self._positions]
        return self._groups[index]


def newest_version(root: str | Path, dataset: str, split_by: str) -> Path:
    """Return the folder ROOT/DATASET/SPLIT_BY/VERSION of the highest version; raise a UserError if there is none."""
    root = Path(root).expanduser()
    how = f"build it with: python -m data.build --dataset {dataset} --split_by {split_by} --root DATA --out {root}"
    if dataset == STOCK:
        how = f"prepare it with TFDS (and TensorFlow): tfds build ref_coco/{split_by} --file_format=array_record"
    if not root.is_dir():
        raise UserError(f"the folder of prepared datasets, {root}, does not exist; {how}")
    folder = root / BUILDER_NAMES.get(dataset, dataset) / split_by
    versions = [path for path in folder.glob("*.*.*") if (path / "dataset_info.json").is_file()]
    if not versions:
        available = sorted(str(path.parent.parent.relative_to(root)) for path in root.glob("*/*/*/dataset_info.json"))
        raise UserError(
            f"{folder} has no prepared dataset; available in {root}: {', '.join(available) or 'none'}; {how}"
        )
    return max(versions, key=lambda path: tuple(int(part) for part in path.name.split(".") if part.isdigit()))


def _open(folder: Path, split: str) -> Any:
    """Open a split for random access to its undecoded records."""
    try:
        import tensorflow_datasets as tfds
        from tensorflow_datasets.core.decode import DeserializeMethod
    except ImportError as error:
        raise UserError(f"reading {folder} needs TFDS ({error}); install it with: pip install -e '.[tfds]'") from error
    try:
        builder = tfds.builder_from_directory(folder)
    except Exception as error:  # TFDS raises nearly any exception on damaged metadata
        raise UserError(f"{folder} is not a dataset that TFDS can read ({one_line(error)})") from error
    file_format = builder.info.file_format
    if file_format is None or file_format.value != "array_record":
        raise UserError(
            f"{folder} is stored as {file_format and file_format.value}, which has no random access; prepare it again "
            "with --file_format=array_record"
        )
    if split not in builder.info.splits:
        raise UserError(f"split {split!r} not found in {folder}; available: {', '.join(builder.info.splits)}")
    return builder.as_data_source(split, deserialize_method=DeserializeMethod.RAW_BYTES)


def _written_groups(folder: Path, split: str, sentence_field: str) -> list[Groups]:
    path = folder / METADATA
    try:
        sizes = json.loads(path.read_bytes())["referents"][split][sentence_field]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path} lacks the metadata of data/build.py ({error!r}); build the dataset again") from error
    return [consecutive_groups(group_sizes) for group_sizes in sizes]
