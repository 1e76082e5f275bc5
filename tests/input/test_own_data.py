"""One's own data in both formats: contents, and mistakes that are reported before training."""

from __future__ import annotations

import io
import json
import logging
import pickle
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image, ImageOps

from s2rm_jax.errors import UserError
from s2rm_jax.input.custom import coco_json_source, json_lines_source
from s2rm_jax.input.encode import view_of
from s2rm_jax.input.masks import rasterize
from s2rm_jax.input.refer import ReferSource
from s2rm_jax.input.sources import build_source
from tests.input.own_data_fixture import mask_of, polygons_of, rle_of, write_coco_json, write_json_lines
from tests.input.refer_fixture import HEIGHT, WIDTH, draw_image, refer_mini

FORMS = {"json_lines": write_json_lines, "coco_json": write_coco_json}


@pytest.mark.parametrize("name", FORMS)
def test_both_forms_give_the_same_examples(tmp_path, name):
    root = FORMS[name](tmp_path)
    for split, images in (("train", (0, 1)), ("val", (2,))):
        source = build_source(ConfigDict({"name": name, "root": str(root)}), split)
        assert [example.image for example in source] == [root / f"images/{index}.png" for index in images]
        for index, example in zip(images, source, strict=True):
            found = [expression.text for expression in example.expressions]
            assert found == ["the left one", "box on the left", "the right one", "the dog"]
            for expression, sides in zip(example.expressions, (["left"], ["left"], ["right"], []), strict=True):
                mask = rasterize(expression.segmentation, example.height, example.width)
                np.testing.assert_array_equal(mask, mask_of(index, *sides))
                assert (expression.segmentation == []) == (sides == [])
        assert source.expression_count(0) == 4
        assert source.referents(0) == ((0, 1), (2,), (3,))
        ids = [expression.id for example in source for expression in example.expressions]
        assert len(set(ids)) == len(ids) == source.num_expressions == 4 * len(images)
        copy = pickle.loads(pickle.dumps(source))
        assert list(copy) == list(source)


def test_ids_say_where_an_expression_is_written(tmp_path):
    lines = json_lines_source("val", root=write_json_lines(tmp_path / "lines"))
    assert (lines[0].id, [one.id for one in lines[0].expressions]) == ("images/2.png", ["7-0", "7-1", "8-0", "9-0"])
    coco = coco_json_source("val", root=write_coco_json(tmp_path / "coco"))
    assert (coco[0].id, [one.id for one in coco[0].expressions]) == ("2", ["20-0", "20-1", "21-0", "22-0"])


def test_lines_of_one_image_need_not_stand_together_nor_name_it_alike(tmp_path):
    def edit(entries):
        entries.sort(key=lambda entry: str(entry["expressions"]))
        entries[0]["image"] = str(tmp_path / "images/../images/0.png")

    source = json_lines_source("train", root=write_json_lines(tmp_path, edit))
    assert sorted(source.expression_count(index) for index in range(len(source))) == [4, 4]


@pytest.mark.parametrize("decoy", [False, True])
def test_a_path_out_of_a_folder_that_is_a_link_leads_to_where_the_folder_is(tmp_path, decoy):
    def edit(entries):
        for entry in entries:
            entry["image"] = f"../{entry['image']}"
            if "mask" in entry:
                entry["mask"] = f"../{entry['mask']}"

    root = write_json_lines(tmp_path / "there", edit)
    (root / "lists").mkdir()
    (root / "data.jsonl").rename(root / "lists/data.jsonl")
    (tmp_path / "here").mkdir()
    link = tmp_path / "here/lists"
    link.symlink_to(root / "lists")
    if decoy:  # files of the same names beside the link
        write_json_lines(tmp_path / "here")
        Image.new("RGB", (5, 5)).save(tmp_path / "here/images/0.png")
        Image.new("L", (5, 5)).save(tmp_path / "here/masks/2.png")
    source = json_lines_source("train", root=link)
    assert [source.expression_count(index) for index in range(len(source))] == [4, 4]
    assert source[0].load_image().shape == (HEIGHT, WIDTH, 3)
    mask = json_lines_source("val", root=link)[0].expressions[0].segmentation
    np.testing.assert_array_equal(rasterize(mask, HEIGHT, WIDTH), mask_of(2, "left"))


