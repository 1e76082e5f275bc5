"""Compiling and logging at the start of a run."""

import json

import jax
import pytest

from s2rm_jax.parallel.mesh import make_mesh
from s2rm_jax.training import compile
from s2rm_jax.training.compile import compile_step
from s2rm_jax.training.state import plan_state

MESH = make_mesh(devices=jax.devices()[:1])


def test_the_step_is_compiled_once_and_logged_with_its_memory_and_flops(tmp_path, standin, capsys, caplog):
    config = standin.make_config(steps=3)
    with jax.log_compiles():
        standin.train(config, tmp_path, standin.make_parts(config), MESH)
    compiled = [record for record in caplog.records if "Finished XLA compilation of jit(train_step)" in record.message]
    assert len(compiled) == 1
    out = capsys.readouterr().out
    assert "Compiled in 0:00:0" in out and "GFLOP in matrix products on all devices together." in out
    assert " MiB on each device: state and batch 0." in out
    assert "MFU" not in out  # nobody publishes the rate of a CPU


def test_a_run_with_no_step_left_compiles_nothing(tmp_path, standin, capsys):
    config = standin.make_config(steps=3)
    standin.train(config, tmp_path, standin.make_parts(config), MESH)
    capsys.readouterr()
    standin.train(config, tmp_path, standin.make_parts(config), MESH)
    assert "Compiled" not in capsys.readouterr().out


def test_the_utilization_is_logged_if_the_rate_of_the_device_is_known(tmp_path, standin, capsys, monkeypatch):
    monkeypatch.setattr(compile, "matrix_rate", lambda kind: 2e9)
    config = standin.make_config(steps=6, log_every=3)
    standin.train(config, tmp_path, standin.make_parts(config), MESH)
    out = capsys.readouterr().out
    assert "together; MFU is the share of 0 TFLOP/s a device." in out and "% | ETA" in out.splitlines()[-2]
    last = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    work = compile_step(standin.StandIn(), plan_state(standin.StandIn(), config, MESH), config, MESH).model_flops
    steps_per_second = last["train/images_per_second"] / config.batch_size
    assert last["train/model_flops_utilization"] == pytest.approx(100 * steps_per_second * work / 2e9)


def test_the_flops_of_the_model_are_three_forward_passes(standin):
    config = standin.make_config()
    ahead = compile_step(standin.StandIn(), plan_state(standin.StandIn(), config, MESH), config, MESH)
    pixels, expressions = standin.SIZE**2, standin.EXPRESSIONS
    forward = pixels * 3 * 6 + expressions * 6 * 6 + expressions * pixels * 6  # multiply-adds of one image
    assert ahead.model_flops == 3 * 2 * config.batch_size * forward
