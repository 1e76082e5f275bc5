"""The REFER layout: contents, variants of folders, and errors for missing files."""

from __future__ import annotations

import json
import logging
import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from s2rm_jax.errors import UserError
from s2rm_jax.input.encode import view_of
from s2rm_jax.input.images import load_image
from s2rm_jax.input.masks import rasterize
from s2rm_jax.input.refer import ReferSource
from tests.input.refer_fixture import (
    FOLDER,
    HEIGHT,
    WIDTH,
    boxes,
    colour,
    refer_mini,
    write_refclef_layout,
    write_refer_layout,
)


def referents(source: ReferSource) -> Counter[str]:
    """How many expressions each image has."""
    return Counter({example.id: len(example.expressions) for example in source})


def test_a_split_is_read_whole(tmp_path):
    source = ReferSource("train", root=write_refer_layout(tmp_path))
    assert (len(source), source.num_referents, source.num_expressions) == (2, 4, 8)
    assert [example.id for example in source] == ["100", "101"]
    assert sorted(expression.id for example in source for expression in example.expressions) == list("01234567")
    example = source[0]
    assert example.image == tmp_path / FOLDER / "COCO_train2014_000000000100.jpg"
    assert (example.height, example.width) == (HEIGHT, WIDTH)
    assert source.expression_count(0) == len(example.expressions) == 4
    assert [expression.text for expression in example.expressions] == [
        *("The right one", f"{colour(0, 'right')} box"),
        *("The left one", f"{colour(0, 'left')} box"),
    ]
    assert {expression.kind for expression in example.expressions} == {""}


@pytest.mark.parametrize(
    ("dataset", "split_by", "splits"),
    [
        ("refcoco", "unc", ("train", "val", "testA", "testB")),
        ("refcoco", "google", ("train", "val", "test")),
        ("refcoco+", "unc", ("train", "val", "testA", "testB")),
        ("refcocog", "umd", ("train", "val", "test")),
        ("refcocog", "google", ("train", "val")),
    ],
)
@pytest.mark.parametrize("python2_protocol", [0, 1, 2])
def test_every_dataset_is_read_from_the_pickles_of_python_2(tmp_path, dataset, split_by, splits, python2_protocol):
    root = write_refer_layout(tmp_path, dataset, split_by, splits=splits, python2_protocol=python2_protocol)
    for index, split in enumerate(splits):
        source = ReferSource(split, root=root, dataset=dataset, split_by=split_by)
        assert referents(source) == {str(100 + index): 4}
        assert source[0].expressions[3].text == f"{colour(index, 'left')} box"


def test_the_expressions_of_one_referent_stand_together(tmp_path):
    def edit(refs, instances):
        refs[-1]["sentences"] *= 2  # the left object of the first image, read last of its image
        for number, expression in enumerate(refs[-1]["sentences"]):
            refs[-1]["sentences"][number] = {**expression, "sent_id": 100 + number}

    source = ReferSource("train", root=write_refer_layout(tmp_path, edit=edit))
    assert source.referents(0) == ((0, 1), (2, 3, 4, 5))
    assert source.referents(1) == ((0, 1), (2, 3))
    for group in source.referents(0):
        masks = [source[0].expressions[position].segmentation for position in group]
        assert all(mask is masks[0] for mask in masks)


def squares(refs, instances):
    square = [[x, y, x + 20, y, x + 20, y + 20, x, y + 20] for x, y in ((0, 0), (10, 10))]
    instances["annotations"][0]["segmentation"] = square


@pytest.mark.parametrize(("overlap", "pixels"), [("union", 700), ("drop", 600)])
def test_what_becomes_of_overlapping_polygons_can_be_chosen(tmp_path, overlap, pixels):
    source = ReferSource("train", root=write_refer_layout(tmp_path, edit=squares), overlap=overlap)
    right, left = source[0].expressions[0], source[0].expressions[2]
    assert left.text == "The left one"
    assert rasterize(left.segmentation, HEIGHT, WIDTH).sum() == pixels
    assert rasterize(right.segmentation, HEIGHT, WIDTH).sum() == 10 * 12 + 18 * 12  # apart, both polygons stay whole
    copy = pickle.loads(pickle.dumps(source))
    assert copy[0].expressions == source[0].expressions


def test_another_overlap_is_refused(tmp_path):
    with pytest.raises(UserError, match="overlap is 'xor'; it must be one of: union, drop"):
        ReferSource("train", root=write_refer_layout(tmp_path), overlap="xor")