def test_a_file_of_windows_is_read_and_empty_lines_are_passed_over(tmp_path):
    path = write_json_lines(tmp_path) / "data.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n\r\n"))
    assert json_lines_source("train", root=tmp_path).num_expressions == 8


def no_split(content: Any) -> None:
    for entry in content if isinstance(content, list) else content["annotations"]:
        entry.pop("split", None)


@pytest.mark.parametrize(("name", "file"), [("json_lines", "data.jsonl"), ("coco_json", "annotations.json")])
def test_each_split_may_have_a_file_and_what_names_no_split_is_in_train(tmp_path, name, file):
    root = FORMS[name](tmp_path, no_split)
    settings = {"name": name, "root": str(root)}
    assert len(build_source(ConfigDict(settings), "train")) == 3
    (root / file).rename(root / f"val_{file}")
    assert len(build_source(ConfigDict({**settings, "file": f"{{split}}_{file}"}), "val")) == 3
    with pytest.raises(UserError, match=rf"file .*train_{file} not found; correct config\.input\.source\.root or"):
        build_source(ConfigDict({**settings, "file": f"{{split}}_{file}"}), "train")


def test_images_of_coco_may_lie_elsewhere(tmp_path):
    root = write_coco_json(tmp_path / "here")
    (root / "images").rename(tmp_path / "images")
    assert coco_json_source("val", root=root, image_root=tmp_path)[0].image == tmp_path / "images/2.png"
    with pytest.raises(UserError, match=r"annotation 20: image .*here/images/2\.png not found"):
        coco_json_source("val", root=root)


