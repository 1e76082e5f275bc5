"""What may stand in the place of S2RM's coparsing, to see whether it earns its place **[ours]**.

Each takes the vision map and the distributed language and returns what the two say together.
"""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from s2rm_jax.config import SIMPLER_FUSIONS
from s2rm_jax.models.layers import Conv3x3, Dense, broadcast

_BLOCKS = 2  # of self-attention
_WAVES = 4  # by which a place is told, in each direction


class SimplerFusion(nn.Module):
    """Joins vision and distributed language without coparsing.

    mode   "sum" takes the language alone, as vision is added later anyway (and the language as it came, unless
           fusion.residual is "vision"); "product" multiplies the two position by position, as the pixel-word attention
           of the LAVT family does; "concat" lays them side by side and convolves them 3 x 3; "attention" is
           self-attention among all positions of both, which may take anything from anywhere.
    inner  width of the blocks' MLPs where the mode is "attention"; see `inner_width`
    """

    mode: str
    num_heads: int
    inner: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, seen: Float[Array, "b 1 h w c"], laid_out: Float[Array, "b k h w c"]
    ) -> Float[Array, "b k h w _"]:
        """Returns c channels, or those of both sides (2 c) where the mode is "attention"."""
        if self.mode == "sum":
            return laid_out
        if self.mode == "product":
            return laid_out * seen
        seen = broadcast(seen[:, 0], laid_out.shape[1:2], 1)
        if self.mode == "concat":
            return self._convolve(jnp.concatenate([seen, laid_out], axis=-1))
        if self.mode == "attention":
            return self._attend(seen, laid_out)
        raise ValueError(f"a simpler fusion must be one of {SIMPLER_FUSIONS}, not {self.mode!r}")

    def _convolve(self, x: Float[Array, "b k h w c2"]) -> Float[Array, "b k h w _"]:
        b, k, h, w, c = x.shape
        conv = Conv3x3(c // 2, dtype=self.dtype, name="conv")
        y = conv(x.reshape(b * k, h, w, c)).reshape(b, k, h, w, c // 2)
        return nn.gelu(nn.LayerNorm(dtype=self.dtype, name="conv_norm")(y))

    def _attend(
        self, seen: Float[Array, "b k h w c"], laid_out: Float[Array, "b k h w c"]
    ) -> Float[Array, "b k h w _"]:
        """Two blocks over the positions of both; each is told its place, and by a bias which of the two it is from."""
        b, k, h, w, c = seen.shape
        place = Dense(c, dtype=self.dtype, name="place")(jnp.asarray(places(h, w), self.dtype))
        side = self.param("side", nn.initializers.normal(0.02), (2, c)).astype(self.dtype)
        x = jnp.concatenate(
            [seen + place + side[0], laid_out + place + side[1]], axis=3
        )  # side by side: [.., h, 2w, c]
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
    """Tells each position of a grid by sines and cosines of where it lies between the borders: [h, w, 4 waves]."""
    rows, columns = np.meshgrid((np.arange(height) + 0.5) / height, (np.arange(width) + 0.5) / width, indexing="ij")
    angles = np.pi * 2.0 ** np.arange(-1, _WAVES - 1) * np.stack([rows, columns])[..., None]
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=-1).transpose(1, 2, 0, 3).reshape(height, width, -1)


def inner_width(width: int, recurrent_width: int, scans: int) -> int:
    """Returns the MLP width with which the kernels of self-attention have as many parameters as those of coparsing.

    `scans` is the number of its directions times that of its pairs. Each has kernels of 5 width x recurrent_width
    + 4 recurrent_width^2 (models/s2rm.py), a block of attention has 4 width^2 + 2 width x inner.
    """
    coparsing = scans * (5 * width * recurrent_width + 4 * recurrent_width**2)
    return max(width, round((coparsing / _BLOCKS - 4 * width**2) / (2 * width)))
