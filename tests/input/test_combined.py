"""Training on several REFER datasets at once: no image of any evaluation split of any of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from ml_collections import ConfigDict

from s2rm_jax.errors import UserError
from s2rm_jax.input.example import Source
from s2rm_jax.input.mixture import combined_source, evaluation_images
from s2rm_jax.input.refer import ReferSource
from s2rm_jax.input.sources import build_source
from tests.input.refer_fixture import refer_mini, write_refer_layout

# The same images, 100, 101, ..., in splits that contradict each other: those of CLEAN are training images wherever
# they occur, each of the others is evaluated on by one dataset and is a training image of another. 108 is an
# evaluation image of a dataset that is not trained on.
SPLITS = {
    "refcoco/unc": ("train", "train", "val", "testA", "testB", "train", "train", "train", "train"),
    "refcoco+/unc": ("train", "val", "train", "train", "train", "train", "testA", "train", "train"),
    "refcocog/umd": ("train", "train", "train", "train", "train", "train", "train", "test", "train", "train"),
}
GOOGLE = ("train",) * 8 + ("val", "train")
CLEAN = {100, 105, 108, 109}


@pytest.fixture
def root(tmp_path) -> Path:
    for name, splits in {**SPLITS, "refcoco/google": GOOGLE}.items():
        dataset, split_by = name.split("/")
        write_refer_layout(tmp_path, dataset, split_by, splits=splits)
    return tmp_path


def images(source: Source) -> list[tuple[str, int]]:
    """Dataset and image id of each example."""
    names = [source[index].id.split("/") for index in range(len(source))]
    return [(dataset, int(id)) for dataset, id in names]


def test_a_misspelt_split_of_training_is_not_evaluated_on(tmp_path):
    write_refer_layout(tmp_path, "refcoco", "unc", splits=("train", "Train", "val"))
    with pytest.raises(UserError, match=r"'Train' .* and 'train' .* differ only in case or spaces"):
        evaluation_images(tmp_path, [("refcoco", "unc")])


def test_no_training_image_is_in_any_evaluation_split(root):
    trained = {id for _, id in images(combined_source("train", root=root))}
    evaluated = set()
    for name, splits in SPLITS.items():
        dataset, split_by = name.split("/")
        for split in set(splits) - {"train"}:
            source = ReferSource(split, root=root, dataset=dataset, split_by=split_by)
            evaluated |= {int(example.id) for example in source}
    assert evaluated == {101, 102, 103, 104, 106, 107}
    assert not trained & evaluated
    # The fixture would leak: trained one by one, every one of these is a training image of some dataset.
    alone = {
        int(example.id)
        for name in SPLITS
        for example in ReferSource("train", root=root, dataset=name.split("/")[0], split_by=name.split("/")[1])
    }
    assert evaluated <= alone


def test_all_other_training_images_of_every_dataset_remain(root):
    assert sorted(images(combined_source("train", root=root))) == sorted(
        (name.split("/")[0], 100 + index)
        for name, splits in SPLITS.items()
        for index in range(len(splits))
        if 100 + index in CLEAN
    )


def test_images_of_further_datasets_can_be_held_out(root):
    source = combined_source("train", root=root, held_out=("refcoco/google",))
    assert {id for _, id in images(source)} == CLEAN - {108}
    assert evaluation_images(root, [("refcoco", "google"), ("refcocog", "umd")]) == {107, 108}


def test_evaluation_splits_are_whole(root):
    assert images(combined_source("val", root=root, datasets=("refcoco/unc", "refcoco+/unc"))) == [
        ("refcoco", 102),
        ("refcoco+", 101),
    ]
    assert [example.id for example in combined_source("refcocog:test", root=root)] == ["107"]
    assert [example.id for example in combined_source("refcoco:testA", root=root)] == ["103"]


def test_one_dataset_alone_still_holds_out_the_images_of_all(root):
    assert {int(example.id) for example in combined_source("refcoco:train", root=root)} == CLEAN - {109}


def test_the_arguments_of_refer_are_those_of_all_datasets(root):
    source = combined_source("train", root=root, sentence_field="sent", overlap="drop")
    texts = [one.text for index in range(len(source)) for one in source[index].expressions]
    assert "the left one" in texts
    assert "The left one" not in texts


def test_a_configuration_can_ask_for_it(root):
    config = ConfigDict({"name": "combined", "root": str(root), "datasets": ("refcoco/unc", "refcocog/umd")})
    assert {dataset for dataset, _ in images(build_source(config, "train"))} == {"refcoco", "refcocog"}


def test_a_folder_of_tfds_is_recognized(tmp_path):
    (tmp_path / "refcoco/unc/1.0.0").mkdir(parents=True)
    (tmp_path / "refcoco/unc/1.0.0/dataset_info.json").write_text("{}")
    with pytest.raises(UserError, match=r"refcoco is a TFDS dataset of data/build\.py, which only the source 'tfds'"):
        combined_source("train", root=tmp_path)


def test_a_field_that_it_does_not_have_is_reported(root):
    with pytest.raises(UserError, match=r"source\.dataset: the source 'combined' has no .*did you mean datasets\?"):
        build_source(ConfigDict({"name": "combined", "root": str(root), "dataset": "refcoco"}), "train")


@pytest.mark.parametrize(
    ("split", "arguments", "message"),
    [
        ("train", {"datasets": ("refcoco",)}, "'refcoco' is not of the form DATASET/SPLIT_BY, such as refcoco/unc"),
        ("train", {"datasets": ("refcoco/unc", "refcoco/google")}, "name each dataset once"),
        ("train", {"sentence_field": "words"}, "sentence_field is 'words'; it must be one of: raw, sent"),
        ("train", {"held_out": ("refcocog/google",)}, r"refs\(google\)\.p not found"),
        ("flickr:val", {}, r"part 'flickr' not found; available: refcoco, refcoco\+, refcocog"),
        ("testA", {}, r"split 'testA' not found in .*refcocog/refs\(umd\)\.p; available: test"),
    ],
)
def test_what_does_not_fit_is_reported(root, split, arguments, message):
    with pytest.raises(UserError, match=message):
        combined_source(split, root=root, **arguments)


def test_the_real_sample_shares_no_image_between_splits_and_so_loses_none():
    root = refer_mini()
    if root is None:
        pytest.skip("no real sample: set S2RM_REFER_MINI to its folder (data/refer_mini/README.md)")
    assert len(combined_source("train", root=root, datasets=("refcoco/mini",))) == 44
    assert len(evaluation_images(root, [("refcoco", "mini")])) == 90 - 44


@pytest.mark.parametrize("id", [[100], ...])
def test_a_wrong_id_of_an_image_in_an_evaluation_split_is_reported(tmp_path, id):
    def edit(refs, instances):
        ref = next(one for one in refs if one["split"] == "val")
        ref["image_id"] = id
        if id is ...:
            del ref["image_id"]

    root = write_refer_layout(tmp_path, edit=edit)
    with pytest.raises(UserError, match=r"image_id or ann_id is not a number or a string|has no 'image_id'"):
        combined_source("train", root=root, datasets=("refcoco/unc",))