LINE_MISTAKES = [
    ({"image": None}, r"line 1: 'image' must be a string, got None"),
    ({"expressions": "the cup"}, r"line 1: 'expressions' must be a list of strings, such as .* got 'the cup'"),
    ({"expressions": []}, r"line 1: 'expressions' must be a list of strings"),
    ({"expressions": ["a cup", " "]}, r"line 1: the expression ' ' has no words; describe what to find"),
    ({"expressions": ["\u200b\ufe0f"]}, r"line 1: the expression '.*' has no words"),
    ({"expressions": ["\ud83d red"]}, r"line 1: the expression '.*' is not valid Unicode; write it in UTF-8"),
    ({"mask": "masks/0.png"}, r"line 1: needs one of 'mask', 'polygon' and 'rle', has 'mask' and 'polygon'"),
    ({"polygon": {"x": 1}}, r"line 1: 'polygon' must be a list of lists"),
    ({"polygon": [{"x": 1, "y": 2}]}, r"line 1: a mask's part must be a polygon \[x0.* or an RLE with size and co"),
    ({"polygon": [[[1, 2], [3, 4], [5, 6]]]}, r"line 1: a polygon has lists in it, .*; write x0, .* in one flat list"),
    ({"polygon": [[1, 2]]}, r"line 1: a polygon has 1 corner; it needs"),
    ({"image": "http://x/a.png"}, r"line 1: 'image' is the address 'http://x/a\.png'; download the file and give its"),
    ({"polygon": [1, 2, 3, 4, 5, 6]}, r"line 1: a polygon must be a list \[x0, y0, .*got 1"),
    ({"polygon": [[1, 2, 3, 4, 5, 6, 7]]}, r"line 1: a polygon has an odd number of coordinates \(7\)"),
    ({"polygon": [[1, 2, 3, 4]]}, r"line 1: a polygon has 2 corners; it needs at least 3"),
    ({"polygon": [[1, 2, 3, "4", 5, 6]]}, r"line 1: a polygon has an invalid pixel coordinate"),
    ({"polygon": [[1, 2, 3, float("nan"), 5, 6]]}, r"line 1: a polygon has an invalid pixel coordinate"),
    ({"polygon": [[1, 2, 3, 1e9, 5, 6]]}, r"line 1: a polygon has an invalid pixel coordinate"),
    ({"polygon": [[1, 2, 3, 10**400, 5, 6]]}, r"line 1: a polygon has an invalid pixel coordinate"),
    ({"polygon": [[64, 2, 90, 2, 90, 9]]}, r"line 1: a polygon lies outside of its image of 64 x 48 pixels"),
    ({"polygon": [[0.1, 0.1, 0.9, 0.1, 0.9, 0.9]]}, r"line 1: its polygons seem to be in fractions of the image"),
    ({"polygon": [[0, 0, 1, 0, 1, 1, 0, 1]] * 2}, r"line 1: its polygons seem to be in fractions"),
    ({"polygon": [[-0.02, 0.1, 1.01, 0.1, 0.9, 0.9]]}, r"line 1: its polygons seem to be in fractions of the image"),
    ({"split": 3}, r"line 1: 'split' must be a string, got 3"),
    ({"width": 640.0, "height": 480.0}, r"line 1: .*images/0\.png has 64 x 48 pixels, its entry says 640 x 480"),
    ({"width": 640, "height": 480}, r"line 1: .*images/0\.png has 64 x 48 pixels, its entry says 640 x 480"),
    ({"image": "images/9.png"}, r"line 1: image .*images/9\.png not found"),
    (
        {"image": "IMAGES/0.png"},
        r"line 1: image .*0\.png not found; there is .*images, which differs in case; correct the",
    ),
    ({"image": "data.jsonl"}, r"line 1: .*data\.jsonl is not an image in a supported format"),
]
RLE_MISTAKES = [
    ({"rle": "7b"}, r"line 4: 'rle' must have a size and counts"),
    ({"rle": {"counts": "7b"}}, r"line 4: an RLE needs a size \[height, width\], got None"),
    ({"rle": {"size": [HEIGHT, WIDTH]}}, r"line 4: an RLE needs counts.* got None"),
    ({"rle": {"size": [HEIGHT, WIDTH], "counts": [5, -5]}}, r"line 4: an RLE needs counts"),
    ({"rle": {"size": [HEIGHT, WIDTH], "counts": [5, 6]}}, r"line 4: an RLE covers 11 pixels, its size has 3072"),
    (
        {"rle": rle_of(mask_of(1, "left")) | {"size": [WIDTH, HEIGHT]}},
        r"line 4: the RLE of a mask has size \[64, 48\], but its image is 48 x 64",
    ),
]


MASK_MISTAKES = [
    ({"mask": "images/2.png"}, r"line 7: 'mask' is the file of 'image'; give a file that is zero outside of the"),
    ({"mask": "masks/2.PNG"}, r"line 7: mask .*masks/2\.PNG not found; there is .*masks/2\.png, which differs in case"),
]


@pytest.mark.parametrize(
    ("number", "change", "message"),
    [
        *((0, *case) for case in LINE_MISTAKES),
        *((3, *case) for case in RLE_MISTAKES),
        *((6, {"split": "train"} | change, message) for change, message in MASK_MISTAKES),
    ],
)
def test_a_mistake_in_a_line_is_named(tmp_path, number, change, message):
    root = write_json_lines(tmp_path, lambda entries: entries[number].update(change))
    with pytest.raises(UserError, match=rf"data\.jsonl has a mistake: {message}.*docs/own_data\.md") as raised:
        json_lines_source("train", root=root)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"image": ', r"line 2: not JSON \(Expecting value at column 11\)"),
        ("[1, 2]", r"line 2: must be an object \{\.\.\.\}, got \[1, 2\]"),
        ("{}", r"line 2: 'image' is missing; line 2: 'expressions' is missing; line 2: needs one of .* has none"),
    ],
)
def test_a_line_that_is_not_a_record_is_named(tmp_path, line, message):
    path = write_json_lines(tmp_path) / "data.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], line, *lines[1:]]))
    with pytest.raises(UserError, match=message):
        json_lines_source("train", root=tmp_path)


