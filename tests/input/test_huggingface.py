"""Datasets of the Hugging Face Hub: they equal the REFER files, wherever the images are; what is wrong is named."""

from __future__ import annotations

import errno
import io
import logging
import multiprocessing
import os
import pickle
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from absl import flags
from huggingface_hub import constants
from ml_collections import ConfigDict
from PIL import Image

from s2rm_jax.config import default_config
from s2rm_jax.errors import UserError
from s2rm_jax.input.encode import view_of
from s2rm_jax.input.masks import rasterize
from s2rm_jax.input.pipeline import train_batches
from s2rm_jax.input.refer import ReferSource
from s2rm_jax.input.sources import build_source, find_source, with_data
from s2rm_jax.input.tokens import Tokenizer
from tests.input.refer_fixture import refer_mini, write_refer_layout

pytest.importorskip("pyarrow", reason="the extra [hf] is not installed")

import pyarrow as pa
import pyarrow.parquet as pq

from s2rm_jax.input import parquet
from s2rm_jax.input.huggingface import HuggingFaceSource
from tests.input.huggingface_fixture import write_jxu, write_lmms

NOBODY = "http://127.0.0.1:9"  # the address of no server
SPLITS = ("train", "val", "testA", "testB", "test")


def one_polygon(refs, instances):
    """Leave each object its first polygon, which is all that the layout with images has."""
    for annotation in instances["annotations"]:
        (x0, y0, _, _, x1, y1, _, _), *_ = annotation["segmentation"]
        annotation |= {"segmentation": annotation["segmentation"][:1], "bbox": [x0, y0, x1 - x0, y1 - y0]}


@pytest.fixture(scope="module")
def refer(tmp_path_factory):
    return write_refer_layout(tmp_path_factory.mktemp("refer"), edit=one_polygon)


@pytest.fixture(scope="module")
def jxu(refer, tmp_path_factory):
    return write_jxu(refer, tmp_path_factory.mktemp("jxu"))


@pytest.fixture(scope="module")
def lmms(refer, tmp_path_factory):
    return write_lmms(refer, tmp_path_factory.mktemp("lmms"))


def assert_same(source, refer):
    """Image by image the same pixels, expressions, masks and groups."""
    assert len(source) == len(refer) > 0
    for index, (ours, theirs) in enumerate(zip(source, refer, strict=True)):
        assert source.referents(index) == refer.referents(index)
        assert (ours.id, ours.height, ours.width) == (theirs.id, theirs.height, theirs.width)
        image = theirs.image if isinstance(ours.image, Path) else theirs.image.read_bytes()
        assert ours.image == image
        assert [one.text for one in ours.expressions] == [one.text for one in theirs.expressions]
        for one, other in zip(ours.expressions, theirs.expressions, strict=True):
            masks = (rasterize(each.segmentation, theirs.height, theirs.width) for each in (one, other))
            np.testing.assert_array_equal(*masks)
        ids = {one.id for one in ours.expressions}
        assert len(ids) == len(ours.expressions)


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("choice", [{}, {"sentence_field": "sent"}, {"overlap": "drop"}], ids=str)
def test_annotations_in_rows_equal_the_files(tmp_path, split, choice):
    root = write_refer_layout(tmp_path / "refer")
    source = HuggingFaceSource(split, path=write_jxu(root, tmp_path / "jxu"), root=root, **choice)
    theirs = ReferSource(split, root=root, **choice)
    assert_same(source, theirs)
    assert list(source) == list(theirs)  # the ids too


@pytest.mark.parametrize("split", SPLITS)
def test_images_in_rows_equal_the_files(refer, lmms, split):
    assert_same(HuggingFaceSource(split, path=lmms), ReferSource(split, root=refer))


def test_rows_with_annotations_may_have_images_too(refer, tmp_path):
    def edit(name, rows):
        for row in rows:
            row["image"] = {
                "bytes": (refer / "images/mscoco/images/train2014" / Path(row["image_path"]).name).read_bytes()
            }

    assert_same(
        HuggingFaceSource("testA", path=write_jxu(refer, tmp_path, edit=edit)), ReferSource("testA", root=refer)
    )


