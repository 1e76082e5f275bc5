"""Sources whose data moved after training."""

from pathlib import Path

import pytest
from ml_collections import ConfigDict

from s2rm_jax.errors import UserError
from s2rm_jax.input.sources import describe, with_data

ONE = {"name": "refer", "root": "old", "dataset": "refcoco"}
PARTS = {"a": {"name": "refer", "root": "old", "weight": 1.0}, "shapes": {"name": "synthetic", "weight": 1.0}}
TWO = {"name": "mixture", "parts": {**PARTS, "mine": {"name": "json_lines", "root": "old"}}}


def moved(source, *moves):
    config = ConfigDict({"source": source})
    config.lock()
    config.source = with_data(config.source, moves)
    assert config.source.name == source["name"]
    return config.source.to_dict()


def test_a_folder_alone_is_the_root_where_there_is_one():
    assert moved(ONE, "new") == ONE | {"root": "new"}
    assert moved(ONE, "/a=b") == ONE | {"root": "/a=b"}
    part = moved({"name": "mixture", "parts": PARTS}, "new")["parts"]
    assert part == {**PARTS, "a": PARTS["a"] | {"root": "new"}}


def test_folders_can_be_named():
    assert moved(ONE, "new", "image_root=images") == ONE | {"root": "new", "image_root": "images"}
    parts = moved(TWO, "parts.a.image_root=there", "parts.mine.root=new")["parts"]
    assert parts["a"] == PARTS["a"] | {"image_root": "there"}
    assert parts["mine"] == {"name": "json_lines", "root": "new"}


def test_the_dataset_and_its_splits_can_be_named():
    assert moved(ONE, "new", "dataset=refcoco+", "split_by=umd") == (
        ONE | {"root": "new", "dataset": "refcoco+", "split_by": "umd"}
    )
    parts = moved(TWO, "parts.a.split_by=google")["parts"]
    assert parts["a"] == PARTS["a"] | {"split_by": "google"}


def test_the_field_of_the_expressions_and_the_rule_for_overlaps_can_be_given():
    assert moved(ONE, "overlap=drop", "sentence_field=sent") == ONE | {"overlap": "drop", "sentence_field": "sent"}
    assert moved(TWO, "parts.a.overlap=drop")["parts"]["a"] == PARTS["a"] | {"overlap": "drop"}
    assert describe(with_data(ConfigDict(ONE), ["overlap=drop"]), "testA")["overlap"] == "drop"


def test_the_settings_of_a_source_include_its_defaults():
    assert describe(ConfigDict(ONE), "testA") == {
        "source": "refer",
        "dataset": "refcoco",
        "split_by": "unc",
        "split": "testA",
        "root": str(Path("old").absolute()),
        "image_root": "",
        "overlap": "union",
        "sentence_field": "raw",
        "limit_referents": 0,
        "leave_out": [],
    }
    both = ConfigDict(
        {"name": "combined", "root": "old", "datasets": ("refcoco/unc", "refcocog/umd"), "overlap": "drop"}
    )
    part = describe(both, "refcocog:val")
    assert {part[name] for name in ("source", "dataset", "split_by", "split", "overlap")} == {
        "refer", "refcocog", "umd", "val", "drop",
    }  # fmt: skip
    assert describe(both, "val")["datasets"] == ["refcoco/unc", "refcocog/umd"]
    assert describe(ConfigDict(TWO), "a:val")["source"] == "refer"
    absolute = {**PARTS, "a": PARTS["a"] | {"root": str(Path("old").absolute())}}
    assert describe(ConfigDict(TWO | {"parts": PARTS}), "val")["parts"] == absolute


@pytest.mark.parametrize(
    ("source", "move", "message"),
    [
        ({"name": "synthetic"}, "dataset=refcoco", "the source 'synthetic' of this run has no field 'dataset'"),
        (TWO, "dataset=refcoco", "the source 'mixture' of this run has no field 'dataset'"),
        (TWO, "parts.yours.dataset=refcoco", "has no field 'parts.yours.dataset'"),
        (TWO, "parts.mine.split_by=unc", "has no field 'parts.mine.split_by'"),
        (TWO, "parts.mine.overlap=drop", "has no field 'parts.mine.overlap'"),
        (
            TWO,
            "new",
            "has no folder 'root'; use one of: --data parts.a.root=DIR, --data parts.a.image_root=DIR, .*mine",
        ),
        (TWO, "parts.yours.root=new", "has no folder 'parts.yours.root'; use one of: --data parts.a.root=DIR"),
        ({"name": "synthetic"}, "new", "the source 'synthetic' of this run has no folder 'root'; it reads no files"),
        ({"name": "mixture", "parts": {"a": {"name": "synthetic"}}}, "new", "it reads no files"),
    ],
)
def test_what_cannot_have_moved_is_reported(source, move, message):
    with pytest.raises(UserError, match=f"--data {move}: .*{message}"):
        moved(source, move)


def test_folders_are_offered_only_where_the_source_has_them():
    lines = {"name": "json_lines", "root": "old"}
    mixture = {"name": "mixture", "parts": {"a": lines, "b": {"name": "coco_json", "root": "old"}}}
    for source, offered in (
        (lines, "--data root=DIR"),
        (mixture, "--data parts.a.root=DIR, --data parts.b.root=DIR, --data parts.b.image_root=DIR"),
    ):
        with pytest.raises(UserError, match=f"use one of: {offered}$"):
            with_data(ConfigDict(source), ["path=new"])


def test_a_tilde_in_a_folder_is_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    source = ConfigDict({"name": "coco_json", "root": "old"})
    for given in ("~/x", "root=~/x"):
        assert with_data(source, [given]).root == "/home/me/x"
    assert with_data(source, ["image_root=~/y"]).image_root == "/home/me/y"


def test_a_path_through_a_plain_field_is_refused():
    with pytest.raises(UserError, match=r"--data name\.dataset=x: .* has no field 'name\.dataset'; leave it out"):
        with_data(ConfigDict({"name": "refer", "root": "a"}), ["name.dataset=x"])
