"""The folders in which a run may begin."""

import pytest

from s2rm_jax.config import default_config
from s2rm_jax.errors import UserError
from s2rm_jax.training.run import require_workdir, save_config


def test_new_and_empty_folders_are(tmp_path):
    require_workdir(tmp_path / "new" / "run")
    require_workdir(tmp_path)
    (tmp_path / ".hidden").write_text("")
    (tmp_path / "slurm-12.out").write_text("")
    require_workdir(tmp_path)


def test_what_a_failed_start_left_is(tmp_path):
    (tmp_path / "vocab.txt").write_text("[PAD]\n")
    (tmp_path / "config.json").write_text("{ half")
    (tmp_path / "checkpoints").mkdir()
    require_workdir(tmp_path)


def test_the_folder_of_a_run_is_whatever_else_lies_there(tmp_path):
    (tmp_path / "notes.md").write_text("")
    (tmp_path / "eval-val").mkdir()
    (tmp_path / "checkpoints/12").mkdir(parents=True)
    require_workdir(tmp_path)
    (tmp_path / "checkpoints/12").rmdir()
    save_config(tmp_path, default_config())
    require_workdir(tmp_path)


def test_somebodys_own_files_are_not(tmp_path):
    (tmp_path / "image.png").write_text("")
    (tmp_path / "vocab.txt").write_text("")
    with pytest.raises(
        UserError, match=r"holds files that do not belong to a run, such as image\.png; give a new folder"
    ):
        require_workdir(tmp_path)
    (tmp_path / "config.json").write_text('{"architectures": ["BertModel"]}')  # of another program
    with pytest.raises(UserError, match="do not belong to a run"):
        require_workdir(tmp_path)
    with pytest.raises(UserError, match=r"image\.png is a file; give a folder"):
        require_workdir(tmp_path / "image.png")
