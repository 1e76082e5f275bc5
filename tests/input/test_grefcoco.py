"""gRefCOCO: several referents for an expression, or none."""

from __future__ import annotations

import json
import logging
import pickle

import numpy as np
import pytest

from s2rm_jax.errors import UserError
from s2rm_jax.input.example import Expression
from s2rm_jax.input.masks import rasterize
from s2rm_jax.input.refer import ReferSource
from tests.input.refer_fixture import HEIGHT, SPLITS, WIDTH, boxes, refer_mini, write_grefcoco_layout


def read(root, split="train", **arguments) -> ReferSource:
    return ReferSource(split, root=root, dataset="grefcoco", **arguments)


def by_expression(source: ReferSource, index: int) -> dict[str, Expression]:
    return {expression.text: expression for expression in source[index].expressions}


def area_of(index: int, *sides: str) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    for x0, y0, x1, y1 in (box for side in sides for box in boxes(index, side)):
        mask[y0:y1, x0:x1] = True
    return mask


@pytest.mark.parametrize(
    "form", [{"as_json": True}, {"as_json": False}, *({"as_json": False, "python2_protocol": n} for n in range(3))]
)
@pytest.mark.parametrize("split", sorted(set(SPLITS)))
@pytest.mark.parametrize("rle", [False, True])
def test_an_expression_may_mean_several_objects_or_nothing(tmp_path, form, split, rle):
    source = read(write_grefcoco_layout(tmp_path, rle=rle, **form), split)
    assert (len(source), source.num_referents, source.num_expressions) == (2, 10, 18)
    for position, index in enumerate(i for i, name in enumerate(SPLITS) if name == split):
        means = {
            "The left one": ("left",),
            "The right one": ("right",),
            "both boxes": ("left", "right"),
            "two boxes": ("left", "right"),
            "the crowded one": ("left",),  # the crowd is passed over
            "the dog": (),
            "a cat": (),
        }
        found = by_expression(source, position)
        assert set(means) < set(found)
        for expression, sides in means.items():
            mask = rasterize(found[expression].segmentation, HEIGHT, WIDTH)
            np.testing.assert_array_equal(mask, area_of(index, *sides), err_msg=expression)
            assert (found[expression].segmentation == []) == (not sides)


def test_each_expression_is_a_referent_of_its_own_and_has_a_stable_id(tmp_path):
    source = read(write_grefcoco_layout(tmp_path))
    assert source.referents(0) == tuple((position,) for position in range(9))
    ids = [expression.id for example in source for expression in example.expressions]
    assert len(set(ids)) == len(ids) == 18
    found = by_expression(source, 0)
    assert (found["the dog"].id, found["both boxes"].id, found["The left one"].id) == (
        "5001-50010",
        "5000-50000",
        "0-0",
    )


def test_expression_ids_need_to_be_unique_within_a_referent_only(tmp_path):
    def edit(refs, instances):
        for ref in refs:
            for number, expression in enumerate(ref["sentences"]):
                expression["sent_id"] = number

    assert read(write_grefcoco_layout(tmp_path, edit=edit)).num_expressions == 18


def test_a_single_annotation_may_stand_without_a_list(tmp_path):
    def edit(refs, instances):
        for ref in refs:
            if len(ref["ann_id"]) == 1:
                (ref["ann_id"],) = ref["ann_id"]

    source = read(write_grefcoco_layout(tmp_path, edit=edit))
    assert source.num_expressions == 18
    assert by_expression(source, 0)["the dog"].segmentation == []


def test_what_should_have_a_mask_and_has_none_is_not_taken_for_nothing(tmp_path, caplog):
    def edit(refs, instances):
        instances["annotations"][0]["segmentation"] = []  # the left object of the first image

    with caplog.at_level(logging.WARNING):
        source = read(write_grefcoco_layout(tmp_path, edit=edit))
    found = by_expression(source, 0)
    assert "The left one" not in found
    assert "the crowded one" not in found
    assert "both boxes" not in found, "the mask of the other object alone would be wrong"
    (message,) = caplog.messages
    assert message.endswith(
        "no usable mask: 3 (ann_id [1000]: its segmentation is []; ann_id [1000, 1001]: annotation 1000: its "
        "segmentation is []; ann_id [1000, 9000]: annotation 1000: its segmentation is [])"
    )


