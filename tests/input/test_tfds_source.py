"""TFDS datasets: ours equal the REFER files; TFDS's `ref_coco` is read without TensorFlow."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import grain
import numpy as np
import pytest
from absl import flags
from ml_collections import ConfigDict

from s2rm_jax.errors import UserError
from s2rm_jax.input.images import load_image
from s2rm_jax.input.masks import rasterize
from s2rm_jax.input.refer import ReferSource
from s2rm_jax.input.sources import build_source
from s2rm_jax.input.tfds import TfdsSource
from tests.input import refer_fixture
from tests.input.ref_coco_fixture import prepare_ref_coco, write_manual_folder

pytest.importorskip("tensorflow_datasets", reason="the extra [tfds] is not installed")

from data.build import build

ROOT = Path(__file__).parents[2]
LAYOUTS = {
    ("refcoco", "unc"): lambda root: refer_fixture.write_refer_layout(root, "refcoco", "unc"),
    ("refcoco", "google"): lambda root: refer_fixture.write_refer_layout(
        root, "refcoco", "google", splits=("train", "val", "test"), python2_protocol=2
    ),
    ("refcoco+", "unc"): lambda root: refer_fixture.write_refer_layout(
        root, "refcoco+", "unc", image_folder="train2017", bare_names=True
    ),
    ("refcocog", "umd"): lambda root: refer_fixture.write_refer_layout(
        root, "refcocog", "umd", splits=("train", "val", "test")
    ),
    ("refclef", "berkeley"): lambda root: refer_fixture.write_refclef_layout(root, splits=("train", "val", "test")),
    ("refclef", "unc"): lambda root: refer_fixture.write_refclef_layout(
        root, "unc", splits=("train", "testA", "testAB", "testBC")
    ),
    ("grefcoco", "unc"): refer_fixture.write_grefcoco_layout,
}
WRITTEN = {
    ("refcoco", "google"): "train val test",
    ("refcocog", "umd"): "train val test",
    ("refclef", "berkeley"): "train val test",
    ("refclef", "unc"): "train testA testB testC",
}


def assert_same(source: TfdsSource, refer: ReferSource) -> None:
    """Image by image the same pixels, expressions, ids, segmentations, masks and groups."""
    assert len(source) == len(refer) > 0
    for index, (ours, theirs) in enumerate(zip(source, refer, strict=True)):
        assert ours.image == theirs.image.read_bytes()
        np.testing.assert_array_equal(load_image(ours.image), load_image(theirs.image))
        assert replace(ours, image=theirs.image) == theirs
        assert source.expression_count(index) == refer.expression_count(index)
        assert source.referents(index) == refer.referents(index)
        for ours_, theirs_ in zip(ours.expressions, theirs.expressions, strict=True):
            mask = rasterize(theirs_.segmentation, theirs.height, theirs.width)
            np.testing.assert_array_equal(rasterize(ours_.segmentation, ours.height, ours.width), mask)


@pytest.mark.parametrize("key", LAYOUTS, ids="-".join)
def test_a_built_dataset_gives_what_its_files_give(tmp_path, key):
    dataset, split_by = key
    root = LAYOUTS[key](tmp_path / "files")
    build(dataset, root, tmp_path / "out", split_by=split_by, quiet=True)
    for split in WRITTEN.get(key, "train val testA testB").split():
        for choice in ({}, {"sentence_field": "sent"}, {"overlap": "drop"}):
            arguments = {"dataset": dataset, "split_by": split_by, **choice}
            source = TfdsSource(split, root=tmp_path / "out", **arguments)
            assert_same(source, ReferSource(split, root=root, **arguments))


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A folder with the files of RefCOCO, and one with what was built of them."""
    folder = tmp_path_factory.mktemp("tfds")

    def edit(refs, instances):
        for ref in refs[-4:]:  # the first two images, of train
            ref["sentences"][0]["sent"] = " "
        for ref in refs[-2:]:  # nothing of the first is left in "sent"
            ref["sentences"][1]["sent"] = ""

    files = refer_fixture.write_refer_layout(folder / "files", edit=edit)
    build("refcoco", files, folder / "out", quiet=True)
    return files, folder / "out"


def test_expressions_without_words_are_left_out_of_the_cleaned_ones_only(built):
    files, out = built
    for field, counts in (("raw", [4, 4]), ("sent", [2])):
        source = TfdsSource("train", root=out, sentence_field=field)
        assert [source.expression_count(index) for index in range(len(source))] == counts
        assert_same(source, ReferSource("train", root=files, sentence_field=field))


def test_the_images_are_stored_byte_for_byte(built):
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.decode import DeserializeMethod
    from tensorflow_datasets.proto import tf_example_pb2

    files, out = built
    builder = tfds.builder_from_directory(out / "refcoco/unc/1.0.0")
    records = builder.as_data_source("val", deserialize_method=DeserializeMethod.RAW_BYTES)
    stored = [tf_example_pb2.Example.FromString(r).features.feature["image"].bytes_list.value[0] for r in records]
    assert stored == [example.image.read_bytes() for example in ReferSource("val", root=files)]


def test_tfds_itself_can_decode_what_we_wrote(built):
    import tensorflow_datasets as tfds

    example = tfds.builder_from_directory(built[1] / "refcoco/unc/1.0.0").as_data_source("val")[0]
    assert example["image"].shape == (refer_fixture.HEIGHT, refer_fixture.WIDTH, 3)
    assert example["expressions"]["raw"][0] == b"The right one"
    assert json.loads(example["segmentations"][example["expressions"]["segmentation"][0]])["covered_once"]


