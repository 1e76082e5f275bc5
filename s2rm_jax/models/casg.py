"""CASG, the decoder: abstract semantics of the referent guide each finer vision map.

Source: arXiv:2405.09006, abstract and Fig. 3 **[paper]**: at each stage the sentence and the semantic-rich features of
the previous stages help the pure vision feature of that scale to supply the details of the referent, with emphasis on
the foreground and at low cost. How, is our reading **[ours]**.

A head that says "nothing here": whether a sentence refers to nothing in the image **[ours]**.

Not part of S2RM; it is for data such as gRefCOCO, where one sentence may refer to several things or to none.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from s2rm_jax.config import GUIDANCES, SEMANTICS
from s2rm_jax.models.layers import Conv3x3, Dense, broadcast, rematerialised


@flax.struct.dataclass
class Decoded:
    """Mask logits from the coarsest stage to the finest (stride 4), each [b, k, h_i, w_i] in float32."""

    logits: tuple[Any, ...]


def upsample(x: Float[Array, "b k h w c"], height: int, width: int) -> Float[Array, "b k {height} {width} c"]:
    """Doubles the grid bilinearly (half-pixel centres) and crops what the padding before merging had added."""
    b, k, h, w, c = x.shape
    return jax.image.resize(x, (b, k, 2 * h, 2 * w, c), "bilinear")[:, :, :height, :width]


def foreground_mean(x: Float[Array, "b k h w c"], logits: Float[Array, "b k h w"]) -> Float[Array, "b k c"]:
    """Averages features over where the mask believes the referent to be."""
    belief = jax.nn.sigmoid(logits)
    total = jnp.einsum("bkhwc,bkhw->bkc", x.astype(jnp.float32), belief)
    return total / (belief.sum((2, 3))[..., None] + 1e-6)


class ConvBlock(nn.Module):
    """3 x 3 convolution, LayerNorm over channels, GELU: nothing in it mixes images."""

    features: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b k h w c"]) -> Float[Array, "b k h w _"]:
        """Returns [b, k, h, w, features]."""
        b, k, h, w, c = x.shape
        conv = Conv3x3(self.features, dtype=self.dtype, name="conv")
        y = conv(x.reshape(b * k, h, w, c)).reshape(b, k, h, w, self.features)
        return nn.gelu(nn.LayerNorm(dtype=self.dtype, name="norm")(y))


class CASG(nn.Module):
    """Decodes masks from coarse to fine, one stage per vision map.

    `guidance` "full" is CASG; "maps" guides the vision maps but not the kernels of the masks; "none" drops the abstract
    semantics, which leaves a plain feature pyramid. `semantics` names what the abstract semantics are made of: the
    sentence, and what the stages before believe the referent to be. `remat` says what the convolutional blocks keep for
    the backward pass (models/layers.py).
    """

    widths: tuple[int, ...] = (64, 128, 256, 256)
    guidance: str = "full"
    semantics: tuple[str, ...] = SEMANTICS
    remat: str = "none"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        fused: Float[Array, "b k h w c"],
        vision: tuple[jax.Array, ...],
        sentence: Float[Array, "b k d"],
    ) -> Decoded:
        """Returns `Decoded`; `vision` holds every stage's map [b, h_i, w_i, c_i] from fine to coarse.

        The last of `vision` is not read: it has come in through `fused`.
        """
        if self.guidance not in GUIDANCES:
            raise ValueError(f"guidance must be one of {GUIDANCES}, not {self.guidance!r}")
        if not self.semantics or not set(self.semantics) <= set(SEMANTICS):
            raise ValueError(f"semantics must be among {SEMANTICS}, not {self.semantics!r}")

        if len(vision) != len(self.widths):
            raise ValueError(f"{len(self.widths)} decoder widths for {len(vision)} vision maps")
        guided = self.guidance == "full"
        block_class = rematerialised(ConvBlock, self.remat)
        coarsest = len(self.widths)
        x = block_class(self.widths[-1], self.dtype, name=f"stage{coarsest}_block")(fused)
        told = "sentence" in self.semantics
        semantics = sentence.astype(jnp.float32)[..., : None if told else 0]  # no channels: nothing is known yet
        logits = [MaskHead(guided and told, name=f"stage{coarsest}_mask")(x, semantics)]
        for stage in range(coarsest - 1, 0, -1):
            features = vision[stage - 1]
            height, width = features.shape[1:3]
            channels = self.widths[stage - 1]
            pure = Dense(channels, dtype=self.dtype, name=f"stage{stage}_vision")(features)
            pure = nn.LayerNorm(dtype=self.dtype, name=f"stage{stage}_vision_norm")(pure)
            coarse = upsample(logits[-1][..., None], height, width)[..., 0]
            if self.guidance == "none":
                seen = broadcast(pure, x.shape[1:2], 1)
            else:
                if "stages" in self.semantics:
                    semantics = jnp.concatenate([semantics, foreground_mean(x, logits[-1])], axis=-1)
                seen = Guide(self.dtype, name=f"stage{stage}_guide")(pure, semantics, coarse)
            x = Dense(channels, dtype=self.dtype, name=f"stage{stage}_narrow")(x)
            x = jnp.concatenate([upsample(x, height, width), seen], axis=-1)
            x = block_class(channels, self.dtype, name=f"stage{stage}_block")(x)
            logits.append(MaskHead(guided, name=f"stage{stage}_mask")(x, semantics) + coarse)
        return Decoded(tuple(logits))


class MaskHead(nn.Module):
    """Mask logits of a stage: a 1 x 1 kernel, part of which the abstract semantics choose if `guided` **[ours]**.

    That part is the agreement of each position with what is meant. Without it the network takes far longer to find out
    which word names which look (docs/results/synthetic.md).
    """

    guided: bool

    @nn.compact
    def __call__(self, x: Float[Array, "b k h w c"], semantics: Float[Array, "b k d"]) -> Float[Array, "b k h w"]:
        """Returns float32 logits."""
        logits = Dense(1, dtype=jnp.float32, name="kernel")(x)[..., 0]
        if not self.guided:
            return logits
        meant = Dense(x.shape[-1], dtype=jnp.float32, name="meant")(semantics)
        return logits + jnp.einsum("bkhwc,bkc->bkhw", x.astype(jnp.float32), meant) * x.shape[-1] ** -0.5


class Guide(nn.Module):
    """Lets abstract semantics emphasise the referent in a pure vision map, in space and in channels."""

    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        pure: Float[Array, "b h w c"],
        abstract: Float[Array, "b k d"],
        coarse_logits: Float[Array, "b k h w"],
    ) -> Float[Array, "b k h w c"]:
        """Returns the vision map as each expression should see it."""
        channels = pure.shape[-1]
        hidden = nn.gelu(Dense(2 * channels, dtype=self.dtype, name="hidden")(abstract.astype(self.dtype)))
        where = Dense(channels, dtype=self.dtype, name="where")(hidden)
        which = jax.nn.sigmoid(Dense(channels, dtype=self.dtype, name="which")(hidden))
        similarity = jnp.einsum("bhwc,bkc->bkhw", pure, where).astype(jnp.float32) * channels**-0.5
        emphasis = jax.nn.sigmoid(similarity + coarse_logits).astype(self.dtype)
        return broadcast(pure, where.shape[1:2], 1) * which[:, :, None, None, :] * (1 + emphasis[..., None])


class NoTargetHead(nn.Module):
    """Judges from what the network knows anyway: the sentence, what S2RM saw, and how sure the masks are.

    What S2RM saw comes twice, averaged over the image and over where the coarsest mask believes the referent to be;
    of the finest mask come the strongest belief of a pixel and the share of the image. All per expression.
    """

    width: int = 256

    @nn.compact
    def __call__(
        self,
        sentence: Float[Array, "b k d"],
        fused: Float[Array, "b k h w c"],
        coarsest: Float[Array, "b k h w"],
        finest: Float[Array, "b k h4 w4"],
    ) -> Float[Array, "b k"]:
        """Returns float32 logits of "refers to nothing"; `coarsest` and `finest` are mask logits."""
        fused = fused.astype(jnp.float32)
        belief = jax.nn.sigmoid(finest)
        known = (
            sentence.astype(jnp.float32),
            fused.mean((2, 3)),
            foreground_mean(fused, coarsest),
            belief.max((2, 3))[..., None],
            belief.mean((2, 3))[..., None],
        )
        hidden = nn.gelu(Dense(self.width, dtype=jnp.float32, name="hidden")(jnp.concatenate(known, axis=-1)))
        return Dense(1, dtype=jnp.float32, name="nothing")(hidden)[..., 0]
