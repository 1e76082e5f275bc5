"""What the network costs: parameters and FLOPs of each part, counted without running anything."""

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
    """Counts the FLOPs of all matrix products and convolutions of function(*args), a multiply-add being two.

    Reads the jaxpr, so that a scan counts as often as it runs (XLA's own analysis counts its body once). `args` may be
    arrays or ShapeDtypeStructs.
    """
    return jaxpr_flops(jax.make_jaxpr(function)(*args).jaxpr)


def jaxpr_flops(jaxpr: Jaxpr) -> int:
    """Does what `count_flops` does, for what was traced already; what each device does by itself counts for all."""
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
        elif equation.primitive.name == "cond":  # one of them runs, and which one is not known here
            total += max(jaxpr_flops(branch.jaxpr) for branch in equation.params["branches"])
        else:
            times = _times(equation.primitive.name, equation.params)
            total += times * sum(jaxpr_flops(inner) for inner in _inner_jaxprs(equation.params))
    return total


def _times(primitive: str, params: dict) -> int:
    if primitive == "scan":
        return params["length"]
    return params["mesh"].size if primitive == "shard_map" else 1


def _inner_jaxprs(params: dict) -> list[Jaxpr]:
    found = (getattr(value, "jaxpr", value) for value in params.values())
    return [value for value in found if isinstance(value, Jaxpr)]


@dataclass(frozen=True)
class PartCost:
    """Cost of one part: its parameters, and FLOPs of a forward pass with one expression and for each further one."""

    parameters: int
    flops_first: int
    flops_further: int

    def flops(self, expressions: int) -> int:
        """FLOPs of a forward pass of one image with so many expressions."""
        return self.flops_first + (expressions - 1) * self.flops_further


def network_cost(config: ConfigDict) -> dict[str, PartCost]:
    """Counts the parts of a configuration's network on one image of config.input.image_size.

    They are vision, text, fusion and decoder, and no_target where config.decoder.no_target_width has that head.
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


def _text_shapes(expressions: int, length: int) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
    shape = (1, expressions, length)
    return jax.ShapeDtypeStruct(shape, jnp.int32), jax.ShapeDtypeStruct(shape, jnp.bool)


def _flops_by_part(
    network: ReferringNetwork, image: jax.ShapeDtypeStruct, expressions: int, length: int
) -> dict[str, int]:
    """FLOPs of each part of a forward pass with `expressions` expressions on one image."""
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
    decoder, masks = init_and_apply(network.decoder, fused.features, maps, sentence)  # type: ignore[attr-defined]
    flops = {"vision": vision, "text": text, "fusion": fusion, "decoder": decoder}
    if network.no_target is not None:
        logits = masks.logits  # type: ignore[attr-defined]
        head_inputs = (sentence, fused.features, logits[0], logits[-1])  # type: ignore[attr-defined]
        flops["no_target"], _ = init_and_apply(network.no_target, *head_inputs)
    return flops


def format_cost(config: ConfigDict, costs: Mapping[str, PartCost]) -> str:
    """Returns a table of what `network_cost` returned, and what S2RM + CASG add to the backbone."""
    height, width = config.input.image_size
    names = {"vision": "vision (Swin)", "text": "text (BERT)", "fusion": "fusion (S2RM)", "decoder": "decoder (CASG)"}
    names["no_target"] = "no-target head"
    rows = [f"{'part':<16}{'parameters':>14}{'GFLOPs, first expression':>27}{'GFLOPs, each further':>23}"]
    rows += [
        f"{names[part]:<16}{cost.parameters / 1e6:>12.2f} M"
        f"{cost.flops_first / 1e9:>27.2f}{cost.flops_further / 1e9:>23.2f}"
        for part, cost in costs.items()
    ]
    ours = [costs["fusion"], costs["decoder"]]
    parameters = sum(cost.parameters for cost in ours)
    share = sum(cost.flops_first for cost in ours) / costs["vision"].flops_first
    rows.append(
        f"S2RM + CASG: {parameters / 1e6:.2f} M parameters, {100 * share:.1f} % of the vision backbone's FLOPs "
        f"per expression, at {width} x {height} pixels and {config.text.max_tokens} tokens."
    )
    return "\n".join(rows)
