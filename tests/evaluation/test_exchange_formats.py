"""Results in the formats of other programs: pycocotools reads them, and their figures are ours."""

import io
import json
import re
import uuid
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from s2rm_jax.errors import UserError
from s2rm_jax.evaluation.evaluation_files import EvaluationFiles
from s2rm_jax.evaluation.evaluator import Evaluator
from s2rm_jax.evaluation.exchange_formats import (
    check_address,
    encode_brush,
    find_naming,
    mask_entry,
    write_coco,
    write_label_studio,
)
from s2rm_jax.evaluation.gallery import Cases
from s2rm_jax.evaluation.protocols import ORIGINAL, PROTOCOLS
from s2rm_jax.input.example import Example, Expression
from s2rm_jax.input.masks import decode_rle
from s2rm_jax.input.mixture import MixtureSource
from s2rm_jax.parallel import distributed

# COCOeval of pycocotools 2.0 uses names that NumPy 2 warns of, and makes integers of arrays.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
EVERYTHING = {"coco": True, "label_studio": "/data/local-files/?d=images", "save_masks": True}


def evaluate(world, source, out, protocol=ORIGINAL, **formats):
    """Evaluate a source with the files for other programs; return the report."""
    network, _, params, tokenizer, config = world
    out.mkdir(exist_ok=True)
    with EvaluationFiles(out, **{**EVERYTHING, **formats}) as files:
        report = Evaluator(network, tokenizer, config, protocol)(params, source, record=files.record)
        files.write(report.records)
    return report


@pytest.fixture
def varied(make_example, source_of):
    """Images of several sizes with more expressions than K, of IoU 0.75, 0.125 and 0, and one that has no referent."""
    examples = []
    for number, (height, width) in enumerate([(4, 8), (12, 24), (16, 8)]):
        texts = ["the red part", "blue", "green", "the red part", "red"][: 3 + number]
        example = make_example(str(581857 + number), texts, height, width)
        nothing = Expression("green", [], id=f"{number}-nothing")
        examples.append(replace(example, expressions=(*example.expressions, nothing)))
    return source_of(examples)


def read(path):
    with Image.open(path) as image:
        return np.asarray(image)


def load(out):
    """Return the true masks and the results, as pycocotools loads them, and the entries of the results."""
    truth = COCO(out / "coco_truth.json")
    return truth, truth.loadRes(str(out / "coco_results.json")), json.loads((out / "coco_results.json").read_text())


def test_pycocotools_computes_our_figures(colour_world, varied, tmp_path, capsys):
    report = evaluate(colour_world, varied, tmp_path)
    truth, results, entries = load(tmp_path)
    assert [entry["image_id"] for entry in entries] == [581857] * 4 + [581858] * 5 + [581859] * 6
    assert [entry["expression"] for entry in entries] == [one.expression for one in report.expressions]
    assert [entry["expression_id"] for entry in entries] == [one.id for one in report.expressions]
    assert all(isinstance(entry["segmentation"]["counts"], str) for entry in entries)

    evaluation = COCOeval(truth, results, "segm")
    evaluation.evaluate()
    evaluation.accumulate()
    targeted = [score for score in report.expressions if score.targeted]
    ious = [float(pair[0, 0]) for pair in evaluation.ious.values() if np.shape(pair) == (1, 1)]
    assert sorted(ious) == pytest.approx(sorted(score.iou for score in targeted))
    assert 100 * np.mean(ious) == pytest.approx(report.metrics["mean_iou"] * len(report.expressions) / len(targeted))
    overall = [image for image in evaluation.evalImgs if image and image["aRng"] == [0, 1e10]]
    for threshold in (0.5, 0.6, 0.7, 0.8, 0.9):
        row = int(np.argmin(np.abs(evaluation.params.iouThrs - threshold)))
        hits = sum(int((image["dtMatches"][row] > 0).sum()) for image in overall)
        assert hits == sum(score.iou >= threshold for score in targeted)
    # The first expression of each image: IoU 0.75 three times, so AP is 1 up to that threshold and 0 above.
    precision = evaluation.eval["precision"][:, :, 0, 0, 0].mean(axis=1)
    np.testing.assert_allclose(precision, (evaluation.params.iouThrs <= 0.75 + 1e-9).astype(float))
    assert "AP" not in capsys.readouterr().err