def test_an_image_in_a_row_has_the_annotated_size(refer, tmp_path):
    other = (refer / "images/mscoco/images/train2014").glob("*.jpg")

    def edit(name, rows):
        with Image.open(next(other)) as image:
            buffer = io.BytesIO()
            image.resize((64, 49)).save(buffer, "PNG")
        for row in rows:
            row["image"] = {"bytes": buffer.getvalue()}

    source = HuggingFaceSource("testA", path=write_jxu(refer, tmp_path, edit=edit))
    with pytest.raises(UserError, match="is 64 x 49 pixels, but its annotation says 64 x 48"):
        view_of(source[0], [0])


def test_the_first_image_of_a_split_may_be_the_missing_one(tmp_path):
    root = write_refer_layout(tmp_path)
    (root / "images/mscoco/images/train2014/COCO_train2014_000000000100.jpg").unlink()
    source = HuggingFaceSource("train", path=write_jxu(root, tmp_path / "jxu"), root=root)
    assert source[1].image.name == "COCO_train2014_000000000101.jpg"


def test_ids_may_be_text(refer, tmp_path):
    def edit(name, rows):
        for row in rows:
            row |= {"image_id": str(row["image_id"]), "ann_id": str(row["ann_id"])}

    source = HuggingFaceSource("testA", path=write_jxu(refer, tmp_path, edit=edit), root=refer)
    assert_same(source, ReferSource("testA", root=refer))


@pytest.mark.skipif(refer_mini() is None, reason="the sample of real photographs is not here")
@pytest.mark.parametrize("split", ["testA", "testB"])
def test_real_photographs(tmp_path, split):
    root = refer_mini()
    theirs = ReferSource(split, root=root, split_by="mini")
    jxu = HuggingFaceSource(split, path=write_jxu(root, tmp_path / "jxu", split_by="mini"), root=root)
    assert list(jxu) == list(theirs)
    lmms = HuggingFaceSource(split, path=write_lmms(root, tmp_path / "lmms", split_by="mini", shards=2))
    assert len(lmms) == len(theirs)
    for ours, refer in zip(lmms, theirs, strict=True):
        assert ours.image == refer.image.read_bytes()
        for one, other in zip(ours.expressions, refer.expressions, strict=True):
            first = other.segmentation[:1]  # the layout has one polygon for each object
            masks = (rasterize(each, refer.height, refer.width) for each in (one.segmentation, first))
            np.testing.assert_array_equal(*masks)


def test_masks_that_lost_polygons_are_counted(tmp_path, caplog):
    def boxes(refs, instances):
        for annotation in instances["annotations"]:
            polygons = annotation["segmentation"]
            xs, ys = ([value for polygon in polygons for value in polygon[axis::2]] for axis in (0, 1))
            annotation["bbox"] = [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]

    root = write_refer_layout(tmp_path / "refer", edit=boxes)
    HuggingFaceSource("val", path=write_lmms(root, tmp_path / "lmms"))
    assert "val: masks that do not fill their boxes: 2 of 4 (row 0 first)" in caplog.text


def test_a_crowd_and_an_empty_polygon_are_left_out(refer, tmp_path, caplog):
    def edit(name, rows):
        rows[0]["iscrowd"], rows[1]["segmentation"] = 1, []

    source = HuggingFaceSource("val", path=write_lmms(refer, tmp_path, edit=edit))
    assert source.num_referents == 2
    assert "referents left out because they have no usable mask: 2" in caplog.text


def test_other_images_than_cocos_are_told_apart_by_their_names(refer, tmp_path):
    def edit(name, rows):
        for row in rows:
            row["file_name"] = f"photo {row['file_name'][24:27]}.jpg"

    source = HuggingFaceSource("val", path=write_lmms(refer, tmp_path, edit=edit))
    assert [len(example.expressions) for example in source] == [4, 4]


