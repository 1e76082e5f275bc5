"""Swin Transformer, the vision backbone, with one normalized feature map per stage.

Source: Liu et al., "Swin Transformer", arXiv:2103.14030; parameters fit the published ImageNet checkpoints.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from s2rm_jax.models.layers import Dense, LayerNorm, broadcast, gelu, rematerialize, repeat

EPSILON = 1e-5  # of every LayerNorm, as in the published checkpoints
HIDDEN = -1e9  # added to the logits of masked positions, whose weights are then exactly zero


def relative_position_index(window: int) -> np.ndarray:
    """Return int [T, T], T = window²: the row of the bias table for each pair of positions of a window."""
    row, column = np.divmod(np.arange(window * window), window)
    rows = row[:, None] - row[None, :] + window - 1
    columns = column[:, None] - column[None, :] + window - 1
    return rows * (2 * window - 1) + columns


def window_regions(height: int, width: int, window: int, shift: int, mask_padding: bool) -> np.ndarray | None:
    """Number the positions of each window; positions attend to those with the same number.

    Return int [windows, T] for a grid of height x width that was padded to whole windows and rolled by `shift`, or
    None if every position attends to its whole window. Rolling brings the far edge of the image next to the near one;
    these parts get their own numbers, and so does the padding if `mask_padding`.
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
    """Draw stochastic depth: factors of the two residual branches of each block, for each image.

    A branch is dropped for a whole image, by a factor of zero, with the probability in `rates`. The others are scaled
    up to keep the mean.
    """
    keep = jnp.asarray(1.0 - rates, jnp.float32)[:, None]
    # Images come first, as in every draw that devices share (parallel/mesh.py).
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
    """Attend among t positions with a bias for each pair; pairs that are true in `hidden` have zero weight.

    Softmax is in float32. Its division by the sums comes after the product with v, so it divides d columns instead of
    t, with the same saving in the backward pass, where the gradient of the sums also replaces a sum over t columns.
    """
    logits = jnp.einsum("...td,...sd->...ts", q * q.shape[-1] ** -0.5, k).astype(jnp.float32)
    logits += broadcast(bias, logits.shape[: -bias.ndim])
    if hidden is not None:
        logits += HIDDEN * jnp.asarray(hidden, jnp.float32)  # jnp.where is slow on CPUs
    weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(-1, keepdims=True)))
    out = jnp.einsum("...ts,...sd->...td", weights.astype(v.dtype), v) / weights.sum(-1, keepdims=True)
    return out.astype(v.dtype)


class WindowAttention(nn.Module):
    """Multi-head self-attention inside windows, with a learnt bias for each relative position."""

    num_heads: int
    window_size: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b n t c"], regions: np.ndarray | None) -> Float[Array, "b n t c"]:
        """Attend among the positions of each window that have the same number in `regions` [n, t]."""
        channels = x.shape[-1]
        qkv = Dense(3 * channels, dtype=self.dtype, name="qkv")(x)
        # The gradient of a split is one concatenation; that of slicing is a sum of padded arrays.
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
    """Window attention and an MLP, each after a LayerNorm and with a residual connection."""

    num_heads: int
    window_size: int
    shifted: bool
    mlp_ratio: int = 4
    mask_padding: bool = True
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], survival: Float[Array, "2 b"] | None = None
    ) -> Float[Array, "b h w c"]:
        """Return a map of the same grid, which need not be a multiple of the window.

        `survival` holds the factors of the two residual branches for each image (`draw_survival`); None means ones.
        """
        _, height, width, channels = x.shape
        window = self.window_size
        # A window that spans a whole side is already global there, so the published models do not shift it.
        shift = window // 2 if self.shifted and min(height, width) > window else 0
        pad_h, pad_w = -height % window, -width % window

        y = LayerNorm(EPSILON, dtype=self.dtype, name="norm1")(x)
        y = jnp.pad(y, ((0, 0), (0, pad_h), (0, pad_w), (0, 0)))
        y = jnp.roll(y, (-shift, -shift), axis=(1, 2)) if shift else y
        y = rearrange(y, "b (h p) (w q) c -> b (h w) (p q) c", p=window, q=window)
        regions = window_regions(height, width, window, shift, self.mask_padding)
        y = WindowAttention(self.num_heads, window, self.dtype, name="attention")(y, regions)
        y = rearrange(y, "b (h w) (p q) c -> b (h p) (w q) c", h=(height + pad_h) // window, p=window, q=window)
        y = jnp.roll(y, (shift, shift), axis=(1, 2)) if shift else y
        y = y[:, :height, :width]
        x = x + (y if survival is None else _surviving(y, survival[0]))

        y = LayerNorm(EPSILON, dtype=self.dtype, name="norm2")(x)
        y = Dense(self.mlp_ratio * channels, dtype=self.dtype, name="mlp_in")(y)
        y = Dense(channels, dtype=self.dtype, name="mlp_out")(gelu(y))
        return x + (y if survival is None else _surviving(y, survival[1]))


class PatchMerging(nn.Module):
    """Halve the grid and double the channels: 2 x 2 neighbours are concatenated, normalized and projected."""

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b _ _ _"]:
        """Return [b, ceil(h/2), ceil(w/2), 2c]; an odd side is padded with zeros."""
        _, height, width, channels = x.shape
        x = jnp.pad(x, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)))
        # The order of the published checkpoints is (0,0), (1,0), (0,1), (1,1): the row varies fastest.
        x = rearrange(x, "b (h p) (w q) c -> b h w (q p c)", p=2, q=2)
        x = LayerNorm(EPSILON, dtype=self.dtype, name="norm")(x)
        return Dense(2 * channels, use_bias=False, dtype=self.dtype, name="reduction")(x)