def test_images_can_be_left_out(tmp_path):
    root = write_refer_layout(tmp_path)
    assert referents(ReferSource("train", root=root, leave_out={100, 999})) == {"101": 4}
    with pytest.raises(UserError, match=r"all images of split 'train' in .* are left out"):
        ReferSource("train", root=root, leave_out=(100, 101))


@pytest.mark.parametrize("rle", [False, True])
def test_the_masks_lie_on_what_the_expressions_say(tmp_path, rle):
    source = ReferSource("val", root=write_refer_layout(tmp_path, rle=rle))
    for index, example in zip((2, 3), source, strict=True):
        image = load_image(example.image)
        assert image.shape == (HEIGHT, WIDTH, 3)
        for expression in example.expressions[::2]:
            side = expression.text.split()[1]
            expected = np.zeros((HEIGHT, WIDTH), bool)
            for x0, y0, x1, y1 in boxes(index, side):
                expected[y0:y1, x0:x1] = True
            mask = rasterize(expression.segmentation, example.height, example.width)
            np.testing.assert_array_equal(mask, expected)
            background = np.abs(image.astype(int) - 90).max(axis=-1) < 25
            assert background[mask].mean() < 0.15
            assert image[mask].std(axis=0).max() < 40, "one colour under a mask"


def test_the_cleaned_expressions_can_be_chosen(tmp_path):
    root = write_refer_layout(tmp_path)
    assert ReferSource("train", root=root, sentence_field="sent")[0].expressions[0].text == "the right one"
    assert ReferSource("train", root=root, sentence_field="raw")[0].expressions[0].text == "The right one"


def test_the_first_referents_can_be_taken_alone(tmp_path):
    root = write_refer_layout(tmp_path)
    source = ReferSource("train", root=root, limit_referents=3)
    assert (source.num_referents, source.num_expressions) == (3, 6)
    assert referents(source) == {"100": 4, "101": 2}
    assert ReferSource("train", root=root, limit_referents=99).num_referents == 4


def test_a_negative_number_of_referents_is_refused(tmp_path):
    with pytest.raises(UserError, match="limit_referents is -1"):
        ReferSource("train", root=write_refer_layout(tmp_path), limit_referents=-1)


def test_splits_are_chosen_as_the_refer_tools_do(tmp_path):
    splits = ("train", "testA", "testAB", "testBC", "val", "test")
    root = write_refclef_layout(tmp_path, "unc", splits=splits)

    def images(split):
        return [example.id for example in ReferSource(split, root=root, dataset="refclef")]

    assert images("train") == ["100"]
    assert images("testA") == ["101", "102"]
    assert images("testB") == ["102", "103"]
    assert images("testC") == ["103"]
    assert images("test") == ["101", "102", "103", "105"]
    assert images("val") == ["104"]
    with pytest.raises(
        UserError, match=r"split 'validation' not found in .*; available: test \(2 referents\), testA \(2 referents\), "
    ):
        images("validation")


def test_a_misspelt_split_is_named(tmp_path):
    root = write_refer_layout(tmp_path, splits=("train", "Train", "val"))
    for split in ("train", "val"):
        with pytest.raises(
            UserError, match=r"the splits 'Train' \(2 referents\) and 'train' \(2 referents\) differ only"
        ):
            ReferSource(split, root=root)


@pytest.mark.parametrize("split", [None, 1, ["train"]])
def test_a_split_that_is_not_a_string_is_named(tmp_path, split):
    root = write_refer_layout(tmp_path, splits=("train", split, "val"))
    with pytest.raises(UserError, match="which is not a string"):
        ReferSource("train", root=root)


def test_a_split_of_training_with_the_letter_of_a_test_split_is_not_tested(tmp_path):
    root = write_refer_layout(tmp_path, splits=("trainA", "TRAIN", "testA", "val"))
    assert [example.id for example in ReferSource("testA", root=root)] == ["102"]