def test_an_expression_without_a_referent_has_an_entry_and_no_true_mask(colour_world, varied, tmp_path):
    evaluate(colour_world, varied, tmp_path)
    truth, _, entries = load(tmp_path)
    nothing = [entry for entry in entries if entry["expression_id"].endswith("nothing")]
    assert [(entry["score"], entry["area"], entry["bbox"]) for entry in nothing] == [(0.0, 0, [0, 0, 0, 0])] * 3
    assert [decode_rle(entry["segmentation"], *entry["segmentation"]["size"]).any() for entry in nothing] == [False] * 3
    known = {annotation["expression_id"] for annotation in truth.dataset["annotations"]}
    assert len(known) == len(entries) - 3 and not any(id.endswith("nothing") for id in known)


@pytest.mark.parametrize("protocol", ["lavt480", "cris", "rela_gref"])
def test_masks_have_the_size_of_the_image_under_every_protocol(colour_world, varied, tmp_path, protocol):
    evaluate(colour_world, varied, tmp_path, PROTOCOLS[protocol], save_masks=False)
    truth, _, entries = load(tmp_path)
    for entry in entries:
        height, width = entry["segmentation"]["size"]
        image = truth.imgs[entry["image_id"]]
        assert (height, width) == (image["height"], image["width"])
        mask = decode_rle(entry["segmentation"], height, width)
        assert entry["area"] == mask.sum()
        if "red" in entry["expression"] and protocol != "cris":
            np.testing.assert_array_equal(mask, np.arange(width) < 3 * width // 8 * np.ones((height, 1)))


def test_the_score_is_that_of_the_segmenter(colour_world, segmenter, make_example, source_of, tmp_path):
    example = make_example("a", ["red", "blue"], 20, 24)
    evaluate(colour_world, source_of([example]), tmp_path)
    _, _, entries = load(tmp_path)
    result = segmenter.segment(example.image, ["red", "blue"])
    assert [entry["score"] for entry in entries] == pytest.approx(result.scores.tolist(), abs=1e-4)


def test_images_without_a_number_are_numbered_and_written(colour_world, make_example, source_of, tmp_path):
    names = ["a", "a/b", "ä" * 300, "../../c", "x\udce9"]
    source = source_of([make_example(name, ["red"]) for name in names])
    evaluate(colour_world, source, tmp_path, save_masks=False)
    truth, _, entries = load(tmp_path)
    assert [entry["image_id"] for entry in entries] == [1, 2, 3, 4, 5]
    assert truth.dataset["info"]["image_root"] == str(tmp_path / "images")
    for image, example in zip(truth.dataset["images"], source, strict=True):
        np.testing.assert_array_equal(read(tmp_path / "images" / image["file_name"]), example.image)


def records_of(paths, **fields):
    mask = np.eye(4, 6, dtype=bool)
    entry = {"expression": 'the <red> & 赤 "one"', "score": 0.75, **mask_entry(mask)}
    return [{"image": str(path), "width": 6, "height": 4, "results": [entry], **fields} for path in paths]


@pytest.mark.parametrize(
    ("names", "ids"),
    [
        (["COCO_train2014_000000000072.jpg", "val2017/000000581857.jpg"], [72, 581857]),
        (["COCO_train2014_000000000072.jpg", "cat.jpg"], [1, 2]),
        (["a/000000000072.jpg", "b/000000000072.jpg"], [1, 2]),  # not COCO's
    ],
)
def test_ids_are_those_of_coco_if_every_image_has_one(tmp_path, names, ids):
    records = records_of(tmp_path / name for name in names)
    naming = find_naming(records)
    write_coco(tmp_path, lambda: records, naming)
    images = json.loads((tmp_path / "coco_images.json").read_text())["images"]
    assert [image["id"] for image in images] == ids
    assert [f"{naming.root}/{image['file_name']}" for image in images] == [str(tmp_path / name) for name in names]
    assert COCO(tmp_path / "coco_images.json").loadRes(str(tmp_path / "coco_results.json")).getImgIds() == ids


def decode_brush(code, size):
    """Read the bits of a brush mask one after the other, as Label Studio's description of the format says."""
    bits = "".join(f"{byte:08b}" for byte in code)
    place = 0

    def read(count):
        nonlocal place
        place += count
        return int(bits[place - count : place], 2)

    number, value_bits, *length_bits = read(32), read(5) + 1, *(read(4) + 1 for _ in range(4))
    values = []
    while len(values) < number:
        is_run, length = read(1), read(length_bits[read(2)]) + 1
        values += [read(value_bits)] * length if is_run else [read(value_bits) for _ in range(length)]
    assert len(bits) - place < 8
    image = np.array(values).reshape(*size, 4)
    assert (image == image[..., :1]).all() and set(np.unique(image)) <= {0, 255}
    return image[..., 3] > 0


@given(arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=20)))
def test_a_brush_mask_decodes_to_the_mask(mask):
    np.testing.assert_array_equal(decode_brush(encode_brush(mask), mask.shape), mask)


