"""The commands evaluate, predict and demo as users run them, and their error messages."""

from __future__ import annotations

import base64
import contextlib
import csv
import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import urllib.error
import urllib.request

import jax
import numpy as np
import pytest
from etils import epath
from PIL import Image
from pycocotools.coco import COCO
from safetensors.numpy import save_file

from s2rm_jax import default_network
from s2rm_jax.errors import UserError
from s2rm_jax.evaluation import calibration
from s2rm_jax.evaluation.calibration import UNCALIBRATED, Calibration
from s2rm_jax.input.synthetic import SyntheticSource
from s2rm_jax.interop.parameter_names import export_arrays, network_layout
from s2rm_jax.segmenter import Segmenter
from s2rm_jax.training import run as training_run
from s2rm_jax.training.lock import lock_workdir
from s2rm_jax.training.run import load_config
from tests.command import run_command, run_process
from tests.input import refer_fixture


def command(name, *arguments, **options):
    """Run a command in this process; return its exit status, stdout and stderr."""
    done = run_command(name, *arguments, **options)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "image.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)).save(path)
    return path


def test_evaluate(tiny_workdir, tmp_path):
    out = tmp_path / "results"
    done = run_command(
        "evaluate", f"--workdir={tiny_workdir}", "--split=test", "--limit=5", "--gallery=3", f"--out={out}"
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "5 images of test" in lines[0]
    rows = {line.split()[0]: line.split() for line in lines}
    assert rows["all"][-1] == "15"  # three expressions of each scene
    assert {"attribute", "superlative", "relation"} <= rows.keys()
    assert "15 expressions of test" in lines[-1]
    assert str(out) in lines[-1]

    metrics = json.loads((out / "metrics.json").read_text())
    with (out / "expressions.csv").open(newline="") as file:
        expressions = list(csv.DictReader(file))
    assert len(expressions) == len({s["id"] for s in expressions}) == metrics["all"]["expressions"] == 15
    assert sum(int(s["union"]) for s in expressions) == metrics["all"]["union"]
    assert metrics["all"]["mean_iou"] == pytest.approx(100 * np.mean([float(s["iou"]) for s in expressions]), abs=1e-4)
    assert sorted(path.name[: -len(".png")].split("_")[0] for path in (out / "gallery").iterdir()) == [
        name for name in ("best", "random", "worst") for _ in range(4)
    ]  # three cases and their sheet
    assert (out / "index.html").read_text().count("<article") == 9
    assert metrics["protocol"] == "original"
    low, high = metrics["all"]["interval_95"]["overall_iou"]
    assert low <= metrics["all"]["overall_iou"] <= high


def test_evaluate_calibrates_the_scores_that_predict_gives(tmp_path):
    workdir = shutil.copytree(default_network.FOLDER, tmp_path / "run")
    began = json.loads((workdir / "config.json").read_text())
    began["eval"] |= UNCALIBRATED.fields()
    (workdir / "config.json").write_text(json.dumps(began))

    def scores(name):
        status, _, errors = command("predict", f"--workdir={workdir}", f"--out={tmp_path / name}")
        assert status == 0, errors
        return [one["score"] for one in json.loads((tmp_path / name / "result.json").read_text())["results"]]

    raw = scores("raw")
    flags = ("--limit=10", "--gallery=0", f"--out={tmp_path / 'report'}")
    status, printed, errors = command("evaluate", f"--workdir={workdir}", "--calibrate", *flags)
    assert status == 0, errors
    assert "40 masks of val, best checkpoint" in printed
    config = json.loads((workdir / "config.json").read_text())
    fitted = Calibration(config["eval"]["score_scale"], config["eval"]["score_bias"])
    assert fitted != UNCALIBRATED
    assert config == began | {"eval": began["eval"] | fitted.fields()}
    assert any(raw) and scores("calibrated") == pytest.approx(list(map(fitted, raw)), abs=1e-3)

    before, after = (float(number) for number in re.findall(r"([\d.]+) % (?:before|after)", printed))
    metrics = json.loads((tmp_path / "report/metrics.json").read_text())
    assert metrics["calibration_error"] == pytest.approx(before, abs=0.051)
    status, printed, errors = command("evaluate", f"--workdir={workdir}", "--coco", *flags)
    assert status == 0, errors
    metrics = json.loads((tmp_path / "report/metrics.json").read_text())
    assert metrics["calibration_error"] == pytest.approx(after, abs=0.051)
    assert f"Reliability: expected calibration error {after} %" in (tmp_path / "report/index.html").read_text()
    written = [one["score"] for one in json.loads((tmp_path / "report/coco_results.json").read_text())]
    assert np.mean(written) == pytest.approx(
        sum(one["count"] * one["score"] for one in metrics["reliability"]) / len(written), abs=1e-3
    )
    status, _, errors = command("evaluate", f"--workdir={workdir}", "--protocol=cris", *flags)  # other masks
    assert status == 0, errors
    assert "reliability" not in json.loads((tmp_path / "report/metrics.json").read_text())
    assert not (tmp_path / "report/plots/reliability.svg").exists()


def test_reports_on_other_checkpoints_than_the_best_have_folders_of_their_own(tiny_workdir, tmp_path):
    workdir = shutil.copytree(tiny_workdir, tmp_path / "run", ignore=shutil.ignore_patterns("eval-*"))
    for which in ("best", "latest", "2"):
        flags = ("--split=test", "--limit=2", "--gallery=0", f"--checkpoint={which}")
        status, _, errors = command("evaluate", f"--workdir={workdir}", *flags)
        assert status == 0, errors
    assert {path.name for path in workdir.glob("eval-*")} == {
        f"eval-test-{which}first-2" for which in ("", "latest-", "step-2-")
    }
    about = json.loads((workdir / "eval-test-step-2-first-2/metrics.json").read_text())
    assert about["checkpoint"] == 2


def test_a_report_is_written_even_if_its_scores_cannot_be_fitted(tiny_workdir, tmp_path, monkeypatch):
    def fit(judged):
        raise UserError(f"the scores do not rank the {len(judged)} masks")

    monkeypatch.setattr(calibration, "fit", fit)
    before = (tiny_workdir / "config.json").read_bytes()
    flags = ("--limit=3", "--gallery=0", f"--out={tmp_path}")
    status, _, errors = command("evaluate", f"--workdir={tiny_workdir}", "--calibrate", *flags)
    assert status == 2 and "the scores do not rank the" in errors
    assert (tmp_path / "index.html").exists() and (tiny_workdir / "config.json").read_bytes() == before


def test_a_run_in_progress_is_not_calibrated(tiny_workdir, tmp_path):
    workdir = shutil.copytree(tiny_workdir, tmp_path / "run")
    before = (workdir / "config.json").read_bytes()
    flags = ("--limit=3", "--gallery=0", f"--out={tmp_path / 'report'}")
    with lock_workdir(epath.Path(workdir)):  # as training does
        status, _, errors = command("evaluate", f"--workdir={workdir}", "--calibrate", *flags)
        assert status == 2 and f"--workdir {workdir} is in use by process" in errors.splitlines()[-1]
        assert not (tmp_path / "report").exists()
        status, _, errors = command("evaluate", f"--workdir={workdir}", *flags)
        assert status == 0, errors
    assert (workdir / "config.json").read_bytes() == before


def test_no_run_begins_while_scores_are_calibrated(tiny_workdir, tmp_path, monkeypatch):
    def fit(judged):
        with pytest.raises(UserError, match="is in use by process"), lock_workdir(epath.Path(workdir)):
            pass
        return Calibration(2.0, -1.0)

    workdir = shutil.copytree(tiny_workdir, tmp_path / "run")
    monkeypatch.setattr(calibration, "fit", fit)
    flags = ("--limit=3", "--gallery=0", f"--out={tmp_path / 'report'}")
    status, _, errors = command("evaluate", f"--workdir={workdir}", "--calibrate", *flags)
    assert status == 0, errors
    assert Calibration.of(load_config(workdir)) == Calibration(2.0, -1.0)
    with lock_workdir(epath.Path(workdir)):
        pass


def test_evaluate_by_another_protocol(tiny_workdir, tmp_path):
    status, printed, errors = command(
        "evaluate", f"--workdir={tiny_workdir}", "--limit=3", "--gallery=0", "--protocol=cris", f"--out={tmp_path}"
    )
    assert status == 0, errors
    lines = printed.splitlines()
    header = ["mIoU", "P@0.5", "P@0.6", "P@0.7", "P@0.8", "P@0.9", "expressions"]
    assert header in [line.split() for line in lines]  # a slow machine prints its progress too
    assert "probability exceeds 0.35" in printed
    assert lines[-1].startswith("mIoU ")
    assert json.loads((tmp_path / "metrics.json").read_text())["protocol"] == "cris"
    assert not (tmp_path / "gallery").exists()
    assert "Published results" not in (tmp_path / "index.html").read_text()


def test_evaluate_a_folder_that_holds_weights_only(tmp_path):
    status, printed, errors = command(
        "evaluate", f"--workdir={default_network.FOLDER}", "--limit=2", "--gallery=0", f"--out={tmp_path}"
    )
    assert status == 0, errors
    assert "over 8 expressions of val" in printed.splitlines()[-1]


def test_predict(tiny_workdir, tmp_path, image):
    out = tmp_path / "new" / "folder"
    done = run_process(
        "-m", "s2rm_jax.predict",
        f"--workdir={tiny_workdir}", "--checkpoint=latest", f"--image={image}", f"--out={out}",
        "--text", "the red circle", "--text", "the Zebra, that is left of the small blue square " * 2,
        f"--explain={tmp_path / 'how.png'}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert str(out) in done.stdout.splitlines()[-1]
    too_long, unknown = done.stderr.splitlines()
    assert "is truncated to the first 16" in too_long
    assert "'Zebra,'" in unknown

    result = json.loads((out / "result.json").read_text())
    assert (result["width"], result["height"]) == (70, 50)
    first, second = result["results"]
    assert first["file"] == "mask_1_the_red_circle.png"
    assert second["file"].startswith("mask_2_the_zebra_that_is_left")
    for entry in (first, second):
        with Image.open(out / entry["file"]) as mask:
            assert (mask.mode, mask.size) == ("L", (70, 50))
            values = np.asarray(mask)
        assert set(np.unique(values)) <= {0, 255}
        assert np.count_nonzero(values) == entry["area"]
        rows, columns = np.nonzero(values)
        box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1] if entry["area"] else None
        assert entry["box"] == box
    with Image.open(out / "overlay.png") as overlay:
        assert overlay.width >= 480
    for number in (1, 2):
        with Image.open(tmp_path / f"how_{number}.png") as figure:
            assert figure.width == 1600


def test_predict_without_an_image_uses_a_held_out_one(tiny_workdir, tmp_path):
    status, printed, errors = command("predict", f"--workdir={tiny_workdir}", f"--out={tmp_path / 'own'}")
    assert status == 0, errors
    example = SyntheticSource("val", image_size=(48, 64), expressions_per_scene=3)[0]
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "own/image.png")), example.image)
    result = json.loads((tmp_path / "own/result.json").read_text())
    assert result["image"] == str(tmp_path / "own/image.png")
    assert [entry["expression"] for entry in result["results"]] == [one.text for one in example.expressions]
    assert "3 masks of 64 x 48 pixels" in printed

    status, _, errors = command(
        "predict", f"--workdir={tiny_workdir}", "--text=the star", f"--out={tmp_path / 'asked'}"
    )
    assert status == 0, errors
    assert [path.name for path in (tmp_path / "asked").glob("mask_*")] == ["mask_1_the_star.png"]
    assert (tmp_path / "asked/image.png").read_bytes() == (tmp_path / "own/image.png").read_bytes()


