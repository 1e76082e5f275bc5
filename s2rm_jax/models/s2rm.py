"""S2RM, the fusion of language and vision in three steps: distribute, coparse, balance.

Source: arXiv:2405.09006. The three steps are the paper's **[paper, Fig. 2]**. Their equations are our choice
**[ours]**, because only the paper's abstract, structure and captions are at hand.

Spatial semantic recurrent coparsing, the second step, takes the rows (or, rotated, the columns) of a generator as
slices. A gated recurrence runs over them, and the state at each slice gives the content-adaptive keys and values with
which the same slice of the parsed feature is read.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from s2rm_jax.config import BALANCES, FUSIONS, LANGUAGES, PAIRS, RECURRENCES, RESIDUALS, ROTATIONS, SIMPLER_FUSIONS
from s2rm_jax.models.layers import Conv3x3, Dense, LayerNorm, broadcast

_FROM_INPUT = {"gated": 3, "linear": 2, "none": 1}  # gates of recurrent_width that are computed from the generator
SHARED = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal", batch_axis=(0,))


def to_slices(x: Float[Array, "r b k h w c"], rotations: tuple[int, ...]) -> Float[Array, "r b k s m c"]:
    """Rotate map i of x by rotations[i] degrees, counter-clockwise; its rows are the slices, scanned from the top.

    If h ≠ w, the rotated grids differ; they are padded with zeros at the end to s slices of m positions.
    """
    rotated = [jnp.rot90(one, degrees // 90, axes=(2, 3)) for one, degrees in zip(x, rotations, strict=True)]
    slices, positions = (max(one.shape[axis] for one in rotated) for axis in (2, 3))
    return jnp.stack(
        [
            jnp.pad(one, ((0, 0), (0, 0), (0, slices - one.shape[2]), (0, positions - one.shape[3]), (0, 0)))
            for one in rotated
        ]
    )


def from_slices(
    x: Float[Array, "r b k s m c"], rotations: tuple[int, ...], height: int, width: int
) -> Float[Array, "r b k {height} {width} c"]:
    """Undo `to_slices`: crop the padding and rotate back."""
    maps = []
    for one, degrees in zip(x, rotations, strict=True):
        slices, positions = (width, height) if degrees % 180 else (height, width)
        maps.append(jnp.rot90(one[:, :, :slices, :positions], -degrees // 90, axes=(2, 3)))
    return jnp.stack(maps)


def real_positions(rotations: tuple[int, ...], height: int, width: int) -> Bool[np.ndarray, "r m"]:
    """Return which positions of a slice are not padding, for each rotation."""
    lengths = np.array([height if degrees % 180 else width for degrees in rotations])
    return np.arange(lengths.max()) < lengths[:, None]


def gated_cell(
    state: Float[Array, "r b k m d"], x: Float[Array, "r b k m d3"], w_zr: jax.Array, w_c: jax.Array
) -> Float[Array, "r b k m d"]:
    """Return the next state of a GRU whose reset gate is applied before the product with the candidate's kernel.

    x: contributions of the input to update gate, reset gate and candidate; w_zr: kernels from the state to the two
    gates, [r, d, 2 d]; w_c: kernels from the reset state to the candidate, [r, d, d].
    """
    width = state.shape[-1]
    from_input, from_input_c = x[..., : 2 * width], x[..., 2 * width :]
    gate = jax.nn.sigmoid(from_input + jnp.einsum("rbkmd,rde->rbkme", state, w_zr))
    z, reset = jnp.split(gate, 2, axis=-1)
    c = jnp.tanh(from_input_c + jnp.einsum("rbkmd,rde->rbkme", reset * state, w_c))
    return (1 - z) * state + z * c


def linear_cell(state: Float[Array, "r b k m d"], x: Float[Array, "r b k m d2"]) -> Float[Array, "r b k m d"]:
    """Return the next state of the recurrence whose gate and candidate depend on the input alone."""
    from_input, from_input_c = jnp.split(x, 2, axis=-1)
    z = jax.nn.sigmoid(from_input)
    return (1 - z) * state + z * jnp.tanh(from_input_c)


class Coparse(nn.Module):
    """Parse one modality by the other, for each pair and from every direction.

    Each direction of a pair has its own weights, stacked on a leading axis. All but the recurrence is computed for all
    slices at once; one `lax.scan` carries the states of all pairs and directions.
    """

    recurrent_width: int
    rotations: tuple[int, ...] = ROTATIONS
    recurrence: str = "gated"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, pairs: dict[str, tuple[jax.Array, jax.Array]]) -> dict[str, jax.Array]:
        """Map {pair: (generator [b, k, h, w, c], parsed [b, k, h, w, c])} to {pair: group maps [r, b, k, h, w, c]}.

        If k is 1 on one side (an image shared by its expressions), that side is broadcast, and what depends on it
        alone is computed once. A group map at slice i depends on the generator's slices up to i only.
        """
        if self.recurrence not in RECURRENCES:
            raise ValueError(f"recurrence must be one of {RECURRENCES}, not {self.recurrence!r}")
        states = self._scan({name: self._gates(name, generator) for name, (generator, _) in pairs.items()})
        return {name: self._parse(name, states[name], parsed) for name, (_, parsed) in pairs.items()}

    def _stacked(self, name: str, inputs: int, outputs: int) -> jax.Array:
        """Return one weight matrix per direction: [r, inputs, outputs]."""
        return self.param(name, SHARED, (len(self.rotations), inputs, outputs)).astype(self.dtype)

    def _gates(self, pair: str, generator: jax.Array) -> jax.Array:
        """Return the contribution of the generator to the gates, for all slices at once: [s, r, b, k, m, gates].

        Gates of recurrent_width are update, reset and candidate; update and candidate if the recurrence is "linear";
        the candidate alone if it is "none".
        """
        features = self.recurrent_width * _FROM_INPUT[self.recurrence]
        kernel = self._stacked(f"{pair}_gates_kernel", generator.shape[-1], features)
        bias = self.param(f"{pair}_gates_bias", nn.initializers.zeros, (len(self.rotations), features))
        gates = jnp.einsum("bkhwc,rcd->rbkhwd", generator, kernel)
        gates = gates + bias.astype(self.dtype)[:, None, None, None, None]
        return jnp.moveaxis(to_slices(gates, self.rotations), 3, 0)

    def _scan(self, gates: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """Run the recurrence over the slices: {pair: states [s, r, b, k, m, recurrent_width]}."""
        if self.recurrence == "none":
            return {pair: jnp.tanh(x) for pair, x in gates.items()}
        width = self.recurrent_width
        cell: Callable[..., jax.Array] = linear_cell
        weights: list[dict[str, jax.Array]] = []
        if self.recurrence == "gated":
            cell = gated_cell
            weights.append({pair: self._stacked(f"{pair}_update_reset", width, 2 * width) for pair in gates})
            weights.append({pair: self._stacked(f"{pair}_candidate", width, width) for pair in gates})

        def step(carry: dict, x: dict) -> tuple[dict, dict]:
            carry = jax.tree.map(cell, carry, x, *weights)
            return carry, carry

        start = {pair: jnp.zeros_like(x[0, ..., :width]) for pair, x in gates.items()}
        return jax.lax.scan(step, start, gates)[1]

    def _parse(self, pair: str, states: jax.Array, parsed: jax.Array) -> jax.Array:
        """Attend from each slice of the parsed feature to the states of its slice: group maps [r, b, k, h, w, c]."""
        height, width, channels = parsed.shape[-3:]
        size = self.recurrent_width
        query_kernel = self._stacked(f"{pair}_query", channels, size)
        queries = to_slices(jnp.einsum("bkhwc,rcd->rbkhwd", parsed, query_kernel), self.rotations)
        keys = jnp.einsum("srbkmd,rde->rbksme", states, self._stacked(f"{pair}_key", size, size))
        values = jnp.einsum("srbkmd,rde->rbksme", states, self._stacked(f"{pair}_value", size, channels))

        logits = jnp.einsum("rbksmd,rbksnd->rbksmn", queries, keys).astype(jnp.float32) * size**-0.5
        real = real_positions(self.rotations, height, width)[:, None, None, None, None]
        weights = jax.nn.softmax(jnp.where(real, logits, jnp.finfo(jnp.float32).min)).astype(self.dtype)
        maps = jnp.einsum("rbksmn,rbksnc->rbksmc", weights, values)
        return from_slices(maps, self.rotations, height, width)


@flax.struct.dataclass
class Fused:
    """The output of S2RM; all but `features` is for inspection. Leaves are arrays, or their shapes."""

    features: Any  # [b, k, h, w, c], the vision map fused with the expression
    word_attention: Any  # [b, k, heads, h, w, l], the attention of each position over the words
    group_maps: dict[str, Any]  # {pair: [r, b, k, h, w, c]}, the parsed map of each direction
    balance_weights: dict[str, Any]  # {pair: [r, b, k, h, w, 1] or [r, b, k, 1, 1, c] (channel)}; sums over r are 1


class Distribute(nn.Module):
    """Distribute the words over the image, as language that vision constrains only weakly **[ours]**.

    Each position of the image attends to the words and receives words only: no product with vision, no residual from
    it. With `language` "sentence", every position receives the state of [CLS].
    """

    width: int
    num_heads: int
    language: str = "words"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        vision: Float[Array, "b 1 h w c"],
        words: Float[Array, "b k l d"],
        mask: Bool[Array, "b k l"],
    ) -> tuple[Float[Array, "b k h w c"], Float[Array, "b k heads h w l"]]:
        """Return the distributed language and the attention over the words."""

        def project(name: str, x: jax.Array) -> jax.Array:
            x = Dense(self.width, dtype=self.dtype, name=name)(x)
            return rearrange(x, "... (heads d) -> ... heads d", heads=self.num_heads)

        value = project("value", words)
        if self.language == "words":
            query, key = project("query", vision), project("key", words)
            logits = jnp.einsum("bohwnd,bklnd->bknhwl", query, key).astype(jnp.float32) * query.shape[-1] ** -0.5
            logits = jnp.where(mask[:, :, None, None, None, :], logits, jnp.finfo(jnp.float32).min)
            attention = jax.nn.softmax(logits)
        elif self.language == "sentence":
            first_word = jax.nn.one_hot(0, mask.shape[-1], dtype=jnp.float32)
            shape = (*mask.shape[:2], self.num_heads, *vision.shape[2:4], mask.shape[-1])
            attention = jnp.broadcast_to(first_word, shape)
        else:
            raise ValueError(f"fusion language must be one of {LANGUAGES}, not {self.language!r}")
        language = jnp.einsum("bknhwl,bklnd->bkhwnd", attention.astype(self.dtype), value)
        language = rearrange(language, "b k h w heads d -> b k h w (heads d)")
        return LayerNorm(dtype=self.dtype, name="norm")(language), attention


class Balance(nn.Module):
    """Sum the directions of a pair, with weights computed from the parsed maps themselves **[ours]**."""

    kind: str = "position"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, maps: Float[Array, "r b k h w c"]) -> tuple[Float[Array, "b k h w c"], jax.Array]:
        """Return the weighted sum over directions, and the weights (see `Fused`)."""
        channels = maps.shape[-1]
        if self.kind == "mean" or maps.shape[0] == 1:  # a single direction needs no weights
            weights = jnp.full((maps.shape[0], 1, 1, 1, 1, 1), 1 / maps.shape[0], jnp.float32)
        elif self.kind in ("position", "channel"):
            evidence = maps if self.kind == "position" else maps.mean((3, 4), keepdims=True)
            # Not the Dense of layers.py: it would merge directions, which come first, with images, and images that
            # are sharded over devices would have to be gathered.
            hidden = jnp.tanh(nn.Dense(max(channels // 4, 8), dtype=self.dtype, name="hidden")(evidence))
            outputs = 1 if self.kind == "position" else channels
            scores = nn.Dense(outputs, use_bias=False, dtype=self.dtype, name="score")(hidden)
            weights = jax.nn.softmax(scores.astype(jnp.float32), axis=0)
        else:
            raise ValueError(f"balance must be one of {BALANCES}, not {self.kind!r}")
        # Term by term: XLA's CPU code takes a hundred times as long for a sum over the first axis.
        terms = zip(jnp.unstack(weights.astype(self.dtype)), jnp.unstack(maps), strict=True)
        return functools.reduce(operator.add, (weight * parsed for weight, parsed in terms)), weights


class S2RM(nn.Module):
    """Fuse the coarsest vision map with the words of each expression.

    F' = LN(V + T_dist + dense([F_language_parses_vision; F_vision_parses_language])), where F_pair is the result of
    `Balance`, then a feed-forward layer with a residual. T_dist in the residual, instead of V alone, is **[ours]**,
    measured in docs/results/ablations.md.

    For ablations: `language` "sentence" distributes nothing; a `mode` other than "s2rm" joins vision and language
    without coparsing (see `SimplerFusion`); `recurrence` "none" parses each slice by itself, "linear" has no
    gate that reads the state; `rotations` and `pairs` may name fewer directions or one pair; `balance` is the kind of
    the weights of directions; `residual` "vision" leaves the distributed language out of the residual connection.
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
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        vision: Float[Array, "b h w cv"],
        words: Float[Array, "b k l d"],
        mask: Bool[Array, "b k l"],
    ) -> Fused:
        """Fuse the last stage of the backbone with the hidden states of the words; `mask` is false for padding.

        Raises:
            ValueError: a field has an unknown value.
        """
        if self.mode not in FUSIONS:
            raise ValueError(f"fusion mode must be one of {FUSIONS}, not {self.mode!r}")
        if not self.pairs or not set(self.pairs) <= set(PAIRS):
            raise ValueError(f"fusion pairs must be among {PAIRS}, not {self.pairs!r}")
        if self.residual not in RESIDUALS:
            raise ValueError(f"fusion residual must be one of {RESIDUALS}, not {self.residual!r}")

        def dense(features: int, name: str) -> nn.Dense:
            return Dense(features, dtype=self.dtype, name=name)

        def norm(name: str) -> nn.LayerNorm:
            return LayerNorm(dtype=self.dtype, name=name)

        image = norm("vision_norm")(dense(self.width, "vision_projection")(vision))[:, None]
        distribute = Distribute(self.width, self.num_heads, self.language, self.dtype, name="distribute")
        language, attention = distribute(image, words, mask)

        maps: dict[str, jax.Array] = {}
        weights: dict[str, jax.Array] = {}
        if self.mode == "s2rm":
            sides = {PAIRS[0]: (language, image), PAIRS[1]: (image, language)}
            coparse = Coparse(self.recurrent_width, self.rotations, self.recurrence, self.dtype, name="coparse")
            maps = coparse({pair: sides[pair] for pair in self.pairs})
            balanced = {
                pair: Balance(self.balance, self.dtype, name=f"{pair}_balance")(maps[pair]) for pair in self.pairs
            }
            mixed = jnp.concatenate([balanced[pair][0] for pair in self.pairs], axis=-1)
            weights = {pair: balanced[pair][1] for pair in self.pairs}
        else:
            inner = inner_width(self.width, self.recurrent_width, len(self.rotations) * len(self.pairs))
            mixed = SimplerFusion(self.mode, self.num_heads, inner, self.dtype, name="simpler")(image, language)

        residual = image + language if self.residual == "both" else image
        fused = norm("fused_norm")(residual + dense(self.width, "mix")(mixed))
        hidden = nn.gelu(dense(2 * self.width, "mlp_in")(fused))
        fused = norm("output_norm")(fused + dense(self.width, "mlp_out")(hidden))
        return Fused(fused, attention, maps, weights)