@pytest.mark.parametrize("filled", [0, 2, 4, 16_384, 16_385, 40_000])
def test_long_runs_of_a_brush_mask_are_split(filled):
    mask = np.arange(40_000).reshape(200, 200) < filled
    np.testing.assert_array_equal(decode_brush(encode_brush(mask), mask.shape), mask)


def test_label_studio_gets_a_task_per_image_with_a_region_per_mask(tmp_path):
    paths = [tmp_path / "a b" / "é#1.png", "https://example.org/x.png", tmp_path / "c?.png"]
    records = records_of(paths)
    empty = {"expression": "nothing", "score": 0.0, **mask_entry(np.zeros((4, 6), bool))}
    records[0]["results"].append(empty)
    write_label_studio(tmp_path, records, find_naming(records), "/data/local-files/?d=images")
    tasks = json.loads((tmp_path / "label_studio/tasks-0001.json").read_text())
    assert [task["data"]["image"] for task in tasks] == [
        "/data/local-files/?d=images/a%20b/%C3%A9%231.png",
        "https://example.org/x.png",
        "/data/local-files/?d=images/c%3F.png",
    ]
    assert tasks[0]["data"]["expressions"] == '1. the <red> & 赤 "one"\n2. nothing'
    (prediction,) = tasks[0]["predictions"]
    mask, text = prediction["result"]  # none for the empty mask
    assert mask["id"] == text["id"] and prediction["score"] == 0.375
    assert text["value"] == {"text": ['the <red> & 赤 "one"']}
    np.testing.assert_array_equal(decode_brush(mask["value"]["rle"], (4, 6)), np.eye(4, 6, dtype=bool))
    config = (tmp_path / "label_studio/config.xml").read_text()
    for item in (mask, text):
        assert f'name="{item["from_name"]}" toName="{item["to_name"]}"' in config
        assert (item["original_width"], item["original_height"]) == (6, 4)
    assert f'<Label value="{mask["value"]["brushlabels"][0]}"' in config
    *_, expression = elements = list(ElementTree.fromstring(config))
    assert [element.tag for element in elements] == ["Text", "Image", "BrushLabels", "TextArea"]
    assert (expression.get("perRegion"), expression.get("displayMode")) == ("true", "region-list")


def test_many_tasks_are_in_several_files(tmp_path, monkeypatch):
    monkeypatch.setattr("s2rm_jax.evaluation.exchange_formats._TASKS_PER_FILE", 2)
    for count in (5, 3):
        records = records_of(tmp_path / f"{number}.png" for number in range(count))
        write_label_studio(tmp_path, records, find_naming(records), "/images")
        files = sorted((tmp_path / "label_studio").glob("*.json"))
        assert [len(json.loads(file.read_text())) for file in files] == ([2, 2, 1] if count == 5 else [2, 1])


