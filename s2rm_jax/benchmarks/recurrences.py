"""Other ways to run a recurrence over slices than the one scan of models/coparse.py, to be measured beside it.

All take what `gated_recurrence` takes and return states of the same shapes. `a_scan_each` and `unrolled` compute what
it computes; the linear ones compute something simpler.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from s2rm_jax.models.coparse import linear_recurrence

Arrays = dict[str, jax.Array]  # by pair


def a_scan_each(gates: Arrays, update_reset: Arrays, candidate: Arrays) -> Arrays:
    """A scan for each pair and direction, one after another."""

    def states(pair: str, direction: int) -> jax.Array:
        weights = update_reset[pair][direction], candidate[pair][direction]
        inputs = gates[pair][:, direction]

        def step(h: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
            h = _cell(h, x, *weights)
            return h, h

        return jax.lax.scan(step, _start(inputs), inputs)[1]

    return {pair: jnp.stack([states(pair, r) for r in range(x.shape[1])], axis=1) for pair, x in gates.items()}


def unrolled(gates: Arrays, update_reset: Arrays, candidate: Arrays) -> Arrays:
    """All pairs and directions at once, the steps written out one behind the other."""
    carry = {pair: _start(x) for pair, x in gates.items()}
    states: dict[str, list[jax.Array]] = {pair: [] for pair in gates}
    for index in range(next(iter(gates.values())).shape[0]):
        for pair, x in gates.items():
            carry[pair] = jax.vmap(_cell)(carry[pair], x[index], update_reset[pair], candidate[pair])
            states[pair].append(carry[pair])
    return {pair: jnp.stack(found) for pair, found in states.items()}


def linear(gates: Arrays, update_reset: Arrays, candidate: Arrays) -> Arrays:
    """A recurrence whose gates do not hear the state, so that all slices are found in log2(s) steps.

    h_i = (1 - z_i) h_{i-1} + z_i c_i with z and c of the input alone; the reset gate and both weights go unused.
    """
    del update_reset, candidate

    def join(before: tuple, then: tuple) -> tuple[jax.Array, jax.Array]:
        return before[0] * then[0], before[1] * then[0] + then[1]

    def states(x: jax.Array) -> jax.Array:
        kept, added = _kept_and_added(x)
        return jax.lax.associative_scan(join, (kept, added))[1]

    return {pair: states(x) for pair, x in gates.items()}


def linear_by_scan(gates: Arrays, update_reset: Arrays, candidate: Arrays) -> Arrays:
    """What `linear` computes, slice after slice: fusion.recurrence=linear, which has no reset gate to be cut out."""
    del update_reset, candidate

    def without_reset(x: jax.Array) -> jax.Array:
        update, _, candidate = jnp.split(x, 3, axis=-1)
        return jnp.concatenate([update, candidate], axis=-1)

    return linear_recurrence({pair: without_reset(x) for pair, x in gates.items()})


def _kept_and_added(gates: jax.Array) -> tuple[jax.Array, jax.Array]:
    update, _, candidate = jnp.split(gates, 3, axis=-1)
    z = jax.nn.sigmoid(update)
    return 1 - z, z * jnp.tanh(candidate)


def _start(gates: jax.Array) -> jax.Array:
    return jnp.zeros_like(gates[0, ..., : gates.shape[-1] // 3])


def _cell(h: jax.Array, x: jax.Array, w_zr: jax.Array, w_c: jax.Array) -> jax.Array:
    """One step for one direction: h [..., m, R], x [..., m, 3 R]."""
    width = h.shape[-1]
    z, reset = jnp.split(jax.nn.sigmoid(x[..., : 2 * width] + h @ w_zr), 2, axis=-1)
    c = jnp.tanh(x[..., 2 * width :] + (reset * h) @ w_c)
    return (1 - z) * h + z * c