@pytest.mark.parametrize("name", ["a.png", "COCO_train2014_000000000102.jpg"])
def test_images_of_one_name_are_told_apart_by_their_bytes(refer, tmp_path, name):
    def edit(_, rows):
        for row in rows:
            row["file_name"] = name

    source = HuggingFaceSource("val", path=write_lmms(refer, tmp_path, edit=edit))
    assert len({example.id for example in source}) == 2
    by_image = {example.image: example for example in source}
    for theirs in ReferSource("val", root=refer):
        ours = by_image[theirs.image.read_bytes()]
        assert [one.text for one in ours.expressions] == [one.text for one in theirs.expressions]


def test_a_polygon_outside_of_its_image_is_left_out(refer, tmp_path, caplog):
    def edit(name, rows):
        rows[0]["segmentation"], rows[0]["bbox"] = [64.0, 2.0, 90.0, 2.0, 90.0, 9.0], None

    with caplog.at_level(logging.WARNING):
        source = HuggingFaceSource("val", path=write_lmms(refer, tmp_path, edit=edit))
    assert source.num_referents == 3
    assert "no usable mask: 1 (ann_id 0: its polygons cover no pixel)" in caplog.text


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("file_name", 7, "row 0 of row group 0 of .* has 7 as file_name; it must be a string"),
        ("segmentation", "[[1, 2]]", r"has '\[\[1, 2\]\]' as segmentation; it must be a list of numbers, or of lists"),
        ("answer", 7, "has 7 as answer; it must be a string, or a list of them"),
        ("bbox", "[]", "has '.*' as bbox; it must be a list of four numbers"),
        ("image", "a.png", "the column image of .* has 'a.png'; only the bytes of image files are read there"),
    ],
)
def test_columns_of_other_types_are_refused(lmms, tmp_path, column, value, message):
    rows = pq.read_table(lmms / "data/val-00000-of-00001.parquet").to_pylist()
    pq.write_table(pa.Table.from_pylist([{**row, column: value} for row in rows]), tmp_path / "val.parquet")
    with pytest.raises(UserError, match=message):
        HuggingFaceSource("val", path=tmp_path)


def test_numbers_that_are_missing_in_a_polygon_or_a_box(refer, tmp_path, caplog):
    def edit(name, rows):
        rows[0]["segmentation"], rows[1]["bbox"], rows[2]["segmentation"] = [1.0, None, 3.0], [None] * 4, [5.0]

    source = HuggingFaceSource("val", path=write_lmms(refer, tmp_path, edit=edit))
    assert source.num_referents == 2
    assert "no usable mask: 2 (ann_id 0: a polygon has an invalid pixel coordinate" in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[1].update(ann_id=rows[0]["ann_id"]), "has two annotations with the id 1004, of COCO_.*102"),
        (
            lambda rows: rows[2].update(image_id=rows[0]["image_id"]),
            "has two images with the id 102: COCO_.*102.jpg and",
        ),
    ],
)
def test_ids_that_occur_twice_are_refused_in_rows_too(refer, tmp_path, change, message):
    def edit(name, rows):
        if name == "validation":
            rows.sort(key=lambda row: row["ann_id"])
            change(rows)

    with pytest.raises(UserError, match=message):
        HuggingFaceSource("val", path=write_jxu(refer, tmp_path, edit=edit), root=refer)


def test_a_size_may_be_text(refer, tmp_path):
    def edit(name, rows):
        for row in rows:
            row["raw_image_info"] = row["raw_image_info"].replace('"height": 48', '"height": "48"')

    source = HuggingFaceSource("val", path=write_jxu(refer, tmp_path, edit=edit), root=refer)
    assert_same(source, ReferSource("val", root=refer))