def test_predict_on_many_images_as_json(tiny_workdir, tmp_path):
    frames = tmp_path / "frames"
    frames.mkdir()
    for number in (10, 9):
        Image.new("RGB", (40, 30), "red").save(frames / f"frame{number}.png")
    (frames / "frame11.png").write_text("not an image")
    asked = (f"--workdir={tiny_workdir}", f"--images={frames}/*.png", "--text=the star", "--text=the heart")
    status, printed, errors = command("predict", *asked, f"--out={tmp_path / 'out'}", "--json", "--explain=how.PNG")
    assert status == 4, errors
    result = json.loads((tmp_path / "out/result.json").read_text())
    assert json.loads(printed) == result
    assert [image["folder"] for image in result["images"]] == ["frame9", "frame10"]
    for image in result["images"]:
        files = {path.name for path in (tmp_path / "out" / image["folder"]).iterdir()}
        assert files == {"overlay.png", "mask_1_the_star.png", "mask_2_the_heart.png", "how_1.PNG", "how_2.PNG"}
    assert result["failed"][0]["image"].endswith("frame11.png")
    warning, error = [line for line in errors.splitlines() if line.startswith(("warning: skipped", "error"))]
    assert "frame11.png is not an image" in warning and error.startswith("error: 1 of 3 images could not be segmented")


