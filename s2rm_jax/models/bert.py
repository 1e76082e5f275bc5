"""BERT encoder without the pooler.

Source: Devlin et al., "BERT", arXiv:1810.04805; parameters fit the published checkpoints.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from s2rm_jax.models.layers import Dense, LayerNorm, gelu, rematerialize

EPSILON = 1e-12  # of every LayerNorm, as in the published checkpoints
EMBEDDING_INIT = nn.initializers.truncated_normal(0.02)
# By fan-in: the usual 0.02 is far too small for narrow networks that are trained from scratch, where [CLS] would
# hardly depend on the words at first. Pretrained weights replace it anyway.
KERNEL_INIT = nn.initializers.lecun_normal()


class BertLayer(nn.Module):
    """Self-attention and a feed-forward part, each followed by a residual connection and a LayerNorm."""

    num_heads: int
    intermediate_size: int
    dropout_rate: float = 0.0
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "n l d"], mask: Bool[Array, "n l"]) -> Float[Array, "n l d"]:
        """Return the next hidden states; positions outside `mask` are not attended to."""

        def dense(features: int, name: str) -> nn.Dense:
            return Dense(features, dtype=self.dtype, kernel_init=KERNEL_INIT, name=name)

        def drop(y: jax.Array) -> jax.Array:
            return nn.Dropout(self.dropout_rate, deterministic=False)(y)

        def norm(name: str) -> nn.LayerNorm:
            return LayerNorm(EPSILON, dtype=self.dtype, name=name)

        width = x.shape[-1]
        q, k, v = (
            rearrange(dense(width, name)(x), "n l (heads d) -> n heads l d", heads=self.num_heads)
            for name in ("query", "key", "value")
        )
        logits = jnp.einsum("nhld,nhmd->nhlm", q * q.shape[-1] ** -0.5, k).astype(jnp.float32)
        logits = jnp.where(mask[:, None, None, :], logits, jnp.finfo(jnp.float32).min)
        weights = drop(jax.nn.softmax(logits).astype(self.dtype))
        attended = rearrange(jnp.einsum("nhlm,nhmd->nhld", weights, v), "n h l d -> n l (h d)")
        x = norm("attention_norm")(x + drop(dense(width, "attention_output")(attended)))

        y = gelu(dense(self.intermediate_size, "intermediate")(x))
        return norm("output_norm")(x + drop(dense(width, "output")(y)))


class Bert(nn.Module):
    """Token, position and type embeddings followed by `num_layers` layers.

    `remat` is what the layers keep for the backward pass (`layers.rematerialize`).
    """

    vocab_size: int = 30_522
    hidden_size: int = 768
    num_layers: int = 12
    num_heads: int = 12
    intermediate_size: int = 3072
    max_positions: int = 512
    dropout_rate: float = 0.0
    remat: str = "none"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, tokens: Int[Array, "n l"], mask: Bool[Array, "n l"], train: bool = False
    ) -> Float[Array, "n l d"]:
        """Return the last hidden states; every expression is one segment (token type 0).

        Raises:
            ValueError: there are more tokens than positions, or, outside jit, an id is not in the vocabulary. Under
                jit, such an id gives NaN, because values cannot be checked there.
        """

        def embedding(count: int, name: str) -> nn.Embed:
            return nn.Embed(count, self.hidden_size, dtype=self.dtype, embedding_init=EMBEDDING_INIT, name=name)

        _check_ids(tokens, self.vocab_size)
        length = tokens.shape[-1]
        if length > self.max_positions:  # a lookup beyond the table would give NaN
            raise ValueError(f"{length} tokens, but only {self.max_positions} positions")
        x = embedding(self.vocab_size, "word_embeddings")(tokens)
        x = x + embedding(self.max_positions, "position_embeddings")(jnp.arange(length))
        x = x + embedding(2, "type_embeddings")(jnp.zeros(length, jnp.int32))
        x = LayerNorm(EPSILON, dtype=self.dtype, name="embeddings_norm")(x)
        x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
        layer_class = rematerialize(BertLayer, self.remat)
        dropout_rate = self.dropout_rate if train else 0.0
        for index in range(self.num_layers):
            layer = layer_class(self.num_heads, self.intermediate_size, dropout_rate, self.dtype, name=f"layer{index}")
            x = layer(x, mask)
        return x


def _check_ids(tokens: Int[Array, "n l"], vocab_size: int) -> None:
    if isinstance(tokens, jax.core.Tracer) or tokens.size == 0:
        return
    ids = np.asarray(tokens)
    if ids.min() < 0 or ids.max() >= vocab_size:
        raise ValueError(
            f"tokens must be from 0 to {vocab_size - 1}, got {ids.min()} to {ids.max()}; use the tokenizer of the run"
        )
