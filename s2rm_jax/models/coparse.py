"""Spatial semantic recurrent coparsing, the second step of S2RM.

Source: arXiv:2405.09006, abstract and Fig. 2, for what it does **[paper]**; the equations are our reading **[ours]**:
the rows (or, rotated, the columns) of the generator are slices, a gated recurrence runs over them, and each slice's
state is turned into content-adaptive keys and values with which the same slice of the parsed feature is read.
"""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

RECURRENCES = ("gated", "linear", "none")
_FROM_INPUT = {"gated": 3, "linear": 2, "none": 1}  # maps of recurrent_width that the generator gives
ROTATIONS = (0, 90, 180, 270)  # degrees
SHARED = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal", batch_axis=(0,))


def to_slices(x: Float[Array, "r b k h w c"], rotations: tuple[int, ...]) -> Float[Array, "r b k s m c"]:
    """Rotates map i of x by rotations[i] degrees, counter-clockwise; rows are the slices to scan from the top.

    Grids that differ after rotation (h ≠ w) are padded with zeros, behind, to common s slices of m positions.
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
    """Undoes `to_slices`: crops the padding and rotates back."""
    maps = []
    for one, degrees in zip(x, rotations, strict=True):
        slices, positions = (width, height) if degrees % 180 else (height, width)
        maps.append(jnp.rot90(one[:, :, :slices, :positions], -degrees // 90, axes=(2, 3)))
    return jnp.stack(maps)


def real_positions(rotations: tuple[int, ...], height: int, width: int) -> Bool[np.ndarray, "r m"]:
    """Marks the positions of a slice that are not padding, for each rotation."""
    lengths = np.array([height if degrees % 180 else width for degrees in rotations])
    return np.arange(lengths.max()) < lengths[:, None]


def gated_recurrence(
    gates: dict[str, jax.Array], update_reset: dict[str, jax.Array], candidate: dict[str, jax.Array]
) -> dict[str, jax.Array]:
    """Runs over the slices of all pairs and directions in one scan; the arrays of each pair lie under its name.

    Args:
        gates: what the input says to the update gate, the reset gate and the candidate, [s, r, b, k, m, 3 R].
        update_reset: what the state says to the two gates, [r, R, 2 R].
        candidate: what the state that was let through says to the candidate, [r, R, R].

    Returns:
        The states [s, r, b, k, m, R].
    """

    def cell(h: jax.Array, x: jax.Array, w_zr: jax.Array, w_c: jax.Array) -> jax.Array:
        width = h.shape[-1]
        from_input, from_input_c = x[..., : 2 * width], x[..., 2 * width :]
        gate = jax.nn.sigmoid(from_input + jnp.einsum("rbkmd,rde->rbkme", h, w_zr))
        z, reset = jnp.split(gate, 2, axis=-1)
        c = jnp.tanh(from_input_c + jnp.einsum("rbkmd,rde->rbkme", reset * h, w_c))
        return (1 - z) * h + z * c

    return _over_slices(cell, gates, _FROM_INPUT["gated"], update_reset, candidate)


def linear_recurrence(gates: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Does the same where gate and candidate hear the input alone: [s, r, b, k, m, 2 R] gives [s, r, b, k, m, R]."""

    def cell(h: jax.Array, x: jax.Array) -> jax.Array:
        from_input, from_input_c = jnp.split(x, 2, axis=-1)
        z = jax.nn.sigmoid(from_input)
        return (1 - z) * h + z * jnp.tanh(from_input_c)

    return _over_slices(cell, gates, _FROM_INPUT["linear"])


def _over_slices(cell: Callable, gates: dict, parts: int, *weights: dict) -> dict[str, jax.Array]:
    """Carries the states of all pairs over the slices, from zeros, in one scan; gates are `parts` states wide."""

    def step(carry: dict, x: dict) -> tuple[dict, dict]:
        carry = jax.tree.map(cell, carry, x, *weights)
        return carry, carry

    start = {pair: jnp.zeros_like(x[0, ..., : x.shape[-1] // parts]) for pair, x in gates.items()}
    return jax.lax.scan(step, start, gates)[1]


class Coparse(nn.Module):
    """Lets each pair's generator parse its other modality, from every direction, in one scan over the slices.

    All directions of a pair have weights of their own, stacked on a leading axis. What lies outside the recurrence is
    computed for all slices at once; one `lax.scan` carries the states of all pairs and directions.
    """

    recurrent_width: int
    rotations: tuple[int, ...] = ROTATIONS
    recurrence: str = "gated"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, pairs: dict[str, tuple[jax.Array, jax.Array]]) -> dict[str, jax.Array]:
        """Maps {name: (generator [b, k, h, w, c], parsed [b, k, h, w, c])} to {name: group maps [r, b, k, h, w, c]}.

        Where k is 1 on one side (a picture seen by its k expressions) it is broadcast, and what depends on that side
        alone is computed once. A group map at slice i depends on the generator's slices up to i only.
        """
        if self.recurrence not in RECURRENCES:
            raise ValueError(f"recurrence must be one of {RECURRENCES}, not {self.recurrence!r}")
        states = self._scan({name: self._gates(name, generator) for name, (generator, _) in pairs.items()})
        return {name: self._parse(name, states[name], parsed) for name, (_, parsed) in pairs.items()}

    def _stacked(self, name: str, inputs: int, outputs: int) -> jax.Array:
        """One weight matrix per direction: [r, inputs, outputs]."""
        return self.param(name, SHARED, (len(self.rotations), inputs, outputs)).astype(self.dtype)

    def _gates(self, pair: str, generator: jax.Array) -> jax.Array:
        """What the recurrence receives from the generator, for all slices at once: [s, r, b, k, m, gates].

        There are three gates of recurrent_width (update, reset, candidate), two (update, candidate) where the
        recurrence is linear, or the candidate alone.
        """
        features = self.recurrent_width * _FROM_INPUT[self.recurrence]
        kernel = self._stacked(f"{pair}_gates_kernel", generator.shape[-1], features)
        bias = self.param(f"{pair}_gates_bias", nn.initializers.zeros, (len(self.rotations), features))
        gates = jnp.einsum("bkhwc,rcd->rbkhwd", generator, kernel)
        gates = gates + bias.astype(self.dtype)[:, None, None, None, None]
        return jnp.moveaxis(to_slices(gates, self.rotations), 3, 0)

    def _scan(self, gates: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """Runs the recurrence over the slices: {pair: states [s, r, b, k, m, recurrent_width]}."""
        if self.recurrence == "none":
            return {pair: jnp.tanh(x) for pair, x in gates.items()}
        if self.recurrence == "linear":
            return linear_recurrence(gates)
        width = self.recurrent_width
        update_reset = {pair: self._stacked(f"{pair}_update_reset", width, 2 * width) for pair in gates}
        candidate = {pair: self._stacked(f"{pair}_candidate", width, width) for pair in gates}
        return gated_recurrence(gates, update_reset, candidate)

    def _parse(self, pair: str, states: jax.Array, parsed: jax.Array) -> jax.Array:
        """Reads every slice of the parsed feature by its generator slice: group maps [r, b, k, h, w, c]."""
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