def test_small_polygons_in_pixels_are_not_taken_for_fractions(tmp_path):
    polygons = ([[0, 0, 2, 0, 2, 2]], [[0, 0, 1, 0, 1, 1], [5, 5, 9, 5, 9, 9]])

    def edit(entries):
        for entry, polygon in zip(entries, polygons, strict=False):
            entry["polygon"] = polygon

    example = json_lines_source("train", root=write_json_lines(tmp_path, edit))[0]
    assert [example.expressions[number].segmentation for number in (0, 2)] == list(polygons)


def test_a_mask_file_that_does_not_fit_is_named(tmp_path):
    root = write_json_lines(tmp_path)
    Image.new("L", (HEIGHT, WIDTH)).save(root / "masks/2.png")
    with pytest.raises(UserError, match=r"line 7: the mask .*masks/2\.png has 64 x 48 pixels, its image 48 x 64"):
        json_lines_source("val", root=root)
    (root / "masks/2.png").unlink()
    with pytest.raises(UserError, match=r"line 7: mask .*masks/2\.png not found"):
        json_lines_source("val", root=root)
    assert len(json_lines_source("train", root=root)) == 2  # of other splits the files are not opened


def test_many_mistakes_are_reported_together(tmp_path):
    def edit(entries):
        for entry in entries[:7]:
            entry["expressions"] = [""]

    with pytest.raises(UserError) as raised:
        json_lines_source("train", root=write_json_lines(tmp_path, edit))
    message = str(raised.value)
    assert "data.jsonl has 7 mistakes: line 1: " in message
    assert "line 5: the expression '' has no words; describe what to find; and 2 more" in message
    assert "line 6" not in message


def change(id: int, /, **fields: Any):
    def edit(content):
        (annotation,) = (one for one in content["annotations"] if one["id"] == id)
        annotation.update(fields)
        for name in [name for name, value in fields.items() if value is ...]:
            del annotation[name]

    return edit


NOTHING = {"size": [HEIGHT, WIDTH], "counts": [HEIGHT * WIDTH]}


def change_image(**fields: Any):
    def edit(content):
        image = content["images"][0]
        image.update(fields)
        content["images"][0] = {name: value for name, value in image.items() if value is not ...}

    return edit


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (change(1, image_id=77), "annotation 1: no image has the id 77"),
        (change(1, image_id="0"), "annotation 1: no image has the id '0'; there is one with the id 0: write both in"),
        (change(1, image_id=0.0), r"annotation 1: no image has the id 0\.0; there is one with the id 0: write both in"),
        (change(1, image_id=...), "annotation 1: 'image_id' is missing"),
        (change(1, segmentation=...), "annotation 1: 'segmentation' is missing"),
        (change(1, id=...), "annotation at position 1: 'id' is missing"),
        (change(1, id=11), "annotation 11: another annotation has this id"),
        (change(1, expressions="the cup"), "annotation 1: 'expressions' must be a list of strings"),
        (change(1, expressions=[""]), "annotation 1: the expression '' has no words"),
        (change(1, segmentation=[[1, 2, 3]]), r"annotation 1: a polygon has an odd number of coordinates \(3\)"),
        (change(1, segmentation=7), "annotation 1: a mask must be a list of polygons or an RLE, got 7"),
        (change(1, segmentation={"size": [2, 2], "counts": [4]}), r"annotation 1: the RLE of a mask has size \[2, 2\]"),
        (change(1, split=None), "annotation 1: 'split' must be a string, got None"),
        (change(2, bbox=[0, 0, 5, 5]), "annotation 2: has a box or an area but no mask"),
        (change(2, segmentation=NOTHING, bbox=[0, 0, 5, 5]), "annotation 2: has a box or an area but no mask"),
        (change(2, segmentation=[NOTHING], area=9.0), "annotation 2: has a box or an area but no mask"),
        (change_image(file_name="http://x/a.png"), r"image 0: 'file_name' is the address 'http://x/a\.png'; download"),
        (change(2, bbox=5), "annotation 2: 'bbox' must be a list of four numbers, got 5"),
        (change(2, area=25.0), "annotation 2: has a box or an area but no mask"),
        (change_image(height="48"), "image 0: 'height' must be an integer, got '48'"),
        (change_image(height=48.0, width=...), "image 0: 'height' must be an integer, got 48.0, 'width' is missing"),
        (change_image(split=3), "image 0: 'split' must be a string, got 3"),
        (change_image(Split="val"), "image 0: 'Split' is not a field that is read; did you mean 'split'"),
        (
            lambda content: [change_image(split="val")(content), change(1, split="train")(content)],
            "annotation 1: its split is 'train', that of its image 'val'; correct one of them",
        ),
        (change_image(file_name="sub/../a\0.png"), r"annotation 0: .*png is damaged .*null byte"),
        (change_image(height=64, width=48), "annotation 0: .*0.png has 64 x 48 pixels, its entry says 48 x 64"),
        (lambda content: content["annotations"].insert(0, 5), "annotation at position 0: must be an object"),
    ],
)
def test_a_mistake_in_an_annotation_is_named(tmp_path, edit, message):
    with pytest.raises(UserError, match=message) as raised:
        coco_json_source("train", root=write_coco_json(tmp_path, edit))
    assert "annotations.json has " in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("split", ["train", "val"])
