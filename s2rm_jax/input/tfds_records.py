"""Records of TFDS datasets: what stands in them, and how they become Examples.

A record is a serialised tf.Example. It is parsed with the protocol buffers that TFDS brings along, not through TFDS's
feature decoder: that one needs TensorFlow for sequences of pictures that are to stay undecoded (4.9.10), and would
decode what is better decoded late.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from s2rm_jax.errors import UserError
from s2rm_jax.input.example import Example, Expression, Segmentation
from s2rm_jax.input.images import FORMATS
from s2rm_jax.input.stored import Groups


def encode(image: bytes, example: Example, cleaned: dict[str, str]) -> dict[str, Any]:
    """Returns an example as the features of our own builders (data/refer_dataset.py).

    One level of sequences is all that TFDS can write without TensorFlow, so a segmentation is stored as JSON text: the
    very polygons or RLEs of the annotation, once for all sentences about it.

    Args:
      image: the file, as it is.
      example: its expressions have the sentences as typed.
      cleaned: the cleaned sentences by the expression's id; one without words is absent.
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
    """Returns the example of a record of our own builders, its picture as the bytes of the file.

    Args:
      record: of a dataset that data/build.py wrote.
      text_field: "raw" or "sent"; expressions without such a text are left out.
      overlap: "union" or "drop", see ReferSource.
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
    (id,), (height,), (width,) = (
        _bytes(features, "image/id"),
        _ints(features, "image/height"),
        _ints(features, "image/width"),
    )
    return Example(id.decode(), _bytes(features, "image")[0], height, width, expressions)


def with_overlaps(segmentation: Segmentation) -> Segmentation:
    """Turns the segmentation that ReferSource gives for overlap="drop" into the one for "union"."""
    if isinstance(segmentation, dict) and "covered_once" in segmentation:
        return segmentation["covered_once"]
    if not isinstance(segmentation, list):
        return segmentation
    parts: list[Any] = []
    for part in segmentation:
        if isinstance(part, dict) and "covered_once" in part:
            parts += part["covered_once"]
        else:
            parts.append(part)
    return parts


def decode_ref_coco(record: bytes) -> Example:
    """Returns the example of a record of TFDS's own `ref_coco` (1.1.0, the first with masks).

    Its picture is the bytes of a file; its masks are decoded.
    """
    features = _features(record)
    image_id = str(_ints(features, "image/id")[0])
    masks = [_mask(png, image_id) for png in _bytes(features, "objects/mask")]
    picture = _bytes(features, "image")[0]
    width, height = _size(picture, image_id)
    ids, texts = _ints(features, _REFEXP_IDS), _bytes(features, "objects/refexp/raw/ragged_flat_values")
    expressions = [
        Expression(texts[position].decode(), mask, id=str(ids[position]))
        for mask, group in zip(masks, ref_coco_groups(record), strict=True)
        for position in group
    ]
    return Example(image_id, picture, height, width, tuple(expressions))


def ref_coco_groups(record: bytes) -> Groups:
    """Returns the positions of the expressions of each object in a record of `ref_coco`."""
    lengths = _ints(_features(record), "objects/refexp/refexp_id/ragged_row_lengths_0")
    ends = np.cumsum(lengths, dtype=int).tolist()
    return tuple(tuple(range(end - length, end)) for length, end in zip(lengths, ends, strict=True))


_REFEXP_IDS = "objects/refexp/refexp_id/ragged_flat_values"


def _features(record: bytes) -> Any:
    """Parses a record to a mapping from names to protocol buffers."""
    from tensorflow_datasets.proto import tf_example_pb2

    return tf_example_pb2.Example.FromString(record).features.feature


def _bytes(features: Any, name: str) -> Sequence[bytes]:
    return features[name].bytes_list.value if name in features else ()


def _ints(features: Any, name: str) -> Sequence[int]:
    return features[name].int64_list.value if name in features else ()


def _size(picture: bytes, id: str) -> tuple[int, int]:
    """Reads (width, height) from the header of a picture, whose pixels are decoded later."""
    try:
        return Image.open(io.BytesIO(picture), formats=FORMATS).size
    except Exception as error:  # readers raise nearly anything on damaged data
        raise UserError(f"the picture of record {id} is damaged ({error}); prepare the dataset again") from error


def _mask(png: bytes, id: str) -> np.ndarray:
    try:
        return np.asarray(Image.open(io.BytesIO(png), formats=("PNG",))) != 0
    except OSError as error:
        raise UserError(f"a mask of record {id} is damaged ({error}); prepare the dataset again") from error
