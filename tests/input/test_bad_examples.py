"""config.input.on_bad_example: examples that cannot be read stop the run, or are left out and counted."""

import itertools
import logging
from collections import Counter
from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from s2rm_jax.errors import UserError
from s2rm_jax.evaluation.evaluator import Evaluator
from s2rm_jax.evaluation.report import remarks
from s2rm_jax.input.custom import coco_json_source, json_lines_source
from s2rm_jax.input.encode import view_of
from s2rm_jax.input.example import Example, Expression
from s2rm_jax.input.mixture import MixtureSource
from s2rm_jax.input.pipeline import LeftOut, build_tokenizer, eval_batches, require_images, train_batches
from s2rm_jax.input.refer import ReferSource
from s2rm_jax.input.sources import build_source
from s2rm_jax.parallel.mesh import make_mesh
from s2rm_jax.training.loop import assemble
from tests.input.own_data_fixture import write_coco_json, write_json_lines
from tests.input.refer_fixture import COCO_NAME, FOLDER, HEIGHT, write_refer_layout
from tests.input.test_pipeline import Images, assert_same, small_config


class Damaged(Images):
    """Example 3 of 7 cannot be read, and of example 6 the second of three expressions has a damaged mask."""

    def __getitem__(self, index):
        if index == 3:
            raise UserError("the image 3.jpg is damaged")
        example = super().__getitem__(index)
        if index != 6:
            return example
        first, second, third = example.expressions
        damaged = Expression(second.text, {"size": [8, 12], "counts": [1]}, id=second.id)
        return Example(example.id, example.image, 8, 12, (first, damaged, third))


def skipping(**changes):
    config = small_config(**changes)
    config.input.on_bad_example = "skip"
    return config


def batches(count, config, source=None, **arguments):
    source = source or Damaged()
    return list(itertools.islice(train_batches(source, build_tokenizer(config, source), config, **arguments), count))


def test_training_stops_at_a_bad_example_unless_it_is_told_to_skip_it():
    with pytest.raises(UserError, match="is damaged"):
        batches(4, small_config())


def test_the_next_image_takes_the_place_of_a_bad_one_and_each_is_logged_once(caplog):
    left_out = LeftOut()
    with caplog.at_level(logging.WARNING):
        found = batches(14, skipping(), left_out=left_out)
    assert all(one.images.shape == (4, 8, 12, 3) for one in found)
    counts = Counter(int(image[0, 0, 0]) for one in found for image in one.images)
    assert counts[1] == counts[2] == counts[5] == 8  # 56 rows: 8 epochs
    assert (counts[3], counts[4]) == (0, 16)
    assert counts[6] < 8 < counts[0] and counts[6] + counts[0] == 16  # 6 where its damaged expression is not drawn
    assert "the image 3.jpg is damaged" in left_out.problems
    assert sorted(caplog.messages) == sorted(f"left out: {problem}" for problem in left_out.problems)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")  # Grain's workers; JAX warns about any fork
@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_with_bad_examples_resumes_exactly(workers):
    config, left_out = skipping(), LeftOut()
    config.input.augment.flip = config.input.augment.crop = 0.5
    straight = batches(8, config)
    config.input.workers = workers
    assert_same(straight[3:], batches(5, config, start=12, left_out=left_out))
    assert left_out.problems


def test_processes_share_batches_with_bad_examples():
    together = batches(5, skipping())
    parts = [batches(5, skipping(), process=(index, 2)) for index in range(2)]
    for whole, *shares in zip(together, *parts, strict=True):
        np.testing.assert_array_equal(np.concatenate([share.images for share in shares]), whole.images)


def test_data_without_a_good_example_ends_the_run():
    class Nothing(Images):
        def __getitem__(self, index):
            raise UserError(f"no image {index}")

    with pytest.raises(UserError, match=r"100 examples in a row cannot be used, the last one because: no image"):
        batches(1, skipping(), Nothing())


@pytest.mark.parametrize("k", [1, 2, 4])
@pytest.mark.parametrize("processes", [1, 2])
def test_an_evaluation_leaves_out_exactly_the_bad_expressions(k, processes):
    config, source = skipping(), Damaged()
    config.eval.expressions_per_image = k
    parts = [
        one
        for index in range(processes)
        for one in eval_batches(source, build_tokenizer(config, source), config, process=(index, processes))
    ]
    scored = [item.example.expressions[place].id for one in parts for item in one.items for place in item.positions]
    everything = [f"{i}-{j}" for i in range(7) for j in range(i % 4 + 1)]
    assert sorted(scored) == [id for id in everything if not id.startswith("3-") and id != "6-1"]
    problems = Counter(problem for one in parts for problem in one.problems)
    assert problems.pop("the image 3.jpg is damaged") == 4 and list(problems.values()) == [1]
    for one in parts:
        assert one.batch.valid.sum(1).tolist()[: len(one.items)] == [len(item.positions) for item in one.items]
        assert not one.batch.valid[len(one.items) :].any()


