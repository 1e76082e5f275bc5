"""The data check: intact data of every layout passes, and every kind of damage is found and named."""

from __future__ import annotations

import errno
import runpy
from pathlib import Path

import pytest
from PIL import Image

from s2rm_jax.errors import UserError
from s2rm_jax.input import split_sizes
from s2rm_jax.input.check.examine import examine, extent_of, misfit
from s2rm_jax.input.check.report import WRONG_COUNTS, format_report
from s2rm_jax.input.refer import ReferSource
from s2rm_jax.input.split_sizes import SPLIT_SIZES, SplitSize
from tests.input import refer_fixture
from tests.input.refer_fixture import COCO_NAME, FOLDER, SPLITS


def image(root: Path, number: int) -> Path:
    return root / FOLDER / COCO_NAME.format(100 + number)


def kinds(root: Path, **arguments) -> dict[str, tuple[str, ...]]:
    """The problems of the only dataset under `root`: kind -> cases."""
    (found,) = examine(root, **arguments).datasets
    return {problem.kind: problem.cases for problem in found.problems}


@pytest.fixture(autouse=True)
def tiny_counts(monkeypatch):
    """The published counts become those of the fixture: 2 images a split with 2 referents and 4 expressions each."""
    counts = dict.fromkeys(("train", "val", "testA", "testB"), SplitSize(2, 4, 8))
    for key in SPLIT_SIZES:
        monkeypatch.setitem(SPLIT_SIZES, key, counts)


def with_boxes(refs, instances):
    """Add to each annotation the box of its polygons."""
    for annotation in instances["annotations"]:
        left, top, right, bottom = extent_of(annotation["segmentation"], refer_fixture.HEIGHT, refer_fixture.WIDTH)
        annotation["bbox"] = [left, top, right - left, bottom - top]


