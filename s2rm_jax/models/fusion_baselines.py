"""Simpler fusions in place of S2RM's coparsing, as baselines for ablations **[ours]**."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from s2rm_jax.config import SIMPLER_FUSIONS
from s2rm_jax.models.layers import Conv3x3, Dense, broadcast

_BLOCKS = 2  # of self-attention
_WAVES = 4  # frequencies of the position encoding, in each direction


class SimplerFusion(nn.Module):
    """Join vision and distributed language without coparsing.

    mode   "sum" returns the language alone, since S2RM adds its residual later; "product" multiplies both position by
           position, as the pixel-word attention of the LAVT family does; "concat" concatenates the channels and
           applies a 3 x 3 convolution; "attention" is self-attention among all positions of both maps
    inner  width of the MLPs of the mode "attention"; see `inner_width`
    """

    mode: str
    num_heads: int
    inner: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, image: Float[Array, "b 1 h w c"], language: Float[Array, "b k h w c"]
    ) -> Float[Array, "b k h w _"]:
        """Return c channels, or 2 c (those of both maps) if the mode is "attention"."""
        if self.mode == "sum":
            return language
        if self.mode == "product":
            return language * image
        image = broadcast(image[:, 0], language.shape[1:2], 1)
        if self.mode == "concat":
            return self._convolve(jnp.concatenate([image, language], axis=-1))
        if self.mode == "attention":
            return self._attend(image, language)
        raise ValueError(f"mode must be one of {SIMPLER_FUSIONS}, not {self.mode!r}")

    def _convolve(self, x: Float[Array, "b k h w c2"]) -> Float[Array, "b k h w _"]:
        b, k, h, w, c = x.shape
        conv = Conv3x3(c // 2, dtype=self.dtype, name="conv")
        y = conv(x.reshape(b * k, h, w, c)).reshape(b, k, h, w, c // 2)
        return nn.gelu(nn.LayerNorm(dtype=self.dtype, name="conv_norm")(y))

    def _attend(
        self, image: Float[Array, "b k h w c"], language: Float[Array, "b k h w c"]
    ) -> Float[Array, "b k h w _"]:
        """Run two blocks over the positions of both maps, with a position encoding and a bias for each map."""
        b, k, h, w, c = image.shape
        place = Dense(c, dtype=self.dtype, name="place")(jnp.asarray(places(h, w), self.dtype))
        side = self.param("side", nn.initializers.normal(0.02), (2, c)).astype(self.dtype)
        x = jnp.concatenate([image + place + side[0], language + place + side[1]], axis=3)  # [b, k, h, 2w, c]
        x = x.reshape(b, k, 2 * h * w, c)
        for block in range(_BLOCKS):
            y = nn.LayerNorm(dtype=self.dtype, name=f"block{block}_norm1")(x)
            attention = nn.MultiHeadDotProductAttention(
                self.num_heads, dtype=self.dtype, force_fp32_for_softmax=True, name=f"block{block}_attention"
            )
            x = x + attention(y)
            y = nn.LayerNorm(dtype=self.dtype, name=f"block{block}_norm2")(x)
            y = nn.gelu(Dense(self.inner, dtype=self.dtype, name=f"block{block}_mlp_in")(y))
            x = x + Dense(c, dtype=self.dtype, name=f"block{block}_mlp_out")(y)
        x = x.reshape(b, k, h, 2 * w, c)
        return jnp.concatenate([x[..., :w, :], x[..., w:, :]], axis=-1)


def places(height: int, width: int) -> Float[np.ndarray, "{height} {width} _"]:
    """Return sines and cosines of the relative position in a grid, for each of its positions: [h, w, 4 waves]."""
    rows, columns = np.meshgrid((np.arange(height) + 0.5) / height, (np.arange(width) + 0.5) / width, indexing="ij")
    angles = np.pi * 2.0 ** np.arange(-1, _WAVES - 1) * np.stack([rows, columns])[..., None]
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=-1).transpose(1, 2, 0, 3).reshape(height, width, -1)


def inner_width(width: int, recurrent_width: int, scans: int) -> int:
    """Return the MLP width at which self-attention has as many parameters in its kernels as coparsing.

    `scans` is the number of directions times the number of pairs. Each has 5 width x recurrent_width
    + 4 recurrent_width^2 parameters (models/s2rm.py), a block of attention has 4 width^2 + 2 width x inner.
    """
    coparsing = scans * (5 * width * recurrent_width + 4 * recurrent_width**2)
    return max(width, round((coparsing / _BLOCKS - 4 * width**2) / (2 * width)))
