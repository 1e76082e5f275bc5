"""predict --images: results are kept, whatever happens to the other images."""

import json
import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from pycocotools.coco import COCO

from s2rm_jax.errors import UserError
from s2rm_jax.input.images import load_image
from s2rm_jax.input.masks import decode_rle
from s2rm_jax.prediction import job
from s2rm_jax.prediction.files import Options
from s2rm_jax.prediction.image_lists import list_items
from s2rm_jax.prediction.job import run_job
from s2rm_jax.prediction.job_files import RecordFile, open_part, replace_earlier

EVERYTHING = Options()
OUT = Path("/nowhere")


@pytest.fixture
def paths(tmp_path):
    for number, colour in enumerate(("red", "blue", "red"), start=1):
        Image.new("RGB", (6, 4), colour).save(tmp_path / f"{number}.png")
    (tmp_path / "4.png").write_text("no image")
    return [tmp_path / f"{number}.png" for number in (1, 2, 3, 4)]


@pytest.fixture
def run(segmenter, tmp_path):
    """Segments images in the folder "out"; returns the part."""

    def run(paths, *expressions, share=(0, 1), options=EVERYTHING, out=tmp_path / "out", **named):
        listed = tmp_path / "listed.txt"
        listed.write_bytes(b"".join(os.fsencode(path) + b"\n" for path in paths))
        return run_job(segmenter, list_items(str(listed), expressions, out), share, out, options, **named)

    return run


@pytest.fixture
def count_segmented(segmenter, monkeypatch):
    """Lists the number of images of each call of the segmenter."""
    counts, segment = [], segmenter.segment
    monkeypatch.setattr(segmenter, "segment", lambda *a, **k: counts.append(len(a[0])) or segment(*a, **k))
    return counts


def result(out):
    return json.loads((out / "result.json").read_text())


def files(out):
    return sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())


@pytest.mark.parametrize("batch_size", [None, 2, 8])
def test_every_expression_is_segmented_in_every_image(run, paths, tmp_path, capsys, batch_size):
    part = run(paths[:3], "red", "blue", batch_size=batch_size)
    assert (part.count, part.failed) == (3, [])
    images = result(tmp_path / "out")["images"]
    assert [image["folder"] for image in images] == ["1", "2", "3"]
    assert [[entry["area"] for entry in image["results"]] for image in images] == [[24, 0], [0, 24], [24, 0]]
    sizes = {load_image(tmp_path / f"out/{number}/overlay.png").shape for number in (1, 2, 3)}
    assert len(sizes) == 1  # although not the same is found everywhere
    assert len(files(tmp_path / "out")) == 1 + 3 * 3
    assert capsys.readouterr().err == ""


def test_the_last_images_need_no_program_of_their_own(run, paths, colour_world, count_segmented):
    run(paths[:3], "red", batch_size=2)
    assert count_segmented == [2, 2]
    assert colour_world.traced_methods == ["encode_image", "encode_text 1", "fuse_and_decode 1"]


def test_a_bad_image_is_reported_and_skipped(run, paths, tmp_path, capsys):
    part = run(paths, "red")
    assert (part.count, len(part.failed)) == (3, 1)
    content = result(tmp_path / "out")
    assert len(content["images"]) == 3
    assert "4.png is not an image" in content["failed"][0]["error"]
    assert capsys.readouterr().err.startswith("warning: skipped: ")
    run(paths[2:], "red")
    assert files(tmp_path / "out") == ["3/mask_1_red.png", "3/overlay.png", "result.json"]  # what was before is gone


@pytest.mark.parametrize("unfinished", [False, True])
def test_an_earlier_prediction_is_kept_if_no_image_can_be_read(run, paths, tmp_path, monkeypatch, capsys, unfinished):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt) if unfinished else nullcontext():
        if unfinished:
            interrupt_after(patch, 1)
        run(paths[:3], "red")
    before = {name: (tmp_path / "out" / name).read_bytes() for name in files(tmp_path / "out")}
    with pytest.raises(UserError, match=r"^none of 2 images could be segmented, and .*/out keeps its earlier results;"):
        run([paths[3], tmp_path / "5.png"], "red")
    assert {name: (tmp_path / "out" / name).read_bytes() for name in files(tmp_path / "out")} == before
    first, second = capsys.readouterr().err.splitlines()[-2:]
    assert "4.png is not an image" in first and "5.png not found" in second


