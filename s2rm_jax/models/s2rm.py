"""S2RM, the fusion of language and vision: distribute, coparse, balance.

Source: arXiv:2405.09006. The three steps are the paper's **[paper]**; how each is computed is our reading, marked
**[ours]** below, because only the paper's abstract, structure and captions are at hand.
"""

from __future__ import annotations

import functools
import operator
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Bool, Float

from s2rm_jax.models.coparse import ROTATIONS, Coparse
from s2rm_jax.models.dense import Dense
from s2rm_jax.models.simpler_fusion import MODES as SIMPLER_MODES
from s2rm_jax.models.simpler_fusion import SimplerFusion, inner_width

PAIRS = ("language_parses_vision", "vision_parses_language")
MODES = ("s2rm", *SIMPLER_MODES)
LANGUAGES = ("words", "sentence")
BALANCES = ("position", "channel", "mean")
RESIDUALS = ("both", "vision")


@flax.struct.dataclass
class Fused:
    """What S2RM returns; all but `features` is for looking at. Leaves are arrays, or their shapes.

    features         [b, k, h, w, c], vision that knows the sentence
    word_attention   [b, k, heads, h, w, l], where in the image each word was distributed
    group_maps       {pair: [r, b, k, h, w, c]}, one parsed map per direction
    balance_weights  {pair: [r, b, k, h, w, 1]} (position), [r, b, k, 1, 1, c] (channel); sums to 1 over r
    """

    features: Any
    word_attention: Any
    group_maps: dict[str, Any]
    balance_weights: dict[str, Any]


class Distribute(nn.Module):
    """Lays the words out over the image: language that is only weakly constrained by vision **[ours]**.

    Each position of the image attends to the words; what it gets is words only: no product with vision and no
    residual from it. With `language` "sentence" nothing is distributed: every position gets the state of [CLS].
    """

    width: int
    num_heads: int
    language: str = "words"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        vision: Float[Array, "b 1 h w c"],
        words: Float[Array, "b k l d"],
        mask: Bool[Array, "b k l"],
    ) -> tuple[Float[Array, "b k h w c"], Float[Array, "b k heads h w l"]]:
        """Returns the distributed language and the attention [b, k, heads, h, w, l] over words."""

        def heads_last(name: str, x: jax.Array) -> jax.Array:
            x = Dense(self.width, dtype=self.dtype, name=name)(x)
            return rearrange(x, "... (heads d) -> ... heads d", heads=self.num_heads)

        value = heads_last("value", words)
        if self.language == "words":
            query, key = heads_last("query", vision), heads_last("key", words)
            logits = jnp.einsum("bohwnd,bklnd->bknhwl", query, key).astype(jnp.float32) * query.shape[-1] ** -0.5
            logits = jnp.where(mask[:, :, None, None, None, :], logits, jnp.finfo(jnp.float32).min)
            attention = jax.nn.softmax(logits)
        elif self.language == "sentence":
            only_the_first = jax.nn.one_hot(0, mask.shape[-1], dtype=jnp.float32)
            shape = (*mask.shape[:2], self.num_heads, *vision.shape[2:4], mask.shape[-1])
            attention = jnp.broadcast_to(only_the_first, shape)
        else:
            raise ValueError(f"fusion language must be one of {LANGUAGES}, not {self.language!r}")
        laid_out = jnp.einsum("bknhwl,bklnd->bkhwnd", attention.astype(self.dtype), value)
        laid_out = rearrange(laid_out, "b k h w heads d -> b k h w (heads d)")
        return nn.LayerNorm(dtype=self.dtype, name="norm")(laid_out), attention