@pytest.mark.parametrize("prefix", ["", "images", "C:\\images"])
def test_a_prefix_that_is_not_an_address_is_an_error(prefix):
    with pytest.raises(UserError, match=rf"^--label_studio: {re.escape(prefix)} is not the beginning of the addresses"):
        check_address(prefix)


def test_masks_are_in_the_layout_of_cris(colour_world, make_example, source_of, tmp_path):
    words = ["the red part", "red/../blue", "red " * 80, "red ?", "red /"]
    example = make_example("7", words)
    expressions = [replace(one, referent="12") for one in example.expressions]
    source = source_of([replace(example, expressions=(*expressions, Expression("green", [], id="40")))])
    evaluate(colour_world, source, tmp_path)
    names = sorted(path.name for path in (tmp_path / "vis").iterdir())
    known = {"12-img.jpg", "12-mask.png", "12-iou=75.00-the_red_part.png", "40-img.jpg", "40-mask.png"}
    assert known | {"40-iou=0.00-green.png"} <= set(names) and len(names) == 3 * 2 + 4
    true, found = (read(tmp_path / "vis" / name) for name in ("12-mask.png", "12-iou=75.00-the_red_part.png"))
    np.testing.assert_array_equal(true, 255 * (np.arange(8) < 4) * np.ones((4, 1)))
    np.testing.assert_array_equal(found, 255 * (np.arange(8) < 3) * np.ones((4, 1)))
    assert not read(tmp_path / "vis/40-iou=0.00-green.png").any()
    assert read(tmp_path / "vis/12-img.jpg").shape == (4, 8, 3)


def test_referents_of_two_datasets_are_not_mixed(colour_world, make_example, source_of, tmp_path):
    examples = {}
    for name, height in (("refcoco", 4), ("refcoco+", 8)):
        example = make_example("7", ["red"], height, 8)
        expressions = tuple(replace(one, referent="12") for one in example.expressions)
        examples[name] = source_of([replace(example, expressions=expressions)])
    evaluate(colour_world, MixtureSource(examples), tmp_path, save_masks=True)
    assert sorted(read(path).shape for path in (tmp_path / "vis").glob("*-mask.png")) == [(4, 8), (8, 8)]


def test_another_evaluation_in_the_same_folder_leaves_no_file_of_the_first(colour_world, varied, tmp_path):
    evaluate(colour_world, varied, tmp_path)
    (tmp_path / "metrics.json").write_text("{}")  # of its report
    (tmp_path / "vis/mine.png").write_text("")
    evaluate(colour_world, type(varied)(varied[:1]), tmp_path, coco=False, label_studio="")
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"vis", "images", "metrics.json"}
    assert len(list((tmp_path / "vis").glob("*-iou=*"))) == 4 and (tmp_path / "vis/mine.png").exists()


def test_files_of_cris_itself_are_kept(colour_world, varied, tmp_path):
    (tmp_path / "vis").mkdir()
    (tmp_path / "vis/12-mask.png").write_text("of CRIS")
    evaluate(colour_world, varied, tmp_path, save_masks=False)
    assert (tmp_path / "vis/12-mask.png").read_text() == "of CRIS"


def test_an_image_of_an_earlier_evaluation_is_not_taken_for_that_of_another_dataset(
    colour_world, make_example, source_of, tmp_path
):
    first = make_example("7", ["red", "blue"])
    for image in (first.image, 255 - first.image, first.image):
        evaluate(colour_world, source_of([replace(first, image=image)]), tmp_path, save_masks=False)
        ((described,), _) = images_of(tmp_path)
        np.testing.assert_array_equal(read(tmp_path / "images" / described["file_name"]), image)
    assert len(list((tmp_path / "images").iterdir())) == 2


def images_of(out):
    """Return the images and the ids that pycocotools reads."""
    truth, _, _ = load(out)
    return truth.dataset["images"], truth.getImgIds()