def test_predict_on_one_image_replaces_an_unfinished_job(tiny_workdir, tmp_path, image):
    out = tmp_path / "out"
    out.mkdir()
    for name in ("job.json", "part-0-of-1.jsonl"):
        (out / name).write_text("{}")
    status, _, errors = command(
        "predict", f"--workdir={tiny_workdir}", f"--image={image}", "--text=the star", f"--out={out}"
    )
    assert status == 0, errors
    assert {path.name for path in out.iterdir()} == {"mask_1_the_star.png", "overlay.png", "result.json"}


def test_a_figure_must_not_replace_a_file_of_the_result(tiny_workdir, tmp_path, image):
    asked = (f"--workdir={tiny_workdir}", f"--image={image}", "--text=the star", f"--out={tmp_path}")
    for name in ("overlay.png", "mask_1_the_star.png", "image.png"):
        status, _, errors = command("predict", *asked, f"--explain={tmp_path / name}")
        assert (status, "would replace a file of the result" in errors) == (2, True)


def test_predict_never_replaces_its_input(tiny_workdir, tmp_path, image):
    out = tmp_path / "out"
    expressions = ("--text=a dog", "--text=the cat")
    status, _, errors = command(
        "predict", f"--workdir={tiny_workdir}", f"--image={image}", *expressions, f"--out={out}", cwd=tmp_path
    )
    assert status == 0, errors
    (tmp_path / "how_2.png").symlink_to(image)
    (tmp_path / "link.png").symlink_to(out / "overlay.png")
    os.link(out / "mask_2_the_cat.png", tmp_path / "same.png")
    shutil.copy(out / "overlay.png", out / "mask_1_a_horse.png")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def refused(image, *flags, flag="--out"):
        asked = (f"--workdir={tiny_workdir}", f"--image={image}", f"--out={out}", *flags)
        status, _, errors = command("predict", *asked, cwd=tmp_path)
        assert status == 2, image
        assert errors.splitlines()[-1].startswith(f"error: {flag}: the prediction would replace or remove the input ")
        assert errors.endswith(f"; give another {flag}\n")
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before

    refused(image, "--text=a dog", f"--explain={tmp_path}/how_2.png", flag="--explain")
    refused("image.jpg", *expressions, "--explain=how.png", flag="--explain")
    for one in (out / "overlay.png", "out/../out/overlay.png", "link.png", "same.png"):
        refused(one, "--text=a dog")
    refused(out / "mask_1_a_horse.png", "--text=a horse")
    refused("out/overlay.png", "--text=a dog", "--overlay=off", "--masks=rle")  # removed, as the result lists it
    asked = (f"--workdir={tiny_workdir}", f"--image={out}/mask_1_a_horse.png", "--text=a dog", f"--out={out}")
    status, _, errors = command("predict", *asked, cwd=tmp_path)
    assert status == 0, errors  # nothing of this name is written or removed


