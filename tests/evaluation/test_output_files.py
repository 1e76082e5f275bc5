"""File names from expressions, and folders for results."""

import pytest

from s2rm_jax.errors import UserError
from s2rm_jax.io import make_output_folder, remove_earlier, slug


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("The man in red!", "the_man_in_red"),
        ("../../etc/passwd", "etc_passwd"),
        ("café au lait", "cafe_au_lait"),
        ("人", "untitled"),
        ("", "untitled"),
        ("a" * 100, "a" * 40),
    ],
)
def test_slug(text, name):
    assert slug(text) == name


def test_folder_is_made_with_its_parents_and_may_exist(tmp_path):
    path = tmp_path / "a" / "b"
    assert make_output_folder(path) == path
    assert make_output_folder(str(path)).is_dir()


def test_a_folder_that_may_not_be_written_to(tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda *_: False)  # a real one would not hold back a test that runs as root
    with pytest.raises(UserError, match="is not writable"):
        make_output_folder(tmp_path)


@pytest.mark.parametrize("inside", ["", "below"])
def test_a_file_in_the_way_is_named(tmp_path, inside):
    (tmp_path / "taken").write_text("")
    with pytest.raises(UserError, match=r"taken is an existing file"):
        make_output_folder(tmp_path / "taken" / inside)


def test_only_files_of_the_whole_name_are_removed(tmp_path):
    for name in ("mask_1_a.png", "mask_20_b_c.png", "mask_1_a.png.bak", "my_mask_1_a.png", "mask_of_mine.png"):
        (tmp_path / name).write_text("")
    (tmp_path / "mask_3_folder.png").mkdir()
    remove_earlier(tmp_path, r"mask_\d+_[a-z0-9_]+\.png")
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"mask_1_a.png.bak", "my_mask_1_a.png", "mask_of_mine.png", "mask_3_folder.png"}
