"""Parameters and FLOPs of each part of the network, counted without running it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Jaxpr
from ml_collections import ConfigDict

from s2rm_jax.models.network import ReferringNetwork, build_network, run_parts


def count_flops(function: Callable, *args: object) -> int:
    """Count the FLOPs of all matrix products and convolutions of function(*args); a multiply-add counts as two.

    The count is of the jaxpr, so the body of a scan counts once per iteration (XLA's own analysis counts it once).
    `args` may be arrays or ShapeDtypeStructs.
    """
    return jaxpr_flops(jax.make_jaxpr(function)(*args).jaxpr)


def jaxpr_flops(jaxpr: Jaxpr) -> int:
    """Count the FLOPs of a jaxpr as `count_flops` does; work inside shard_map counts for all devices."""
    total = 0
    for equation in jaxpr.eqns:
        shapes = [getattr(variable.aval, "shape", ()) for variable in equation.invars]
        outputs = sum(math.prod(getattr(variable.aval, "shape", ())) for variable in equation.outvars)
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            total += 2 * outputs * math.prod(shapes[0][axis] for axis in contracted)
        elif equation.primitive.name == "conv_general_dilated":
            out_features = shapes[1][equation.params["dimension_numbers"].rhs_spec[0]]
            total += 2 * outputs * math.prod(shapes[1]) // out_features
        elif equation.primitive.name == "cond":  # only one branch runs; take the most expensive
            total += max(jaxpr_flops(branch.jaxpr) for branch in equation.params["branches"])
        else:
            times = 1
            if equation.primitive.name == "scan":
                times = equation.params["length"]
            elif equation.primitive.name == "shard_map":
                times = equation.params["mesh"].size
            values = (getattr(value, "jaxpr", value) for value in equation.params.values())
            total += times * sum(jaxpr_flops(value) for value in values if isinstance(value, Jaxpr))
    return total


@dataclass(frozen=True)
class PartCost:
    """The cost of one part: parameters, and FLOPs of a forward pass with one expression and for each further one."""

    parameters: int
    flops_first: int
    flops_further: int

    def flops(self, expressions: int) -> int:
        """Return the FLOPs of a forward pass of one image with this number of expressions."""
        return self.flops_first + (expressions - 1) * self.flops_further


def network_cost(config: ConfigDict) -> dict[str, PartCost]:
    """Return the cost of each part of the network of `config`, on one image of config.input.image_size.

    The parts are vision, text, fusion and decoder, and no_target if config.decoder.no_target_width is not 0.
    """
    network = build_network(config)
    image = jax.ShapeDtypeStruct((1, *config.input.image_size, 3), jnp.float32)

    def inputs(expressions: int) -> tuple[jax.ShapeDtypeStruct, ...]:
        shape = (1, expressions, config.text.max_tokens)
        return image, jax.ShapeDtypeStruct(shape, jnp.int32), jax.ShapeDtypeStruct(shape, jnp.bool)

    params: Any = jax.eval_shape(network.init, jax.random.key(0), *inputs(1))["params"]
    first, both = (_flops_by_part(network, params, *inputs(count)) for count in (1, 2))
    return {
        part: PartCost(sum(leaf.size for leaf in jax.tree.leaves(params[part])), flops, both[part] - flops)
        for part, flops in first.items()
    }


def _flops_by_part(network: ReferringNetwork, *arguments: Any) -> dict[str, int]:
    flops = {}

    def count(part: str, function: Callable[..., Any], *inputs: Any) -> Any:
        jitted: Any = jax.jit(function)
        flops[part] = jaxpr_flops(jitted.trace(*inputs).jaxpr.jaxpr)
        return jitted(*inputs)  # which does not trace the part again

    jax.eval_shape(lambda *arguments: run_parts(network, *arguments, run=count), *arguments)
    return flops


def training_step_flops(config: ConfigDict, costs: Mapping[str, PartCost]) -> int:
    """Return the FLOPs of a training step, from the result of `network_cost`.

    The backward pass counts as two forward passes. Recomputation (config.remat) does not count, as in the usual
    definition of model FLOPs utilization.
    """
    expressions = config.input.expressions_per_image
    return 3 * config.batch_size * sum(cost.flops(expressions) for cost in costs.values())