@pytest.mark.parametrize("folder", ["images/saiapr_tc-12", "saiapr_tc-12"])
@pytest.mark.parametrize("python2_protocol", [0, 2])
def test_referit_is_read_with_its_own_images_and_lists_of_rle(tmp_path, folder, python2_protocol):
    root = write_refclef_layout(tmp_path, image_folder=folder, python2_protocol=python2_protocol)
    source = ReferSource("testA", root=root, dataset="refclef", split_by="berkeley")
    assert source[1].image == root / folder / "105.jpg"
    right = source[1].expressions[0]
    assert [type(part["counts"]) for part in right.segmentation] == [str, str]
    in_bytes = [{**part, "counts": part["counts"].encode()} for part in right.segmentation]
    for segmentation in (right.segmentation, in_bytes):
        mask = rasterize(segmentation, HEIGHT, WIDTH)
        assert mask.sum() == 10 * 12 + 18 * 12
        (x0, y0, x1, y1), _ = boxes(5, "right")
        assert mask[y0:y1, x0:x1].all()


def test_the_images_that_referit_lacks_are_left_out_and_logged(tmp_path, caplog):
    root = write_refclef_layout(tmp_path, splits=("train", "train", "test"), first_id=19578)  # 19579 is one of them
    assert len(ReferSource("train", root=root, dataset="refclef", split_by="berkeley")) == 2
    assert not caplog.records
    (root / "images/saiapr_tc-12/19579.jpg").unlink()
    with caplog.at_level(logging.WARNING):
        source = ReferSource("train", root=root, dataset="refclef", split_by="berkeley")
    assert referents(source) == {"19578": 4}
    assert caplog.messages == ["refclef: images that the archive lacks are left out, with their referents: 19579.jpg"]
    (root / "images/saiapr_tc-12/19578.jpg").unlink()
    with pytest.raises(UserError, match=r"the image 19578\.jpg .*was not found"):
        ReferSource("train", root=root, dataset="refclef", split_by="berkeley")


@pytest.mark.parametrize(
    "folder",
    [
        *("images/mscoco/images/train2014", "images/mscoco/train2014", "images/train2014", "train2014"),
        *("coco/train2014", "images/train2017", "train2017", "coco/train2017"),
    ],
)
@pytest.mark.parametrize("bare_names", [False, True])
def test_the_images_are_found_under_the_names_people_have(tmp_path, folder, bare_names):
    root = write_refer_layout(tmp_path, image_folder=folder, bare_names=bare_names)
    name = "000000000101.jpg" if bare_names else "COCO_train2014_000000000101.jpg"
    assert ReferSource("train", root=root)[1].image == root / folder / name


@pytest.mark.parametrize("given", ["coco/train2017", "coco"])
def test_the_images_may_lie_elsewhere(tmp_path, given):
    root = write_refer_layout(tmp_path / "data", image_folder="../coco/train2017", bare_names=True)
    source = ReferSource("val", root=root, image_root=tmp_path / given)
    assert source[0].image == tmp_path / "coco/train2017/000000000102.jpg"
    assert load_image(source[0].image).shape == (HEIGHT, WIDTH, 3)


def test_refs_in_json_are_found_too(tmp_path):
    root = write_refer_layout(tmp_path, "mine", "me", as_json=True)
    assert ReferSource("train", root=root, dataset="mine", split_by="me").num_expressions == 8


def test_a_worker_process_gets_the_same_source(tmp_path):
    source = ReferSource("train", root=write_refer_layout(tmp_path))
    copy = pickle.loads(pickle.dumps(source))
    assert list(copy) == list(source)


def test_what_cannot_be_used_is_left_out_and_counted(tmp_path, caplog):
    def edit(refs, instances):
        instances["annotations"][0]["segmentation"] = []
        del instances["annotations"][2]["segmentation"]
        refs[-2]["sentences"][0]["raw"] = "  "  # the right object of the first image

    with caplog.at_level(logging.WARNING):
        source = ReferSource("train", root=write_refer_layout(tmp_path, edit=edit))
    assert (source.num_referents, source.num_expressions) == (2, 3)
    no_mask, no_words = (record.getMessage() for record in caplog.records)
    assert no_mask.endswith(
        "no usable mask: 2 (ann_id 1002: its segmentation is None; ann_id 1000: its segmentation is [])"
    )
    assert no_words.endswith("no words or are not valid Unicode: 1 (sent_id 2)")


def no_masks(refs, instances):
    for annotation in instances["annotations"]:
        annotation["segmentation"] = []


def no_annotation(refs, instances):
    del instances["annotations"][0]


def text_ids(refs, instances):
    refs[-1]["ann_id"] = "1000"


def image_ids_of_two_types(refs, instances):
    refs[-1]["image_id"] = instances["images"][0]["id"] = "100"


