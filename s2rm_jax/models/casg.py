"""CASG, the decoder, and the no-target head: abstract semantics of the referent guide each finer vision map.

Source: arXiv:2405.09006, abstract and Fig. 3 **[paper]**: at each stage the expression and the semantic features of
the previous stages help the vision feature of that scale to add the details of the referent, with emphasis on the
foreground and at low cost. The equations are our choice **[ours]**.

The no-target head is not part of S2RM **[ours]**. It serves data such as gRefCOCO, where an expression may refer to
several objects or to none.
"""

from __future__ import annotations

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from s2rm_jax.config import GUIDANCES, SEMANTICS
from s2rm_jax.models.layers import Conv3x3, Dense, LayerNorm, broadcast, rematerialize


def upsample(x: Float[Array, "b k h w c"], height: int, width: int) -> Float[Array, "b k {height} {width} c"]:
    """Double the grid bilinearly (half-pixel centres) and crop the rows and columns that patch merging had padded.

    This is jax.image.resize for a factor of two, as sums of neighbours. XLA's CPU code takes six times as long for the
    matrix products of jax.image.resize.
    """
    doubled = _double(_double(x.astype(jnp.float32), 2), 3)
    return doubled[:, :, :height, :width].astype(x.dtype)


def _double(x: jax.Array, axis: int) -> jax.Array:
    """Double one axis: each value becomes two, a quarter of the way to either neighbour; borders are repeated."""
    size = x.shape[axis]
    first, last = (jax.lax.slice_in_dim(x, at, at + 1, axis=axis) for at in (0, size - 1))
    before = jnp.concatenate([first, jax.lax.slice_in_dim(x, 0, size - 1, axis=axis)], axis)
    after = jnp.concatenate([jax.lax.slice_in_dim(x, 1, size, axis=axis), last], axis)
    both = jnp.stack([0.75 * x + 0.25 * before, 0.75 * x + 0.25 * after], axis + 1)
    return both.reshape(*x.shape[:axis], 2 * size, *x.shape[axis + 1 :])


# By default, GPUs round the factors of float32 products to TF32, and TPUs to bfloat16. What is float32 by design is
# computed in full precision; it is a small part of the network.
_full_precision = partial(jax.default_matmul_precision, "highest")


@_full_precision()
def foreground_mean(x: Float[Array, "b k h w c"], logits: Float[Array, "b k h w"]) -> Float[Array, "b k c"]:
    """Average features, weighted by the mask's probability of foreground."""
    foreground = jax.nn.sigmoid(logits)
    total = jnp.einsum("bkhwc,bkhw->bkc", x.astype(jnp.float32), foreground)
    return total / (foreground.sum((2, 3))[..., None] + 1e-6)


class ConvBlock(nn.Module):
    """3 x 3 convolution, LayerNorm over channels and GELU. Nothing in it mixes images."""

    features: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b k h w c"]) -> Float[Array, "b k h w _"]:
        """Return [b, k, h, w, features]."""
        y = Conv3x3(self.features, dtype=self.dtype, name="conv")(x)
        return nn.gelu(LayerNorm(dtype=self.dtype, name="norm")(y))


class CASG(nn.Module):
    """Decode masks from coarse to fine, one stage per vision map.

    Attributes:
        guidance: "full" is CASG; "maps" guides the vision maps but not the kernels of the masks; "none" drops the
            abstract semantics, which leaves a plain feature pyramid
        semantics: the sources of the abstract semantics: "sentence" is the state of [CLS], "stages" are the features of
            the foreground that the previous stages predict
        remat: what the convolutional blocks keep for the backward pass (`layers.rematerialize`)
    """

    widths: tuple[int, ...] = (64, 128, 256, 256)
    guidance: str = "full"
    semantics: tuple[str, ...] = SEMANTICS
    remat: str = "none"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        fused: Float[Array, "b k h w c"],
        vision: tuple[jax.Array, ...],
        sentence: Float[Array, "b k d"],
    ) -> tuple[Float[Array, "b k _ _"], ...]:
        """Return float32 mask logits from the coarsest stage to the finest (stride 4).

        `vision` holds the map [b, h_i, w_i, c_i] of every stage from fine to coarse. Its last map is not read, because
        `fused` is made from it.

        Raises:
            ValueError: a field has an unknown value, or the numbers of widths and of vision maps differ.
        """
        if self.guidance not in GUIDANCES:
            raise ValueError(f"guidance must be one of {GUIDANCES}, not {self.guidance!r}")
        if not self.semantics or not set(self.semantics) <= set(SEMANTICS):
            raise ValueError(f"semantics must be among {SEMANTICS}, not {self.semantics!r}")

        if len(vision) != len(self.widths):
            raise ValueError(f"{len(self.widths)} decoder widths for {len(vision)} vision maps")
        guided = self.guidance == "full"
        block_class = rematerialize(ConvBlock, self.remat)
        coarsest = len(self.widths)
        x = block_class(self.widths[-1], self.dtype, name=f"stage{coarsest}_block")(fused)
        with_sentence = "sentence" in self.semantics
        semantics = sentence.astype(jnp.float32)[..., : None if with_sentence else 0]  # no channels without it
        logits = [MaskHead(guided and with_sentence, name=f"stage{coarsest}_mask")(x, semantics)]
        for stage in range(coarsest - 1, 0, -1):
            features = vision[stage - 1]
            height, width = features.shape[1:3]
            channels = self.widths[stage - 1]
            pure = Dense(channels, dtype=self.dtype, name=f"stage{stage}_vision")(features)
            pure = LayerNorm(dtype=self.dtype, name=f"stage{stage}_vision_norm")(pure)
            coarse = upsample(logits[-1][..., None], height, width)[..., 0]
            if self.guidance == "none":
                skip = broadcast(pure, x.shape[1:2], 1)
            else:
                if "stages" in self.semantics:
                    semantics = jnp.concatenate([semantics, foreground_mean(x, logits[-1])], axis=-1)
                skip = Guide(self.dtype, name=f"stage{stage}_guide")(pure, semantics, coarse)
            x = Dense(channels, dtype=self.dtype, name=f"stage{stage}_narrow")(x)
            x = jnp.concatenate([upsample(x, height, width), skip], axis=-1)
            x = block_class(channels, self.dtype, name=f"stage{stage}_block")(x)
            logits.append(MaskHead(guided, name=f"stage{stage}_mask")(x, semantics) + coarse)
        return tuple(logits)


