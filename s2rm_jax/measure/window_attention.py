"""Attention inside windows: by einsum, as models/swin.py does it, against the fused kernel of cuDNN."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from s2rm_jax.measure.section import Row, Section, show_ratio
from s2rm_jax.measure.subject import Subject
from s2rm_jax.measure.timing import jitted, time_alternately
from s2rm_jax.models.swin import attend


def by_einsum(q: jax.Array, k: jax.Array, v: jax.Array, bias: jax.Array) -> jax.Array:
    """[n, t, heads, d] three times and a bias [1, heads, t, t] -> [n, t, heads, d]."""
    q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q, k, v))
    return jnp.swapaxes(attend(q, k, v, bias), 1, 2)


def fused(implementation: Any) -> Callable[..., jax.Array]:
    """The same by `jax.nn.dot_product_attention`."""

    def attend(q: jax.Array, k: jax.Array, v: jax.Array, bias: jax.Array) -> jax.Array:
        return jax.nn.dot_product_attention(q, k, v, bias.astype(q.dtype), implementation=implementation)

    return attend


def draw_windows(subject: Subject, images: int, dtype: Any) -> tuple[jax.Array, ...]:
    """Draws queries, keys and values of the windows of the first stage, and the bias of their positions."""
    vision, (height, width) = subject.config.vision, subject.config.input.image_size
    window, heads = vision.window_size, vision.num_heads[0]
    windows = images * -(-height // (4 * window)) * -(-width // (4 * window))
    shape = (windows, window * window, heads, vision.embed_dim // heads)
    keys = jax.random.split(jax.random.key(0), 4)
    q, k, v = (jax.random.normal(key, shape, dtype) for key in keys[:3])
    return q, k, v, jax.random.normal(keys[3], (1, heads, window**2, window**2), jnp.float32)


def window_attention(subject: Subject, rounds: int, images: int = 8) -> Section:
    """Measures both, forward and backward, where there is cuDNN; elsewhere says that there is none."""
    title = "Attention in windows: einsum against cuDNN"
    if jax.default_backend() != "gpu":
        return Section(title, "Not measured: cuDNN needs an NVIDIA GPU, and this device is none.", (), ())
    arguments = draw_windows(subject, images, jnp.bfloat16)

    def gradient(attend: Callable[..., jax.Array]) -> Callable[..., Any]:
        return jax.grad(lambda *x: jnp.square(attend(*x).astype(jnp.float32)).mean(), argnums=(0, 1, 2, 3))

    ways = {"einsum": by_einsum, "cuDNN": fused("cudnn")}
    forward = time_alternately({name: jitted(way, arguments) for name, way in ways.items()}, rounds)
    both = time_alternately({name: jitted(gradient(way), arguments) for name, way in ways.items()}, rounds)
    rows: list[Row] = [
        [label, 1e3 * timings.median("einsum"), 1e3 * timings.median("cuDNN"), show_ratio(ratio)]
        for label, timings in (("forward", forward), ("forward and backward", both))
        for ratio in [timings.ratio("cuDNN", "einsum")]
    ]
    text = f"Windows of the first stage of {images} images, bfloat16. Below 1 the kernel of cuDNN is faster."
    figures = {"cuDNN / einsum": both.ratio("cuDNN", "einsum").median}
    return Section(title, text, ["", "einsum, ms", "cuDNN, ms", "cuDNN / einsum"], rows, figures)