def test_only_the_first_images_are_tried_before_an_earlier_prediction_is_replaced(run, paths, tmp_path, monkeypatch):
    monkeypatch.setattr(job, "_TRIED", 2)
    run(paths[:1], "red")
    broken = [paths[3], tmp_path / "5.png"]
    with pytest.raises(UserError, match=r"^none of the first 2 images .*; see the warnings above, or give another"):
        run([*broken, paths[0]], "red")
    assert run([broken[0], paths[1], broken[1]], "red").count == 1


def test_a_job_without_an_earlier_prediction_lists_its_failures(run, paths, tmp_path):
    assert run(paths[3:], "red").count == 0
    assert files(tmp_path / "out") == ["result.json"]
    assert [image["image"] for image in result(tmp_path / "out")["failed"]] == [str(paths[3])]


def test_a_mistake_in_an_expression_names_the_image(segmenter, paths, tmp_path, capsys):
    (tmp_path / "listed.jsonl").write_text(json.dumps({"image": "1.png", "expressions": ["red", " "]}))
    part = run_job(segmenter, list_items(str(tmp_path / "listed.jsonl"), (), OUT), (0, 1), tmp_path / "out", EVERYTHING)
    assert part.failed[0]["error"].startswith(f"{paths[0]}: the expression ' ' has no words")
    assert f"warning: skipped: {paths[0]}: the expression" in capsys.readouterr().err


def test_a_job_does_not_replace_or_remove_its_own_images(segmenter, run, paths, tmp_path):
    run(paths[:1], "red")  # out/1/mask_1_red.png and out/1/overlay.png
    out = tmp_path / "out"
    shutil.copy(paths[1], out / "1/how.png")
    shutil.copy(paths[1], out / "2.png")
    (tmp_path / "link.png").symlink_to(out / "1/mask_1_red.png")
    os.link(out / "1/overlay.png", tmp_path / "same.png")
    before = {name: (out / name).read_bytes() for name in files(out)}
    cases = [
        ([out / "1/overlay.png", out / "2.png"], EVERYTHING),  # removed, as the result lists it
        ([tmp_path / "link.png", paths[2]], EVERYTHING),
        ([tmp_path / "same.png", paths[2]], EVERYTHING),
        ([out / "1.png", out / "1/how.png"], replace(EVERYTHING, explain="how.png")),  # the figure of the first
    ]
    for images, options in cases:
        with pytest.raises(UserError, match=r"^--out: the prediction would replace or remove the input .*/out/1/"):
            run(images, "red", options=options)
        assert {name: (out / name).read_bytes() for name in files(out)} == before