LAYOUTS = {
    "plain": lambda root: refer_fixture.write_refer_layout(root, edit=with_boxes),
    "bare names of 2017": lambda root: refer_fixture.write_refer_layout(
        root, image_folder="train2017", bare_names=True
    ),
    "CRIS": lambda root: refer_fixture.write_refer_layout(root, image_folder="images/train2014"),
    "JSON": lambda root: refer_fixture.write_refer_layout(root, as_json=True),
    "Python 2": lambda root: refer_fixture.write_refer_layout(root, python2_protocol=0),
    "refcoco+": lambda root: refer_fixture.write_refer_layout(root, "refcoco+"),
    "refcocog google": lambda root: refer_fixture.write_refer_layout(root, "refcocog", "google"),
    "refclef berkeley": lambda root: refer_fixture.write_refclef_layout(root, edit=with_boxes),
    "refclef unc": lambda root: refer_fixture.write_refclef_layout(root, "unc", splits=("train", "testAB", "testBC")),
    "grefcoco": refer_fixture.write_grefcoco_layout,
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_intact_data_of_every_layout_passes(tmp_path, layout):
    result = examine(LAYOUTS[layout](tmp_path))
    (found,) = result.datasets
    assert result.ok and found.problems == []
    assert found.images_checked == (3 if layout == "refclef unc" else 8)
    referents, expressions = (10, 18) if layout == "grefcoco" else (4, 8)
    if layout != "refclef unc":
        assert set(found.counts.values()) == {SplitSize(2, referents, expressions)}
    assert "✓ no problems found" in format_report(result)


def test_several_datasets_are_examined_in_one_go_and_shared_images_once(tmp_path, monkeypatch):
    for dataset, split_by in (("refcocog", "umd"), ("refcoco", "unc"), ("refcoco", "google"), ("mine", "me")):
        refer_fixture.write_refer_layout(tmp_path, dataset, split_by)
    looked_at = []
    opened = Image.open
    monkeypatch.setattr(Image, "open", lambda path, **options: looked_at.append(path) or opened(path, **options))
    result = examine(tmp_path)
    keys = [found.key for found in result.datasets]
    assert keys == [("refcoco", "google"), ("refcoco", "unc"), ("refcocog", "umd"), ("mine", "me")]
    assert len(looked_at) == len(set(looked_at)) == 8
    assert result.absent == ("refcoco+", "refclef", "grefcoco")
    assert [found.key for found in examine(tmp_path, "refcoco", "unc").datasets] == [("refcoco", "unc")]


# What is done to the annotations, and the kind and the beginning of the only case that is found of it. The referents
# are written in reverse order: refs[-1] is referent 0 with annotation 1000 and expressions 0 and 1, in image 100.
def no_mask(refs, instances):
    instances["annotations"][0]["segmentation"] = []


def mask_of_two_corners(refs, instances):
    instances["annotations"][0]["segmentation"] = [[1.0, 2.0, 3.0, 4.0]]


def speck(refs, instances):
    instances["annotations"][0]["segmentation"] = [[29.65, 38.33, 29.65, 38.33, 30.68, 38.33, 30.68, 38.33]]


def two_images(refs, instances):
    instances["images"].insert(0, {**instances["images"][0], "file_name": "b.jpg"})


def no_words(refs, instances):
    refs[-1]["sentences"][0]["raw"] = "  "


def no_cleaned_words(refs, instances):
    refs[-1]["sentences"][1]["sent"] = ""


def no_text(refs, instances):
    refs[-1]["sentences"][1]["sent"] = None


def no_annotation(refs, instances):
    del instances["annotations"][0]


def no_image(refs, instances):
    refs[-1]["image_id"] = refs[-2]["image_id"] = 99


def another_image(refs, instances):
    instances["annotations"][0]["image_id"] = 101


def referent_twice(refs, instances):
    refs[-1]["ref_id"] = 5


def expression_twice(refs, instances):
    refs[-1]["sentences"][1]["sent_id"] = 0


def image_twice(refs, instances):
    instances["images"].append(instances["images"][0])


def annotation_twice(refs, instances):
    instances["annotations"].append(instances["annotations"][0])


def no_size(refs, instances):
    instances["images"].append({"id": 1, "file_name": "1.jpg"})


def box_elsewhere(refs, instances):
    instances["annotations"][0]["bbox"] = [6, 10, 16, 20]  # 6 pixels too low


def box_of_words(refs, instances):
    instances["annotations"][0]["bbox"] = "here"


def mask_outside(refs, instances):
    instances["annotations"][0]["segmentation"] = [[1, 1, 70, 1, 70, 20]]


def no_numbers(refs, instances):
    instances["annotations"][0]["segmentation"] = [["a", "b", "c", "d", "e", "f"]]


def odd_numbers(refs, instances):
    instances["annotations"][0]["segmentation"] = [[1, 1, 5, 1, 5, 5, 9]]


def rle_of_another_size(refs, instances):
    instances["annotations"][0]["segmentation"] = {"size": [4, 4], "counts": [8, 8]}


def damaged_rle(refs, instances):
    instances["annotations"][0]["segmentation"] = [{"size": [48, 64], "counts": "~~"}]


def empty_rle(refs, instances):
    instances["annotations"][0]["segmentation"] = {"size": [48, 64], "counts": [48 * 64]}


def no_ids(refs, instances):
    refs.append({"ref_id": 50, "image_id": [100], "ann_id": {"id": 1}, "split": "train", "sentences": []})


def no_raw_expressions(refs, instances):
    del refs[-1]["sentences"][1]["raw"]


def no_expression_id(refs, instances):
    del refs[-1]["sentences"][0]["sent_id"], refs[-1]["sentences"][0]["raw"]


def list_of_annotations(refs, instances):
    refs[-1]["ann_id"] = [1000]


def fewer_referents(refs, instances):
    del refs[-2:]


@pytest.mark.parametrize(
    ("edit", "kind", "case"),
    [
        (no_mask, "annotations without a mask", "annotation 1000"),
        (mask_of_two_corners, "annotations without a mask", "annotation 1000"),
        (empty_rle, "RLEs without a pixel", "annotation 1000"),
        (speck, "annotations without a mask", "annotation 1000: its polygons cover no pixel"),
        (
            two_images,
            "ids that occur twice in instances.json",
            "image 100 (2 times: b.jpg, COCO_train2014_000000000100.jpg)",
        ),
        (no_words, "expressions without words", "sent_id 0 of ref_id 0"),
        (no_cleaned_words, "expressions without words", "sent_id 1 of ref_id 0"),
        (no_text, "expressions without words", "sent_id 1 of ref_id 0"),
        (
            no_annotation,
            "referents whose image or annotation is not in instances.json",
            "annotation 1000 of ref_id 0",
        ),
        (another_image, "referents whose annotation is of another image", "ref_id 0: image 100, its annotation"),
        (no_ids, "unusable referents", "{'ref_id': 50, 'image_id': [100]"),
        (no_raw_expressions, "expressions without a field", "'red box' of ref_id 0: 'raw' missing"),
        (no_expression_id, "expressions without a field", "'the left one' of ref_id 0: 'sent_id' and 'raw' missing"),
        (list_of_annotations, "referents with a list of annotations", "ref_id 0"),
        (referent_twice, "ids that occur twice among the referents", "ref_id 5 (2 times)"),
        (expression_twice, "ids that occur twice among the referents", "sent_id 0 in train (2 times)"),
        (image_twice, "ids that occur twice in instances.json", "image 100 (2 times)"),
        (annotation_twice, "ids that occur twice in instances.json", "annotation 1000 (2 times)"),
        (no_size, "unusable entries of instances.json", "image {'id': 1, 'file_name': '1.jpg'}"),
        (box_elsewhere, "masks that do not fit", "annotation 1000: mask and box differ by 6 pixels"),
        (box_of_words, "masks that do not fit", "annotation 1000: the bbox is 'here', not x, y, width, height"),
        (mask_outside, "masks that do not fit", "annotation 1000: the mask ends 6 pixels outside the image of 64 x"),
        (no_numbers, "masks that do not fit", "annotation 1000: a polygon has an invalid pixel coordinate"),
        (odd_numbers, "masks that do not fit", "annotation 1000: a polygon has an odd number of coordinates (7)"),
        (rle_of_another_size, "masks that do not fit", "annotation 1000: the RLE of a mask has size [4, 4]"),
        (damaged_rle, "masks that do not fit", "annotation 1000: the RLE of a mask is damaged"),
    ],
)
def test_every_fault_of_annotations_is_found_and_nothing_else(tmp_path, edit, kind, case):
    ((found_kind, (found_case,)),) = kinds(refer_fixture.write_refer_layout(tmp_path, edit=edit)).items()
    assert found_kind == kind and found_case.startswith(case)


def test_a_referent_without_a_split_is_found(tmp_path):
    def edit(refs, instances):
        del refs[-1]["split"]

    found = kinds(refer_fixture.write_refer_layout(tmp_path, "mine", edit=edit))
    assert found == {"referents without a split": ("ref_id 0",)}


@pytest.mark.parametrize("edit", [no_raw_expressions, no_expression_id, list_of_annotations])
def test_what_the_check_reports_the_reader_refuses(tmp_path, edit):
    with pytest.raises(UserError):
        ReferSource("train", root=refer_fixture.write_refer_layout(tmp_path, edit=edit))


def test_an_image_that_is_not_listed_is_named_for_each_of_its_referents(tmp_path):
    found = kinds(refer_fixture.write_refer_layout(tmp_path, edit=no_image))
    assert found == {
        "referents whose image or annotation is not in instances.json": (
            "image 99 of ref_id 1",
            "image 99 of ref_id 0",
        ),
        "referents whose annotation is of another image": (
            "ref_id 1: image 99, its annotation 1001: image 100",
            "ref_id 0: image 99, its annotation 1000: image 100",
        ),
    }


def test_counts_are_compared_split_by_split(tmp_path):
    found = kinds(refer_fixture.write_refer_layout(tmp_path, edit=fewer_referents))
    assert found == {
        WRONG_COUNTS: (
            "train: 1 images instead of 2",
            "train: 2 referents instead of 4",
            "train: 4 expressions instead of 8",
        )
    }
    others = refer_fixture.write_refer_layout(tmp_path / "other", splits=(*SPLITS, "trainval"))
    assert kinds(others) == {WRONG_COUNTS: ("trainval: not a split of this dataset",)}
    lacking = kinds(refer_fixture.write_refer_layout(tmp_path / "lacking", splits=SPLITS[:6]))
    assert lacking[WRONG_COUNTS][0] == "testB: 0 images instead of 2"


def remove(path):
    path.unlink()


def cut_in_the_middle(path):
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])