def test_the_report_says_how_many_expressions_were_left_out(colour_world, make_example, source_of, caplog):
    network, _, params, tokenizer, config = colour_world
    config.input.on_bad_example = "skip"
    good = make_example("good", ["red", "blue"], height=12, width=24)
    bad = Example("bad", b"no image", 12, 24, good.expressions)
    evaluator = Evaluator(network, tokenizer, config)
    report = evaluator(params, source_of([bad, good]))
    evaluator(params, source_of([bad, good]))
    assert (len(report.expressions), report.left_out) == (2, 2)
    assert any("left out because they could not be read" in line and "2" in line for line in remarks(report))
    assert len([line for line in caplog.messages if "left out: example bad" in line]) == 1
    config.input.on_bad_example = "stop"
    with pytest.raises(UserError, match="example bad"):
        Evaluator(network, tokenizer, config)(params, source_of([bad, good]))


def spoil(root):
    """Make image 100 one row higher than annotated, and cut image 101 off within its header."""
    folder = root / FOLDER
    Image.new("RGB", (64, 49)).save(folder / COCO_NAME.format(100))
    (folder / COCO_NAME.format(101)).write_bytes(b"\xff\xd8\xff\xe0")


def test_images_of_another_size_are_found_before_training_begins(tmp_path):
    config = small_config()
    source = ReferSource("train", root=write_refer_layout(tmp_path))
    require_images(source, config)
    spoil(tmp_path)
    expected = r"cannot be used: 2: .*100\.jpg has 64 x 49 pixels, its annotation says 64 x 48; .*101\.jpg .*=skip"
    with pytest.raises(UserError, match=expected) as raised:
        require_images(source, config)
    assert "\n" not in str(raised.value)
    with pytest.raises(UserError, match=r"cannot be used: 1: "):
        require_images(source, config, limit=1)
    require_images(source, skipping())
    mixed = MixtureSource({"a": Images(), "b": source})
    require_images(mixed, config, limit=7)
    with pytest.raises(UserError, match="cannot be used: 1: "):
        require_images(mixed, config, limit=8)


def test_the_first_image_of_a_split_may_be_the_missing_one(tmp_path):
    root = write_refer_layout(tmp_path)
    (root / FOLDER / COCO_NAME.format(100)).unlink()
    source = ReferSource("train", root=root)
    with pytest.raises(UserError, match=r"cannot be used: 1: image .*100\.jpg not found"):
        require_images(source, small_config())
    require_images(source, skipping())
    assert source[1].load_image().shape == (HEIGHT, 64, 3)


def test_images_that_no_training_step_could_draw_are_found_before_training_begins(tmp_path):
    """By their headers: too many pixels, or floating-point values."""
    root = write_refer_layout(tmp_path)
    Image.new("1", (9_000, 9_000)).save(root / FOLDER / COCO_NAME.format(100), "PNG")
    Image.new("F", (64, 48)).save(root / FOLDER / COCO_NAME.format(101), "TIFF")
    with pytest.raises(UserError, match=r"9000 x 9000 pixels, more than 80,000,000; .*101\.jpg has floating-point"):
        require_images(ReferSource("train", root=root), small_config())
    own = write_json_lines(tmp_path / "own")
    Image.new("F", (64, 48)).save(own / "images/1.png", "TIFF")
    with pytest.raises(UserError, match=r"line 4: .*images/1\.png has floating-point values of unknown range"):
        json_lines_source("train", root=own)


def test_own_data_of_another_size_than_its_entry_is_not_used(tmp_path):
    def edit(content):
        content["images"].append({**content["images"][0], "id": 9, "height": HEIGHT - 1})  # the same file
        content["annotations"][1]["image_id"] = 9

    source = coco_json_source("train", root=write_coco_json(tmp_path, edit), on_bad_example="skip")
    good = [example.id for example in source if not _problem(example)]
    bad = {example.id: _problem(example) for example in source if _problem(example)}
    assert good == ["0", "1"] and list(bad) == ["9"]
    assert "is 64 x 48 pixels, but its annotation says 64 x 47" in bad["9"]


def _problem(example):
    try:
        view_of(example, [0])
    except UserError as error:
        return str(error)
    return ""


