"""Sources by name: invalid fields, and missing files that are found before reading."""

from __future__ import annotations

from pathlib import Path

import pytest
from ml_collections import ConfigDict

from s2rm_jax.errors import UserError
from s2rm_jax.input import sources
from s2rm_jax.input.sources import build_source, find_source
from tests.input.own_data_fixture import write_json_lines
from tests.input.refer_fixture import write_refer_layout


def test_a_field_that_a_source_does_not_have_is_told_and_a_defect_within_a_source_keeps_its_traceback(monkeypatch):
    with pytest.raises(
        UserError, match=r"source\.files: the source 'json_lines' has no such field; did you mean file\?"
    ):
        build_source(ConfigDict({"name": "json_lines", "root": "x", "files": "y"}), "train")
    with pytest.raises(UserError, match=r"input\.source has no field 'root', which the source 'refer' needs"):
        build_source(ConfigDict({"name": "refer"}), "train")

    def broken(split, *, root):
        raise TypeError("a defect")

    monkeypatch.setitem(sources.SOURCES, "refer", broken)
    with pytest.raises(TypeError, match="a defect"):
        build_source(ConfigDict({"name": "refer", "root": "x"}), "train")


@pytest.fixture
def settings(tmp_path):
    """Settings of sources whose files are there."""
    refer, mine = str(write_refer_layout(tmp_path / "refer")), str(write_json_lines(tmp_path / "mine"))
    parts = {"a": {"name": "refer", "root": refer, "weight": 2.0}, "b": {"name": "json_lines", "root": mine}}
    return {
        "synthetic": {"name": "synthetic"},
        "refer": {"name": "refer", "root": refer},
        "json_lines": {"name": "json_lines", "root": mine},
        "combined": {"name": "combined", "root": refer, "datasets": ("refcoco/unc",)},
        "mixture": {"name": "mixture", "parts": parts},
    }


OWN = """
from s2rm_jax.input.example import Example, Expression, Source

class Mine(Source):
    def __init__(self, split, *, root, length: int = 3):
        self.split, self.root, self.length = split, root, length

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        raise IndexError(index)

    def referents(self, index):
        return ((0,),)

def a_function(split):
    raise AssertionError("called")

class Other:
    def __init__(self, split):
        raise AssertionError("called")
"""


def test_a_source_of_ones_own_is_found_by_its_module_and_class(tmp_path, monkeypatch):
    (tmp_path / "my_sources.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    fields = {"name": "my_sources:Mine", "root": "data"}
    find_source(ConfigDict(fields), "train")
    source = build_source(ConfigDict(fields), "train", training=True)
    assert (type(source).__name__, source.split, source.root, len(source)) == ("Mine", "train", "data", 3)
    assert sources.with_defaults(fields) == fields | {"length": 3}
    assert sources.with_data(ConfigDict(fields), ["elsewhere"]).root == "elsewhere"
    parts = ConfigDict({"name": "mixture", "parts": {"mine": fields | {"weight": 2.0}}})
    assert len(build_source(parts, "train", training=True)) == 3
    with pytest.raises(UserError, match=r"the source 'my_sources:Mine' has no such field; did you mean length\?"):
        build_source(ConfigDict(fields | {"lenght": 4}), "train")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("my_sources:Yours", "which cannot be imported .module 'my_sources' has no attribute 'Yours'.; start python"),
        ("no_module:Mine", "which cannot be imported .No module named 'no_module'.; start python"),
        ("my_sources:a_function", "which is not a subclass of Source"),
        ("my_sources:Other", "which is not a subclass of Source"),
        ("my_sources:", "it must be one of: .*synthetic, tfds; or 'package.module:Class'"),
        (".my_sources:Mine", "it must be one of: "),
    ],
)
def test_a_source_of_ones_own_that_is_not_there_is_named(tmp_path, monkeypatch, name, message):
    (tmp_path / "my_sources.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UserError, match=f"config.input.source.name is {name!r}.*{message}"):
        build_source(ConfigDict({"name": name}), "train")


def test_what_is_there_is_found(settings):
    for fields in settings.values():
        find_source(ConfigDict(fields), "train")


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("refer", {"root": ""}, r"source\.root is empty"),
        ("refer", {"root": "/nowhere"}, "the folder of the data, /nowhere, does not exist"),
        ("refer", {"split_by": "google"}, r"refs\(google\)\.p not found"),
        (
            "refer",
            {"splitby": "unc"},
            r"source\.splitby: the source 'refer' has no such field; did you mean split_by\?",
        ),
        ("refer", {"xyz": 1}, r"source\.xyz: the source 'refer' has no such field; it has root, dataset, split_by, "),
        ("refer", {"root": 5}, r"source\.root is 5; it must be a path"),
        ("refer", {"limit_referents": True}, r"source\.limit_referents is True; it must be an integer"),
        ("json_lines", {"apply_exif": "False"}, r"source\.apply_exif is 'False'; it must be true or false"),
        ("json_lines", {"file": None}, r"source\.file is None; it must be a string"),
        ("refer", {"image_root": None, "root": Path("/nowhere")}, "the folder of the data, /nowhere, does not exist"),
        ("combined", {"datasets": "refcoco/unc"}, r"source\.datasets is 'refcoco/unc'; it must be a list of strings"),
        ("combined", {"datasets": (1,)}, r"source\.datasets is \(1,\); it must be a list of strings"),
        ("combined", {"datasets": ("refcoco/unc", "refcocog/umd")}, "refcocog does not exist"),
        ("combined", {"root": ""}, r"source\.root is empty"),
        ("json_lines", {"file": "other.jsonl"}, r"file .*other\.jsonl not found"),
        ("json_lines", {"name": "coco_json"}, r"file .*annotations\.json not found"),
        ("json_lines", {"name": "tfds"}, r"refcoco/unc has no prepared dataset"),
        ("mixture", {"parts": {"a": {"name": "refer", "root": "/nowhere"}}}, "/nowhere, does not exist"),
        ("mixture", {"parts": {"a": 3}}, "parts of a mixture must be a ConfigDict"),
    ],
)
def test_missing_files_are_reported_as_the_source_reports_them(settings, name, change, message):
    config = ConfigDict(settings[name] | change)
    for look in (find_source, build_source):
        with pytest.raises(UserError, match=message):
            look(config, "train")


def test_data_on_a_bucket_is_refused():
    config = ConfigDict({"name": "refer", "root": "gs://bucket/refer"})
    with pytest.raises(UserError, match=r"the root of the source 'refer' is gs://bucket/refer, but data is read from"):
        find_source(config, "train")


def test_nothing_is_read_in_looking(settings, tmp_path):
    (tmp_path / "refer/refcoco/instances.json").write_text("{")
    (tmp_path / "mine/data.jsonl").write_text("{")
    for fields in settings.values():
        find_source(ConfigDict(fields), "train")
