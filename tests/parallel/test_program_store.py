"""Compiled programs that are kept for later processes: found again only where they belong."""

import logging
import os
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache as jax_cache

from s2rm_jax.parallel import programs
from s2rm_jax.parallel.programs import ProgramStore, open_program_store
from s2rm_jax.segmenter import Segmenter
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
    with monkeypatch.context() as patched:
        patched.setattr(programs, "_describe_processor", lambda: "another")
        assert Traced(ProgramStore(tmp_path, config))() == 1
    monkeypatch.setattr(programs, "__file__", __file__)  # the code of another version of the package
    assert Traced(ProgramStore(tmp_path, config))() == 1


def test_settings_count_when_a_program_is_made_not_when_the_store_is(tmp_path):
    precise = jax.default_matmul_precision("highest")
    with precise:
        store = ProgramStore(tmp_path, tiny_config())
    function = Traced(store)
    assert function() == 1
    with precise:
        assert function() == 2, "not the program of other settings, which the process has"
        assert Traced(ProgramStore(tmp_path, tiny_config()))() == 0
    assert function() == 2
    assert Traced(ProgramStore(tmp_path, tiny_config()))() == 0
    assert len(list(tmp_path.iterdir())) == 2


def test_a_run_that_was_moved_keeps_its_programs(tmp_path):
    config = tiny_config()
    Traced(ProgramStore(tmp_path, config))()
    config.text.vocab, config.text.lower_case = "/elsewhere/vocab.txt", False
    config.text.pretrained = config.vision.pretrained = "/elsewhere/weights"
    config.seed, config.batch_size, config.optimizer.learning_rate, config.eval.every = 5, 7, 0.5, 1
    assert Traced(ProgramStore(tmp_path, config))() == 0


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("vision.window_size", 2), ("text.max_tokens", 8), ("fusion.num_heads", 1), ("decoder.guidance", "none")),
        *(("dtype", "bfloat16"), ("remat", "dense"), ("input.image_size", (64, 64))),
    ],
)
def test_another_network_has_programs_of_its_own(tmp_path, field, value):
    config = tiny_config()
    Traced(ProgramStore(tmp_path, config))()
    config.update_from_flattened_dict({field: value})
    assert Traced(ProgramStore(tmp_path, config))() == 1


def test_no_program_runs_twice_in_its_first_call(tmp_path, monkeypatch):
    Traced(ProgramStore(tmp_path, tiny_config()))()
    runs, load = [], programs.deserialize_and_load

    def counting(*arguments, **named):
        program = load(*arguments, **named)
        return lambda *inputs: runs.append(1) or program(*inputs)

    monkeypatch.setattr(programs, "deserialize_and_load", counting)
    function = Traced(ProgramStore(tmp_path, tiny_config()))
    assert [function(), len(runs), function(), len(runs)] == [0, 1, 0, 2]


TWO_DEVICES = """
import sys
import jax, numpy as np
from s2rm_jax.parallel.programs import ProgramStore
from tests.conftest import tiny_config
from pathlib import Path

jax.config.update("jax_compilation_cache_dir", None)
traced = []

for device in jax.devices():
    def double(x):
        traced.append(1)
        return 2 * x

    run = ProgramStore(Path(sys.argv[1]), tiny_config()).keep(jax.jit(double))
    x = jax.device_put(np.arange(3.0), device)
    for y in (run(x), run(x)):
        assert y.devices() == {device}, (device, y.devices())
        np.testing.assert_array_equal(y, [0, 2, 4])
print(len(jax.devices()), len(traced))
"""


def test_a_program_runs_on_the_device_of_its_arguments(warm, tmp_path):
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "2"}
    # A program of each device, which the second process loads. Its hashes of strings are others.
    for server, printed in enumerate(("2 2", "2 0")):
        done = warm.run("-c", TWO_DEVICES, tmp_path, env=environment, server=server)
        assert (done.stdout.strip(), done.stderr) == (printed, "")


