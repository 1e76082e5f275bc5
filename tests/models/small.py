"""A small network with every part in it, and inputs for it."""

import jax
import jax.numpy as jnp
import numpy as np

from s2rm_jax.config import default_config
from s2rm_jax.models.network import build_network


def small_config(**changes):
    """Return a configuration of three stages; `changes` are given as section__field=value."""
    config = default_config()
    config.input.image_size = (40, 56)
    config.vision.update(embed_dim=8, depths=(1, 2, 2), num_heads=(1, 2, 4), window_size=4, drop_path_rate=0.0)
    config.text.update(
        vocab_size=30, max_tokens=6, hidden_size=16, num_layers=2, num_heads=2, intermediate_size=32, max_positions=8
    )
    config.text.dropout_rate = 0.0
    config.fusion.update(width=16, recurrent_width=8, num_heads=2)
    config.decoder.widths = (8, 12, 16)
    for name, value in changes.items():
        section, field = name.split("__")
        config[section][field] = value
    return config


def small_inputs(b=2, k=3, height=40, width=56, length=6, seed=0):
    """Return images, tokens and token mask; every expression has at least two words."""
    rng = np.random.default_rng(seed)
    images = jnp.asarray(rng.normal(size=(b, height, width, 3)), jnp.float32)
    mask = np.arange(length) < rng.integers(2, length + 1, size=(b, k, 1))
    tokens = jnp.asarray(np.where(mask, rng.integers(1, 30, size=mask.shape), 0), jnp.int32)
    return images, tokens, jnp.asarray(mask)


def small_network(**changes):
    """Return the network of `small_config`, parameters without the symmetry of initial ones, and its jitted apply."""
    network = build_network(small_config(**changes))
    params = draw_parameters(jax.eval_shape(network.init, jax.random.key(0), *small_inputs())["params"])
    return network, params, jax.jit(lambda p, *inputs: network.apply({"params": p}, *inputs))


def draw_parameters(shapes):
    """Draw nested parameters of these shapes by `draw_parameter`."""
    rng = np.random.default_rng(1)
    return jax.tree_util.tree_map_with_path(lambda path, p: draw_parameter(rng, path, p.shape), shapes)


def draw_parameter(rng, path, shape):
    """Draw a parameter on the host, because compiling the initializers takes longer than the test.

    Kernels keep the scale of their inputs, scales are near 1 and all else near 0, and no two values are equal.
    """
    name = path[-1].key
    centre = 1.0 if name == "scale" else 0.0
    spread = 0.5 / np.sqrt(np.prod(shape[:-1])) if name == "kernel" else 0.1
    return jnp.asarray(centre + spread * rng.normal(size=shape), jnp.float32)
