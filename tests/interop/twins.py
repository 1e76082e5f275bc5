"""The small network of the tests in JAX and in PyTorch, with the same parameters."""

import jax
import numpy as np
import torch

from s2rm_jax.interop.parameter_names import export_arrays, network_layout
from s2rm_jax.interop.torch_model import S2RMModel
from s2rm_jax.models.network import build_network
from s2rm_jax.training.state import parameter_shapes

torch.set_num_threads(1)  # threads cost more than these small networks gain by them, and test processes share cores


def named(params):
    """Nested parameters (or their gradients) as {PyTorch's name: array}."""
    return export_arrays(network_layout(params), params)


def twins(config):
    """Return the JAX network, parameters for it that are far from symmetric, and the same network in PyTorch."""
    network = build_network(config)
    plain = config.copy_and_resolve_references()  # dropout has no parameters: with it or without, one trace is enough
    plain.vision.drop_path_rate = plain.text.dropout_rate = 0.0
    rng = np.random.default_rng(1)

    def draw(path, leaf):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        around = 1.0 if name.endswith("scale") else 0.0
        inputs = 1 if len(leaf.shape) == 1 or "table" in name or "embedding" in name else np.prod(leaf.shape[:-1])
        inputs = leaf.shape[1] if "coparse" in name and len(leaf.shape) == 3 else inputs
        return (around + rng.normal(size=leaf.shape) * (0.2 if inputs == 1 else inputs**-0.5)).astype(np.float32)

    params = jax.tree_util.tree_map_with_path(draw, parameter_shapes(build_network(plain), plain))
    model = S2RMModel(config.to_dict())
    model.load_state_dict({name: torch.from_numpy(array) for name, array in named(params).items()})
    return network, params, model.eval()


def relative_error(found, expected, scale=None):
    """Norm of the difference over the norm of what is expected, or over `scale`."""
    found, expected = (np.asarray(x, np.float64) for x in (found, expected))
    assert found.shape == expected.shape
    return np.linalg.norm(found - expected) / (np.linalg.norm(expected) if scale is None else scale)
