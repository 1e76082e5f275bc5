"""How the network came to a mask: what of its inside can be looked at, by name and for one expression.

`reduce` runs on the device, inside the program that segments, and makes the network's large outputs small;
`explanations` names the rest on the host.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from s2rm_jax.input.tokens import Tokenizer

# Where the slices of a rotated map begin and end in the image as it stands.
DIRECTIONS = {0: "downwards", 90: "leftwards", 180: "upwards", 270: "rightwards"}


@dataclass(frozen=True)
class Explanation:
    """What led to the mask of one expression; all values are float32.

    words            what the network read, [CLS] and [SEP] among them; the pieces of a rare word are joined
    word_attention   [words, h, w], the mean over the heads of S2RM's first step: where each word was laid out. At every
                     position the words sum to 1.
    directions       the direction of each scan, from slice to slice
    group_maps       {pair: [r, h, w]}, the strength (root mean square over channels) of what each direction parsed
    balance_weights  {pair: [r, h, w]}, how the directions were weighed against each other; they sum to 1 over r
    stages           CASG's masks as probabilities [h_i, w_i], from the coarsest stage to the finest

    The pairs are missing where the network was configured without them; every grid [h, w] covers the whole image.
    """

    words: tuple[str, ...]
    word_attention: Float[np.ndarray, "words h w"]
    directions: tuple[str, ...]
    group_maps: dict[str, Float[np.ndarray, "r h w"]]
    balance_weights: dict[str, Float[np.ndarray, "r h w"]]
    stages: tuple[Float[np.ndarray, "_ _"], ...]


@flax.struct.dataclass
class Reduced:
    """The network's outputs on the way to explanations, for one image with k expressions; l pieces an expression."""

    attention: Any  # [k, l, h, w]
    group_maps: dict[str, Any]  # {pair: [k, r, h, w]}
    balance_weights: dict[str, Any]  # {pair: [k, r, h, w]}
    stages: tuple[Any, ...]  # of [k, h_i, w_i]


def reduce(output: Any) -> Reduced:
    """Reduces the network's `Output` for one image (b = 1) to what explanations show."""
    attention = output.word_attention[0].mean(1)  # over heads: [k, h, w, l]
    strengths = {
        pair: jnp.moveaxis(jnp.sqrt(jnp.mean(jnp.square(maps[:, 0].astype(jnp.float32)), -1)), 0, 1)
        for pair, maps in output.group_maps.items()
    }
    weights = {
        pair: jnp.broadcast_to(_over_the_grid(balance), strengths[pair].shape)
        for pair, balance in output.balance_weights.items()
    }
    masks = (*output.coarse_logits, output.logits)
    stages = tuple(jax.nn.sigmoid(mask[0].astype(jnp.float32)) for mask in masks)
    return Reduced(jnp.moveaxis(attention, -1, 1), strengths, weights, stages)


def explanations(
    reduced: Reduced, tokens: Sequence[np.ndarray], tokenizer: Tokenizer, rotations: Sequence[int]
) -> list[Explanation]:
    """Returns one explanation per expression; `reduced` has arrays of NumPy and may have rows that fill it up."""
    directions = tuple(DIRECTIONS[degrees] for degrees in rotations)
    found = []
    for row, ids in enumerate(tokens):
        words, first = _joined(tokenizer.words(ids))
        found.append(
            Explanation(
                words,
                np.add.reduceat(reduced.attention[row, : len(tokenizer.words(ids))], first, axis=0),
                directions,
                {pair: maps[row] for pair, maps in reduced.group_maps.items()},
                {pair: weights[row] for pair, weights in reduced.balance_weights.items()},
                tuple(stage[row] for stage in reduced.stages),
            )
        )
    return found


def _over_the_grid(balance: Float[Array, "r b k h w c"]) -> Float[Array, "k r h w"]:
    """The weights of a position; where they differ by channel and not by position, their mean."""
    return jnp.moveaxis(balance[:, 0].mean(-1), 0, 1)


def _joined(pieces: Sequence[str]) -> tuple[tuple[str, ...], list[int]]:
    """The words that WordPiece cut into pieces, and at which piece each begins."""
    words: list[str] = []
    first: list[int] = []
    for position, piece in enumerate(pieces):
        if piece.startswith("##") and words:
            words[-1] += piece.removeprefix("##")
        else:
            words.append(piece)
            first.append(position)
    return tuple(words), first