def test_predict_does_not_replace_files_of_other_programs(tiny_workdir, tmp_path, image):
    asked = (f"--workdir={tiny_workdir}", "--text=the star", f"--out={tmp_path}")
    (tmp_path / "result.json").write_text("notes")
    for source in ([], [f"--image={image}"]):
        status, _, errors = command("predict", *asked, *source)
        assert (status, (tmp_path / "result.json").read_text()) == (2, "notes")
        assert errors.endswith(
            f"{tmp_path}/result.json was probably not written by predict; remove it, or give another --out\n"
        )
    (tmp_path / "result.json").unlink()
    Image.new("RGB", (64, 48), "red").save(tmp_path / "image.png")
    before = (tmp_path / "image.png").read_bytes()
    status, _, errors = command("predict", *asked)
    assert (status, (tmp_path / "image.png").read_bytes()) == (2, before)
    assert errors.endswith(
        f"{tmp_path}/image.png was probably not written by predict; remove it, or give another --out\n"
    )
    (tmp_path / "image.png").unlink()
    for _ in range(2):
        status, _, errors = command("predict", *asked)
        assert status == 0, errors
    assert json.loads((tmp_path / "result.json").read_text())["sample"] is True
    Image.new("RGB", (64, 48), "red").save(tmp_path / "image.png")  # as by another network, whose data differs
    status, _, errors = command("predict", *asked)
    assert status == 0, errors
    status, _, errors = command("predict", *asked, f"--image={tmp_path}/image.png")
    assert status == 0, errors
    status, _, errors = command("predict", *asked)  # it is the same image
    assert status == 0, errors


