"""Write data in the REFER layout as Parquet files in the two layouts of the Hugging Face Hub that are read.

The columns are those of the dataset cards of jxu124/refcoco and lmms-lab/RefCOCO, with their types.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from s2rm_jax.input.refer_annotations import find_annotations, find_image_folder, load_refs, read_json

# jxu124 calls the file of val "validation" and that of testA "test"; the column "split" has the names of REFER.
JXU_FILES = {"val": "validation", "testA": "test"}
SENTENCES = pa.list_(
    pa.struct([("raw", pa.string()), ("sent", pa.string()), ("sent_id", pa.int64()), ("tokens", pa.list_(pa.string()))])
)
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
LMMS_SCHEMA = pa.schema(
    {
        "question_id": pa.string(),
        "image": IMAGE,
        "question": pa.string(),
        "answer": pa.list_(pa.string()),
        "segmentation": pa.list_(pa.float32()),
        "bbox": pa.list_(pa.float32()),
        "iscrowd": pa.int8(),
        "file_name": pa.string(),
    }
)
Row = dict[str, Any]


def write_jxu(root: Path, out: Path, dataset: str = "refcoco", split_by: str = "unc", edit: Any = None) -> Path:
    """Write the files of `root`/`dataset` in the layout of jxu124/refcoco; returns the folder `out`."""
    refs, images, annotations = _read(root, dataset, split_by)
    rows = defaultdict(list)
    for ref in refs:
        image, annotation = images[ref["image_id"]], annotations[ref["ann_id"]]
        x, y, width, height = annotation.get("bbox") or [0, 0, 0, 0]
        rows[JXU_FILES.get(ref["split"], ref["split"])].append(
            {
                **ref,
                "raw_anns": json.dumps(annotation),
                "raw_image_info": json.dumps(image),
                "raw_sentences": json.dumps(ref["sentences"]),
                "image_path": f"coco/train2014/{image['file_name']}",
                "bbox": [float(x), float(y), float(x + width), float(y + height)],
                "captions": [sentence["sent"] for sentence in ref["sentences"]],
                "global_image_id": f"coco.{image['id']}",
                "anns_id": str(ref["ann_id"]),
            }
        )
    _write(rows, out, edit, lambda rows: _table(rows, {"sentences": SENTENCES}), row_group_size=1000)
    return out


def write_lmms(
    root: Path, out: Path, dataset: str = "refcoco", split_by: str = "unc", edit: Any = None, shards: int = 1
) -> Path:
    """Write the files of `root`/`dataset` in the layout of lmms-lab/RefCOCO; returns the folder `out`.

    Like there, an object has one polygon: the first.
    """
    refs, images, annotations = _read(root, dataset, split_by)
    folder = find_image_folder(root, dataset, None, next(iter(images.values()))["file_name"])
    rows = defaultdict(list)
    for ref in refs:
        image, annotation = images[ref["image_id"]], annotations[ref["ann_id"]]
        path = folder.path_of(image["file_name"])
        rows[ref["split"]].append(
            {
                "question_id": str(ref["ann_id"]),
                "image": {"bytes": path.read_bytes(), "path": path.name},
                "question": "Please describe the region.",
                "answer": [sentence["raw"] for sentence in ref["sentences"]],
                "segmentation": annotation["segmentation"][0],
                "bbox": annotation.get("bbox"),
                "iscrowd": annotation.get("iscrowd", 0),
                "file_name": f"{path.stem}_{ref['ann_id']}.jpg",
            }
        )
    _write(rows, out, edit, lambda rows: pa.Table.from_pylist(rows, LMMS_SCHEMA), row_group_size=5, shards=shards)
    return out


def _read(root: Path, dataset: str, split_by: str) -> tuple[list[Row], dict[int, Row], dict[int, Row]]:
    refs_path, instances_path = find_annotations(root, dataset, split_by)
    instances = read_json(instances_path)
    images, annotations = ({one["id"]: one for one in instances[name]} for name in ("images", "annotations"))
    return load_refs(refs_path), images, annotations


def _table(rows: list[Row], types: dict[str, pa.DataType]) -> pa.Table:
    columns = {name: pa.array([row[name] for row in rows], types.get(name)) for name in rows[0]}
    return pa.table(columns)


def _write(
    rows: dict[str, list[Row]],
    out: Path,
    edit: Callable[[str, list[Row]], None] | None,
    table_of: Callable[[list[Row]], pa.Table],
    row_group_size: int,
    shards: int = 1,
) -> None:
    (out / "data").mkdir(parents=True, exist_ok=True)
    for name, some in rows.items():
        if edit is not None:
            edit(name, some)
        share = -(-len(some) // shards)
        for shard in range(shards):
            path = out / f"data/{name}-{shard:05d}-of-{shards:05d}.parquet"
            table = table_of(some[shard * share : (shard + 1) * share])
            pq.write_table(table, path, row_group_size=row_group_size)