def an_infinite_height(refs, instances):
    instances["images"][0]["height"] = float("inf")


def an_enormous_width(refs, instances):
    instances["images"][0]["width"] = 10**30


def no_image(refs, instances):
    del instances["images"][0]


def no_split(refs, instances):
    del refs[0]["split"]


def no_raw(refs, instances):
    del refs[-1]["sentences"][0]["raw"]


def no_height(refs, instances):
    del instances["images"][0]["height"]


def no_text(refs, instances):
    refs[-1]["sentences"][0]["raw"] = None


def several_objects(refs, instances):
    refs[-1]["ann_id"] = [1000, 1001]


def twice(refs, instances):
    refs[-1]["sentences"][1]["sent_id"] = 0


def no_referents(refs, instances):
    refs.clear()


def a_number_as_name(refs, instances):
    instances["images"][0]["file_name"] = 7


def a_negative_height(refs, instances):
    instances["images"][0]["height"] = -4


def no_list_of_sentences(refs, instances):
    refs[-1]["sentences"] = None


def a_list_as_id(refs, instances):
    refs[-1]["image_id"] = [100]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (no_masks, "no referent of split 'train' .* has both a mask and an expression"),
        (no_masks, r"; without a usable mask: 4 \(ann_id 1003: its segmentation is \[\]; ann_id 1002: "),
        (
            text_ids,
            r"annotation '1000' \(referent 0\).*it has the id 1000; write the ids of both files",
        ),
        (no_annotation, r"annotation 1000 \(referent 0\), which is not in the instances\.json beside it"),
        (no_image, r"image 100 \(referent 1\), which is not in the instances\.json beside it"),
        (no_split, "a referent or an expression has no 'split'"),
        (no_raw, "a referent or an expression has no 'raw'"),
        (image_ids_of_two_types, r"not in COCO's format .*the image ids '100' and 101 are of different types"),
        (an_infinite_height, r"not in COCO's format \(OverflowError"),
        (an_enormous_width, r"not in COCO's format .*image 100 has 1e\+30 x 48 pixels"),
        (no_height, r"not in COCO's format \(KeyError\('height'\)\)"),
        (no_text, "None instead of a string as 'raw' of the expression with sent_id 0"),
        (several_objects, r"list of annotations for referent 0, .* are named grefs\(unc\)\.p"),
        (twice, "2 expressions with the sent_id 0"),
        (no_referents, "split 'train' not found in .*; available: none"),
        (a_number_as_name, r"not in COCO's format \(TypeError\('7 is not a string'\)\)"),
        (a_negative_height, r"not in COCO's format \(ValueError\('image 100 has .* x -4 pixels'\)\)"),
        (no_list_of_sentences, "None instead of a list of expressions as 'sentences'"),
        (a_list_as_id, "has a referent whose image_id or ann_id is not a number or a string: "),
    ],
)
def test_files_that_do_not_fit_together_are_refused(tmp_path, edit, message):
    with pytest.raises(UserError, match=message) as raised:
        ReferSource("train", root=write_refer_layout(tmp_path, edit=edit))
    assert str(tmp_path) in str(raised.value)


def test_ids_may_be_floats_as_pandas_writes_them(tmp_path):
    def edit(refs, instances):
        for ref in refs:
            ref["image_id"], ref["ann_id"] = float(ref["image_id"]), float(ref["ann_id"])

    floats = ReferSource("train", root=write_refer_layout(tmp_path / "floats", edit=edit))
    assert len(floats) == len(ReferSource("train", root=write_refer_layout(tmp_path / "integers")))


def test_a_missing_file_is_named_with_what_is_there(tmp_path):
    root = write_refer_layout(tmp_path / "data")
    with pytest.raises(UserError, match=r"config\.input\.source\.root is empty; set it, or S2RM_DATA"):
        ReferSource("train", root="")
    with pytest.raises(UserError, match=r"nowhere, does not exist; data/README\.md lists"):
        ReferSource("train", root=tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"refcocog does not exist; folders in .*: images, refcoco; "):
        ReferSource("train", root=root, dataset="refcocog")
    with pytest.raises(UserError, match=r"refs\(google\)\.p not found; similar files in .*: refs\(unc\)\.p; "):
        ReferSource("train", root=root, split_by="google")
    (root / "refcoco/instances.json").write_text('{"images": [')
    with pytest.raises(UserError, match=r"instances\.json is damaged or not JSON"):
        ReferSource("train", root=root)
    (root / "refcoco/instances.json").write_text(json.dumps([]))
    with pytest.raises(UserError, match=r"instances\.json is not in COCO's format"):
        ReferSource("train", root=root)
    (root / "refcoco/instances.json").unlink()
    with pytest.raises(UserError, match=r"instances\.json not found; it comes in the same archive as refs\(unc\)\.p"):
        ReferSource("train", root=root)