def test_compiled_programs_for_accelerators_are_cached_for_this_user_only(tiny_workdir, tmp_path, image, monkeypatch):
    """Neither in the workdir, which may come from others, nor in a folder that the run had on another machine."""
    content = json.loads((tiny_workdir / "config.json").read_text())
    used = []

    def load(workdir, which, *, keep_programs):
        used.append(jax.config.values["jax_compilation_cache_dir"])
        raise UserError("the test ends here")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")  # programs for CPUs have another place
    monkeypatch.setattr(Segmenter, "from_checkpoint", load)
    before = jax.config.values["jax_compilation_cache_dir"]
    jax.config.update("jax_compilation_cache_dir", None)
    for setting in ("", "/of/another/machine", "off"):
        workdir = tmp_path / f"run{len(used)}"
        workdir.mkdir()
        (workdir / "config.json").write_text(json.dumps(content | {"compilation_cache": setting}))
        (workdir / "checkpoints").symlink_to(tiny_workdir / "checkpoints")
        status, _, errors = command(
            "predict", f"--workdir={workdir}", f"--image={image}", "--text=a dog", f"--out={tmp_path / 'out'}"
        )
        assert (status, errors) == (2, "error: the test ends here\n")
    jax.config.update("jax_compilation_cache_dir", before)
    private = tmp_path / "s2rm_jax/compilation_cache"
    assert used == [str(private), str(private), None]
    assert private.stat().st_mode & 0o777 == 0o700


def test_quiet_prints_nothing_but_the_result(tiny_workdir, tmp_path, image):
    asked = (f"--workdir={tiny_workdir}", f"--image={image}", "--text=the red star", f"--out={tmp_path / 'out'}")
    assert command("predict", *asked, "--quiet") == (0, "", "")
    asked = (f"--workdir={tiny_workdir}", "--limit=3", "--gallery=0", f"--out={tmp_path / 'eval'}")
    status, printed, errors = command("evaluate", *asked, "--quiet", "--json")
    assert (status, errors) == (0, "")
    result = json.loads(printed)
    assert result.pop("page") == str(tmp_path / "eval/index.html")
    assert result == json.loads((tmp_path / "eval/metrics.json").read_text())


def test_evaluate_reads_a_folder_of_weights_as_a_run(tiny_workdir, tmp_path):
    weights = tmp_path / "weights"
    weights.mkdir()
    for name in ("config.json", "vocab.txt"):
        shutil.copy(tiny_workdir / name, weights)
    params = jax.device_get(training_run.load_run(tiny_workdir).params)
    save_file(export_arrays(network_layout(params), params), weights / "model.safetensors")
    found = []
    for workdir in (tiny_workdir, weights):
        out = tmp_path / "out" / workdir.name
        flags = ("--split=test", "--limit=2", "--gallery=0", f"--out={out}")
        status, _, errors = command("evaluate", f"--workdir={workdir}", *flags)
        assert status == 0, errors
        found.append((out / "expressions.csv").read_text())
    assert found[0] == found[1] and found[0].count("\n") == 1 + 6


