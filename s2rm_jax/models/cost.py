"""Parameters and FLOPs of each part of the network, counted without running it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.extend.core import Jaxpr
from ml_collections import ConfigDict

from s2rm_jax.models.network import ReferringNetwork, build_network


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
    height, width = config.input.image_size
    image = jax.ShapeDtypeStruct((1, height, width, 3), jnp.float32)
    costs = {k: _flops_by_part(network, image, k, config.text.max_tokens) for k in (1, 2)}
    tokens, mask = _text_shapes(1, config.text.max_tokens)
    params = jax.eval_shape(network.init, jax.random.key(0), image, tokens, mask)["params"]
    return {
        part: PartCost(
            sum(leaf.size for leaf in jax.tree.leaves(params[part])),
            costs[1][part],
            costs[2][part] - costs[1][part],
        )
        for part in costs[1]
    }


def training_step_flops(config: ConfigDict, costs: Mapping[str, PartCost]) -> int:
    """Return the FLOPs of a training step, from the result of `network_cost`.

    The backward pass counts as two forward passes. Recomputation (config.remat) does not count, as in the usual
    definition of model FLOPs utilization.
    """
    expressions = config.input.expressions_per_image
    return 3 * config.batch_size * sum(cost.flops(expressions) for cost in costs.values())


def _text_shapes(expressions: int, length: int) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
    shape = (1, expressions, length)
    return jax.ShapeDtypeStruct(shape, jnp.int32), jax.ShapeDtypeStruct(shape, jnp.bool)


def _flops_by_part(
    network: ReferringNetwork, image: jax.ShapeDtypeStruct, expressions: int, length: int
) -> dict[str, int]:
    """Return the FLOPs of each part in a forward pass of one image with this number of expressions."""
    tokens, mask = _text_shapes(expressions, length)

    def init_and_apply(module: object, *args: object) -> tuple[int, object]:
        variables = jax.eval_shape(module.init, jax.random.key(0), *args)  # type: ignore[attr-defined]
        apply = module.apply  # type: ignore[attr-defined]
        return count_flops(apply, variables, *args), jax.eval_shape(apply, variables, *args)

    flat = (jax.ShapeDtypeStruct((expressions, length), x.dtype) for x in (tokens, mask))
    vision, maps = init_and_apply(network.vision, image)
    text, words = init_and_apply(network.text, *flat)
    words = jax.ShapeDtypeStruct((1, expressions, length, words.shape[-1]), words.dtype)  # type: ignore[attr-defined]
    fusion, fused = init_and_apply(network.fusion, maps[-1], words, mask)  # type: ignore[index]
    sentence = jax.ShapeDtypeStruct((1, expressions, words.shape[-1]), words.dtype)
    decoder, logits = init_and_apply(network.decoder, fused.features, maps, sentence)  # type: ignore[attr-defined]
    flops = {"vision": vision, "text": text, "fusion": fusion, "decoder": decoder}
    if network.no_target is not None:
        head_inputs = (sentence, fused.features, logits[0], logits[-1])  # type: ignore[attr-defined,index]
        flops["no_target"], _ = init_and_apply(network.no_target, *head_inputs)
    return flops