def test_missing_images_are_named_with_what_was_tried(tmp_path):
    root = write_refer_layout(tmp_path)
    source = ReferSource("train", root=root)
    (root / FOLDER / "COCO_train2014_000000000101.jpg").unlink()
    assert source[0].id == "100"
    with pytest.raises(UserError, match=r"COCO_train2014_000000000101\.jpg of refcoco train is missing"):
        source[1]
    (root / FOLDER / "COCO_train2014_000000000100.jpg").unlink()
    with pytest.raises(UserError, match=r"100\.jpg\) was not found; these folders exist, without it: ") as raised:
        ReferSource("train", root=root)
    assert str(root / FOLDER) in str(raised.value)
    with pytest.raises(UserError, match=r"none of these folders exists; tried .*elsewhere, .*image_root"):
        ReferSource("train", root=root, image_root=tmp_path / "elsewhere")


@pytest.fixture(scope="module")
def real_root() -> Path:
    root = refer_mini()
    if root is None:
        pytest.skip("no real sample: set S2RM_REFER_MINI to its folder (data/refer_mini/README.md)")
    return root


def test_the_real_sample_has_the_counts_of_its_card(real_root):
    sources = {
        split: ReferSource(split, root=real_root, split_by="mini") for split in ("train", "val", "testA", "testB")
    }
    assert {split: source.num_referents for split, source in sources.items()} == {
        **{"train": 148, "val": 75},
        **{"testA": 31, "testB": 35},
    }
    assert sum(source.num_expressions for source in sources.values()) == 584
    images = [example.id for source in sources.values() for example in source]
    assert len(images) == len(set(images)) == 90


def test_the_real_masks_have_the_area_and_the_box_of_their_annotation(real_root):
    annotations = json.loads((real_root / "refcoco/instances.json").read_text())["annotations"]
    by_polygons = {json.dumps(annotation["segmentation"]): annotation for annotation in annotations}
    short_of_box = []
    for split in ("train", "val", "test"):
        for example in ReferSource(split, root=real_root, split_by="mini"):
            for polygons in {json.dumps(expression.segmentation) for expression in example.expressions}:
                annotation = by_polygons[polygons]
                mask = rasterize(json.loads(polygons), example.height, example.width)
                assert mask.sum() == pytest.approx(annotation["area"], rel=0.02)
                x, y, width, height = annotation["bbox"]
                rows, columns = np.nonzero(mask)
                right, bottom = x + width - (columns.max() + 1), y + height - (rows.max() + 1)
                short_of_box.append((columns.min() - x, rows.min() - y, right, bottom))
    assert len(short_of_box) == 289
    assert np.min(short_of_box) > -0.5, "rounded to pixels, no mask leaves its box"
    assert np.mean(np.array(short_of_box) < 1) > 0.97, "and only tips thinner than a pixel are lost"


def test_the_real_images_have_the_size_of_their_annotation(real_root):
    for example in ReferSource("test", root=real_root, split_by="mini"):
        assert load_image(example.image).shape == (example.height, example.width, 3)


def test_the_real_referents_have_one_mask_each_which_dropping_overlaps_only_shrinks(real_root):
    joined = ReferSource("train", root=real_root, split_by="mini")
    dropped = ReferSource("train", root=real_root, split_by="mini", overlap="drop")
    several = 0
    for index, (example, other) in enumerate(zip(joined, dropped, strict=True)):
        positions = [position for group in joined.referents(index) for position in group]
        assert positions == list(range(joined.expression_count(index)))
        for group in joined.referents(index):
            assert len({json.dumps(example.expressions[position].segmentation) for position in group}) == 1
            polygons = example.expressions[group[0]].segmentation
            layers = [rasterize([polygon], example.height, example.width).astype(int) for polygon in polygons]
            mask = rasterize(other.expressions[group[0]].segmentation, example.height, example.width)
            np.testing.assert_array_equal(mask, sum(layers) == 1)
            several += len(polygons) > 1
    assert sum(len(joined.referents(index)) for index in range(len(joined))) == joined.num_referents == 148
    assert several >= 10, "the sample has annotations of several polygons"