def test_the_configuration_reaches_it_and_grain_workers_read_it(built):
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    source = build_source(ConfigDict({"name": "tfds", "root": str(built[1])}), "val")
    assert pickle.loads(pickle.dumps(source))[1].id == "103"
    stream = grain.MapDataset.source(source).map(lambda example: (example.id, len(example.image))).to_iter_dataset()
    read = list(stream.mp_prefetch(grain.MultiprocessingOptions(num_workers=1)))
    assert read == [(example.id, len(example.image)) for example in source]


@pytest.fixture(scope="module")
def ref_coco(tmp_path_factory):
    """A folder with the files of RefCOCO, and one with `ref_coco` as TFDS prepares it."""
    folder = tmp_path_factory.mktemp("ref_coco")
    files = refer_fixture.write_refer_layout(folder / "files")
    with pytest.MonkeyPatch.context() as monkeypatch:
        prepare_ref_coco(write_manual_folder(files, folder / "manual"), folder / "out", monkeypatch)
    return files, folder / "out"


def test_ref_coco_of_tfds_gives_the_same_images_expressions_and_masks(ref_coco):
    files, out = ref_coco
    for split in ("train", "val", "testA", "testB"):
        source = TfdsSource(split, root=out, dataset="ref_coco", split_by="refcoco_unc")
        refer = {example.id: (example, index) for index, example in enumerate(ReferSource(split, root=files))}
        groups = ReferSource(split, root=files)
        assert len(source) == len(refer) == 2
        for index, example in enumerate(source):
            theirs, position = refer[example.id]
            np.testing.assert_array_equal(load_image(example.image), load_image(theirs.image))
            assert (example.height, example.width) == (theirs.height, theirs.width)
            found = {e.id: (e.text, rasterize(e.segmentation, 48, 64).tolist()) for e in example.expressions}
            wanted = {e.id: (e.text, rasterize(e.segmentation, 48, 64).tolist()) for e in theirs.expressions}
            assert found == wanted
            assert source.expression_count(index) == 4

            def named(example, groups):
                return {frozenset(example.expressions[i].id for i in group) for group in groups}

            assert named(example, source.referents(index)) == named(theirs, groups.referents(position))
        assert {example.id for example in pickle.loads(pickle.dumps(source))} == set(refer)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"root": "NOWHERE"}, r"nowhere, does not exist; build it with: python -m data.build --dataset refcoco "),
        (
            {"dataset": "refcocog", "split_by": "umd"},
            r"refcocog/umd has no prepared dataset; available in .*: refcoco/unc; build",
        ),
        ({"dataset": "ref_coco", "split_by": "refcoco_unc"}, r"tfds build ref_coco/refcoco_unc --file_format=a"),
        ({"split": "test"}, r"split 'test' not found in .*; available: train, val, testA, testB"),
        ({"sentence_field": "tokens"}, r"sentence_field is 'tokens'; it must be one of: raw, sent"),
        ({"overlap": "sum"}, r"overlap is 'sum'; it must be one of: union, drop"),
    ],
)
def test_what_is_not_there_is_named(built, tmp_path, arguments, message):
    arguments = {"split": "train", "root": built[1]} | arguments
    if arguments["root"] == "NOWHERE":
        arguments["root"] = tmp_path / "nowhere"
    with pytest.raises(UserError, match=message):
        TfdsSource(**arguments)


@pytest.mark.parametrize("choice", [{"sentence_field": "sent"}, {"overlap": "drop"}])
def test_ref_coco_is_asked_only_for_what_it_has(ref_coco, choice):
    with pytest.raises(UserError, match="ref_coco of TFDS has only"):
        TfdsSource("train", root=ref_coco[1], dataset="ref_coco", split_by="refcoco_unc", **choice)


def test_files_without_random_access_are_refused(built, tmp_path):
    folder = tmp_path / "refcoco/unc/1.0.0"
    folder.mkdir(parents=True)
    for path in (built[1] / "refcoco/unc/1.0.0").glob("*.json"):
        text = path.read_text().replace('"array_record"', '"tfrecord"').replace(".array_record", ".tfrecord")
        (folder / path.name).write_text(text)
    with pytest.raises(UserError, match="stored as tfrecord, which has no random access; prepare it again with"):
        TfdsSource("train", root=tmp_path)
    (folder / "dataset_info.json").write_text("{")
    with pytest.raises(UserError, match="not a dataset that TFDS can read"):
        TfdsSource("train", root=tmp_path)


def test_without_tfds_both_ways_say_what_to_install(built):
    code = """
import sys
sys.modules["tensorflow_datasets"] = None
from data.build import build
from s2rm_jax.errors import UserError
from s2rm_jax.input.tfds import TfdsSource
for call in (lambda: build("refcoco", sys.argv[1], sys.argv[2]), lambda: TfdsSource("train", root=sys.argv[2])):
    try:
        call()
    except UserError as error:
        print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, built)], capture_output=True, text=True, check=True, cwd=ROOT
    )
    first, second = done.stdout.splitlines()
    assert "building needs TFDS" in first and "pip install -e '.[tfds]'" in first
    assert "needs TFDS" in second and "pip install -e '.[tfds]'" in second


def test_tensorflow_and_torch_stay_out(built):
    code = "import sys; from s2rm_jax.input.tfds import TfdsSource; TfdsSource('val', root=sys.argv[1])[0]; "
    code += "print([name for name in ('tensorflow', 'torch', 'jax') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code, str(built[1])], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_real_sample_is_the_same_both_ways(tmp_path):
    root = refer_fixture.refer_mini()
    if root is None:
        pytest.skip("no real sample: set S2RM_REFER_MINI to its folder (data/refer_mini/README.md)")
    build("refcoco", root, tmp_path, split_by="mini", quiet=True)
    for split in ("val", "testA"):
        assert_same(TfdsSource(split, root=tmp_path, split_by="mini"), ReferSource(split, root=root, split_by="mini"))
