"""The parts of the network one by one, each on what the parts before it really give it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from s2rm_jax.benchmarks.subject import Subject


@dataclass(frozen=True)
class Part:
    """`function(params, *inputs)` is one part of the network.

    `trained_inputs` says which of the inputs come from parts that are trained too, so that a training step needs their
    gradients as well as those of the parameters.
    """

    function: Callable[..., Any]
    params: Any
    inputs: tuple[Any, ...]
    trained_inputs: tuple[int, ...] = ()

    def forward(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        """Returns a function that is not yet compiled, and its arguments."""
        return self.function, (self.params, *self.inputs)

    def backward(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        """Returns a function that computes the part and the gradient of a stand-in for a loss, and its arguments."""

        def loss(*arguments: Any) -> jax.Array:
            leaves = jax.tree.leaves(self.function(*arguments))
            return sum((jnp.square(leaf.astype(jnp.float32)).mean() for leaf in leaves), jnp.float32(0))

        wanted = (0, *(1 + index for index in self.trained_inputs))
        return jax.grad(loss, argnums=wanted), (self.params, *self.inputs)


def network_parts(subject: Subject, count: int, sentences: int) -> dict[str, Part]:
    """Splits the network into vision, text, fusion, decoder and resize, for `sentences` on each of `count` pictures.

    What fusion and decoder return to be looked at is left out, as by a jitted caller that does not use it.
    """
    network, images = subject.network, subject.images(count)
    tokens, mask = subject.tokens(count, sentences)
    params = subject.on_device()
    size = images.shape[1:3]

    def vision(params: Any, images: jax.Array) -> Any:
        return network.vision.apply({"params": params}, images)

    def text(params: Any, tokens: jax.Array, mask: jax.Array) -> Any:
        b, k, length = tokens.shape
        words = network.text.apply({"params": params}, tokens.reshape(b * k, length), mask.reshape(b * k, length))
        return words.reshape(b, k, length, -1)  # type: ignore[union-attr]

    def fusion(params: Any, coarsest: jax.Array, words: jax.Array, mask: jax.Array) -> Any:
        return network.fusion.apply({"params": params}, coarsest, words, mask).features  # type: ignore[union-attr]

    def decoder(params: Any, fused: jax.Array, maps: Any, sentence: jax.Array) -> Any:
        return network.decoder.apply({"params": params}, fused, maps, sentence).logits[-1]  # type: ignore[union-attr]

    def resize(params: Any, logits: jax.Array) -> Any:
        return jax.image.resize(logits, (*logits.shape[:2], *size), "bilinear")

    parts = {"vision": Part(vision, params["vision"], (images,))}
    maps = jax.jit(vision)(params["vision"], images)
    parts["text"] = Part(text, params["text"], (tokens, mask))
    words = jax.jit(text)(params["text"], tokens, mask)
    parts["fusion"] = Part(fusion, params["fusion"], (maps[-1], words, mask), (0, 1))
    fused = jax.jit(fusion)(params["fusion"], maps[-1], words, mask)
    parts["decoder"] = Part(decoder, params["decoder"], (fused, maps, words[:, :, 0]), (0, 1, 2))
    logits = jax.jit(decoder)(params["decoder"], fused, maps, words[:, :, 0])
    parts["resize"] = Part(resize, {}, (logits,), (0,))
    return parts