class MaskHead(nn.Module):
    """Mask logits of a stage: a 1 x 1 convolution, plus a kernel computed from the semantics if `guided` **[ours]**.

    The second term is the agreement of each position with the semantics. Without it, the network takes far longer to
    learn which word names which appearance (docs/results/optimization_notes.md).
    """

    guided: bool

    @nn.compact
    @_full_precision()
    def __call__(self, x: Float[Array, "b k h w c"], semantics: Float[Array, "b k d"]) -> Float[Array, "b k h w"]:
        """Return float32 logits."""
        logits = Dense(1, dtype=jnp.float32, name="kernel")(x)[..., 0]
        if not self.guided:
            return logits
        meant = Dense(x.shape[-1], dtype=jnp.float32, name="meant")(semantics)
        return logits + jnp.einsum("bkhwc,bkc->bkhw", x.astype(jnp.float32), meant) * x.shape[-1] ** -0.5


class Guide(nn.Module):
    """Emphasize the referent in a vision map by the abstract semantics, in space and in channels."""

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        pure: Float[Array, "b h w c"],
        abstract: Float[Array, "b k d"],
        coarse_logits: Float[Array, "b k h w"],
    ) -> Float[Array, "b k h w c"]:
        """Return the guided vision map of each expression."""
        channels = pure.shape[-1]
        hidden = nn.gelu(Dense(2 * channels, dtype=self.dtype, name="hidden")(abstract.astype(self.dtype)))
        where = Dense(channels, dtype=self.dtype, name="where")(hidden)
        which = jax.nn.sigmoid(Dense(channels, dtype=self.dtype, name="which")(hidden))
        similarity = jnp.einsum("bhwc,bkc->bkhw", pure, where).astype(jnp.float32) * channels**-0.5
        emphasis = jax.nn.sigmoid(similarity + coarse_logits).astype(self.dtype)
        return broadcast(pure, where.shape[1:2], 1) * which[:, :, None, None, :] * (1 + emphasis[..., None])


class NoTargetHead(nn.Module):
    """Predict whether an expression has no referent in the image.

    Inputs per expression: the state of [CLS]; the features of S2RM, averaged over the image and over the foreground of
    the coarsest mask; the largest and the mean foreground probability of the finest mask.
    """

    width: int = 256

    @nn.compact
    @_full_precision()
    def __call__(
        self,
        sentence: Float[Array, "b k d"],
        fused: Float[Array, "b k h w c"],
        coarsest: Float[Array, "b k h w"],
        finest: Float[Array, "b k h4 w4"],
    ) -> Float[Array, "b k"]:
        """Return float32 logits, positive for no referent; `coarsest` and `finest` are mask logits."""
        fused = fused.astype(jnp.float32)
        foreground = jax.nn.sigmoid(finest)
        evidence = (
            sentence.astype(jnp.float32),
            fused.mean((2, 3)),
            foreground_mean(fused, coarsest),
            foreground.max((2, 3))[..., None],
            foreground.mean((2, 3))[..., None],
        )
        hidden = nn.gelu(Dense(self.width, dtype=jnp.float32, name="hidden")(jnp.concatenate(evidence, axis=-1)))
        return Dense(1, dtype=jnp.float32, name="nothing")(hidden)[..., 0]