def test_an_annotation_without_a_split_is_in_that_of_its_image(tmp_path, split):
    def edit(content):
        for image, annotation in zip(content["images"], content["annotations"][::4], strict=True):
            image["split"] = annotation.get("split", "train")
        for annotation in content["annotations"][1:]:
            annotation.pop("split", None)

    source = coco_json_source(split, root=write_coco_json(tmp_path / "images", edit))
    expected = coco_json_source(split, root=write_coco_json(tmp_path))
    assert [one.expressions for one in source] == [one.expressions for one in expected]


def test_many_unknown_images_are_reported_quickly(tmp_path):
    """The time grows with the number of annotations, not with its product with the number of images."""

    def edit(content):
        image, annotation = content["images"][0], content["annotations"][0]
        content["images"] += [{**image, "id": number} for number in range(1000, 13000)]
        content["annotations"] += [{**annotation, "id": n, "image_id": f"x{n}"} for n in range(1000, 13000)]

    root, start = write_coco_json(tmp_path, edit), time.process_time()
    with pytest.raises(UserError, match="no image has the id 'x1000'"):
        coco_json_source("train", root=root)
    assert time.process_time() - start < 3


@pytest.mark.parametrize("name", FORMS)
def test_a_missing_split_is_reported_with_the_available_ones(tmp_path, name):
    root = FORMS[name](tmp_path)
    with pytest.raises(
        UserError, match=r"split 'test' not found in .*; available: train \(6 referents\), val \(3 referents\)"
    ):
        build_source(ConfigDict({"name": name, "root": str(root)}), "test")
    with pytest.raises(UserError, match=r"config\.input\.source\.root is empty"):
        build_source(ConfigDict({"name": name, "root": ""}), "train")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "not in COCO's format: it needs the lists 'images' and 'annotations'"),
        ('{"images": [', "cannot be read as JSON"),
        ('{"images": [], "annotations": [{"id": 1}]}', "no annotation with 'expressions'"),
    ],
)
def test_a_file_that_is_not_of_the_form_is_named(tmp_path, content, message):
    (tmp_path / "annotations.json").write_text(content)
    with pytest.raises(UserError, match=message):
        coco_json_source("train", root=tmp_path)
    (tmp_path / "data.jsonl").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(UserError, match="cannot be read as UTF-8 text"):
        json_lines_source("train", root=tmp_path)


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("misspelt", ["Train", "train ", " TRAIN"])
def test_a_misspelt_split_is_named(tmp_path, name, misspelt):
    def edit(content):
        (content["annotations"] if name == "coco_json" else content)[1]["split"] = misspelt

    config = ConfigDict({"name": name, "root": str(FORMS[name](tmp_path, edit))})
    for split in ("train", "val"):
        with pytest.raises(UserError, match="differ only in case or spaces; spell them alike") as raised:
            build_source(config, split)
        assert f"{misspelt!r} (1 referent)" in str(raised.value) and "'train' (5 referents)" in str(raised.value)


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize(
    ("field", "misspelt"),
    [
        *(("split", one) for one in ("Split", "spit", "spilt")),
        *(("expressions", one) for one in ("caption", "text", "Expression")),
    ],
)
def test_a_misspelt_field_is_named(tmp_path, name, field, misspelt):
    def edit(content):
        entry = (content["annotations"] if name == "coco_json" else content)[-2]
        entry[misspelt] = entry.pop(field)

    root = FORMS[name](tmp_path, edit)
    form = ", a list of strings" if field == "expressions" else ""
    with pytest.raises(UserError, match=rf"'{misspelt}' is not a field that is read; did you mean '{field}'{form}\?"):
        build_source(ConfigDict({"name": name, "root": str(root)}), "train")