class Balance(nn.Module):
    """Weighs the directions of a pair by weights distilled from the parsed maps themselves **[ours]**."""

    kind: str = "position"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, maps: Float[Array, "r b k h w c"]) -> tuple[Float[Array, "b k h w c"], jax.Array]:
        """Returns the weighted sum over directions, and the weights (see `Fused`)."""
        channels = maps.shape[-1]
        if self.kind == "mean" or maps.shape[0] == 1:  # one direction needs no weighing
            weights = jnp.full((maps.shape[0], 1, 1, 1, 1, 1), 1 / maps.shape[0], jnp.float32)
        elif self.kind in ("position", "channel"):
            evidence = maps if self.kind == "position" else maps.mean((3, 4), keepdims=True)
            # Not the package's own Dense: it would merge directions, which come first, with pictures, and pictures that
            # are spread over devices would have to be gathered for it.
            hidden = jnp.tanh(nn.Dense(max(channels // 4, 8), dtype=self.dtype, name="hidden")(evidence))
            outputs = 1 if self.kind == "position" else channels
            scores = nn.Dense(outputs, use_bias=False, dtype=self.dtype, name="score")(hidden)
            weights = jax.nn.softmax(scores.astype(jnp.float32), axis=0)
        else:
            raise ValueError(f"balance must be one of {BALANCES}, not {self.kind!r}")
        # Term by term: XLA's CPU code sums over a first axis a hundred times as slowly.
        terms = zip(jnp.unstack(weights.astype(self.dtype)), jnp.unstack(maps), strict=True)
        return functools.reduce(operator.add, (weight * parsed for weight, parsed in terms)), weights


class S2RM(nn.Module):
    """Fuses the coarsest vision map with the words of each expression.

    F = LN(V + T_dist + W [F_TV; F_VT]), then a feed-forward layer with a residual. That T_dist is in the residual, and
    not V alone, is **[ours]**, measured in docs/results/ablations.md.

    Ablations: `language` "sentence" distributes nothing; another `mode` than "s2rm" joins vision and language without
    coparsing (models/simpler_fusion.py); `recurrence` "none" parses each slice by itself, "linear" has no gate that
    reads the state; `rotations` and `pairs` may name fewer directions or one pair; `balance` chooses how directions
    are weighed; `residual` "vision" leaves the distributed language out of the residual connection.
    """

    width: int = 512
    recurrent_width: int = 256
    num_heads: int = 8
    language: str = "words"
    mode: str = "s2rm"
    recurrence: str = "gated"
    rotations: tuple[int, ...] = ROTATIONS
    pairs: tuple[str, ...] = PAIRS
    balance: str = "position"
    residual: str = "both"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        vision: Float[Array, "b h w cv"],
        words: Float[Array, "b k l d"],
        mask: Bool[Array, "b k l"],
    ) -> Fused:
        """Returns `Fused`; `vision` is the backbone's last stage, `words` the hidden states, `mask` the real words."""
        if self.mode not in MODES:
            raise ValueError(f"fusion mode must be one of {MODES}, not {self.mode!r}")
        if not self.pairs or not set(self.pairs) <= set(PAIRS):
            raise ValueError(f"fusion pairs must be among {PAIRS}, not {self.pairs!r}")
        if self.residual not in RESIDUALS:
            raise ValueError(f"fusion residual must be one of {RESIDUALS}, not {self.residual!r}")

        def dense(features: int, name: str) -> nn.Dense:
            return Dense(features, dtype=self.dtype, name=name)

        def norm(name: str) -> nn.LayerNorm:
            return nn.LayerNorm(dtype=self.dtype, name=name)

        seen = norm("vision_norm")(dense(self.width, "vision_projection")(vision))[:, None]
        distribute = Distribute(self.width, self.num_heads, self.language, self.dtype, name="distribute")
        laid_out, attention = distribute(seen, words, mask)

        maps: dict[str, jax.Array] = {}
        weights: dict[str, jax.Array] = {}
        if self.mode == "s2rm":
            sides = {PAIRS[0]: (laid_out, seen), PAIRS[1]: (seen, laid_out)}
            coparse = Coparse(self.recurrent_width, self.rotations, self.recurrence, self.dtype, name="coparse")
            maps = coparse({pair: sides[pair] for pair in self.pairs})
            balanced = {
                pair: Balance(self.balance, self.dtype, name=f"{pair}_balance")(maps[pair]) for pair in self.pairs
            }
            mixed = jnp.concatenate([balanced[pair][0] for pair in self.pairs], axis=-1)
            weights = {pair: balanced[pair][1] for pair in self.pairs}
        else:
            inner = inner_width(self.width, self.recurrent_width, len(self.rotations) * len(self.pairs))
            mixed = SimplerFusion(self.mode, self.num_heads, inner, self.dtype, name="simpler")(seen, laid_out)

        kept = seen + laid_out if self.residual == "both" else seen
        fused = norm("fused_norm")(kept + dense(self.width, "mix")(mixed))
        hidden = nn.gelu(dense(2 * self.width, "mlp_in")(fused))
        fused = norm("output_norm")(fused + dense(self.width, "mlp_out")(hidden))
        return Fused(fused, attention, maps, weights)
