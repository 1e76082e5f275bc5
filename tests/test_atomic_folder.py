"""A folder appears complete or not at all, and a failed write leaves nothing."""

import contextlib
import errno
import os
import threading

import pytest

from s2rm_jax.errors import UserError
from s2rm_jax.io import atomic_folder


def test_a_folder_appears_when_it_is_complete(tmp_path):
    out = tmp_path / "deep" / "out"
    with atomic_folder(out, "--out") as folder:
        (folder / "a").write_text("1")
        assert not out.exists()
    assert [path.name for path in out.iterdir()] == ["a"]
    assert os.listdir(tmp_path / "deep") == ["out"]


def test_an_empty_folder_may_exist(tmp_path):
    (tmp_path / "out").mkdir()
    with atomic_folder(tmp_path / "out", "--out") as folder:
        (folder / "a").touch()
    assert os.listdir(tmp_path / "out") == ["a"]


def test_a_link_to_an_empty_folder_stays_a_link(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to("disk")
    with atomic_folder(tmp_path / "out", "--out") as folder:
        (folder / "a").touch()
    assert os.listdir(tmp_path / "disk") == ["a"] and (tmp_path / "out").is_symlink()


def test_a_mount_point_is_refused_at_once():
    with pytest.raises(UserError, match=r"--out: / is a mount point, which"), atomic_folder("/", "--out"):
        pass


def test_an_existing_folder_or_file_is_not_changed(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").touch()
    (tmp_path / "file").write_text("precious")
    for name in ("out", "file"):
        with pytest.raises(UserError, match=rf"--out: .*{name} already exists; give another --out, or remove it"):
            atomic_folder(tmp_path / name, "--out").__enter__()
    assert os.listdir(tmp_path / "out") == ["precious"] and (tmp_path / "file").read_text() == "precious"


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), ValueError("a mistake"), KeyboardInterrupt()]
)
def test_a_failed_write_leaves_nothing(tmp_path, error):
    expected = UserError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected) as caught, atomic_folder(tmp_path / "out", "--out") as folder:
        (folder / "half").write_text("written")
        raise error
    assert os.listdir(tmp_path) == []
    if expected is UserError:
        assert str(caught.value).endswith("(No space left on device); free space there, or give another --out")


@pytest.mark.parametrize("error", [OSError(errno.EROFS, "Read-only file system"), OSError("I/O error (os error 27)")])
def test_errors_of_writing_to_an_open_file_name_the_flag(tmp_path, error):
    """As `write` and libraries in Rust raise them, without the name of the file."""
    with pytest.raises(UserError, match=r"--out: .* cannot be written"), atomic_folder(tmp_path / "out", "--out"):
        raise error


def test_an_error_elsewhere_is_not_one_of_writing(tmp_path):
    error = FileNotFoundError(errno.ENOENT, "not found", "x")
    with pytest.raises(OSError) as caught, atomic_folder(tmp_path / "out", "--out"):
        raise error
    assert caught.value is error
    assert os.listdir(tmp_path) == []


def test_a_folder_that_may_not_be_written_to_is_named(tmp_path):
    with pytest.raises(UserError, match="out cannot be written"), atomic_folder(tmp_path / "out", "--out") as folder:
        (folder / "missing" / "file").touch()


def test_two_writes_at_once_keep_their_files(tmp_path):
    """One has the folder, and the other is refused; neither has files of the other."""
    with pytest.raises(UserError, match="out cannot be written"), atomic_folder(tmp_path / "out", "--out") as first:
        (first / "first").touch()
        with atomic_folder(tmp_path / "out", "--out") as second:
            (second / "second").touch()
        kept = list(first.glob("*"))
    assert [path.name for path in kept] == ["first"]
    assert os.listdir(tmp_path) == ["out"] and os.listdir(tmp_path / "out") == ["second"]


def test_a_file_in_place_of_a_parent_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"--out: .* cannot be written \(Not a directory\)"):
        atomic_folder(tmp_path / "file" / "out", "--out").__enter__()


def test_threads_that_still_write_after_the_failure_leave_nothing(tmp_path):
    """The threads in which Orbax writes a checkpoint outlive the error of one of them."""
    began = threading.Event()

    def write(folder):
        with contextlib.suppress(FileNotFoundError):  # once the folder is gone
            for number in range(5_000):
                (folder / str(number)).touch()
                began.set()

    with pytest.raises(UserError, match="give another --out"), atomic_folder(tmp_path / "out", "--out") as folder:
        inner = folder / "checkpoints" / "0"
        inner.mkdir(parents=True)
        thread = threading.Thread(target=write, args=(inner,))
        thread.start()
        assert began.wait(60)
        raise OSError(27, "File too large")
    thread.join()
    assert os.listdir(tmp_path) == []