@pytest.mark.parametrize("damage", ["changed", "cut", "empty", "another", "format", "run", "owner", "writable", "link"])
def test_an_unusable_file_is_replaced_with_a_warning(tmp_path, damage, caplog, monkeypatch):
    store = ProgramStore(tmp_path, tiny_config())
    Traced(store)()
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    if damage == "another":
        Traced(store)(plus=2)
        (other,) = set(tmp_path.iterdir()) - {path}
        other.replace(path)
    elif damage == "format":  # as if JAX had changed it without a new version
        monkeypatch.setattr(programs, "deserialize_and_load", fail)
    elif damage == "run":  # as a program that JAX's own cache has loaded, and that was saved again
        monkeypatch.setattr(programs, "deserialize_and_load", lambda *_, **__: fail)
    elif damage == "owner":
        monkeypatch.setattr(os, "getuid", lambda: path.stat().st_uid + 1)
    elif damage == "writable":
        path.chmod(0o620)
    elif damage == "link":
        path.rename(tmp_path / "elsewhere")
        path.symlink_to(tmp_path / "elsewhere")
    else:
        changed = whole[:-1] + bytes([whole[-1] ^ 1])
        path.write_bytes({"changed": changed, "cut": whole[: len(whole) // 2], "empty": b""}[damage])
    monkeypatch.setattr(logging.getLogger("s2rm_jax"), "propagate", True)
    assert Traced(store)() == 1
    (warning,) = caplog.messages
    assert warning.startswith(f"the compiled program {path} cannot be used (") and "compiling it again" in warning
    reasons = {"format": "it fails", "run": "it fails", "link": "Too many levels of symbolic links"}
    reasons |= dict.fromkeys(("owner", "writable"), "others can write to it")
    assert reasons.get(damage, "it is damaged: its checksum is wrong") in warning
    monkeypatch.undo()
    assert Traced(store)() == 0


def test_the_programs_that_were_used_last_remain(tmp_path, monkeypatch):
    monkeypatch.setattr(programs, "PROGRAMS_KEPT", 2)
    store = ProgramStore(tmp_path, tiny_config())
    for seconds, plus in ((100, 1), (200, 2)):
        before = set(tmp_path.iterdir())
        Traced(store)(plus=plus)
        (path,) = set(tmp_path.iterdir()) - before
        os.utime(path, (seconds, seconds))
    assert Traced(store)(plus=1) == 0  # now the last
    Traced(store)(plus=3)
    assert [Traced(store)(plus=plus) for plus in (1, 3, 2)] == [0, 0, 1]


def test_only_files_of_the_store_are_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(programs, "PROGRAMS_KEPT", 0)
    (tmp_path / "letter.txt").write_text("dear")
    (tmp_path / ".unfinished-of-a-killed-process").write_text("")
    Traced(ProgramStore(tmp_path, tiny_config()))()
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


def test_files_are_private_whatever_the_umask(tmp_path):
    before = os.umask(0)
    try:
        Traced(ProgramStore(tmp_path, tiny_config()))()
    finally:
        os.umask(before)
    (path,) = tmp_path.iterdir()
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_folder_that_cannot_be_written_costs_only_time(tmp_path, monkeypatch):
    store = ProgramStore(tmp_path / "missing", tiny_config())
    assert [Traced(store)(), Traced(store)()] == [1, 1]


@pytest.mark.parametrize("kind", [ValueError, TypeError, AttributeError, pickle.PicklingError])
def test_a_program_that_cannot_be_serialized_is_not_kept(tmp_path, monkeypatch, caplog, kind):
    def refuse(_):
        raise kind("no way")

    monkeypatch.setattr(programs, "serialize", refuse)
    caplog.set_level(logging.DEBUG, "s2rm_jax")
    assert Traced(ProgramStore(tmp_path, tiny_config()))() == 1
    assert not list(tmp_path.iterdir())
    assert "a compiled program of double is not kept: no way" in caplog.messages


def test_programs_are_kept_only_where_nobody_else_can_write(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    config = tiny_config()
    assert open_program_store(config) is not None
    folder = tmp_path / "s2rm_jax/programs"
    assert folder.stat().st_mode & 0o777 == 0o700
    for mode in (0o770, 0o750, 0o701):
        folder.chmod(mode)
        assert open_program_store(config) is None
    folder.chmod(0o700)
    assert open_program_store(config) is not None
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


def test_programs_are_kept_only_where_others_cannot_replace_the_folder(tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.DEBUG, "s2rm_jax")
    cache = tmp_path / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    assert open_program_store(tiny_config()) is not None
    assert cache.stat().st_mode & 0o777 == 0o700, "it is created for this user"
    cache.chmod(0o777)
    assert open_program_store(tiny_config()) is None
    assert f"because they can write to {cache}" in caplog.messages[-1]
    cache.chmod(0o1777)  # as /tmp, where only its owner can rename a folder
    assert open_program_store(tiny_config()) is not None
    (tmp_path / "link").symlink_to(cache)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "link"))
    assert open_program_store(tiny_config())._folder == cache / "s2rm_jax/programs"
    cache.chmod(0o777)
    assert open_program_store(tiny_config()) is None, "what the link points to counts"


def test_a_relative_cache_folder_is_ignored(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert open_program_store(tiny_config())._folder == tmp_path / "home/.cache/s2rm_jax/programs"
    assert not (tmp_path / "relative").exists()


@pytest.mark.parametrize("explain", [False, True])
def test_a_segmenter_starts_from_kept_programs(tiny_workdir, tmp_path, monkeypatch, explain):
    def segment(segmenter):
        return segmenter.segment(images, ["red", "a blue star"], explain=explain)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    images = [np.random.default_rng(0).integers(0, 255, (24, 32, 3), np.uint8)] * 3
    plain = segment(Segmenter.from_checkpoint(tiny_workdir))
    assert not list(tmp_path.iterdir())
    segment(Segmenter.from_checkpoint(tiny_workdir, keep_programs=True))
    kept = set(tmp_path.rglob("*"))

    second = Segmenter.from_checkpoint(tiny_workdir, keep_programs=True)
    monkeypatch.setattr("s2rm_jax.models.network.ReferringNetwork.apply", fail)
    monkeypatch.setattr("s2rm_jax.models.network.ReferringNetwork.init", fail)
    Segmenter.from_checkpoint(tiny_workdir, keep_programs=True)
    for one, other in zip(segment(second), plain, strict=True):
        np.testing.assert_array_equal(one.masks, other.masks)
        np.testing.assert_array_equal(one.scores, other.scores)
        assert (one.explanations is not None) == explain
    assert set(tmp_path.rglob("*")) == kept