def test_stored_images_keep_their_bytes_and_get_the_suffix_of_their_format(
    colour_world, make_example, source_of, tmp_path
):
    example, examples = make_example("COCO_train2014_000000000072", ["red"], 16, 16), []
    for number, kind in enumerate(("PNG", "JPEG", "MPO"), start=72):
        buffer = io.BytesIO()
        more = {"save_all": True, "append_images": [Image.new("RGB", (16, 16))]} if kind == "MPO" else {}
        Image.fromarray(example.image).save(buffer, kind, **more)
        examples.append(replace(example, id=f"COCO_train2014_{number:012d}", image=buffer.getvalue()))
    evaluate(colour_world, source_of(examples), tmp_path, save_masks=False)
    images, ids = images_of(tmp_path)
    assert ids == [72, 73, 74]
    assert [image["file_name"].rpartition(".")[2] for image in images] == ["png", "jpg", "jpg"]
    contents = [(tmp_path / "images" / image["file_name"]).read_bytes() for image in images]
    assert contents == [example.image for example in examples]


def test_long_names_fit_into_a_file_name(colour_world, make_example, source_of, tmp_path):
    example = make_example("7", ["red " * 80, "赤" * 100])
    expressions = [
        replace(one, referent=f"{'é' * 80}{number}" if number else str(uuid.UUID(int=0)))
        for number, one in enumerate(example.expressions)
    ]
    evaluate(colour_world, source_of([replace(example, expressions=tuple(expressions))]), tmp_path)
    names = [path.name for path in (tmp_path / "vis").iterdir()]
    assert len(names) == 6 and max(len(name.encode()) for name in names) <= 255
    assert sum(name.startswith(f"{uuid.UUID(int=0)}-iou=") for name in names) == 1


def test_a_folder_that_the_processes_do_not_share_is_an_error(tmp_path, monkeypatch):
    """Seen from a process whose folder is not that of the first one, which makes a file there."""
    monkeypatch.setattr(distributed, "is_first", lambda: False)
    with pytest.raises(UserError, match=rf"^--out: {tmp_path} must be a folder that all processes share\. "):
        EvaluationFiles(tmp_path, coco=False, label_studio="", save_masks=True)


def test_a_process_that_fails_keeps_the_masks_of_the_others(tmp_path, monkeypatch):
    partial = tmp_path / ".vis.partial"
    with EvaluationFiles(tmp_path, coco=False, label_studio="", save_masks=True) as files:
        (partial / "mask").touch()
        assert [path.name for path in partial.iterdir()] == ["mask"]
        with monkeypatch.context() as patch:
            patch.setattr(distributed, "is_first", lambda: False)
            files.__exit__()
            assert (partial / "mask").exists()
    assert not partial.exists()


def test_an_evaluation_that_fails_changes_nothing(colour_world, varied, tmp_path):
    evaluate(colour_world, varied, tmp_path)

    def files():
        return {path.relative_to(tmp_path): path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}

    before = files()
    bad = replace(varied[1], image=b"no image")
    with pytest.raises(UserError):
        evaluate(colour_world, type(varied)([varied[0], bad]), tmp_path)
    assert files() == before and not list(tmp_path.glob(".*"))


def test_records_are_small_beside_the_gallery(colour_world, make_example, source_of, tmp_path):
    """What the gallery keeps is sent to the first process, without arrays of the size of the image."""
    network, _, params, tokenizer, config = colour_world
    cases = Cases(1)
    with EvaluationFiles(tmp_path, coco=True, label_studio="", save_masks=False) as files:
        source = source_of([make_example("a", ["red"], 300, 400)])
        Evaluator(network, tokenizer, config)(params, source, observe=cases, record=files.record)
    (prediction,) = cases.sections()["random"]
    assert len(json.dumps(prediction.record)) < 2_000


def test_the_type_of_an_example_keeps_its_equality():
    one = Expression("red", [], id="1", referent="12")
    assert one == Expression("red", [], id="1")
    assert isinstance(Example("a", b"", 1, 1, (one,)).expressions[0].referent, str)