@pytest.mark.parametrize("name", ["IMG202301011230{:02d}.jpg", "2023010112{:02d}_1.jpg", "00000000012{:02d}.jpg"])
def test_a_time_in_a_name_is_not_an_id_of_coco(refer, tmp_path, name):
    def edit(_, rows):
        for row in rows:
            row["file_name"] = name.format(int(row["file_name"][24:27]) % 60)

    source = HuggingFaceSource("val", path=write_lmms(refer, tmp_path, edit=edit))
    assert [len(example.expressions) for example in source] == [4, 4]


def test_one_expression_a_row_and_several_polygons(refer, tmp_path):
    square = [[4.0, 4.0, 8.0, 4.0, 8.0, 8.0, 4.0, 8.0], [2.0, 2.0, 6.0, 2.0, 6.0, 6.0, 2.0, 6.0]]
    rows = pq.read_table(write_lmms(refer, tmp_path) / "data/val-00000-of-00001.parquet").to_pylist()
    rows = [{**row, "answer": row["answer"][0], "segmentation": square} for row in rows]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "val.parquet")
    for overlap, pixels in (("union", 28), ("drop", 24)):
        source = HuggingFaceSource("val", path=tmp_path / "val.parquet", overlap=overlap)
        assert source.expression_count(0) == 2
        assert rasterize(source[0].expressions[0].segmentation, 48, 64).sum() == pixels


def test_batches_resume_and_do_not_depend_on_workers(lmms):
    source = HuggingFaceSource("train", path=lmms)
    config = default_config()
    config.batch_size, config.input.image_size = 2, (32, 32)
    tokenizer = Tokenizer(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "left", "right", "one"], 8)

    def images(start, count):
        stream = train_batches(source, tokenizer, config, start)
        return [next(stream).images for _ in range(count)]

    whole = images(0, 4)
    np.testing.assert_array_equal(whole[2:], images(4, 2))
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    config.input.workers = 1
    np.testing.assert_array_equal(whole, images(0, 4))


@pytest.mark.parametrize("plain_bytes", [False, True])
def test_row_groups_are_read_once_and_not_to_access_an_image(refer, tmp_path, monkeypatch, plain_bytes):
    read, groups = parquet._read_images, []
    monkeypatch.setattr(parquet, "_read_images", lambda *place: groups.append(place[:2]) or read(*place))
    written, data, rows = write_lmms(refer, tmp_path / "written", shards=2) / "data", tmp_path / "data", 0
    data.mkdir()
    for path in written.glob("train-*"):
        table = pq.read_table(path)
        if plain_bytes:
            table = table.set_column(1, "image", table["image"].combine_chunks().field("bytes"))
        pq.write_table(table[::-1], data / path.name, row_group_size=1)
        rows += len(table)
    source = HuggingFaceSource("train", path=data)
    assert len(set(groups)) == len(groups) == rows > len(source)
    groups.clear()
    before = list(HuggingFaceSource("train", path=data))
    assert [example.image for example in before] == [one.image.read_bytes() for one in ReferSource("train", root=refer)]
    for path in data.iterdir():
        path.unlink()
    copy = pickle.loads(pickle.dumps(source))  # as in another process
    for index in np.random.default_rng(0).integers(len(before), size=20).tolist():
        assert copy[index] == before[index]
    assert not groups