def test_other_fields_are_ignored(tmp_path):
    others = {"image_id": 1, "split_by": "unc", "caption": "a cat", "images": 3}
    root = write_json_lines(tmp_path, lambda entries: [entry.update(others) for entry in entries])
    assert len(json_lines_source("train", root=root)) == 2


def test_images_in_two_splits_and_images_to_be_turned_are_warned_of(tmp_path, caplog):
    def edit(entries):
        entries[2]["split"] = "val"
        for entry in entries:
            entry["image"] = entry["image"].replace("0.png", "0.jpg")

    root = write_json_lines(tmp_path, edit)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(root / "images/0.png").save(root / "images/0.jpg", exif=exif)
    with caplog.at_level(logging.WARNING):
        source = json_lines_source("train", root=root)
        (turned,) = caplog.messages
        json_lines_source("val", root=root)
    assert (source[0].height, source[0].width) == (HEIGHT, WIDTH)
    assert "images with an EXIF orientation: 1, such as 0.jpg" in turned
    assert "images of val that are also in other splits: 1, such as 0.jpg" in caplog.messages[1]


def test_an_image_that_is_lost_later_is_named(tmp_path):
    source = json_lines_source("val", root=write_json_lines(tmp_path))
    Path(str(source[0].image)).unlink()
    with pytest.raises(UserError, match=r"2\.png of data\.jsonl val is missing"):
        source[0]


def test_several_polygons_are_one_referent(tmp_path):
    parts = polygons_of(0, "left") + polygons_of(0, "right")
    source = json_lines_source("train", root=write_json_lines(tmp_path, lambda e: e[0].update(polygon=parts)))
    mask = rasterize(source[0].expressions[0].segmentation, HEIGHT, WIDTH)
    np.testing.assert_array_equal(mask, mask_of(0, "left", "right"))


