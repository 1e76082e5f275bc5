"""Compiling for a slice of TPU chips: its errors and, if the compiler is installed, its report."""

import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest
from jax.experimental import topologies

from s2rm_jax import compile_for
from s2rm_jax.errors import UserError
from s2rm_jax.measure.compiled_report import ArrayType, Collective, Program
from s2rm_jax.parallel.devices import Memory
from s2rm_jax.parallel.mesh import build_mesh
from s2rm_jax.training import compile

from .conftest import tiny_config

ROOT = Path(__file__).parents[1]


def quick_config():
    """Return the tiny configuration with the fusion and the decoder that take the least time to trace."""
    config = tiny_config()
    config.fusion.mode, config.decoder.guidance = "sum", "none"
    return config


def test_without_the_compiler_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"not installed: pip install -e '\.\[tpu\]'"):
        compile_for.topology_devices("v5e:4x4")


@pytest.mark.parametrize("name", ["v5e", "v5e:4", "4x4", "v5e:4x4;v5e:4x4", "v5e-16"])
def test_a_topology_is_a_chip_and_a_shape(monkeypatch, name):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    with pytest.raises(UserError, match=r"--topology is '.*'; it must be CHIP:SHAPE, such as v5e:4x4"):
        compile_for.topology_devices(name)


@pytest.mark.parametrize(
    ("name", "bounds"), [("v5e:1x1", (1, 1, 1)), ("v5e:1x2", (1, 2, 1)), ("v5e:2x2", None), ("v5p:2x2x2", None)]
)
def test_a_slice_smaller_than_a_host_is_compiled_as_a_part_of_one(monkeypatch, name, bounds):
    asked = {}

    def describe(name, platform, **options):
        asked.update(options)
        shape = name.split(":")[1].split("x")
        return SimpleNamespace(devices=[object()] * math.prod(map(int, shape)))

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(topologies, "get_topology_desc", describe)
    compile_for.topology_devices(name)
    assert asked.get("chips_per_host_bounds") == bounds


def test_a_slice_that_does_not_exist_is_named_whatever_the_compiler_says(monkeypatch):
    def refuse(*_, **__):
        raise RuntimeError

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(topologies, "get_topology_desc", refuse)
    with pytest.raises(UserError, match="--topology: slice 'v5e:4x4' not found: RuntimeError"):
        compile_for.topology_devices("v5e:4x4")


def test_a_step_that_does_not_fit_is_reported_with_remedies(monkeypatch):
    message = "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. "
    message += "Used 20.20G of 15.75G hbm. Exceeded hbm capacity by 4.45G."

    def compile_(self):
        raise jax.errors.JaxRuntimeError(message)

    monkeypatch.setattr(jax.stages.Lowered, "compile", compile_)
    config = quick_config()
    with pytest.raises(
        UserError, match=r"needs 20\.20G of 15\.75G.*batch_size=2 on 1 device .*bfloat16.*remat=dense.*accumulate"
    ):
        compile.compile_training_step(config, build_mesh(config, jax.devices()[:1]))


def test_compiling_needs_no_number_of_steps_and_leaves_the_configuration_alone(monkeypatch):
    monkeypatch.setattr(jax.stages.Lowered, "compile", lambda self: None)  # the tracing and lowering are tested
    config = quick_config()
    config.vision.update({"depths": (1, 1, 1, 1), "num_heads": (1, 1, 2, 2)})
    config.decoder.widths = (8, 8, 8, 8)
    config.steps, config.remat = 0, "blocks"
    before = config.to_dict()
    step = compile.compile_training_step(config, build_mesh(config, jax.devices()[:1]))
    assert config.to_dict() == before
    assert step.flops > 1.2 * step.model_flops > 0


def test_the_report_is_returned_for_json_and_printed(monkeypatch, capsys):
    gradient = Collective("all-reduce", (ArrayType("f32", (1000,)),), 4, 1, "vision")
    program = Program(Memory(1, 0, 1, 0), xla_flops=1.0, collectives=(gradient,))
    compiled = SimpleNamespace(executable=None, flops=8, model_flops=5, seconds=1.0)
    device = SimpleNamespace(device_kind="TPU v5 lite")
    monkeypatch.setattr(compile_for, "topology_devices", lambda name: [device] * 4)
    monkeypatch.setattr("s2rm_jax.parallel.mesh.build_mesh", lambda config, devices: None)
    monkeypatch.setattr(compile, "compile_training_step", lambda config, mesh: compiled)
    monkeypatch.setattr("s2rm_jax.measure.compiled_report.read_program", lambda executable: program)
    monkeypatch.setattr(compile_for, "CONFIG", SimpleNamespace(value=quick_config()))
    compile_for.FLAGS(["compile_for", "--topology=v5e:2x2", "--json"])
    compile_for.main()
    out, err = capsys.readouterr()
    assert json.loads(out)["topology"] == "v5e:2x2"
    assert err.startswith("## v5e:2x2, ")


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="the compiler for TPUs is not installed")
def test_a_small_step_compiled_for_a_slice_sends_gradients_only():
    command = [sys.executable, "-m", "s2rm_jax.compile_for", "--config", "configs/refcoco.py:small"]
    flags = ["--config.dtype=bfloat16", "--config.input.expressions_per_image=2", "--json"]
    done = subprocess.run(
        [*command, "--topology=v5e:2x2", *flags],
        cwd=ROOT,
        env=os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "0", "JAX_EXEC_TIME_OPTIMIZATION_EFFORT": "-1.0"},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert "fits" in done.stderr
    assert {one["kind"] for one in json.loads(done.stdout)["collectives"]} == {"all-reduce"}
