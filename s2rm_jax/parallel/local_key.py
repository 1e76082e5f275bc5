"""Random numbers for one device's part of a batch: exactly those that the whole batch would have had there.

Code that sees one device's pictures only (`jax.shard_map`) draws for those. With an ordinary key every device would
draw the same, and with a key of its own something else than on another number of devices.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax.extend import random as extend
from jaxtyping import Array, UInt32

_THREEFRY = extend.threefry_prng_impl


def local_key(key: jax.Array, position: jax.Array) -> jax.Array:
    """Returns a key that draws, for an array of any shape, part number `position` of what `key` draws for all parts.

    Parts are equal and lie along the first axis. Keys that are split or folded from it do the same. It takes up to
    2^32 numbers in a draw over all parts; beyond, the numbers repeat.

    Args:
        key: a key of JAX's default kind (threefry, partitionable).
        position: int scalar.
    """
    data = jnp.append(jax.random.key_data(key), position.astype(jnp.uint32))
    return jax.random.wrap_key_data(data, impl=_LOCAL_THREEFRY)


def _random_bits(key: UInt32[Array, 3], bit_width: int, shape: tuple[int, ...]) -> jax.Array:
    """What threefry computes of a key and the number of an element, for the elements of one part."""
    if bit_width != 32:
        raise NotImplementedError(f"random numbers of {bit_width} bits for a part of a batch")
    size = math.prod(shape)
    number = key[2] * jnp.uint32(size) + jnp.arange(size, dtype=jnp.uint32)
    high, low = extend.threefry2x32_p.bind(*jnp.broadcast_arrays(key[0], key[1], jnp.zeros_like(number), number))
    return (high ^ low).reshape(shape)


def _with_position(keys: UInt32[Array, "*shape 2"], position: UInt32[Array, ""]) -> UInt32[Array, "*shape 3"]:
    return jnp.concatenate([keys, jnp.broadcast_to(position, (*keys.shape[:-1], 1))], axis=-1)


_LOCAL_THREEFRY = extend.define_prng_impl(
    key_shape=(3,),  # the two words of threefry, and the position
    seed=lambda seed: _with_position(_THREEFRY.seed(seed), jnp.uint32(0)),
    split=lambda key, shape: _with_position(_THREEFRY.split(key[:2], shape), key[2]),
    random_bits=_random_bits,
    fold_in=lambda key, data: _with_position(_THREEFRY.fold_in(key[:2], data), key[2]),
    name="local_threefry",
    tag="lfry",
)
