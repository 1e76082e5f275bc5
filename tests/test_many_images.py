"""predict --images: results are kept, whatever happens to the other images."""

import json

import pytest
from PIL import Image

from s2rm_jax import predict
from s2rm_jax.errors import PartlyDone, UserError
from s2rm_jax.input.images import load_image
from s2rm_jax.predict import segment_images


@pytest.fixture
def paths(tmp_path):
    for number, colour in enumerate(("red", "blue", "red"), start=1):
        Image.new("RGB", (6, 4), colour).save(tmp_path / f"{number}.png")
    (tmp_path / "4.png").write_text("no image")
    return [tmp_path / f"{number}.png" for number in (1, 2, 3, 4)]


def test_every_expression_is_segmented_in_every_image(segmenter, paths, tmp_path, capsys):
    content = segment_images(segmenter, paths[:3], ["red", "blue"], tmp_path / "out")
    assert json.loads((tmp_path / "out/result.json").read_text()) == json.loads(json.dumps(content))
    areas = [[entry["area"] for entry in image["results"]] for image in content["images"]]
    assert areas == [[24, 0], [0, 24], [24, 0]]
    sizes = {load_image(tmp_path / f"out/{number}/overlay.png").shape for number in (1, 2, 3)}
    assert len(sizes) == 1  # although not the same is found everywhere
    assert capsys.readouterr().err == ""


def test_a_bad_image_is_reported_and_skipped(segmenter, paths, tmp_path, capsys):
    with pytest.raises(PartlyDone, match=r"1 of 4 images could not be read") as partly:
        segment_images(segmenter, paths, ["red"], tmp_path / "out")
    assert len(partly.value.result["images"]) == 3
    assert "4.png is not an image" in partly.value.result["failed"][0]["error"]
    assert capsys.readouterr().err.startswith("warning: skipped: ")
    with pytest.raises(UserError, match="none of 1 image could be read") as none:
        segment_images(segmenter, paths[3:], ["red"], tmp_path / "out")
    assert not isinstance(none.value, PartlyDone)
    assert not (tmp_path / "out/1").exists()  # what the prediction before had written


def test_the_first_error_of_writing_is_reported(segmenter, paths, tmp_path):
    for name in ("result.json", "1/mask_1_red.png"):
        (tmp_path / "out" / name).mkdir(parents=True)
    with pytest.raises(UserError, match=r"^--out: .*mask_1_red\.png cannot be written \(Is a directory\)"):
        segment_images(segmenter, paths, ["red"], tmp_path / "out")


def test_an_interrupted_prediction_lists_its_results(segmenter, paths, tmp_path, monkeypatch):
    def interrupt(items, *_, **__):
        yield next(iter(items))
        raise KeyboardInterrupt

    monkeypatch.setattr(predict, "tqdm", interrupt)
    with pytest.raises(KeyboardInterrupt):
        segment_images(segmenter, paths, ["red"], tmp_path / "out")
    (image,) = json.loads((tmp_path / "out/result.json").read_text())["images"]
    assert image["folder"] == "1"
