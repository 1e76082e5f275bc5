"""Every file in configs/ loads, is sound, says how it is launched, and builds."""

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from s2rm_jax.config_check import check_config
from s2rm_jax.models.network import build_network

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.py"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_config_builds(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config()
    check_config(config)
    assert f"python -m s2rm_jax.train --config configs/{path.name}" in module.__doc__

    network = build_network(config)
    k, length = config.input.expressions_per_image, config.text.max_tokens
    height, width = config.input.image_size
    inputs = (
        jax.ShapeDtypeStruct((1, height, width, 3), jnp.float32),
        jax.ShapeDtypeStruct((1, k, length), jnp.int32),
        jax.ShapeDtypeStruct((1, k, length), jnp.bool),
    )
    output, _ = jax.eval_shape(lambda *x: network.init_with_output(jax.random.key(0), *x), *inputs)
    assert output.logits.shape == (1, k, height, width)