def cut_in_the_header(path):
    path.write_bytes(path.read_bytes()[:20])


def make_empty(path):
    path.write_bytes(b"")


def put_a_page_there(path):
    path.write_text("<html>404 not found</html>")


def resize(path):
    Image.new("RGB", (64, 47)).save(path)


def make_enormous(path):
    Image.new("1", (9_000, 9_000)).save(path, "PNG")


def make_gigantic(path):
    Image.new("1", (18_000, 10_000)).save(path, "PNG")


def use_floats(path):
    Image.new("F", (64, 48)).save(path, "TIFF")


UNUSABLE = "images that are too large or have floating-point values"


@pytest.mark.parametrize(
    ("damage", "kind", "description", "quick_too"),
    [
        (remove, "missing images", "COCO_train2014_000000000103.jpg", True),
        (cut_in_the_middle, "damaged images", "truncated", False),
        (cut_in_the_header, "damaged images", "COCO_train2014_000000000103.jpg (", True),
        (make_empty, "damaged images", "(empty (0 bytes))", True),
        (put_a_page_there, "damaged images", "(a web page (HTML) and not an image)", True),
        (resize, "images whose size differs from the annotation", "(64 x 47 instead of 64 x 48)", True),
        (make_enormous, UNUSABLE, "(9000 x 9000 pixels, more than 80,000,000)", True),
        (make_gigantic, UNUSABLE, "(more than 80,000,000 pixels)", True),
        (use_floats, UNUSABLE, "(floating-point values of unknown range)", True),
    ],
)
def test_every_fault_of_images_is_found_and_nothing_else(tmp_path, damage, kind, description, quick_too):
    root = refer_fixture.write_refer_layout(tmp_path)
    damage(image(root, 3))
    ((found_kind, (case,)),) = kinds(root).items()
    assert found_kind == kind and description in case
    assert bool(kinds(root, quick=True)) == quick_too