def test_evaluate_on_other_data_writes_elsewhere_and_says_what_it_evaluated(tiny_workdir, tmp_path):
    first, second = (refer_fixture.write_refer_layout(tmp_path / name) for name in ("first", "second"))
    refer_fixture.write_refer_layout(first, "refcoco+")
    workdir = tmp_path / "run"
    workdir.mkdir()
    content = json.loads((tiny_workdir / "config.json").read_text())
    content["input"]["source"] = {"name": "refer", "root": str(first)}
    (workdir / "config.json").write_text(json.dumps(content))
    for name in ("checkpoints", "vocab.txt"):
        (workdir / name).symlink_to(tiny_workdir / name)

    def evaluate(*flags):
        status, _, errors = command("evaluate", f"--workdir={workdir}", "--split=testA", "--gallery=0", *flags)
        return status, errors

    assert evaluate() == (0, "")
    assert evaluate(f"--data={second}") == (0, "")
    assert evaluate("--data=dataset=refcoco+", "--data=split_by=unc") == (0, "")
    found = {}
    for path in workdir.glob("eval-*/metrics.json"):
        metrics = json.loads(path.read_text())
        fields = ("dataset", "split_by", "split", "root", "overlap", "checkpoint", "step", "limit", "images")
        found[path.parent.name] = tuple(metrics[field] for field in fields)
        assert "published" not in metrics and " testA has 750 images and 5," in metrics["published_results"]
        for name in ("index.html", "table.md", "table.tex"):
            text = (path.parent / name).read_text()
            assert f"root {metrics['root']}, " in text and "overlap union, " in text and "step 2, " in text
            assert "Published results" not in text and "LAVT-RIS" not in text
    same = ("union", "best", 2, None, 2)
    assert found == {
        "eval-testA": ("refcoco", "unc", "testA", str(first), *same),
        "eval-testA-second": ("refcoco", "unc", "testA", str(second), *same),
        "eval-testA-refcoco+-unc": ("refcoco+", "unc", "testA", str(first), *same),
    }
    status, errors = evaluate(f"--data={second}", f"--out={workdir / 'eval-testA'}")
    assert status == 2 and f"eval-testA has a report on different data (root was '{first}', now '{second}')" in errors

    content["input"]["source"] = {"name": "mixture", "parts": {"coco": content["input"]["source"]}}
    (workdir / "config.json").write_text(json.dumps(content))
    assert evaluate("--split=coco:testA", f"--out={tmp_path / 'part'}") == (0, "")
    metrics = json.loads((tmp_path / "part/metrics.json").read_text())
    assert metrics["split"] == "coco:testA" and " testA has 750 images and 5," in metrics["published_results"]


def test_evaluate_transfers_the_parameters_to_the_device_once(tiny_workdir, tmp_path, monkeypatch):
    restore = training_run.restore_params

    def restore_to_host(*given):
        step, params = restore(*given)
        return step, jax.device_get(params)

    monkeypatch.setattr(training_run, "restore_params", restore_to_host)
    with jax.transfer_guard("disallow"):
        status, _, errors = command(
            "evaluate", f"--workdir={tiny_workdir}", "--limit=5", "--gallery=1", "--explain", f"--out={tmp_path}"
        )
    assert status == 0, errors
    assert len(list((tmp_path / "gallery").glob("*_001_*_how.png"))) == 3  # random, worst, best


