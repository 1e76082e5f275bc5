"""The images of a folder or a pattern, and their order."""

import logging
import re
from pathlib import Path

import pytest

from s2rm_jax.errors import UserError
from s2rm_jax.prediction.files import NAMES_OF_JOB
from s2rm_jax.prediction.image_lists import list_images, result_folders


@pytest.fixture
def frames(tmp_path):
    for name in ("frame10.jpg", "frame9.jpg", "Frame2.JPG", "notes.txt", "more/frame1.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("", ["Frame2.JPG", "frame9.jpg", "frame10.jpg"]),
        ("/*.jpg", ["frame9.jpg", "frame10.jpg"]),
        ("/**/*1*", ["frame10.jpg", "more/frame1.png"]),
        ("/notes.txt", ["notes.txt"]),
        ("/**/**/*10*", ["frame10.jpg"]),
    ],
)
def test_natural_order(frames, given, expected):
    assert [path.relative_to(frames).as_posix() for path in list_images(f"{frames}{given}")] == expected


def test_numbers_count_in_every_part_of_a_path(tmp_path):
    for name in ("take10/1.png", "take9/2.png", "take9/10.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = list_images(f"{tmp_path}/*/*.png")
    assert [path.relative_to(tmp_path).as_posix() for path in found] == ["take9/2.png", "take9/10.png", "take10/1.png"]


def test_none_is_a_mistake(tmp_path):
    with pytest.raises(UserError, match=r"the folder .* has no images"):
        list_images(str(tmp_path))
    with pytest.raises(UserError, match=r"no file matches .*\*\.jpg; check the pattern"):
        list_images(f"{tmp_path}/*.jpg")


def test_the_name_of_a_file_is_no_pattern(tmp_path):
    for name in ("frame[1].jpg", "frame1.jpg"):
        (tmp_path / name).touch()
    assert list_images(f"{tmp_path}/frame[1].jpg") == [tmp_path / "frame[1].jpg"]


@pytest.mark.parametrize(
    ("images", "folders"),
    [
        (["frames/1.jpg"], ["1"]),
        (["a/x/1.jpg", "a/y/1.jpg", "a/2.jpg"], ["x/1", "y/1", "2"]),
        (["a.png", "a.jpg", "a.png.jpg"], ["a.png", "a.jpg", "a.png.jpg"]),
        (["1.png", "result.json.png"], ["1.png", "result.json.png"]),
        (["1.png", "job.json.png"], ["1.png", "job.json.png"]),
        (["1.png", "part-0-of-1.jsonl.png"], ["1.png", "part-0-of-1.jsonl.png"]),
        (["1.png", "label_studio.png"], ["1.png", "label_studio.png"]),
        (["1.png", "party.png"], ["1", "party"]),
        (["1.png", "...png"], ["1.png", "...png"]),  # and not "..", the folder above
        (["x/1.png", "x/..png", "2.png"], ["x/1.png", "x/..png", "2.png"]),
    ],
)
def test_every_image_has_a_folder_of_its_own(images, folders):
    found = result_folders([Path(name) for name in images], taken=NAMES_OF_JOB)
    assert [path.as_posix() for path in found] == folders


def test_hidden_files_are_passed_over_unless_they_are_named(frames):
    for name in ("._frame9.jpg", ".cache/frame1.jpg"):
        (frames / name).parent.mkdir(exist_ok=True)
        (frames / name).touch()
    names = [[path.name for path in list_images(f"{frames}{given}")] for given in ("", "/*.jpg", "/**/*.jpg")]
    assert names == [["Frame2.JPG", "frame9.jpg", "frame10.jpg"], *[["frame9.jpg", "frame10.jpg"]] * 2]
    assert list_images(f"{frames}/.*/*.jpg") == [frames / ".cache/frame1.jpg"]


def test_images_of_a_folder_that_are_not_read_are_counted_and_named(frames, caplog):
    for name in ("a.JP2", "b.tga", "c.dng", "d.txt"):
        (frames / name).touch()
    (frames / "e.png").symlink_to(frames / "nowhere.png")
    with caplog.at_level(logging.WARNING):
        assert len(list_images(str(frames))) == 3
    _, message = caplog.messages
    assert message.endswith(
        "left out because their format is not supported or their link is broken: 4 (a.JP2, b.tga, c.dng, e.png)"
    )
    for path in list_images(str(frames)):
        path.unlink()
    with pytest.raises(UserError, match=r"has no images .*; 4 that cannot be read: a\.JP2, b\.tga, c\.dng, e\.png"):
        list_images(str(frames))


def test_subfolders_are_counted_and_named_with_a_pattern_that_finds_their_images(tmp_path, caplog):
    folder = tmp_path / "set [1]"
    (folder / "x").mkdir(parents=True)
    (folder / "x/1.jpg").touch()
    message = (
        r"has no images .*; subfolders are not searched: 1 \(x\); give a pattern such as '(.*/set \[\[\]1\]/\*\*/.*)'$"
    )
    with pytest.raises(UserError, match=message) as raised:
        list_images(str(folder))
    assert list_images(re.search(message, str(raised.value))[1]) == [folder / "x/1.jpg"]
    out = folder / "y/out"  # where the results of this job will be
    out.mkdir(parents=True)
    for name in ("a.png", ".cache/b.jpg", "found/job.json"):  # the last is the result of a job
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    with caplog.at_level(logging.WARNING):
        (folder / "x10").mkdir()
        (folder / "x9").mkdir()
        assert list_images(f"{folder}/", out) == [folder / "a.png"]
        (folder / "result.json").touch()
        list_images(str(folder))
    (message,) = caplog.messages
    assert message == (
        f"{folder}/: subfolders are not searched: 3 (x, x9, x10); to include them, give a pattern such as "
        f"'{tmp_path}/set [[]1]/**/*.jpg'"
    )


def test_links_that_form_loops_end(frames):
    for name in "ab":
        (frames / name).mkdir()
    for folder in (frames, frames / "a", frames / "b"):
        for name in ("up", "over"):
            (folder / name).symlink_to(frames)
    assert [path.name for path in list_images(f"{frames}/**")] == ["Frame2.JPG", "frame9.jpg", *_REST]


_REST = ["frame10.jpg", "frame1.png", "notes.txt"]


def test_a_text_that_is_not_a_pattern_is_named(tmp_path):
    with pytest.raises(UserError, match=r"a\*\*b is not a pattern"):
        list_images(f"{tmp_path}/a**b")
