"""The folder of compiled programs, and their reuse by a second start."""

import logging

import jax
import pytest
from etils import epath
from jax.experimental.compilation_cache import compilation_cache as jax_cache

from s2rm_jax.errors import UserError
from s2rm_jax.parallel import distributed, programs
from s2rm_jax.parallel.mesh import make_mesh

MESH = make_mesh(devices=jax.devices()[:1])


@pytest.fixture(autouse=True)
def no_folder_given(monkeypatch):
    """As where the environment says nothing; and every program is worth keeping."""
    before = jax.config.values["jax_compilation_cache_dir"]
    monkeypatch.setattr(programs, "WORTH_KEEPING", 0.0)
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    assert jax.config.values["jax_compilation_cache_dir"] is None  # as it was before the run
    jax.config.update("jax_compilation_cache_dir", before)
    jax_cache.reset_cache()


def kept(folder, whole=False):
    """Return the names of the cached programs, or with `whole` those of their files."""
    names = {path.name for path in folder.iterdir() if path.name.endswith("-cache")}
    return names if whole else {name.split("-")[0] for name in names}


def test_the_second_start_of_a_run_takes_its_step_from_the_workdir(tmp_path, standin, caplog):
    config = standin.make_config(steps=2)
    first = standin.train(config, tmp_path / "run", standin.make_parts(config), MESH)
    assert {"jit_train_step", "jit_initial_state"} <= kept(tmp_path / "run" / "compilation_cache")
    longer = standin.make_config(steps=2, compilation_cache=str(tmp_path / "run" / "compilation_cache"))
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        assert standin.train(longer, tmp_path / "other", standin.make_parts(longer), MESH) == first
    assert "Persistent compilation cache hit for 'jit_train_step'" in caplog.text
    assert not (tmp_path / "other" / "compilation_cache").exists()


def test_a_workdir_that_was_moved_compiles_nothing_again(tmp_path, standin, caplog):
    config = standin.make_config(steps=2)
    standin.train(config, tmp_path / "here", standin.make_parts(config), MESH)
    (tmp_path / "here").rename(tmp_path / "there")
    before = kept(tmp_path / "there" / "compilation_cache", whole=True)
    longer = standin.make_config(steps=2)
    (tmp_path / "there" / "checkpoints").rename(tmp_path / "checkpoints")  # so that there is a step to compile
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        standin.train(longer, tmp_path / "there", standin.make_parts(longer), MESH)
    assert "Persistent compilation cache hit for 'jit_train_step'" in caplog.text
    assert kept(tmp_path / "there" / "compilation_cache", whole=True) == before


def test_what_compiles_fast_is_not_kept(tmp_path, standin, monkeypatch):
    monkeypatch.setattr(programs, "WORTH_KEEPING", 60.0)
    config = standin.make_config(steps=1)
    standin.train(config, tmp_path, standin.make_parts(config), MESH)
    assert kept(tmp_path / "compilation_cache") == set()


def test_it_can_be_off_or_elsewhere_or_left_to_jax(tmp_path, standin, monkeypatch):
    workdir = epath.Path(tmp_path / "run")

    def folder_used(setting):
        with programs.compilation_cache(standin.make_config(compilation_cache=setting), workdir):
            return jax.config.values["jax_compilation_cache_dir"]

    assert folder_used("off") is None and not (tmp_path / "run").exists()
    assert folder_used(str(tmp_path / "shared")) == str(tmp_path / "shared")
    assert folder_used("") == str(tmp_path / "run" / "compilation_cache")
    with monkeypatch.context() as several:
        several.setattr(distributed, "is_alone", lambda: False)
        assert folder_used("") is None  # each process on a CPU has programs of its own
    jax.config.update("jax_compilation_cache_dir", "/chosen/by/the/environment")
    try:
        assert folder_used("") == "/chosen/by/the/environment"
        assert folder_used("off") is None
    finally:
        jax.config.update("jax_compilation_cache_dir", None)


def test_a_folder_that_cannot_be_is_named(tmp_path, standin):
    (tmp_path / "file").write_text("")
    config = standin.make_config(compilation_cache=str(tmp_path / "file" / "cache"))
    with pytest.raises(UserError, match=r"config\.compilation_cache: .*file/cache cannot be used"):
        standin.train(config, tmp_path / "run", standin.make_parts(config), MESH)


def test_an_error_in_a_run_without_a_cache_is_not_blamed_on_the_folder(tmp_path, standin):
    (tmp_path / "file").write_text("")  # in place of a workdir that cannot be written
    without_cache = programs.compilation_cache(standin.make_config(), epath.Path(tmp_path / "file"))
    with pytest.raises(ValueError, match="a defect") as raised, without_cache:
        raise ValueError("a defect")
    assert raised.value.__context__ is None


def test_a_private_cache_is_of_limited_size_and_needs_a_private_folder(tmp_path, standin, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = tmp_path / "s2rm_jax/compilation_cache"
    with programs.private_compilation_cache(standin.make_config()):
        assert jax.config.values["jax_compilation_cache_dir"] == str(folder)
        jax.jit(lambda x: x + 1)(jax.numpy.ones(7))
    assert kept(folder) and jax.config.values["jax_compilation_cache_max_size"] == -1
    folder.chmod(0o770)
    with programs.private_compilation_cache(standin.make_config()):
        assert jax.config.values["jax_compilation_cache_dir"] is None