def unpacked(monkeypatch, folder):
    """Use a new cache folder from now on, and return a function that lists the files in it but those of locks."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return lambda: [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"]


def test_images_are_unpacked_again_if_the_files_changed(refer, tmp_path, monkeypatch):
    files = unpacked(monkeypatch, tmp_path / "cache")
    before = list(HuggingFaceSource("val", path=write_lmms(refer, tmp_path)))
    other = Path(ReferSource("train", root=refer)[0].image).read_bytes()
    changed = HuggingFaceSource("val", path=write_lmms(refer, tmp_path, edit=_image(lambda _: other)))
    assert [example.image for example in changed] == [other] * len(before)
    assert [example.image for example in before] != [other] * len(before)
    assert len(files()) == 2


@pytest.mark.parametrize("damage", [lambda content: content[:-8], lambda content: content + b" ", lambda content: b" "])
def test_an_incomplete_file_of_unpacked_images_is_replaced(lmms, tmp_path, monkeypatch, damage):
    files = unpacked(monkeypatch, tmp_path)
    before = list(HuggingFaceSource("val", path=lmms))
    (file,) = files()
    file.write_bytes(damage(file.read_bytes()))
    assert list(HuggingFaceSource("val", path=lmms)) == before
    assert files() == [file]


def test_unpacked_images_that_are_lost(lmms, tmp_path, monkeypatch):
    files = unpacked(monkeypatch, tmp_path)
    source = HuggingFaceSource("val", path=lmms)
    files()[0].unlink()
    with pytest.raises(
        UserError, match=r"cannot be read \(No such file or directory\); run the command again to recreate it"
    ):
        source[0]


def test_a_full_disk_leaves_no_unpacked_images(lmms, tmp_path, monkeypatch):
    class Full(io.FileIO):
        def write(self, _):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def open_full(path, mode):
        return Full(path, "w") if mode == "wb" else path.open(mode)

    files = unpacked(monkeypatch, tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(parquet, "open", open_full, raising=False)
        with pytest.raises(UserError, match=r"cannot be unpacked .* \(.*No space left on device\); free space there"):
            HuggingFaceSource("val", path=lmms)
    assert files() == []
    assert len(HuggingFaceSource("val", path=lmms)) == 2 and len(files()) == 1


def test_a_user_without_a_home(lmms, monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    with pytest.raises(UserError, match=r"there is no home folder for ~/\.cache; set XDG_CACHE_HOME"):
        HuggingFaceSource("val", path=lmms)


def test_an_image_whose_header_could_not_be_read_once(lmms, tmp_path, monkeypatch):
    def fail(*_):
        raise UserError("no decoder")

    unpacked(monkeypatch, tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(parquet, "read_size", fail)
        HuggingFaceSource("val", path=lmms)
    again = list(HuggingFaceSource("val", path=lmms))
    unpacked(monkeypatch, tmp_path / "other")
    assert again == list(HuggingFaceSource("val", path=lmms))


def _open_and_count(path):
    """Open a split at the same time as the other processes, and return how many row groups were unpacked."""
    lock, read, groups = parquet.lock_file, parquet._read_images, []

    def lock_together(path):
        _open_and_count.all_need_images.wait(60)
        return lock(path)

    def slow(*place):
        groups.append(place)
        time.sleep(0.2)  # in which the others try to lock several times
        return read(*place)

    parquet.lock_file, parquet._read_images = lock_together, slow
    HuggingFaceSource("val", path=path)
    return len(groups)


def _share(barrier):
    _open_and_count.all_need_images = barrier


def test_one_of_several_processes_unpacks(lmms, tmp_path, monkeypatch):
    files = unpacked(monkeypatch, tmp_path)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(3, context, _share, (context.Barrier(3),)) as pool:
        counts = list(pool.map(_open_and_count, [lmms] * 3))
    assert sorted(counts)[:2] == [0, 0] and sorted(counts)[2] > 0
    assert len(files()) == 1


def test_moved_folders():
    fields = {"name": "hf", "path": "old", "root": "old"}
    assert with_data(ConfigDict(fields), ["new", "path=there"]).to_dict() == {
        **fields,
        "root": "new",
        "path": "there",
    }
    assert with_data(ConfigDict({"name": "hf", "path": "old"}), ["new"]).to_dict() == {"name": "hf", "path": "new"}
    with pytest.raises(UserError, match="use one of: --data path=DIR, --data root=DIR"):
        with_data(ConfigDict(fields), ["image_root=x"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"path": ""}, r"source\.path is empty"),
        ({"path": "/nowhere"}, r"source\.path: /nowhere does not exist and is not a name on the Hub"),
        ({"path": "nowhere/data.parquet"}, "path: nowhere/data.parquet does not exist"),
        ({"root": "/nowhere"}, "the image COCO_train2014_.* was not found"),
        ({"root": ""}, "root is empty, and .* has no images; set it to the folder of COCO's train2014"),
        ({"overlap": "sum"}, "overlap is 'sum'"),
        ({"sentence_field": "text"}, "sentence_field is 'text'"),
        ({"rev": "main"}, "the source 'hf' has no such field; it has path, revision"),
    ],
)
def test_wrong_settings(refer, jxu, change, message):
    fields = {"name": "hf", "path": str(jxu), "root": str(refer)} | change
    with pytest.raises(UserError, match=message) as caught:
        find_source(ConfigDict(fields), "val")
        build_source(ConfigDict(fields), "val")
    assert "\n" not in str(caught.value)


def test_a_split_that_is_not_there(refer, jxu, lmms):
    with pytest.raises(
        UserError, match=r"split 'test2' not found in .*; available: testA \(4 referents\), testB .*val"
    ):
        HuggingFaceSource("test2", path=jxu, root=refer)
    with pytest.raises(
        UserError, match=r"split 'test2' not found in .*, by the names of its files; available: testA, "
    ):
        HuggingFaceSource("test2", path=lmms)


def test_a_file_called_test_is_testa_only_where_a_column_says_so(lmms, tmp_path):
    (tmp_path / "test.parquet").write_bytes((lmms / "data/testA-00000-of-00001.parquet").read_bytes())
    assert len(HuggingFaceSource("test", path=tmp_path)) == 2
    with pytest.raises(UserError, match=r"split 'testA' not found in .*; available: test"):
        HuggingFaceSource("testA", path=tmp_path)


def test_a_column_selects_the_rows_with_images_of_a_split(lmms, tmp_path, caplog):
    tables = []
    for name in ("train", "val", "testA", "testB"):
        table = pq.read_table(lmms / f"data/{name}-00000-of-00001.parquet")
        tables.append(table.append_column("split", pa.array([name] * len(table))))
    pq.write_table(pa.concat_tables(tables), tmp_path / "train.parquet")

    def contents(path, split):
        source = HuggingFaceSource(split, path=path)
        return [(one.image, [(each.text, each.segmentation) for each in one.expressions]) for one in source]

    for split in ("train", "val", "testA"):
        assert contents(tmp_path, split) == contents(lmms, split)
    assert len(contents(tmp_path, "test")) == len(contents(lmms, "testA")) + len(contents(lmms, "testB"))
    with pytest.raises(UserError, match=r"split 'dev' not found in .*; available: testA \(4 referents\), testB"):
        HuggingFaceSource("dev", path=tmp_path)
    with pytest.raises(UserError, match=r"the splits 'Val' .* and 'val' .* differ only in case or spaces"):
        pq.write_table(pa.concat_tables([*tables[1:], with_split(tables[0], "Val")]), tmp_path / "train.parquet")
        HuggingFaceSource("val", path=tmp_path)


def with_split(table, name):
    return table.set_column(table.column_names.index("split"), "split", pa.array([name] * len(table)))


def test_polygons_in_fractions_are_called_that(refer, tmp_path, caplog):
    def edit(name, rows):
        rows[0]["segmentation"], rows[0]["bbox"] = [0.1, 0.1, 0.9, 0.1, 0.9, 0.9], None

    with caplog.at_level(logging.WARNING):
        HuggingFaceSource("val", path=write_lmms(refer, tmp_path, edit=edit))
    assert "no usable mask: 1 (ann_id 0: its polygons seem to be in fractions of the image" in caplog.text


def test_only_raw_expressions_where_images_are_in_the_rows(lmms):
    with pytest.raises(UserError, match=r"sentence_field is 'sent'; .* has only 'raw' expressions"):
        HuggingFaceSource("val", path=lmms, sentence_field="sent")


@pytest.mark.parametrize("column", ["raw_anns", "sentences", "split", "image_id"])
def test_a_missing_column_is_named(refer, jxu, tmp_path, column):
    table = pq.read_table(jxu / "data/validation-00000-of-00001.parquet").drop_columns([column])
    pq.write_table(table, tmp_path / "val.parquet")
    with pytest.raises(UserError, match=rf"lacks the columns {column}; it has ann_id, anns_id, ") as caught:
        HuggingFaceSource("val", path=tmp_path, root=refer)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("column", ["image", "segmentation", "file_name"])
def test_a_missing_column_beside_images_is_named(lmms, tmp_path, column):
    table = pq.read_table(lmms / "data/val-00000-of-00001.parquet").drop_columns([column])
    pq.write_table(table, tmp_path / "val.parquet")
    with pytest.raises(UserError, match=rf"lacks the columns {column}; it has answer, "):
        HuggingFaceSource("val", path=tmp_path)


def _image(content):
    def edit(name, rows):
        for row in rows:
            row["image"]["bytes"] = content(row["image"]["bytes"])

    return edit


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda image: None, r"row 2 of row group 0 of .*val-00000-of-00001.parquet has no image"),
        (lambda image: b"", "has no image"),
        (lambda image: b"no image", r"the image in row 2 of row group 0 of .* is not an image"),
        (lambda image: image[: len(image) // 2], "example 102: the image is damaged"),
    ],
)
def test_an_image_that_does_not_decode(refer, tmp_path, content, message):
    source = HuggingFaceSource("val", path=write_lmms(refer, tmp_path, edit=_image(content)))
    with pytest.raises(UserError, match=message) as caught:
        view_of(source[0], [0])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"PAR1 no Parquet PAR1", b"version https://git-lfs.github.com/spec/v1\n"])
def test_a_file_that_is_not_parquet(tmp_path, content):
    (tmp_path / "val.parquet").write_bytes(content)
    with pytest.raises(UserError, match=r"val\.parquet cannot be read as Parquet \(.*\); download or copy") as caught:
        HuggingFaceSource("val", path=tmp_path)
    assert "\n" not in str(caught.value)


_NO_NAME = '{"id": 102, "file_name": null, "height": 48, "width": 64}'
_NO_HEIGHT = '{"id": 102, "file_name": "a.jpg", "height": null, "width": 64}'


@pytest.mark.parametrize(
    ("column", "value"),
    [("raw_image_info", text) for text in ("", "null", "{}", "[1]", None, _NO_NAME, _NO_HEIGHT)]
    + [("image_id", None), ("raw_anns", "3")],
)
def test_annotations_that_are_not_cocos(refer, tmp_path, column, value):
    def edit(name, rows):
        rows[0][column] = value

    with pytest.raises(
        UserError, match=r"row 0 of row group 0 of .*: raw_anns and raw_image_info must be JSON objects"
    ):
        HuggingFaceSource("val", path=write_jxu(refer, tmp_path, edit=edit), root=refer)


def test_a_row_without_the_name_of_its_image(refer, tmp_path):
    def edit(name, rows):
        rows[1]["file_name"] = None

    with pytest.raises(UserError, match=r"row 1 of row group 0 of .* has no file_name"):
        HuggingFaceSource("val", path=write_lmms(refer, tmp_path, edit=edit))


def test_images_that_are_plain_bytes(refer, lmms, tmp_path):
    rows = pq.read_table(lmms / "data/val-00000-of-00001.parquet").to_pylist()
    rows = [{**row, "image": row["image"]["bytes"]} for row in rows]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "val.parquet")
    assert_same(HuggingFaceSource("val", path=tmp_path), ReferSource("val", root=refer))


def test_sizes_are_those_of_the_images(lmms, refer):
    source = HuggingFaceSource("val", path=lmms)
    assert {(example.height, example.width) for example in source} == {(48, 64)}


def test_an_incomplete_copy_of_a_split_is_refused_with_the_missing_files(refer, tmp_path):
    folder = write_lmms(refer, tmp_path, shards=4) / "data"
    assert HuggingFaceSource("val", path=tmp_path).num_referents == 4
    (folder / "testA-00000-of-00004.parquet").unlink()  # of another split
    for number in (1, 3):
        (folder / f"val-{number:05d}-of-00004.parquet").unlink()
    missing = r"data lacks files of the split: val-00001-of-00004\.parquet, val-00003-of-00004\.parquet; copy or"
    with pytest.raises(UserError, match=missing):
        HuggingFaceSource("val", path=tmp_path)
    assert HuggingFaceSource("val", path=folder / "val-00002-of-00004.parquet").num_referents == 1
    assert HuggingFaceSource("testB", path=tmp_path).num_referents == 4


@pytest.mark.parametrize(
    ("name", "versions"),
    [("val-00001-of-00002", r"val-\*-of-00002 and val-\*-of-00004"), ("val-00001-of-00004-0a1b", r"val-\*-of-00004")],
)
def test_files_of_two_versions_of_a_split_are_refused(refer, tmp_path, name, versions):
    folder = write_lmms(refer, tmp_path, shards=4) / "data"
    (folder / f"{name}.parquet").write_bytes((folder / "val-00000-of-00004.parquet").read_bytes())
    with pytest.raises(UserError, match=rf"several versions of one split \({versions}\); keep those of one version"):
        HuggingFaceSource("val", path=tmp_path)


def test_a_folder_without_parquet_files(tmp_path):
    with pytest.raises(UserError, match="has no Parquet file"):
        HuggingFaceSource("val", path=tmp_path)


def files_of(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def datasets(hub, jxu, lmms):
    """The Hub with the datasets jxu124/refcoco and lmms-lab/RefCOCO, which is there under the tag v1 too."""
    hub.repositories["datasets/jxu124/refcoco"] = {"main": files_of(jxu)}
    hub.repositories["datasets/lmms-lab/RefCOCO"] = dict.fromkeys(("main", "v1"), files_of(lmms))
    return hub


def test_a_name_on_the_hub(datasets, refer, monkeypatch):
    for split in ("testA", "test"):
        theirs = ReferSource(split, root=refer)
        assert list(HuggingFaceSource(split, path="jxu124/refcoco", root=refer)) == list(theirs)
    assert_same(HuggingFaceSource("testA", path="lmms-lab/RefCOCO", revision="v1"), ReferSource("testA", root=refer))
    expected = ["test-00000-of-00001.parquet", "testB-00000-of-00001.parquet", "testA-00000-of-00001.parquet"]
    assert datasets.downloads == [f"data/{name}" for name in expected]  # each file once, and no other
    monkeypatch.setattr(constants, "ENDPOINT", NOBODY)
    assert len(HuggingFaceSource("testA", path="jxu124/refcoco", root=refer)) == 2
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    HuggingFaceSource("testA", path="lmms-lab/RefCOCO", revision="v1")
    with pytest.raises(UserError, match="cannot be downloaded from the Hugging Face Hub"):
        HuggingFaceSource("testB", path="lmms-lab/RefCOCO", revision="v1")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"path": "nobody/nothing"},
            r"path: nobody/nothing is not a local path .*: no such repository is visible",
        ),
        (
            {"revision": "v2"},
            r"cannot be downloaded from the Hugging Face Hub: there is no such revision; give .*; otherwise download",
        ),
        ({"split": "test2"}, "has no Parquet file of the split 'test2'"),
    ],
)
def test_what_the_hub_does_not_have(datasets, tmp_path, fields, message):
    with pytest.raises(UserError, match=message) as caught:
        HuggingFaceSource(**{"split": "val", "path": "lmms-lab/RefCOCO"} | fields)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.rglob("*.parquet"))


def test_no_network(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", NOBODY)
    with pytest.raises(UserError, match=r"cannot be downloaded .*: run the same command again later") as e:
        HuggingFaceSource("val", path="lmms-lab/RefCOCO")
    assert "\n" not in str(e.value)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
