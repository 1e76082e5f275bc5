"""Compiled programs that are kept for later processes: found again only where they belong."""

import logging
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache as jax_cache

from s2rm_jax.segmenter import Segmenter
from s2rm_jax.training import compile
from s2rm_jax.training.compile import ProgramStore, open_program_store
from tests.conftest import tiny_config


def fail(*_, **__):
    raise ValueError("it fails")


X = np.arange(3, dtype=np.float32)


@pytest.fixture(autouse=True)
def no_cache_of_jax():
    """As where the environment names no folder for JAX's own cache."""
    before = jax.config.values["jax_compilation_cache_dir"]
    jax.config.update("jax_compilation_cache_dir", None)
    jax_cache.reset_cache()
    yield
    jax.config.update("jax_compilation_cache_dir", before)
    jax_cache.reset_cache()


class Traced:
    """A jitted function that counts how often it is traced."""

    def __init__(self, store):
        self.times = 0

        def double(x, *, plus):
            self.times += 1
            return {"sum": 2 * x + plus}

        self.run = store.keep(jax.jit(double, static_argnames="plus"))

    def __call__(self, x=X, plus=1):
        (result,) = self.run(jnp.asarray(x), plus=plus).values()
        np.testing.assert_array_equal(result, 2 * x + plus)
        return self.times


def test_a_later_process_neither_traces_nor_compiles(tmp_path):
    first, second = (Traced(ProgramStore(tmp_path, tiny_config())) for _ in range(2))
    assert [first(), first(), second(), second()] == [1, 1, 0, 0]


def test_a_program_is_used_only_for_what_it_was_made_from(tmp_path, monkeypatch):
    config = tiny_config()
    Traced(ProgramStore(tmp_path, config))()
    function = Traced(ProgramStore(tmp_path, config))
    assert [function(X[:2]), function(plus=2), function(X.astype(np.int32)), function()] == [1, 2, 3, 3]

    wider = tiny_config()
    wider.decoder.widths = (8, 16)
    assert Traced(ProgramStore(tmp_path, wider))() == 1
    with monkeypatch.context() as patched:
        patched.setenv("XLA_FLAGS", f"{os.environ['XLA_FLAGS']} --xla_cpu_enable_fast_math=false")
        assert Traced(ProgramStore(tmp_path, config))() == 1
    jax.config.update("jax_default_matmul_precision", "highest")
    try:
        assert Traced(ProgramStore(tmp_path, config))() == 1
    finally:
        jax.config.update("jax_default_matmul_precision", None)
    with monkeypatch.context() as patched:
        patched.setattr(compile, "_describe_processor", lambda: "another")
        assert Traced(ProgramStore(tmp_path, config))() == 1
    monkeypatch.setattr(compile, "__file__", __file__)  # the code of another version of the package
    assert Traced(ProgramStore(tmp_path, config))() == 1


@pytest.mark.parametrize("damage", ["changed", "cut", "empty", "another", "format", "run"])
def test_a_damaged_file_is_replaced_with_a_warning(tmp_path, damage, caplog, monkeypatch):
    store = ProgramStore(tmp_path, tiny_config())
    Traced(store)()
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    if damage == "another":
        Traced(store)(plus=2)
        (other,) = set(tmp_path.iterdir()) - {path}
        other.replace(path)
    elif damage == "format":  # as if JAX had changed it without a new version
        monkeypatch.setattr(compile, "deserialize_and_load", fail)
    elif damage == "run":  # as a program that JAX's own cache has loaded, and that was saved again
        monkeypatch.setattr(compile, "deserialize_and_load", lambda *_: fail)
    else:
        changed = whole[:-1] + bytes([whole[-1] ^ 1])
        path.write_bytes({"changed": changed, "cut": whole[: len(whole) // 2], "empty": b""}[damage])
    monkeypatch.setattr(logging.getLogger("s2rm_jax"), "propagate", True)
    assert Traced(store)() == 1
    (warning,) = caplog.messages
    assert str(path) in warning and "is damaged" in warning
    monkeypatch.undo()
    assert Traced(store)() == 0


def test_the_programs_that_were_used_last_remain(tmp_path, monkeypatch):
    monkeypatch.setattr(compile, "PROGRAMS_KEPT", 2)
    store = ProgramStore(tmp_path, tiny_config())
    for seconds, plus in ((100, 1), (200, 2)):
        before = set(tmp_path.iterdir())
        Traced(store)(plus=plus)
        (path,) = set(tmp_path.iterdir()) - before
        os.utime(path, (seconds, seconds))
    assert Traced(store)(plus=1) == 0  # now the last
    Traced(store)(plus=3)
    assert [Traced(store)(plus=plus) for plus in (1, 3, 2)] == [0, 0, 1]


def test_a_folder_that_cannot_be_written_costs_only_time(tmp_path, monkeypatch):
    store = ProgramStore(tmp_path / "missing", tiny_config())
    assert [Traced(store)(), Traced(store)()] == [1, 1]
    monkeypatch.setattr(compile, "serialize", fail)  # as JAX for programs that it cannot serialize
    assert Traced(ProgramStore(tmp_path, tiny_config()))() == 1
    assert not list(tmp_path.iterdir())


def test_programs_are_kept_only_where_nobody_else_can_write(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    config = tiny_config()
    assert open_program_store(config) is not None
    folder = tmp_path / "s2rm_jax/programs"
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.chmod(0o770)
    assert open_program_store(config) is None
    folder.chmod(0o700)
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "jax"))
    assert open_program_store(config) is None
    jax.config.update("jax_compilation_cache_dir", None)
    with monkeypatch.context() as patched:
        patched.setattr(os, "getuid", lambda: folder.stat().st_uid + 1)
        assert open_program_store(config) is None
    config.compilation_cache = "off"
    assert open_program_store(config) is None
    config.compilation_cache = ""
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        assert open_program_store(config) is None
    finally:
        jax.config.update("jax_enable_compilation_cache", True)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    (tmp_path / "file").write_text("")
    assert open_program_store(config) is None
    with monkeypatch.context() as patched:
        patched.delenv("XDG_CACHE_HOME")
        patched.setattr(os.path, "expanduser", lambda path: path)  # a user without a home
        assert open_program_store(config) is None
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert open_program_store(config) is None


def test_a_segmenter_starts_from_kept_programs(tiny_workdir, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    images = [np.random.default_rng(0).integers(0, 255, (24, 32, 3), np.uint8)] * 3
    plain = Segmenter.from_checkpoint(tiny_workdir).segment(images, ["red", "a blue star"])
    assert not list(tmp_path.iterdir())
    Segmenter.from_checkpoint(tiny_workdir, keep_programs=True).segment(images, ["red", "a blue star"])

    second = Segmenter.from_checkpoint(tiny_workdir, keep_programs=True)
    monkeypatch.setattr("s2rm_jax.models.network.ReferringNetwork.apply", fail)
    monkeypatch.setattr("s2rm_jax.models.network.ReferringNetwork.init", fail)
    Segmenter.from_checkpoint(tiny_workdir, keep_programs=True)
    for one, other in zip(second.segment(images, ["red", "a blue star"]), plain, strict=True):
        np.testing.assert_array_equal(one.masks, other.masks)
        np.testing.assert_array_equal(one.scores, other.scores)
