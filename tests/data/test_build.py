"""The build command: its output and exit status, and builds that are complete or absent."""

from __future__ import annotations

import importlib
import shutil

import pytest

from data.build import DEFAULT_SPLIT_BY, build
from s2rm_jax.errors import UserError
from s2rm_jax.input.tfds import BUILDER_NAMES
from tests.command import run_command
from tests.input import refer_fixture
from tests.input.refer_fixture import COCO_NAME, FOLDER

pytest.importorskip("tensorflow_datasets", reason="the extra [tfds] is not installed")


def test_the_command_builds_once_and_says_so(tmp_path):
    root, out = refer_fixture.write_refer_layout(tmp_path / "data"), tmp_path / "out"
    asked = ("--dataset=refcoco", f"--root={root}", f"--out={out}")
    first = run_command("data.build", *asked)
    assert (first.returncode, first.stderr) == (0, "")
    assert first.stdout.startswith(f"{out}/refcoco/unc/1.0.0: ") and first.stdout.endswith(" MB\n")
    second = run_command("data.build", *asked)
    assert second.returncode == 2
    assert second.stderr == f"error: {out}/refcoco/unc/1.0.0 exists already; remove it to build it again\n"
    assert [path.name for path in out.iterdir()] == ["refcoco"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "COCO_train2014_000000000101.jpg of refcoco train is missing"),
        (
            lambda path: path.write_bytes(path.read_bytes()[:400]),
            r"damaged images in .*101\.jpg .*run data/check\.py",
        ),
        (lambda path: path.write_bytes(refer_fixture.HEIGHT.to_bytes(1, "big")), r"damaged images in .*101\.jpg"),
    ],
)
def test_a_build_that_fails_leaves_nothing_and_can_be_repeated(tmp_path, damage, message):
    root = refer_fixture.write_refer_layout(tmp_path / "data")
    image = root / FOLDER / COCO_NAME.format(101)
    whole = image.read_bytes()
    damage(image)
    with pytest.raises(UserError, match=message):
        build("refcoco", root, tmp_path / "out", quiet=True)
    assert not (tmp_path / "out").exists()
    image.write_bytes(whole)
    assert (build("refcoco", root, tmp_path / "out", quiet=True) / "dataset_info.json").is_file()


def test_images_may_lie_elsewhere(tmp_path):
    root = refer_fixture.write_refer_layout(tmp_path / "data", image_folder="../coco/train2014")
    assert build("refcoco", root, tmp_path / "out", image_root=tmp_path / "coco", quiet=True).is_dir()


@pytest.mark.parametrize(
    ("root", "split_by", "message"),
    [
        ("nowhere", "", "--root: the folder .*nowhere does not exist"),
        ("data", "google", r"refs\(google\)\.p not found; similar files in .*: refs\(unc\)\.p"),
    ],
)
def test_what_is_missing_is_named(tmp_path, root, split_by, message):
    refer_fixture.write_refer_layout(tmp_path / "data")
    with pytest.raises(UserError, match=message):
        build("refcoco", tmp_path / root, tmp_path / "out", split_by=split_by, quiet=True)
    assert not (tmp_path / "out").exists()


def test_a_build_that_fails_touches_no_other(tmp_path):
    root = refer_fixture.write_refer_layout(tmp_path / "data")
    folder = build("refcoco", root, tmp_path / "out", quiet=True)
    built = sorted(folder.rglob("*"))
    shutil.copy(root / "refcoco" / "refs(unc).p", root / "refcoco" / "refs(google).p")
    (root / FOLDER / COCO_NAME.format(101)).write_bytes(b"")
    with pytest.raises(UserError, match="damaged images"):
        build("refcoco", root, tmp_path / "out", split_by="google", quiet=True)
    assert sorted(folder.rglob("*")) == built
    assert sorted(path.name for path in (tmp_path / "out" / "refcoco").iterdir()) == [".config", "unc"]


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    root = refer_fixture.write_refer_layout(tmp_path / "data")
    (tmp_path / "out").write_text("a file")
    with pytest.raises(UserError, match=r"cannot write .*out/refcoco/unc/1\.0\.0: .*give another --out"):
        build("refcoco", root, tmp_path / "out", quiet=True)


@pytest.mark.parametrize("dataset", DEFAULT_SPLIT_BY)
def test_every_dataset_has_a_card_that_tfds_reads(dataset):
    from tensorflow_datasets.core.dataset_metadata import valid_tags

    name = BUILDER_NAMES.get(dataset, dataset)
    builder = importlib.import_module(f"data.{name}.{name}_dataset_builder").Builder
    assert (builder.name, builder.FOLDER) == (name, dataset)
    assert DEFAULT_SPLIT_BY[dataset] in builder.builder_configs
    card = builder.get_metadata()
    assert f"--dataset {dataset} " in card.description and card.citation.startswith("@inproceedings")
    assert card.tags and set(card.tags) <= set(valid_tags())