class Swin(nn.Module):
    """The backbone: stage i of `depths` works at stride 4 · 2^i with embed_dim · 2^i channels.

    Each output has its own LayerNorm **[ours, as in Swin backbones for dense prediction]**. With `mask_padding`, the
    padding to whole windows is never attended to; without it, it takes part as a bias-only token, as in published
    implementations. `remat` is what the blocks keep for the backward pass (`layers.rematerialize`).
    """

    embed_dim: int = 128
    depths: tuple[int, ...] = (2, 2, 18, 2)
    num_heads: tuple[int, ...] = (4, 8, 16, 32)
    window_size: int = 12
    drop_path_rate: float = 0.0
    patch_size: int = 4
    mask_padding: bool = True
    remat: str = "none"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: Float[Array, "b h w 3"], train: bool = False) -> tuple[Float[Array, "b _ _ _"], ...]:
        """Return one map per stage, from fine to coarse: [b, ceil(h/4), ceil(w/4), c], [.., ceil(h/8), ..], ..."""
        patch = self.patch_size
        _, height, width, _ = images.shape
        x = jnp.pad(images, ((0, 0), (0, -height % patch), (0, -width % patch), (0, 0)))
        conv = nn.Conv(self.embed_dim, (patch, patch), (patch, patch), "VALID", dtype=self.dtype, name="patch_embed")
        x = LayerNorm(EPSILON, dtype=self.dtype, name="patch_norm")(conv(x))

        survival: list[jax.Array | None] = [None] * sum(self.depths)
        if train and self.drop_path_rate:
            rates = np.linspace(0.0, self.drop_path_rate, len(survival))
            survival = list(draw_survival(self.make_rng("dropout"), rates, x.shape[0]))
        outputs = []
        for stage, depth in enumerate(self.depths, start=1):
            if stage > 1:
                x = PatchMerging(self.dtype, name=f"stage{stage}_merge")(x)
            factors, survival = survival[:depth], survival[depth:]
            # A loop copies parameters, which costs too much in a forward pass alone, whose blocks compile fast anyway.
            looped = depth // 2 * 2 if train and depth > 3 and not self.is_initializing() else 0
            if looped:
                x = self._loop_over_pairs(x, stage, factors[:looped])
            for number in range(looped, depth):
                x = self._block(stage, number, name=f"stage{stage}_block{number}")(x, factors[number])
            norm = LayerNorm(EPSILON, dtype=self.dtype, name=f"stage{stage}_norm")
            outputs.append(norm(x))
        return tuple(outputs)

    def _loop_over_pairs(
        self, x: Float[Array, "b h w c"], stage: int, survival: list[jax.Array | None]
    ) -> Float[Array, "b h w c"]:
        """Run the first len(survival) blocks of a stage as a loop over pairs of a plain and a shifted block."""
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