def test_images_elsewhere_or_nowhere(tmp_path):
    root = refer_fixture.write_refer_layout(tmp_path / "data", image_folder="../coco/train2014")
    assert kinds(root, image_root=tmp_path / "coco") == {}
    (problem,) = examine(root).datasets[0].problems
    assert (problem.kind, len(problem.cases)) == ("missing images", 8)
    assert "none of these folders exists" in problem.remedy


def test_the_first_image_may_be_the_missing_one(tmp_path):
    root = refer_fixture.write_refer_layout(tmp_path)
    for number in (0, 1, 7, 6):  # the file of referents begins with image 7
        image(root, number).unlink()
    assert len(kinds(root)["missing images"]) == 4


def test_what_every_copy_lacks_is_a_note_and_no_problem(tmp_path):
    root = refer_fixture.write_refclef_layout(tmp_path, first_id=19575)
    (root / "images/saiapr_tc-12/19575.jpg").unlink()
    result = examine(root)
    assert result.ok and result.datasets[0].notes == ["missing in every known copy: 19575.jpg"]
    (root / "images/saiapr_tc-12/19576.jpg").unlink()
    assert kinds(root) == {"missing images": ("19576.jpg",)}


def test_damaged_annotation_files_do_not_stop_the_others(tmp_path):
    for dataset in ("refcoco", "refcoco+"):
        refer_fixture.write_refer_layout(tmp_path, dataset)
    (tmp_path / "refcoco/instances.json").write_text('{"images": ')
    damaged, intact = examine(tmp_path).datasets
    (problem,) = damaged.problems
    assert problem.kind == "annotation files that cannot be read" and not intact.problems
    assert "web.archive.org" in problem.remedy and "reported working in December 2025" in problem.remedy
    (tmp_path / "refcoco/instances.json").write_text('{"images": {}}')
    assert "is not in COCO's format" in examine(tmp_path).datasets[0].problems[0].cases[0]
    (tmp_path / "refcoco/instances.json").unlink()
    assert "cannot read" in examine(tmp_path).datasets[0].problems[0].cases[0]