def test_images_of_hub_datasets_are_checked_too(tmp_path):
    pytest.importorskip("pyarrow", reason="the extra [hf] is not installed")
    from s2rm_jax.input.huggingface import HuggingFaceSource
    from tests.input.huggingface_fixture import write_jxu

    root = write_refer_layout(tmp_path / "refer")
    source = HuggingFaceSource("train", path=write_jxu(root, tmp_path / "jxu"), root=root)
    require_images(source, small_config())
    spoil(root)
    with pytest.raises(UserError, match="cannot be used: 2: "):
        require_images(source, small_config())


def test_rotated_images_of_own_data_pass_the_check(tmp_path):
    root = write_json_lines(tmp_path)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(root / "images/0.png").rotate(90, expand=True).save(root / "images/0.png", exif=exif)
    require_images(json_lines_source("train", root=root, apply_exif=True), small_config())


def test_bad_files_of_own_data_are_left_out_with_their_lines(tmp_path, caplog):
    def edit(entries):
        entries[1]["polygon"] = [[1, 2, 3, 4]]
        entries[4]["image"] = "images/absent.png"

    root = write_json_lines(tmp_path, edit)
    with caplog.at_level(logging.WARNING):
        source = json_lines_source("train", root=root, on_bad_example="skip")
    assert "line 2: a polygon has 2 corners" in caplog.messages[0] and "line 5: image" in caplog.messages[1]
    assert [example.image.name for example in source._examples] == ["0.png", "1.png", "absent.png"]
    config = skipping()
    config.input.image_size = (48, 64)
    source.vocabulary = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "left", "one", "box", "on", "right", "dog")
    left_out = LeftOut()
    found = batches(6, config, source, left_out=left_out)
    assert len(found) == 6 and any("absent.png" in problem for problem in left_out.problems)


def with_mistakes(entries):
    """Leave out 5 expressions of train and, by what can be known, 2 of val."""
    entries[0]["expressions"] = ["the left one", " "]  # 2 of train
    entries[1]["polygon"] = [[64, 2, 90, 2, 90, 9]]  # 1 of train, outside of the image
    entries[4]["split"] = 7  # 1, of a split that is unknown
    entries[5]["polygon"] = "none"  # 1 of train
    entries[6]["mask"] = entries[6].pop("expressions")  # 1 of val


def test_own_data_counts_what_it_leaves_out_while_it_is_read(tmp_path):
    root = write_json_lines(tmp_path, with_mistakes)
    train, val = (json_lines_source(split, root=root, on_bad_example="skip") for split in ("train", "val"))
    assert [len(source.left_out) for source in (train, val)] == [5, 2]
    assert (
        train.left_out[0]
        == train.left_out[1]
        == f"{root / 'data.jsonl'}: line 1: the expression ' ' has no words; describe what to find"
    )
    assert MixtureSource({"a": train, "b": val}).left_out == train.left_out + val.left_out
    parts = ConfigDict({"a": {"name": "json_lines", "root": str(root), "weight": 2.0}})
    mixed = build_source(ConfigDict({"name": "mixture", "parts": parts}), "train", on_bad_example="skip")
    assert mixed.left_out == train.left_out
    path = root / "data.jsonl"
    path.write_text(path.read_text() + '{"image": \n')
    assert len(json_lines_source("train", root=root, on_bad_example="skip").left_out) == 6
    assert json_lines_source("train", root=write_json_lines(tmp_path / "good"), on_bad_example="skip").left_out == ()


def test_annotations_that_are_left_out_while_they_are_read_are_counted_too(tmp_path):
    def edit(content):
        del content["images"][0]["height"]
        content["annotations"][5]["segmentation"] = [[1, 2, 3, 4]]

    source = coco_json_source("train", root=write_coco_json(tmp_path, edit), on_bad_example="skip")
    assert len(source) == 1 and len(source.left_out) == 5  # the 4 of image 0, which has no size, and annotation 11


def test_the_report_counts_what_was_left_out_while_the_data_was_read(colour_world, tmp_path):
    network, _, params, tokenizer, config = colour_world
    root = write_json_lines(tmp_path, lambda entries: entries[6].update(polygon=[[1, 2]]))
    config.input.on_bad_example = "skip"
    source = json_lines_source("val", root=root, on_bad_example="skip")
    report = Evaluator(network, tokenizer, config)(params, source)
    assert (len(report.expressions), report.left_out) == (2, 2)


def test_a_run_counts_what_was_left_out_while_the_data_was_read(tmp_path):
    config = skipping()
    config.input.source = ConfigDict({"name": "json_lines", "root": str(write_json_lines(tmp_path, with_mistakes))})
    config.text.vocab, config.eval.every = str(tmp_path / "vocab.txt"), 0
    Path(config.text.vocab).write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "left"]))
    assert len(assemble(config, make_mesh(devices=jax.local_devices()[:1])).left_out) == 4  # lines
