"""A head that says "nothing here": whether a sentence refers to nothing in the picture **[ours]**.

Not part of S2RM; it is for data such as gRefCOCO, where one sentence may refer to several things or to none.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from s2rm_jax.models.casg import foreground_mean
from s2rm_jax.models.dense import Dense


class NoTargetHead(nn.Module):
    """Judges from what the network knows anyway: the sentence, what S2RM saw, and how sure the masks are.

    What S2RM saw comes twice, averaged over the picture and over where the coarsest mask believes the referent to be;
    of the finest mask come the strongest belief of a pixel and the share of the picture. All per expression.
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
