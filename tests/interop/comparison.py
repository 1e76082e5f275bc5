"""Run the same forward and backward pass in PyTorch and in JAX and measure the difference."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from s2rm_jax.interop.parameter_names import Entry, fill

torch = pytest.importorskip("torch")  # skips the tests that import this module

LAYER_TOLERANCE = 1e-5
WHOLE_TOLERANCE = 1e-4

Arrays = Mapping[str, np.ndarray]
Tensors = Mapping[str, torch.Tensor]


class Pair(NamedTuple):
    """One computation in both libraries; both calls return a tuple of arrays of the same shapes.

    module    the PyTorch module, which owns the parameters
    theirs    takes the module and inputs
    ours      takes nested parameters and inputs
    shapes    of our nested parameters
    layout    which published names make them
    publish   makes {published name: array} of {name in the module: parameter or its gradient}
    """

    module: torch.nn.Module
    theirs: Callable[..., tuple[torch.Tensor, ...]]
    ours: Callable[..., tuple[jax.Array, ...]]
    shapes: Any
    layout: Sequence[Entry]
    publish: Callable[[Tensors], Arrays]

    def as_ours(self, named: Tensors) -> Any:
        """Make our nested parameters (or gradients) from theirs."""
        return fill(self.layout, self.publish(named), self.shapes, "the reference").params


class Errors(NamedTuple):
    """Norms of differences over norms of the reference."""

    outputs: list[float]
    inputs: list[float]  # gradients with respect to the inputs that are real numbers
    parameters: dict[str, float]  # gradients by our paths


class _Pass(NamedTuple):
    """Outputs, and the gradients of the sum of all outputs under fixed random weights."""

    outputs: list[np.ndarray]
    inputs: list[np.ndarray]
    parameters: dict[str, np.ndarray]


def compare(pair: Pair, *inputs: np.ndarray) -> Errors:
    """Run both forward and backward."""
    theirs = _their_pass(pair, inputs)
    ours = _our_pass(pair, inputs, [y.shape for y in theirs.outputs])
    return Errors(
        [_relative(a, b) for a, b in zip(ours.outputs, theirs.outputs, strict=True)],
        [_relative(a, b) for a, b in zip(ours.inputs, theirs.inputs, strict=True)],
        _parameter_errors(ours.parameters, theirs.parameters),
    )


def output_error(pair: Pair, *inputs: np.ndarray) -> float:
    """Run both forward and return the largest error of an output."""
    with torch.no_grad():
        theirs = pair.theirs(pair.module, *map(torch.from_numpy, inputs))
    ours = jax.jit(pair.ours)(pair.as_ours(pair.module.state_dict()), *inputs)
    return max(_relative(np.asarray(a), b.numpy()) for a, b in zip(ours, theirs, strict=True))


def _their_pass(pair: Pair, inputs: Sequence[np.ndarray]) -> _Pass:
    tensors = [torch.from_numpy(x).requires_grad_(x.dtype == np.float32) for x in inputs]
    outputs = pair.theirs(pair.module, *tensors)
    weights = map(torch.from_numpy, _loss_weights([tuple(y.shape) for y in outputs]))
    pair.module.zero_grad()
    sum((y * w).sum() for y, w in zip(outputs, weights, strict=True)).backward()
    gradients = {name: p.grad for name, p in pair.module.named_parameters() if p.grad is not None}
    return _Pass(
        [y.detach().numpy() for y in outputs],
        [x.grad.numpy() for x in tensors if x.requires_grad],
        flatten_dict(pair.as_ours(gradients), sep="/"),
    )


def _our_pass(pair: Pair, inputs: Sequence[np.ndarray], shapes: Sequence[tuple[int, ...]]) -> _Pass:
    params = pair.as_ours(pair.module.state_dict())
    real = {i: x for i, x in enumerate(inputs) if x.dtype == np.float32}
    (by_params, by_inputs), outputs = _gradients(pair.ours, params, real, inputs, _loss_weights(shapes))
    assert [y.shape for y in outputs] == list(shapes)
    flat = flatten_dict(by_params, sep="/")
    return _Pass(
        [np.asarray(y) for y in outputs],
        [np.asarray(by_inputs[i]) for i in real],
        {path: np.asarray(leaf) for path, leaf in flat.items()},
    )


@partial(jax.jit, static_argnums=0)  # one program for all inputs of the same shapes
def _gradients(
    ours: Callable[..., tuple[jax.Array, ...]],
    params: Any,
    real: dict[int, jax.Array],
    inputs: Sequence[jax.Array],
    weights: Sequence[jax.Array],
) -> tuple[tuple[Any, dict[int, jax.Array]], tuple[jax.Array, ...]]:
    """Return the gradients of parameters and of the real inputs, and the outputs."""

    def loss(params: Any, real: dict[int, jax.Array]) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        outputs = ours(params, *(real.get(i, x) for i, x in enumerate(inputs)))
        return sum((y * w).sum() for y, w in zip(outputs, weights, strict=True)), outputs

    return jax.grad(loss, argnums=(0, 1), has_aux=True)(params, real)


def _loss_weights(shapes: Sequence[tuple[int, ...]]) -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    return [rng.standard_normal(shape, np.float32) for shape in shapes]


def _parameter_errors(ours: Arrays, theirs: Arrays) -> dict[str, float]:
    """Errors by path; a bias of query, key and value together counts as three.

    A key's bias adds the same to all logits of a query, which softmax does not see: its gradient is zero, and what both
    sides compute instead is rounding. So that is measured against the gradient of the query's bias.
    """
    ours, theirs = _split_biases(ours), _split_biases(theirs)
    assert ours.keys() == theirs.keys()
    scale_of = {path: theirs[re.sub("key/bias$", "query/bias", path)] for path in theirs}
    return {path: _relative(ours[path], theirs[path], scale_of[path]) for path in theirs}


def _split_biases(named: Arrays) -> dict[str, np.ndarray]:
    split: dict[str, np.ndarray] = {}
    for path, array in named.items():
        if path.endswith("qkv/bias"):
            names = (path.replace("qkv", name) for name in ("query", "key", "value"))
            split.update(zip(names, np.split(array, 3), strict=True))
        else:
            split[path] = array
    return split


def _relative(ours: np.ndarray, theirs: np.ndarray, scale_of: np.ndarray | None = None) -> float:
    """Return |ours - theirs| / |scale_of|, or over |theirs| without it."""
    assert ours.shape == theirs.shape
    difference = np.subtract(ours, theirs, dtype=np.float64)
    return float(np.linalg.norm(difference) / np.linalg.norm(theirs if scale_of is None else scale_of))