def test_an_object_without_a_pixel_adds_none_to_the_others(tmp_path, caplog):
    def edit(refs, instances):
        instances["annotations"][0]["segmentation"] = [[29.65, 38.33, 29.65, 38.33, 30.68, 38.33, 30.68, 38.33]]

    with caplog.at_level(logging.WARNING):
        source = read(write_grefcoco_layout(tmp_path, edit=edit))
    found = by_expression(source, 0)
    np.testing.assert_array_equal(rasterize(found["both boxes"].segmentation, HEIGHT, WIDTH), area_of(0, "right"))
    assert "The left one" not in found and "crowded one" not in found
    assert "2 (ann_id [1000]: apart from crowds, its polygons cover no pixel" in caplog.text


def test_objects_of_two_images_are_not_joined(tmp_path, caplog):
    def edit(refs, instances):
        next(ref for ref in refs if ref["ann_id"] == [1000, 1001])["ann_id"] = [1000, 1002]

    with caplog.at_level(logging.WARNING):
        source = read(write_grefcoco_layout(tmp_path, edit=edit))
    assert "both boxes" not in by_expression(source, 0)
    assert "ann_id [1000, 1002]: annotation 1002: it belongs to image 101, not to image 100" in caplog.text


def test_overlaps_are_dropped_within_an_object_and_never_between_objects(tmp_path):
    def edit(refs, instances):
        square = [[x, y, x + 20, y, x + 20, y + 20, x, y + 20] for x, y in ((0, 0), (10, 10))]
        instances["annotations"][0]["segmentation"] = square
        instances["annotations"][1]["segmentation"] = square[:1]

    root = write_grefcoco_layout(tmp_path, edit=edit)
    for overlap, left, both in (("union", 700, 700), ("drop", 600, 700)):
        found = by_expression(read(root, overlap=overlap), 0)
        assert rasterize(found["The left one"].segmentation, HEIGHT, WIDTH).sum() == left
        assert rasterize(found["both boxes"].segmentation, HEIGHT, WIDTH).sum() == both


@pytest.mark.parametrize(
    ("ann_ids", "message"),
    [
        (
            [-1, 1000],
            r"annotation -1 \(referent .*-1 means that the expression refers to nothing, and must",
        ),
        ([4444], r"annotation 4444 \(referent .*take both files from the same archive"),
    ],
)
def test_an_unknown_annotation_is_named(tmp_path, ann_ids, message):
    def edit(refs, instances):
        refs[-1].update(ann_id=ann_ids, split="train")

    with pytest.raises(UserError, match=message):
        read(write_grefcoco_layout(tmp_path, edit=edit))


def test_real_annotations_can_be_joined(tmp_path):
    """The real sample's own annotations, put into gRefCOCO's format: all referents of an image, and nothing."""
    root = refer_mini()
    if root is None:
        pytest.skip("no real sample: set S2RM_REFER_MINI to its folder (data/refer_mini/README.md)")
    plain = pickle.loads((root / "refcoco/refs(mini).p").read_bytes())
    chosen = [ref for ref in plain if ref["split"] == "val"]
    by_image: dict[int, list[int]] = {}
    for ref in chosen:
        by_image.setdefault(ref["image_id"], []).append(ref["ann_id"])
    grefs = [
        {"ref_id": 10 * image_id + kind, "ann_id": ann_ids, "image_id": image_id, "split": "val"}
        | {"sentences": [{"sent_id": 0, "raw": "these", "sent": "these"}]}
        for image_id, all_ids in by_image.items()
        for kind, ann_ids in enumerate([all_ids, [-1]])
    ]
    folder = tmp_path / "grefcoco"
    folder.mkdir()
    (folder / "grefs(unc).json").write_text(json.dumps(grefs))
    (folder / "instances.json").write_bytes((root / "refcoco/instances.json").read_bytes())
    joined = read(tmp_path, "val", image_root=root)
    single = ReferSource("val", root=root, split_by="mini")
    assert len(joined) == len(single) == 26
    for together, apart in zip(joined, single, strict=True):
        size = (apart.height, apart.width)
        expected = np.any([rasterize(one.segmentation, *size) for one in apart.expressions], axis=0)
        everything, nothing = (rasterize(one.segmentation, *size) for one in together.expressions)
        np.testing.assert_array_equal(everything, expected)
        assert expected.any() and not nothing.any()
