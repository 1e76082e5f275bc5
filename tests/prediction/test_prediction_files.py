"""The files that a prediction writes, and the files of an earlier one that it removes."""

import errno
import fcntl
import io
import json
import os
from pathlib import Path

import numpy as np
import pytest

from s2rm_jax.errors import UserError
from s2rm_jax.prediction.files import remove_earlier_prediction, write_prediction, write_result
from s2rm_jax.prediction.job_files import RecordFile, open_part
from s2rm_jax.segmenter import Result


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_masks_match_their_list(tmp_path):
    masks = np.zeros((2, 4, 6), bool)
    masks[0, 1:3, 2:] = True
    result = Result(("a man", "A man!"), masks, np.array([0.91234, 0.0]), np.array([0.1, 0.9]))
    found = write_prediction(tmp_path, np.zeros((4, 6, 3), np.uint8), result)
    first = {"expression": "a man", "score": 0.9123, "area": 8, "box": (2, 1, 6, 3), "file": "mask_1_a_man.png"}
    second = {"expression": "A man!", "score": 0.0, "area": 0, "box": None, "file": "mask_2_a_man.png"}
    assert found == [first | {"no_target": 0.1}, second | {"no_target": 0.9}]
    assert names(tmp_path) == ["mask_1_a_man.png", "mask_2_a_man.png", "overlay.png"]


@pytest.mark.parametrize("name", ["mask_1_a_man.png", "overlay.png", "result.json"])
def test_a_file_that_cannot_be_written_gives_a_one_line_error(tmp_path, name):
    (tmp_path / name).mkdir()
    result = Result(("a man",), np.zeros((1, 4, 6), bool), np.zeros(1))
    with pytest.raises(UserError, match=rf"^--out: .*{name} cannot be written \(Is a directory\); give another --out$"):
        write_prediction(tmp_path, np.zeros((4, 6, 3), np.uint8), result)
        write_result(tmp_path, {})


def test_only_listed_masks_are_removed(tmp_path):
    for name in ("mask_1_a_dog.png", "mask_12_a_cat.png", "mask_3_mine.png", "notes.txt", "overlay.png"):
        (tmp_path / name).write_text("")
    listed = [{"file": "mask_1_a_dog.png"}, {"file": "mask_12_a_cat.png"}, {"file": "notes.txt"}]
    (tmp_path / "result.json").write_text(json.dumps({"results": listed}))
    remove_earlier_prediction(tmp_path)
    assert names(tmp_path) == ["mask_3_mine.png", "notes.txt", "overlay.png", "result.json"]


def test_a_listed_overlay_is_removed(tmp_path):
    (tmp_path / "overlay.png").touch()
    (tmp_path / "result.json").write_text(json.dumps({"results": [], "overlay": "overlay.png"}))
    remove_earlier_prediction(tmp_path)
    assert names(tmp_path) == ["result.json"]


def test_empty_folders_of_many_images_are_removed(tmp_path):
    out = tmp_path / "out"
    for folder in ("1", "2", "../outside"):
        (out / folder).mkdir(parents=True)
        for name in ("mask_1_a_dog.png", "overlay.png"):
            (out / folder / name).write_text("")
    (out / "2/mine.txt").write_text("")
    images = [{"folder": folder, "results": [{"file": "mask_1_a_dog.png"}]} for folder in ("1", "2", "../outside")]
    (out / "result.json").write_text(json.dumps({"images": images}))
    remove_earlier_prediction(out)
    assert names(out) == ["2", "result.json"] and names(out / "2") == ["mine.txt"]
    assert len(names(tmp_path / "outside")) == 2


@pytest.mark.parametrize("content", ["{", "[]", "3", '{"results": 3}', '{"results": [{}]}', '{"images": [3]}'])
def test_a_result_file_of_another_program_is_ignored(tmp_path, content):
    (tmp_path / "result.json").write_text(content)
    (tmp_path / "mask_1_mine.png").write_text("")
    remove_earlier_prediction(tmp_path)
    assert (tmp_path / "mask_1_mine.png").exists()


class FailingFile(io.BufferedRandom):
    """A file whose method named `fails` fails, as on a full or broken disk."""

    fails = ""

    def truncate(self, size=None):
        if self.fails == "truncate":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().truncate(size)

    def seek(self, offset, whence=0):
        if self.fails == "seek":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return super().seek(offset, whence)


def no_locks(*_):
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))


@pytest.mark.parametrize(
    ("fails", "message"),
    [
        ("flock", r"cannot be locked \(No locks available\); give a folder on another file system$"),
        ("seek", r"cannot be written \(Input/output error\); give another --out$"),
        ("truncate", r"cannot be written \(No space left on device\); give another --out, or free space$"),
    ],
)
def test_a_part_that_cannot_be_opened_is_reported_in_one_line_and_closed(tmp_path, monkeypatch, fails, message):
    opened = []

    def open_failing(path, mode):
        file = FailingFile(io.FileIO(path, mode))
        file.fails = fails
        opened.append(file)
        return file

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", open_failing)
        if fails == "flock":
            patch.setattr(fcntl, "flock", no_locks)
        with pytest.raises(UserError, match=rf"^--out: {tmp_path}/part {message}"):
            RecordFile(tmp_path / "part")
    assert [file.closed for file in opened] == [True]


def test_records_are_on_the_disk_when_a_part_is_finished(tmp_path, monkeypatch):
    """Until then, a process on another host may not see them, and neither would write what the last one writes."""
    path, synced = tmp_path / "part", []
    monkeypatch.setattr(os, "fsync", lambda number: synced.append(os.fstat(number).st_size))
    with RecordFile(path) as part:
        part.write({"image": "1.png"})
        part.write({"image": "2.png", "error": "missing"})
        part.finish()
        assert synced == [path.stat().st_size] and len(path.read_text().splitlines()) == 2


FOREIGN = ("coco_truth.json", "vis/12-mask.png", "vis/12-iou=75.00-red.png", "label_studio/config.xml", "metrics.json")
EXPORTED = ("coco_results.json", "coco_images.json", "label_studio/tasks-0001.json")


@pytest.mark.parametrize("proof", ["result.json", "job.json"])
def test_only_files_that_a_prediction_wrote_are_removed(tmp_path, proof):
    for name in (*FOREIGN, *EXPORTED):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("[]")
    remove_earlier_prediction(tmp_path)
    assert all((tmp_path / name).exists() for name in (*FOREIGN, *EXPORTED))
    (tmp_path / proof).write_text("{}")
    remove_earlier_prediction(tmp_path)
    left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {*FOREIGN, proof}


def test_an_earlier_export_that_cannot_be_removed_is_an_error(tmp_path, monkeypatch):
    for name in ("coco_results.json", "result.json"):
        (tmp_path / name).write_text("{}")
    monkeypatch.setattr(Path, "unlink", lambda *_, **__: (_ for _ in ()).throw(PermissionError(1, "Not permitted")))
    with pytest.raises(UserError, match=r"^--out: .* cannot be written \(Not permitted\)"):
        remove_earlier_prediction(tmp_path)


def test_a_part_is_unlocked_when_the_job_cannot_be_written(tmp_path):
    (tmp_path / "job.json").mkdir()
    with pytest.raises(UserError, match=r"job.json cannot be written \(Is a directory\)"):
        open_part(tmp_path, (0, 1), {})
    (tmp_path / "job.json").rmdir()
    open_part(tmp_path, (0, 1), {}).__exit__()