@pytest.mark.parametrize("name", FORMS)
def test_real_annotations_written_in_each_form_are_read_as_they_were(tmp_path, name, caplog):
    root = refer_mini()
    if root is None:
        pytest.skip("no real sample: set S2RM_REFER_MINI to its folder (data/refer_mini/README.md)")
    original = ReferSource("val", root=root, split_by="mini")
    lines, images, annotations = [], [], []
    for index, example in enumerate(original):
        file_name = str(example.image)
        images.append({"id": index, "file_name": file_name, "height": example.height, "width": example.width})
        for group in original.referents(index):
            polygons = example.expressions[group[0]].segmentation
            texts = [example.expressions[position].text for position in group]
            lines.append({"image": file_name, "polygon": polygons, "expressions": texts, "split": "val"})
            annotations.append({"id": len(lines), "image_id": index, "segmentation": polygons, "expressions": texts})
            annotations[-1]["split"] = "val"
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (tmp_path / "annotations.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    source = build_source(ConfigDict({"name": name, "root": str(tmp_path)}), "val")
    assert len(source) == len(original) == 26 and not caplog.messages
    for index, (read, meant) in enumerate(zip(source, original, strict=True)):
        assert (read.image, read.height, read.width) == (meant.image, meant.height, meant.width)
        assert [(one.text, one.segmentation) for one in read.expressions] == [
            (one.text, one.segmentation) for one in meant.expressions
        ]
        assert source.referents(index) == original.referents(index)


def test_a_bad_part_beside_good_ones_is_left_out_with_a_warning(tmp_path, caplog):
    def edit(content):
        content["annotations"][1]["segmentation"] += [[1, 2, 3, 4], [64, 2, 66, 2, 66, 9]]

    with caplog.at_level(logging.WARNING):
        source = coco_json_source("train", root=write_coco_json(tmp_path, edit))
    (message,) = caplog.messages
    assert (
        "undecodable parts left out of masks that also have valid parts: 1 (annotation 1: a polygon has 2 corners"
        in message
    )
    right = source[0].expressions[2]
    np.testing.assert_array_equal(rasterize(right.segmentation, HEIGHT, WIDTH), mask_of(0, "right"))


def test_polygons_that_reach_far_out_of_their_image_are_counted(tmp_path, caplog):
    def edit(entries):
        entries[0]["polygon"] = [[-2, 5, 40, 5, 66, 49]]  # as far as it may be drawn
        entries[1]["polygon"] = [[10, 10, 20, 10, 20, 20], [10, 10, 600, 10, 600, 40]]
        entries[4]["polygon"] = [[10, 10, 20, -15, 20, 20]]

    with caplog.at_level(logging.WARNING):
        assert len(json_lines_source("train", root=write_json_lines(tmp_path, edit))) == 2
    (message,) = caplog.messages
    assert message.endswith(
        "referents whose polygons reach out of their image, where they are cut off; were they drawn at another size?: "
        "2 (line 2: x from 10 to 600 in 64 pixels; line 5: y from -15 to 20 in 48 pixels)"
    )


def test_a_path_may_begin_with_the_home_folder_and_a_size_may_be_given(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))

    def edit(entries):
        entries[0] |= {"image": "~/data/images/0.png", "width": WIDTH, "height": HEIGHT}
        entries[1]["width"] = "half"  # of no image

    root = write_json_lines(tmp_path / "data", edit)
    assert [one.image for one in json_lines_source("train", root=root)] == [root / f"images/{n}.png" for n in range(2)]


def test_polygons_without_a_pixel_are_left_out_and_run_lengths_of_zeros_refer_to_nothing(tmp_path, caplog):
    def edit(entries):
        entries[0]["polygon"] = [[29.65, 38.33, 29.65, 38.33, 30.68, 38.33, 30.68, 38.33]]
        entries[3]["rle"] = {"size": [HEIGHT, WIDTH], "counts": [HEIGHT * WIDTH]}

    with caplog.at_level(logging.WARNING):
        source = json_lines_source("train", root=write_json_lines(tmp_path, edit))
    assert "left out because their polygons cover no pixel: 1 (line 1)" in caplog.text
    assert [one.text for one in source[0].expressions] == ["the right one", "the dog"]
    assert view_of(source[1], [0, 1, 2, 3]).referents == (None, None, 0, None)


def test_two_images_with_one_id_are_a_mistake_that_names_both_files(tmp_path, caplog):
    def edit(content):
        content["images"][1]["id"] = 0

    root = write_coco_json(tmp_path, edit)
    with pytest.raises(UserError, match=r"image 0: two images have this id: images/0\.png and images/1\.png"):
        coco_json_source("val", root=root)
    with caplog.at_level(logging.WARNING), pytest.raises(UserError, match="split 'train' not found"):
        coco_json_source("train", root=root, on_bad_example="skip")  # it is unknown which image is meant
    assert "two images have this id" in caplog.text


def test_an_id_of_two_images_stays_ambiguous_when_the_first_is_repeated(tmp_path):
    def edit(content):
        content["images"][1]["id"] = 0
        content["images"].append(content["images"][0])

    root = write_coco_json(tmp_path, edit)
    with pytest.raises(UserError, match="split 'train' not found"):
        coco_json_source("train", root=root, on_bad_example="skip")