_BLOCKS = 2  # of self-attention
_WAVES = 4  # frequencies of the position encoding, in each direction


class SimplerFusion(nn.Module):
    """Join vision and distributed language without coparsing.

    Attributes:
        mode: "sum" returns the language alone, since S2RM adds its residual later; "product" multiplies both position
            by position, as the pixel-word attention of the LAVT family does; "concat" concatenates the channels and
            applies a 3 x 3 convolution; "attention" is self-attention among all positions of both maps
        inner: width of the MLPs of the mode "attention"; see `inner_width`
    """

    mode: str
    num_heads: int
    inner: int
    dtype: DTypeLike = jnp.float32

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
            conv = Conv3x3(image.shape[-1], dtype=self.dtype, name="conv")
            y = conv(jnp.concatenate([image, language], axis=-1))
            return nn.gelu(LayerNorm(dtype=self.dtype, name="conv_norm")(y))
        if self.mode == "attention":
            return self._attend(image, language)
        raise ValueError(f"mode must be one of {SIMPLER_FUSIONS}, not {self.mode!r}")

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
            y = LayerNorm(dtype=self.dtype, name=f"block{block}_norm1")(x)
            attention = nn.MultiHeadDotProductAttention(
                self.num_heads, dtype=self.dtype, force_fp32_for_softmax=True, name=f"block{block}_attention"
            )
            x = x + attention(y)
            y = LayerNorm(dtype=self.dtype, name=f"block{block}_norm2")(x)
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
    + 4 recurrent_width^2 parameters, a block of attention has 4 width^2 + 2 width x inner.
    """
    coparsing = scans * (5 * width * recurrent_width + 4 * recurrent_width**2)
    return max(width, round((coparsing / _BLOCKS - 4 * width**2) / (2 * width)))
