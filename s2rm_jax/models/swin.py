"""Swin Transformer backbone with one normalised feature map per stage.

Source: Liu et al., "Swin Transformer", arXiv:2103.14030; parameters fit the published ImageNet checkpoints.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Float

from s2rm_jax.models.layers import Dense, broadcast, gelu, rematerialize, repeat

# embed_dim, depths and num_heads of the published sizes.
SWIN_SIZES: dict[str, dict] = {
    "tiny": {"embed_dim": 96, "depths": (2, 2, 6, 2), "num_heads": (3, 6, 12, 24)},
    "small": {"embed_dim": 96, "depths": (2, 2, 18, 2), "num_heads": (3, 6, 12, 24)},
    "base": {"embed_dim": 128, "depths": (2, 2, 18, 2), "num_heads": (4, 8, 16, 32)},
    "large": {"embed_dim": 192, "depths": (2, 2, 18, 2), "num_heads": (6, 12, 24, 48)},
}

EPSILON = 1e-5  # of every LayerNorm, as in the published checkpoints
HIDDEN = -1e9  # added to the logits of positions that are not seen; their weights are exactly zero


def relative_position_index(window: int) -> np.ndarray:
    """Returns int [T, T], T = window²: the row of the bias table for each pair of positions of a window."""
    row, column = np.divmod(np.arange(window * window), window)
    rows = row[:, None] - row[None, :] + window - 1
    columns = column[:, None] - column[None, :] + window - 1
    return rows * (2 * window - 1) + columns


def window_regions(height: int, width: int, window: int, shift: int, mask_padding: bool) -> np.ndarray | None:
    """Says which positions of a window may see each other: those with the same number.

    Returns int [windows, T] for a grid of height x width that was padded to whole windows and rolled by `shift`, or
    None where every position sees its whole window. Rolling brings the far edge of the image beside the near one;
    these parts get numbers of their own, and so does the padding if `mask_padding`.
    """

    def axis_regions(size: int) -> tuple[np.ndarray, np.ndarray]:
        padded = -(-size // window) * window
        position = np.arange(padded)
        region = np.where(position < padded - window, 0, np.where(position < padded - shift, 1, 2)) if shift else 0
        return np.broadcast_to(region, (padded,)), (position + shift) % padded < size

    (rows, real_rows), (columns, real_columns) = axis_regions(height), axis_regions(width)
    regions = rows[:, None] * 3 + columns[None, :]
    if mask_padding:
        regions = np.where(real_rows[:, None] & real_columns[None, :], regions, -1)
    regions = rearrange(regions, "(h p) (w q) -> (h w) (p q)", p=window, q=window)
    return None if (regions == regions[:, :1]).all() else regions


def draw_survival(key: jax.Array, rates: Float[np.ndarray, " blocks"], images: int) -> Float[Array, "blocks 2 images"]:
    """Draws stochastic depth: factors of the two residual branches of each block, for each image.

    A branch is dropped for a whole image with the probability that `rates` gives its block, by a factor of zero; the
    others are scaled up, so that the mean stays.
    """
    keep = jnp.asarray(1.0 - rates, jnp.float32)[:, None]
    # Drawn with images first, as all draws must be that devices share (parallel/mesh.py).
    kept = jax.random.bernoulli(key, keep, (images, len(rates), 2))
    return rearrange(kept / keep, "images blocks branches -> blocks branches images")


def _surviving(branch: Float[Array, "b h w c"], factors: Float[Array, " b"]) -> Float[Array, "b h w c"]:
    return (branch * factors[:, None, None, None]).astype(branch.dtype)


def attend(
    q: Float[Array, "*n heads t d"],
    k: Float[Array, "*n heads t d"],
    v: Float[Array, "*n heads t d"],
    bias: Float[Array, "*_ heads t t"],
    hidden: np.ndarray | None = None,
) -> Float[Array, "*n heads t d"]:
    """Attends among t positions, with a bias for each pair of them; those that `hidden` marks are not seen.

    Softmax is in float32. It is divided by its sums only behind the product with v: d columns instead of t, and as many
    fewer in the backward pass, where the gradient of the sums replaces a sum over t columns too.
    """
    logits = jnp.einsum("...td,...sd->...ts", q * q.shape[-1] ** -0.5, k).astype(jnp.float32)
    logits += broadcast(bias, logits.shape[: -bias.ndim])
    if hidden is not None:
        logits += HIDDEN * jnp.asarray(hidden, jnp.float32)  # a choice by jnp.where is slow on CPUs
    weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(-1, keepdims=True)))
    out = jnp.einsum("...ts,...sd->...td", weights.astype(v.dtype), v) / weights.sum(-1, keepdims=True)
    return out.astype(v.dtype)


class WindowAttention(nn.Module):
    """Multi-head self-attention inside windows, with a learnt bias for each relative position."""

    num_heads: int
    window_size: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b n t c"], regions: np.ndarray | None) -> Float[Array, "b n t c"]:
        """Attends among the t positions of each of the n windows that share a number in `regions` [n, t]."""
        channels = x.shape[-1]
        qkv = Dense(3 * channels, dtype=self.dtype, name="qkv")(x)
        # The gradient of a split is one concatenation; that of taking parts out is a sum of padded arrays.
        q, k, v = (
            rearrange(part, "b n t (heads d) -> b n heads t d", heads=self.num_heads)
            for part in jnp.split(qkv, 3, axis=-1)
        )
        table = self.param(
            "relative_position_bias_table",
            nn.initializers.truncated_normal(0.02),
            ((2 * self.window_size - 1) ** 2, self.num_heads),
        )
        bias = rearrange(table[relative_position_index(self.window_size)], "t s heads -> heads t s")
        hidden = None if regions is None else regions[:, None, :, None] != regions[:, None, None, :]
        out = rearrange(attend(q, k, v, bias, hidden), "b n h t d -> b n t (h d)")
        return Dense(channels, dtype=self.dtype, name="projection")(out)


class SwinBlock(nn.Module):
    """Window attention and an MLP, each behind a LayerNorm and around a residual."""

    num_heads: int
    window_size: int
    shifted: bool
    mlp_ratio: int = 4
    mask_padding: bool = True
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], survival: Float[Array, "2 b"] | None = None
    ) -> Float[Array, "b h w c"]:
        """Returns the same grid; it need not be a multiple of the window.

        `survival` holds the factors of the two residual branches of each image (`draw_survival`); None are ones.
        """
        _, height, width, channels = x.shape
        window = self.window_size
        # A single window along one side is already global there, so the published models do not shift it.
        shift = window // 2 if self.shifted and min(height, width) > window else 0
        pad_h, pad_w = -height % window, -width % window

        y = nn.LayerNorm(EPSILON, dtype=self.dtype, use_fast_variance=False, name="norm1")(x)
        y = jnp.pad(y, ((0, 0), (0, pad_h), (0, pad_w), (0, 0)))
        y = jnp.roll(y, (-shift, -shift), axis=(1, 2)) if shift else y
        y = rearrange(y, "b (h p) (w q) c -> b (h w) (p q) c", p=window, q=window)
        regions = window_regions(height, width, window, shift, self.mask_padding)
        y = WindowAttention(self.num_heads, window, self.dtype, name="attention")(y, regions)
        y = rearrange(y, "b (h w) (p q) c -> b (h p) (w q) c", h=(height + pad_h) // window, p=window, q=window)
        y = jnp.roll(y, (shift, shift), axis=(1, 2)) if shift else y
        y = y[:, :height, :width]
        x = x + (y if survival is None else _surviving(y, survival[0]))

        y = nn.LayerNorm(EPSILON, dtype=self.dtype, use_fast_variance=False, name="norm2")(x)
        y = Dense(self.mlp_ratio * channels, dtype=self.dtype, name="mlp_in")(y)
        y = Dense(channels, dtype=self.dtype, name="mlp_out")(gelu(y))
        return x + (y if survival is None else _surviving(y, survival[1]))


class PatchMerging(nn.Module):
    """Halves the grid and doubles the channels: 2 x 2 neighbours are joined, normalised and projected."""

    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b _ _ _"]:
        """Returns [b, ceil(h/2), ceil(w/2), 2c]; an odd side is padded with zeros."""
        _, height, width, channels = x.shape
        x = jnp.pad(x, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)))
        # The published checkpoints order the neighbours (0,0), (1,0), (0,1), (1,1): the row runs fastest.
        x = rearrange(x, "b (h p) (w q) c -> b h w (q p c)", p=2, q=2)
        x = nn.LayerNorm(EPSILON, dtype=self.dtype, use_fast_variance=False, name="norm")(x)
        return Dense(2 * channels, use_bias=False, dtype=self.dtype, name="reduction")(x)


class Swin(nn.Module):
    """The backbone: stage i of `depths` works at stride 4 · 2^i with embed_dim · 2^i channels.

    Each output has a LayerNorm of its own **[ours, as dense-prediction Swin backbones do]**. With `mask_padding` the
    padding to whole windows is never attended to; without it, it takes part as a bias-only token, which is what
    published implementations compute. `remat` says what the blocks keep for the backward pass (models/layers.py).
    """

    embed_dim: int = 128
    depths: tuple[int, ...] = (2, 2, 18, 2)
    num_heads: tuple[int, ...] = (4, 8, 16, 32)
    window_size: int = 12
    drop_path_rate: float = 0.0
    patch_size: int = 4
    mask_padding: bool = True
    remat: str = "none"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, images: Float[Array, "b h w 3"], train: bool = False) -> tuple[Float[Array, "b _ _ _"], ...]:
        """Returns one map per stage, from fine to coarse: [b, ceil(h/4), ceil(w/4), c], [.., ceil(h/8), ..], ..."""
        patch = self.patch_size
        _, height, width, _ = images.shape
        x = jnp.pad(images, ((0, 0), (0, -height % patch), (0, -width % patch), (0, 0)))
        conv = nn.Conv(self.embed_dim, (patch, patch), (patch, patch), "VALID", dtype=self.dtype, name="patch_embed")
        x = nn.LayerNorm(EPSILON, dtype=self.dtype, use_fast_variance=False, name="patch_norm")(conv(x))

        survival: list[jax.Array | None] = [None] * sum(self.depths)
        if train and self.drop_path_rate:
            rates = np.linspace(0.0, self.drop_path_rate, len(survival))
            survival = list(draw_survival(self.make_rng("dropout"), rates, x.shape[0]))
        outputs = []
        for stage, depth in enumerate(self.depths, start=1):
            if stage > 1:
                x = PatchMerging(self.dtype, name=f"stage{stage}_merge")(x)
            of_stage, survival = survival[:depth], survival[depth:]
            # A loop copies parameters, which is too much where blocks run forward alone, and compiles soon anyway.
            looped = depth // 2 * 2 if train and depth > 3 and not self.is_initializing() else 0
            if looped:
                x = self._loop_over_pairs(x, stage, of_stage[:looped])
            for number in range(looped, depth):
                x = self._block(stage, number, name=f"stage{stage}_block{number}")(x, of_stage[number])
            norm = nn.LayerNorm(EPSILON, dtype=self.dtype, use_fast_variance=False, name=f"stage{stage}_norm")
            outputs.append(norm(x))
        return tuple(outputs)

    def _loop_over_pairs(
        self, x: Float[Array, "b h w c"], stage: int, survival: list[jax.Array | None]
    ) -> Float[Array, "b h w c"]:
        """Runs as many blocks of a stage as there are factors in `survival`, a plain and a shifted one at a time."""
        blocks = [self._block(stage, number, looped=True, parent=None) for number in (0, 1)]

        def pair(x: Any, operands: Any) -> Any:
            for block, (params, factors) in zip(blocks, operands, strict=True):
                x = block.apply({"params": params}, x, factors)
            return x

        operands: list[Any] = [
            (self.get_variable("params", f"stage{stage}_block{number}"), factors)
            for number, factors in enumerate(survival)
        ]
        return repeat(pair, x, list(zip(operands[::2], operands[1::2], strict=True)), self.dtype)

    def _block(self, stage: int, number: int, looped: bool = False, **attached: Any) -> SwinBlock:
        block_class = rematerialize(SwinBlock, self.remat, looped)
        return block_class(
            num_heads=self.num_heads[stage - 1],
            window_size=self.window_size,
            shifted=number % 2 == 1,
            mask_padding=self.mask_padding,
            dtype=self.dtype,
            **attached,
        )