def test_an_error_is_one_line_and_status_2(tmp_path):
    done = run_process("-m", "s2rm_jax.predict", "--image=nowhere.jpg", "--text=a dog", f"--out={tmp_path}")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == "error: image nowhere.jpg not found; check the path\n"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"workdir": "{tmp}/nothing"}, "nothing not found; check the path"),
        ({"image": "{tmp}/truncated.jpg"}, "truncated.jpg is damaged"),
        ({"image": "{tmp}/text.jpg"}, "text.jpg is not an image"),
        ({"image": "{tmp}"}, "is a folder"),
        ({"image": "gs://bucket/a.png"}, "gs://bucket/a.png is not a local path; download it first"),
        ({"image": "s3://bucket/a.png"}, "s3://bucket/a.png is not a local path; download it first"),
        ({"image": "file://{tmp}/image.jpg"}, "image.jpg is not a local path; give the path without file://"),
        ({"text": "  "}, "no words"),
        ({"text": "caf\udce9"}, r"the expression 'caf\udce9' is not valid Unicode"),
        ({"image": "caf\udce9.jpg"}, r"image caf\udce9.jpg not found"),
        ({"out": "{tmp}/text.jpg"}, "is an existing file"),
        ({"image": None, "images": "{tmp}/image.jpg", "out": "{tmp}/text.jpg"}, "is an existing file"),
        ({"checkpoint": "newest"}, "newest"),
        ({"explain": "{tmp}/how.jpg"}, "must be the path of a PNG"),
        ({"explain": "{tmp}/nowhere/how.png"}, "in an existing folder"),
        ({"text": None}, "--text is missing"),
        ({"images": "{tmp}"}, "--image and --images are both given"),
        ({"shard": "0/2"}, "--shard is given without --images"),
        ({"batch_size": "4"}, "--batch_size is given without --images"),
        ({"image": ""}, "--image is empty: "),
        ({"image": None, "images": ""}, "--images is empty: "),
        ({"out": ""}, "--out is empty: "),
        ({"image": None, "images": "{tmp}", "shard": "2/2"}, "--shard: 2/2 is not I/N"),
        ({"image": None, "images": "{tmp}", "text": "caf\udce9"}, "is not valid Unicode"),
        ({"image": None, "images": "{tmp}/*.tif"}, "no file matches"),
        ({"image": None, "images": "{tmp}/image.csv"}, "image.csv is neither an image nor a list"),
        ({"image": None, "images": "{tmp}", "text": None}, "--text is missing"),
        ({"image": None, "images": "{tmp}", "explain": "some/how.png"}, "must be a file name ending in .png"),
        ({"image": None, "images": "{tmp}", "explain": "Overlay.PNG"}, "would replace a file of the result"),
    ],
)
def test_predict_with_bad_input(tiny_workdir, tmp_path, image, change, message):
    (tmp_path / "truncated.jpg").write_bytes(image.read_bytes()[:900])
    for name in ("text.jpg", "image.csv"):
        (tmp_path / name).write_text("not an image")
    given = {"workdir": tiny_workdir, "image": image, "text": "a dog", "out": tmp_path / "out"}
    given |= {name: value and value.format(tmp=tmp_path) for name, value in change.items()}
    status, _, errors = command("predict", *(f"--{name}={value}" for name, value in given.items() if value is not None))
    assert status == 2
    line = errors.splitlines()[-1]
    assert line.startswith("error: ")
    assert message in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--workdir={tmp}"], "not found; give the workdir of a run, or a folder that convert to-pytorch has written"),
        (["--workdir={run}", "--split=tset"], "tset"),
        (["--workdir={run}", "--out={tmp}/taken"], "is an existing file"),
        (["--workdir={run}", "--gallery=-1"], "gallery"),
        (["--workdir={run}", "--protocol=lavt"], "protocol 'lavt' not found; available: original, lavt480, caris448"),
        ([], "--workdir is missing"),
        (["--workdir={run}", "--calibrate", "--coco"], "--calibrate: run it alone first"),
        (["--workdir={run}", "--explain", "--gallery=0"], "--explain is given with --gallery 0"),
        (
            ["--workdir={run}", "--distributed=off", "--num_processes=4"],
            "--distributed=off is given with --num_processes",
        ),
        (["--workdir={run}", "--calibrate", "--protocol=lavt480"], "add --protocol original"),
        (["--workdir={run}", "--calibrate", "--checkpoint=latest"], "best checkpoint, which predict uses: leave out"),
    ],
)
def test_evaluate_with_bad_input(tiny_workdir, tmp_path, arguments, message):
    (tmp_path / "taken").write_text("")
    status, _, errors = command("evaluate", *(a.format(tmp=tmp_path, run=tiny_workdir) for a in arguments))
    assert status == 2
    line = errors.splitlines()[-1]
    assert line.startswith("error: ")
    assert message in line


def test_a_checkpoint_of_another_architecture_is_refused(tiny_workdir, tmp_path, image):
    """A workdir whose configuration was changed by hand no longer fits its checkpoint."""
    changed = tmp_path / "changed"
    changed.mkdir()
    for entry in tiny_workdir.iterdir():
        (changed / entry.name).symlink_to(entry)
    content = json.loads((tiny_workdir / "config.json").read_text())
    content["fusion"]["width"] = 32
    (changed / "config.json").unlink()
    (changed / "config.json").write_text(json.dumps(content))
    predicting = ("predict", f"--image={image}", "--text=a dog", f"--out={tmp_path / 'out'}")
    for name, *arguments in (predicting, ("evaluate", f"--out={tmp_path / 'out'}")):
        status, _, errors = command(name, f"--workdir={changed}", *arguments)
        assert status == 2
        assert "has a different architecture" in errors.splitlines()[-1]