def test_a_mistake_in_an_image_is_reported_once_and_all_its_expressions_are_counted(tmp_path):
    root = write_coco_json(tmp_path, change_image(height="48"))
    with pytest.raises(UserError, match=r"annotations\.json has a mistake: image 0: 'height' must be an integer"):
        coco_json_source("train", root=root)
    source = coco_json_source("train", root=root, on_bad_example="skip")
    whole = coco_json_source("train", root=write_coco_json(tmp_path / "whole"))
    assert len(source.left_out) == len(whole[0].expressions) > 1
    assert source.num_expressions == whole.num_expressions - len(source.left_out)


def test_objects_of_several_lines_are_reported_once(tmp_path):
    path = write_json_lines(tmp_path) / "data.jsonl"
    path.write_text("\n".join(json.dumps(json.loads(line), indent=2) for line in path.read_text().splitlines()))
    with pytest.raises(UserError, match=r"has objects of several lines; write each on one line \(jq -c \. FILE does"):
        json_lines_source("train", root=tmp_path)


def test_a_json_array_is_called_one(tmp_path):
    path = write_json_lines(tmp_path) / "data.jsonl"
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    for text in (json.dumps(entries), "\n" + json.dumps(entries, indent=2)):
        path.write_text(text)
        with pytest.raises(UserError, match="holds a JSON array; write one object on each line"):
            json_lines_source("train", root=tmp_path)


def test_backslashes_separate_folders_where_no_file_has_such_a_name(tmp_path):
    def edit(entries):
        for entry in entries:
            entry["image"] = entry["image"].replace("/", "\\")
            if "mask" in entry:
                entry["mask"] = entry["mask"].replace("/", "\\")

    root = write_json_lines(tmp_path, edit)
    assert json_lines_source("val", root=root)[0].image == root / "images/2.png"
    Image.open(root / "images/2.png").save(root / "images\\2.png")
    assert json_lines_source("val", root=root)[0].image == root / "images\\2.png"


@pytest.mark.parametrize("number", [0, 3, 6], ids=["polygon", "rle", "mask file"])
def test_masks_of_the_upright_image_are_refused_with_the_option_for_them(tmp_path, number):
    root = write_json_lines(tmp_path, lambda entries: entries[0].update(polygon=[[50, 2, 60, 2, 60, 9]]))
    exif = Image.Exif()
    exif[0x0112] = 6
    path = root / f"images/{number // 3}.png"
    Image.open(path).transpose(Image.Transpose.ROTATE_90).save(path, exif=exif)
    split = "train" if number < 6 else "val"
    with pytest.raises(UserError, match=rf"line {number + 1}: .*; EXIF rotates the image: set apply_exif=True"):
        json_lines_source(split, root=root)
    json_lines_source(split, root=root, apply_exif=True)


@pytest.mark.parametrize("orientation", [2, 3, 5, 6, 7, 8])
def test_annotations_of_a_rotated_photograph_may_be_upright(tmp_path, orientation, caplog):
    """As Label Studio and CVAT write them; the stored image is that which viewers turn into the upright one."""
    undo = {2: 2, 3: 3, 5: 5, 6: 8, 7: 7, 8: 6}[orientation]
    upright = draw_image(0)
    exif = Image.Exif()
    exif[0x0112] = undo
    buffer = io.BytesIO()
    upright.save(buffer, "PNG", exif=exif)
    stored = ImageOps.exif_transpose(Image.open(buffer))
    root = write_coco_json(tmp_path)
    exif[0x0112] = orientation
    stored.save(root / "images/0.png", exif=exif)
    if orientation >= 5:
        with pytest.raises(UserError, match=r"has 48 x 64 pixels, its entry says 64 x 48; EXIF .*set apply_exif=True"):
            coco_json_source("train", root=root)
    with caplog.at_level(logging.WARNING):
        source = coco_json_source("train", root=root, apply_exif=True)
    assert not caplog.messages
    np.testing.assert_array_equal(source[0].load_image(), np.asarray(upright))
    view = view_of(source[0], [0])
    np.testing.assert_array_equal(view.image, np.asarray(upright))
    np.testing.assert_array_equal(view.masks()[0], mask_of(0, "left"))