def test_polygons_without_a_pixel_and_bad_parts_are_left_out_and_counted(tmp_path, caplog):
    def edit(refs, instances):
        instances["annotations"][0]["segmentation"] = [[29.65, 38.33, 29.65, 38.33, 30.68, 38.33, 30.68, 38.33]]
        instances["annotations"][1]["segmentation"].append([1.0, 2.0, 3.0, 4.0])
        instances["annotations"][2]["segmentation"] = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]  # no list of lists
        instances["annotations"][3]["segmentation"] = {"size": [HEIGHT, WIDTH], "counts": [HEIGHT * WIDTH]}

    with caplog.at_level(logging.WARNING):
        source = ReferSource("train", root=write_refer_layout(tmp_path, edit=edit))
    no_mask, bad = caplog.messages
    assert "no usable mask: 2 (ann_id 1002: a polygon must be a list [x0, y0, x1, y1, ...]" in no_mask
    assert no_mask.endswith("; ann_id 1000: its polygons cover no pixel)")
    assert bad.endswith("parts that cannot be decoded; those parts were left out: 1 (ann_id 1001)")
    assert [view_of(example, [0]).referents for example in source] == [(0,), (None,)]


def test_a_referent_whose_annotation_is_of_another_image_is_left_out(tmp_path, caplog):
    def edit(refs, instances):
        refs[-1]["ann_id"] = 1002  # an object of the second image, which has a referent of its own

    with caplog.at_level(logging.WARNING):
        source = ReferSource("train", root=write_refer_layout(tmp_path, edit=edit))
    assert [len(example.expressions) for example in source] == [2, 4]
    (message,) = caplog.messages
    assert message.endswith("no usable mask: 1 (ann_id 1002: it belongs to image 101, not to image 100)")


def test_an_annotation_whose_image_id_is_of_another_type_is_left_out(tmp_path, caplog):
    def edit(refs, instances):
        of_last = next(one for one in instances["annotations"] if one["id"] == refs[-1]["ann_id"])
        of_last["image_id"] = str(of_last["image_id"])

    with caplog.at_level(logging.WARNING):
        ReferSource("train", root=write_refer_layout(tmp_path, edit=edit))
    assert "it belongs to image '100', not to image 100" in caplog.text


def test_only_names_of_coco_are_shortened_to_their_number(tmp_path):
    root = write_refer_layout(tmp_path, image_name="left_{}.jpg")
    source = ReferSource("train", root=root)
    source[0].image.rename(source[0].image.with_name("100.jpg"))  # which right_100.jpg would be as well
    with pytest.raises(UserError, match=r"left_100\.jpg of refcoco train is missing"):
        ReferSource("train", root=root)[0]
    source[1].image.unlink()
    with pytest.raises(UserError, match=r"the image left_100\.jpg was not found"):
        ReferSource("train", root=root)


def same_image_id(refs, instances):
    instances["images"][1]["id"] = 100


def same_annotation_id(refs, instances):
    instances["annotations"][2]["id"] = 1000


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (same_image_id, r"two images with the id 100: COCO_\w+100\.jpg and COCO_\w+101\.jpg"),
        (same_annotation_id, r"two annotations with the id 1000, of COCO_\w+100\.jpg and COCO_\w+101\.jpg"),
    ],
)
def test_ids_that_occur_twice_are_refused_with_both_files(tmp_path, edit, message):
    with pytest.raises(UserError, match=message):
        ReferSource("train", root=write_refer_layout(tmp_path, edit=edit))


def test_the_same_entry_twice_does_no_harm(tmp_path):
    def edit(refs, instances):
        instances["images"].append(instances["images"][0])
        instances["annotations"].append(instances["annotations"][0])

    assert len(ReferSource("train", root=write_refer_layout(tmp_path, edit=edit))) == 2


def test_file_names_of_windows_are_found(tmp_path):
    def edit(refs, instances):
        for image in instances["images"]:
            image["file_name"] = f"train2014\\{image['file_name']}"

    root = write_refer_layout(tmp_path, edit=edit)
    source = ReferSource("train", root=root, image_root=root / "images/mscoco/images")
    assert source[0].load_image().shape == (HEIGHT, WIDTH, 3)