def test_demo_serves_until_sigterm(tiny_workdir, tmp_path, image):
    """The folder of uploads is readable by its user only, and an open page does not keep the demo from ending."""
    pytest.importorskip("gradio", reason="the extra 'demo' is not installed")
    access_log = tmp_path / "access.jsonl"
    command = [sys.executable, "-m", "s2rm_jax.demo", f"--workdir={tiny_workdir}", "--checkpoint=latest", "--port=0"]
    command += ["--root_path=sub", f"--access_log={access_log}", "--per_minute=4"]
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, text=True, env=environment, **pipes) as server, contextlib.ExitStack() as stack:
        stack.callback(server.kill)  # for a test that fails, which would wait for the server
        line = next(line for line in server.stdout if line.startswith("open http://127.0.0.1:"))
        address = line.split()[1]
        assert address.endswith("/sub")
        with urllib.request.urlopen(f"{address}/healthz") as answer:
            assert json.load(answer) == {"status": "ok"}
        with urllib.request.urlopen(address) as answer:
            assert answer.url.startswith(f"{address}/demo")
        too_long = {"image": base64.b64encode(image.read_bytes()).decode(), "expressions": ["red " * 100]}
        request = urllib.request.Request(
            f"{address}/segment", json.dumps(too_long).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request) as answer:
            assert "is truncated to the first 16" in json.load(answer)["results"][0]["remarks"][0]
            statuses = [answer.status]
        for _ in range(4):
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(f"{address}/segment", data=b"not JSON")
            statuses.append(refused.value.code)
            refused.value.close()
        assert statuses == [200, 415, 415, 415, 429]
        (folder,) = tmp_path.glob("s2rm_demo_*")
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        with urllib.request.urlopen(f"{address}/demo/gradio_api/heartbeat/a") as page:
            assert page.readline() == b"data: ALIVE\n"
            server.send_signal(signal.SIGTERM)
            assert server.wait(60) == 0
        assert server.stderr.read() == ""  # not even the expression that is too long
        assert not folder.exists()
    requests = [json.loads(line) for line in access_log.read_text().splitlines()]
    assert [one["status"] for one in requests if one["route"] == "/segment"] == statuses


def test_demo_with_a_taken_port_or_without_its_extra(tiny_workdir, monkeypatch):
    pytest.importorskip("gradio", reason="the extra 'demo' is not installed")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        status, _, errors = command("demo", f"--workdir={tiny_workdir}", f"--port={port}")
    assert (status, errors) == (
        2,
        f"error: cannot listen at 127.0.0.1:{port} (Address already in use); give another --host or --port\n",
    )
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *of: None if name == "gradio" else find_spec(name, *of)
    )
    status, _, errors = command("demo", f"--workdir={tiny_workdir}")
    assert status == 2
    assert "pip install -e '.[demo]'" in errors


def test_results_for_other_programs(tiny_workdir, tmp_path, image):
    flags = ("--coco", "--label_studio=/data/local-files/?d=images")
    status, _, errors = command(
        "predict",
        f"--workdir={tiny_workdir}",
        f"--image={image}",
        "--text=the star",
        f"--out={tmp_path / 'one'}",
        *flags,
    )
    assert status == 0, errors
    evaluation = ("--gallery=0", "--limit=2", "--save_masks", f"--out={tmp_path / 'all'}", *flags)
    status, _, errors = command("evaluate", f"--workdir={tiny_workdir}", *evaluation)
    assert status == 0, errors
    for folder, name, count in (("one", "coco_images.json", 1), ("all", "coco_truth.json", 6)):
        images = COCO(tmp_path / folder / name)
        assert len(images.loadRes(str(tmp_path / folder / "coco_results.json")).anns) == count
        assert (tmp_path / folder / "label_studio/tasks-0001.json").exists()
    assert len(list((tmp_path / "all/vis").glob("*-iou=*.png"))) == 6

    # Neither command replaces the files of the other.
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    asked = (f"--workdir={tiny_workdir}", f"--out={tmp_path / 'all'}", "--text=the star")
    for images in (f"--image={image}", f"--images={image}"):
        status, _, errors = command("predict", *asked, images)
        assert (status, errors) == (
            2,
            f"error: --out: {tmp_path / 'all'} has the report of an evaluation; give another --out\n",
        )
    status, _, errors = command("evaluate", f"--workdir={tiny_workdir}", f"--out={tmp_path / 'one'}")
    assert (status, errors) == (
        2,
        f"error: --out: {tmp_path / 'one'} has a result.json or job.json of predict; give another --out\n",
    )
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("name", ["predict", "evaluate"])
def test_a_mistyped_address_is_reported_before_anything_is_written(tiny_workdir, tmp_path, image, name):
    asked = (f"--image={image}", "--text=the star") if name == "predict" else ()
    flags = (f"--out={tmp_path / 'out'}", "--label_studio=images")
    status, _, errors = command(name, f"--workdir={tiny_workdir}", *asked, *flags)
    assert status == 2 and errors.startswith("error: --label_studio: images is not the beginning of the addresses of")
    assert not (tmp_path / "out").exists()
