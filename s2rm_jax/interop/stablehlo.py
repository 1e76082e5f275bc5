"""Export a trained network as StableHLO: two programs that JAX compiles for any CPU, GPU or TPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import export

from s2rm_jax.interop.torch_folder import LoadedRun, ground_outputs, write_preprocessing
from s2rm_jax.interop.weight_files import SAFETENSORS, write_safetensors

PLATFORMS = ("cpu", "cuda", "tpu")
ENCODE_FILE, GROUND_FILE = "encode_image.stablehlo", "ground.stablehlo"

Weights = dict[str, jax.Array]  # by path, such as "vision/patch_embed/kernel"


def write_stablehlo(trained: LoadedRun, folder: Path) -> None:
    """Write a network into an empty folder: two programs, their weights, and the files of `write_preprocessing`.

    - `encode_image.stablehlo`: (weights, images) -> features
    - `ground.stablehlo`: (weights, features, tokens, token_mask) -> logits, or logits and no_target_logits
    - `model.safetensors`: the weights of both by name

    The weights are arguments of the programs, not constants in them, so the programs are small and load fast. There are
    two programs so that an image is encoded once for any number of expressions.

    Raises:
        OSError: the folder cannot be written to.
    """
    encode_image, ground = export_programs(trained)
    (folder / ENCODE_FILE).write_bytes(encode_image.serialize())
    (folder / GROUND_FILE).write_bytes(ground.serialize())
    weights = {name: np.asarray(array) for name, array in flatten_dict(trained.params, sep="/").items()}
    write_safetensors(weights, folder / SAFETENSORS)
    write_preprocessing(trained, "stablehlo", folder)


def export_programs(trained: LoadedRun) -> tuple[export.Exported, export.Exported]:
    """Export `encode_image` and `ground` for all PLATFORMS, any number b of images and k of expressions per image."""
    network, (height, width) = trained.network, trained.config.input.image_size

    def encode_image(weights: Weights, images: jax.Array) -> Any:
        return network.apply(_variables(weights), images, method="encode_image")

    def ground(weights: Weights, features: Any, tokens: jax.Array, token_mask: jax.Array) -> Any:
        size = (height, width)
        return ground_outputs(network.apply(_variables(weights), features, tokens, token_mask, size, method="ground"))

    b, k = export.symbolic_shape("b, k")
    weights = jax.eval_shape(lambda: flatten_dict(trained.params, sep="/"))
    images = jax.ShapeDtypeStruct((b, height, width, 3), jnp.float32)
    expressions = (b, k, trained.config.text.max_tokens)
    tokens, token_mask = (jax.ShapeDtypeStruct(expressions, dtype) for dtype in (jnp.int32, jnp.bool_))
    encoder = export.export(jax.jit(encode_image), platforms=PLATFORMS)(weights, images)
    features = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tuple(encoder.out_avals))
    return encoder, export.export(jax.jit(ground), platforms=PLATFORMS)(weights, features, tokens, token_mask)


def _variables(weights: Weights) -> dict[str, Any]:
    return {"params": unflatten_dict(weights, sep="/")}