@pytest.mark.parametrize(
    ("folder", "dataset", "message"),
    [
        ("nowhere", "", r"nowhere does not exist; give the one that holds"),
        (
            "images",
            "",
            r"has no folder with a file refs\(\.\.\.\)\.p in it; unpack .* refcoco\.zip: https://web\.archive",
        ),
        ("refcoco", "", r"refcoco is the folder of one dataset; give the folder above it"),
        ("", "refcocog", r"has no refcocog; available: refcoco split by unc; get refcocog\.zip: https"),
    ],
)
def test_where_there_is_nothing_to_examine_it_says_so(tmp_path, folder, dataset, message):
    refer_fixture.write_refer_layout(tmp_path)
    with pytest.raises(UserError, match=message):
        examine(tmp_path / folder, dataset)


def test_data_of_ones_own_is_not_sent_to_the_downloads(tmp_path):
    (tmp_path / "downloads.json").touch()  # which `s2rm download` writes
    with pytest.raises(UserError, match=r"has no folder with a file refs\(\.\.\.\)\.p in it; unpack the annotations"):
        examine(tmp_path)
    (tmp_path / "data.jsonl").touch()
    with pytest.raises(UserError, match=r"no data in the REFER layout; .* as data\.jsonl may be, are checked when"):
        examine(tmp_path)


@pytest.mark.parametrize("side", [0.9, 0.001])
def test_polygons_in_fractions_are_named(tmp_path, side):
    def in_fractions(refs, instances):
        for annotation in instances["annotations"]:
            annotation["segmentation"] = [[0.05, 0.05, 0.05 + side, 0.05, 0.05 + side, 0.05 + side]]

    refer_fixture.write_refer_layout(tmp_path, edit=in_fractions)
    found = [str(case) for report in examine(tmp_path).datasets for one in report.problems for case in one.cases]
    assert any("seem to be in fractions of the image" in case for case in found)


@pytest.fixture
def unreadable(monkeypatch):
    """The paths of folders that cannot be listed, as those of another user."""
    paths, listed = set(), Path.iterdir

    def iterdir(path):
        if path in paths:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    return paths


def test_folders_that_cannot_be_listed_are_passed_over_unless_they_are_of_a_dataset(tmp_path, unreadable):
    root = refer_fixture.write_refer_layout(tmp_path)
    for name in ("lost+found", "refcocog"):
        (root / name).mkdir()
    unreadable.add(root / "lost+found")
    assert examine(root).ok
    unreadable.add(root / "refcocog")
    with pytest.raises(UserError, match=r"refcocog cannot be read \(Permission denied\); correct its permissions"):
        examine(root)
    unreadable.add(root)
    with pytest.raises(UserError, match=rf"the folder {root} cannot be read"):
        examine(root)


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ([10, 10, 20, 20], ""),
        ([11, 11, 19, 19], ""),  # pixels counted from 1
        ([11, 11, 18, 18], ""),  # and the last one left out
        ([10, 10, 23, 20], "mask and box differ by 3 pixels"),
        (None, ""),
    ],
)
def test_boxes_may_be_two_pixels_off(box, expected):
    assert misfit((10.0, 10.0, 30.0, 30.0), box, 48, 64) == expected


def test_the_published_counts_add_up():
    counts = runpy.run_path(split_sizes.__file__)["SPLIT_SIZES"]  # those that are imported here are of the fixture
    refcoco = counts["refcoco", "unc"].values()
    assert (sum(c.images for c in refcoco), sum(c.referents for c in refcoco)) == (19_994, 50_000)
    totals = [("refcoco", "unc", 142_210), ("refcoco+", "unc", 141_564)]
    totals += [("refcocog", "umd", 95_010), ("refcocog", "google", 95_010)]
    for dataset, split_by, total in totals:
        assert sum(size.expressions for size in counts[dataset, split_by].values()) == total


def test_the_real_sample_passes():
    root = refer_fixture.refer_mini()
    if root is None:
        pytest.skip("no real sample: set S2RM_REFER_MINI to its folder (data/refer_mini/README.md)")
    result = examine(root)
    assert result.ok and result.datasets[0].images_checked == 90
    assert result.datasets[0].counts["train"] == SplitSize(44, 148, 300)


def test_the_report_counts_the_images_that_were_really_read(tmp_path):
    root = refer_fixture.write_refer_layout(tmp_path)
    image(root, 0).unlink()
    make_empty(image(root, 3))
    assert "8 images checked, 6 of them decoded" in format_report(examine(root))
    assert "8 images checked, 6 of them by their headers only" in format_report(examine(root, quick=True))