def test_a_job_does_not_replace_its_list_or_a_result_of_another_program(segmenter, paths, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    listed = out / "part-0-of-1.jsonl"
    listed.write_text(json.dumps({"image": str(paths[0])}) + "\n")
    items = list_items(str(listed), ["red"], out)
    with pytest.raises(UserError, match=r"would replace or remove the input .*part-0-of-1\.jsonl; give another --out$"):
        run_job(segmenter, items, (0, 1), out, EVERYTHING, source=str(listed))
    assert files(out) == ["part-0-of-1.jsonl"]
    (out / "result.json").write_text("notes")
    with pytest.raises(
        UserError, match=r"out/result\.json was probably not written by predict; remove it, or give another --out$"
    ):
        run_job(segmenter, items, (0, 1), out, EVERYTHING)
    assert (out / "result.json").read_text() == "notes"


def test_the_first_error_of_writing_is_reported(run, paths, tmp_path):
    for name in ("result.json", "1/mask_1_red.png"):
        (tmp_path / "out" / name).mkdir(parents=True)
    with pytest.raises(UserError, match=r"^--out: .*mask_1_red\.png cannot be written \(Is a directory\)"):
        run(paths, "red")


def interrupt_after(monkeypatch, count):
    """Let the job end by Ctrl-C after so many records."""

    def interrupted(records, *_, **__):
        for number, record in enumerate(records, start=1):
            yield record
            if number == count:
                raise KeyboardInterrupt

    monkeypatch.setattr(job, "tqdm", interrupted)


def test_an_interrupted_job_lists_what_is_done_and_continues(run, paths, tmp_path, monkeypatch, count_segmented):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_after(patch, 1)
        run(paths, "red")
    (image,) = result(tmp_path / "out")["images"]
    assert image["folder"] == "1"
    count_segmented.clear()
    assert run(paths, "red").count == 3
    assert sum(count_segmented) == 2
    assert [image["folder"] for image in result(tmp_path / "out")["images"]] == ["1", "2", "3"]


def test_another_job_in_the_same_folder_starts_anew(run, paths, tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_after(patch, 2)
        run(paths[:3], "red")
    assert run(paths[2:3], "blue").count == 1
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["3", "result.json"]
    assert len(result(tmp_path / "out")["images"]) == 1


def test_a_job_starts_anew_when_the_network_is_calibrated(run, paths, tmp_path, monkeypatch, segmenter):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_after(patch, 1)
        run(paths[:3], "red")
    (before,) = result(tmp_path / "out")["images"]
    segmenter.config.eval.update(score_scale=0.5, score_bias=-1.0)  # as by evaluate --calibrate
    run(paths[:3], "red")
    first, _, third = (image["results"][0]["score"] for image in result(tmp_path / "out")["images"])
    assert first == third < before["results"][0]["score"]
    run(paths[:3], "red", share=(0, 2), out=tmp_path / "shared")
    segmenter.config.eval.score_bias = 0.0
    with pytest.raises(UserError, match=r"has the results of another job \(calibration\)"):
        run(paths[:3], "red", share=(1, 2), out=tmp_path / "shared")


def test_a_prediction_of_one_image_ends_an_unfinished_job(run, paths, tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_after(patch, 2)
        run(paths[:3], "red")
    (tmp_path / "out/result.json").unlink()  # as after a kill, when only the records list the files
    replace_earlier(tmp_path / "out")
    assert not [name for name in files(tmp_path / "out") if not name.startswith("3/")]  # 3 may have been ahead
    assert run(paths[:3], "red").count == 3
    images = result(tmp_path / "out")["images"]
    listed = [f"{image['folder']}/{entry['file']}" for image in images for entry in image["results"]]
    assert len(listed) == 3 and all((tmp_path / "out" / name).is_file() for name in listed)


def test_a_prediction_of_one_image_leaves_a_job_of_several_or_a_running_process(run, paths, tmp_path):
    run(paths[:2], "red", share=(0, 2))
    before = files(tmp_path / "out")
    with pytest.raises(UserError, match="has the results of a job of several processes; give another --out"):
        replace_earlier(tmp_path / "out")
    assert files(tmp_path / "out") == before
    with open_part(tmp_path / "running", (0, 1), {}), pytest.raises(UserError, match="another process is writing"):
        replace_earlier(tmp_path / "running")


@pytest.mark.parametrize("cut", [1, 20, -1])
def test_an_incomplete_record_is_dropped(run, paths, tmp_path, monkeypatch, cut):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_after(patch, 2)
        run(paths[:3], "red", options=Options(overlay=False, masks="rle"))
    part = tmp_path / "out/part-0-of-1.jsonl"
    first, second = part.read_bytes().splitlines(keepends=True)
    part.write_bytes(first + second[:cut])
    run(paths[:3], "red", options=Options(overlay=False, masks="rle"))
    assert [image["image"][-5:] for image in result(tmp_path / "out")["images"]] == ["1.png", "2.png", "3.png"]


def test_masks_as_rle_need_no_files(run, paths, tmp_path):
    run(paths[:2], "red", options=Options(overlay=False, masks="rle"))
    assert files(tmp_path / "out") == ["result.json"]
    first, second = (image["results"][0]["mask"] for image in result(tmp_path / "out")["images"])
    assert decode_rle(first, 4, 6).all() and not decode_rle(second, 4, 6).any()


def test_shares_are_even_and_cover_every_image_once(run, tmp_path):
    for number in range(11):
        Image.new("RGB", (6, 4), "red").save(tmp_path / f"{number}.png")
    paths = [tmp_path / f"{number}.png" for number in range(11)]
    counts = [run(paths, "red", share=(index, 4)).count for index in (2, 0, 3, 1)]
    assert sorted(counts) == [2, 3, 3, 3]
    lines = [line for part in (tmp_path / "out").glob("part-*-of-4.jsonl") for line in part.read_text().splitlines()]
    assert sorted(json.loads(line)["image"] for line in lines) == sorted(map(str, paths))
    assert not (tmp_path / "out/result.json").exists()


def test_a_share_that_is_done_stays_and_its_failures_are_tried_again(run, paths, tmp_path, count_segmented):
    assert len(run(paths, "red", share=(1, 2)).failed) == 1  # 2.png and 4.png
    before = (tmp_path / "out/part-1-of-2.jsonl").read_text()
    assert len(run(paths, "red", share=(1, 2)).failed) == 1
    assert (tmp_path / "out/part-1-of-2.jsonl").read_text() == before
    assert sum(count_segmented) == 1
    Image.new("RGB", (6, 4), "blue").save(paths[3])
    part = run(paths, "red", share=(1, 2))
    assert (part.count, part.failed, sum(count_segmented)) == (2, [], 2)


def test_more_processes_than_images(run, paths):
    assert [run(paths[:1], "red", share=(index, 3)).count for index in range(3)] == [1, 0, 0]


def test_processes_do_not_mix_jobs(run, paths, tmp_path):
    run(paths, "red", share=(0, 2))
    for other in ({"share": (0, 3)}, {"share": (0, 1)}, {"share": (1, 2), "options": Options(overlay=False)}):
        with pytest.raises(UserError, match=r"out has the results of another job .*; give another --out, or remove it"):
            run(paths, "red", **other)
    with pytest.raises(UserError, match=r"another job \(images\)"):
        run(paths, "blue", share=(1, 2))
    run(paths, "red", out=tmp_path / "earlier")
    with pytest.raises(UserError, match="earlier has an earlier prediction; give another --out"):
        run(paths, "red", share=(0, 2), out=tmp_path / "earlier")


def test_processes_may_start_at_the_same_time(tmp_path):
    def start(index):
        with open_part(tmp_path / "out", (index, 16), {"network": "a" * 100_000}) as part:
            return part.count

    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(start, range(16))) == [0] * 16
    assert len(files(tmp_path / "out")) == 17


def test_two_processes_cannot_have_the_same_share(run, paths, tmp_path, segmenter, monkeypatch):
    at_work, go_on, segment = threading.Event(), threading.Event(), segmenter.segment

    def waiting(*arguments, **named):
        at_work.set()
        assert go_on.wait(60)
        return segment(*arguments, **named)

    monkeypatch.setattr(segmenter, "segment", waiting)
    first = threading.Thread(target=run, args=(paths, "red"), daemon=True)
    first.start()
    try:
        assert at_work.wait(60)
        with pytest.raises(UserError, match=r"another process is writing .*part-0-of-1\.jsonl; wait until it has"):
            run(paths, "red")
    finally:
        go_on.set()
    first.join(60)
    assert len(result(tmp_path / "out")["images"]) == 3


def test_names_that_are_not_unicode_survive(run, tmp_path):
    names = [os.fsencode(tmp_path) + name for name in (b"/caf\xe9.png", "/日本.png".encode(), b"/\xff\xfe \x85.png")]
    Image.new("RGB", (6, 4), "red").save(tmp_path / "red.png")
    for name in names:
        shutil.copy(tmp_path / "red.png", name)
    run([os.fsdecode(name) for name in names], "red")
    images = result(tmp_path / "out")["images"]
    assert [os.fsencode(image["image"]) for image in images] == names
    assert all((tmp_path / "out" / image["folder"] / "mask_1_red.png").exists() for image in images)
    assert "日本" in (tmp_path / "out/result.json").read_text()
    run(paths := [os.fsdecode(names[0])], "red", share=(0, 2), out=tmp_path / "shared")
    assert run(paths, "red", share=(0, 2), out=tmp_path / "shared").count == 1


EXPORTS = Options(overlay=False, masks="rle", coco=True, label_studio="https://example.org/images")


def coco_of(out):
    """Return the images and the entries of COCO's results, as pycocotools loads them."""
    images = COCO(out / "coco_images.json")
    return images.imgs, list(images.loadRes(str(out / "coco_results.json")).anns.values())


def test_results_for_other_programs(run, paths, tmp_path):
    run(paths, "red", "blue", options=EXPORTS)
    assert files(tmp_path / "out") == [
        *("coco_images.json", "coco_results.json", "label_studio/config.xml", "label_studio/tasks-0001.json"),
        "result.json",
    ]
    images, entries = coco_of(tmp_path / "out")
    assert [(number, image["file_name"]) for number, image in images.items()] == [
        (1, "1.png"),
        (2, "2.png"),
        (3, "3.png"),
    ]
    assert [(one["image_id"], one["expression"], one["bbox"]) for one in entries] == [
        *((1, "red", [0, 0, 6, 4]), (1, "blue", [0, 0, 0, 0]), (2, "red", [0, 0, 0, 0])),
        *((2, "blue", [0, 0, 6, 4]), (3, "red", [0, 0, 6, 4]), (3, "blue", [0, 0, 0, 0])),
    ]
    tasks = json.loads((tmp_path / "out/label_studio/tasks-0001.json").read_text())
    assert [task["data"]["image"] for task in tasks] == [f"https://example.org/images/{n}.png" for n in (1, 2, 3)]

    run(paths[:1], "red")  # another prediction
    assert files(tmp_path / "out") == ["1/mask_1_red.png", "1/overlay.png", "result.json"]


def test_the_last_of_several_processes_writes_the_results_of_all(run, paths, tmp_path, capsys):
    one, shared = tmp_path / "one", tmp_path / "shared"
    run(paths, "red", options=EXPORTS, out=one)
    for index in (2, 0):
        run(paths, "red", share=(index, 3), options=EXPORTS, out=shared)
        assert not (shared / "coco_results.json").exists()
        assert capsys.readouterr().out == (
            "coco_results.json is written when all shares are done; run any share again to write it\n"
        )
    run(paths, "red", share=(1, 3), options=EXPORTS, out=shared)
    assert capsys.readouterr().out == ""
    (images, entries), (expected_images, expected) = coco_of(shared), coco_of(one)
    assert images == expected_images

    def by_image(entries):
        return sorted(
            (one["image_id"], one["expression"], one["segmentation"]["counts"], one["score"]) for one in entries
        )

    assert by_image(entries) == by_image(expected)
    tasks = [json.loads(path.read_text()) for path in sorted((shared / "label_studio").glob("tasks-*-of-3-0001.json"))]
    named = sorted(task["data"]["image"] for share in tasks for task in share)
    assert named == [f"https://example.org/images/{number}.png" for number in (1, 2, 3)]

    Image.new("RGB", (6, 4), "red").save(paths[3])  # the image that could not be read; its share is started again
    run(paths, "red", share=(0, 3), options=EXPORTS, out=shared)
    assert set(coco_of(shared)[0]) == {1, 2, 3, 4}


def test_processes_that_end_at_the_same_time_write_the_results_of_all(segmenter, paths, tmp_path, monkeypatch):
    out, both_open, both_finished = tmp_path / "out", threading.Barrier(2, timeout=60), threading.Barrier(2, timeout=60)
    opened, finish = job.open_part, RecordFile.finish
    monkeypatch.setattr(job, "open_part", lambda *given: (opened(*given), both_open.wait())[0])
    monkeypatch.setattr(RecordFile, "finish", lambda part: (finish(part), both_finished.wait()))
    (tmp_path / "listed.txt").write_text("\n".join(map(str, paths)))
    items = list_items(str(tmp_path / "listed.txt"), ["red"], out)
    with ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(run_job, segmenter, items, (index, 2), out, EXPORTS, quiet=True) for index in (0, 1)]
    assert [(job.result().count, len(job.result().failed)) for job in jobs] == [(2, 0), (1, 1)]
    assert set(coco_of(out)[0]) == {1, 2, 3}


@pytest.mark.parametrize("share", [(0, 1), (0, 2)])
def test_a_job_that_could_not_write_its_exports_lists_its_results_and_continues(
    run, paths, tmp_path, monkeypatch, count_segmented, share
):
    out, fixed = tmp_path / "out", replace(EXPORTS, label_studio="https://example.org/other", coco=False)
    with monkeypatch.context() as patch, pytest.raises(UserError, match="full"):
        patch.setattr(job, "write_exports_of", lambda *_, **__: (_ for _ in ()).throw(UserError("full")))
        run(paths[:3], "red", options=EXPORTS, share=share)
    assert (out / "result.json").exists() == (share == (0, 1))
    count_segmented.clear()
    run(paths[:3], "red", options=fixed, share=share)  # the address is not part of the results
    assert count_segmented == []
    (tasks,) = (out / "label_studio").glob("*.json")
    assert json.loads(tasks.read_text())[0]["data"]["image"] == "https://example.org/other/1.png"


def test_names_of_coco_give_its_ids_also_beside_masks_in_files(run, tmp_path):
    names = ["COCO_train2014_000000000072.png", "COCO_train2014_000000000030.png"]
    for name in names:
        Image.new("RGB", (6, 4), "red").save(tmp_path / name)
    run([tmp_path / name for name in names], "red", options=Options(overlay=False, coco=True))
    images, _ = coco_of(tmp_path / "out")
    assert {number: image["file_name"] for number, image in images.items()} == {72: names[0], 30: names[1]}
    (entry,) = result(tmp_path / "out")["images"][0]["results"]
    assert entry["file"] == "mask_1_red.png" and decode_rle(entry["mask"], 4, 6).all()
