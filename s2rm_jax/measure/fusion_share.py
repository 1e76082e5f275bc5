"""How much of a forward pass the fusion is, and the recurrence written in other ways.

Other ways to run a recurrence over slices than the one scan of models/s2rm.py, to be measured beside it.

All take what `gated_recurrence` takes and return states of the same shapes. `a_scan_each` and `unrolled` compute what
it computes; the linear ones compute something simpler.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from s2rm_jax.config import PAIRS
from s2rm_jax.errors import UserError
from s2rm_jax.measure.section import Row, Section, show_ratio
from s2rm_jax.measure.subject import Subject, network_parts
from s2rm_jax.measure.timing import jitted, time_alternately
from s2rm_jax.models.s2rm import gated_recurrence, linear_recurrence
from s2rm_jax.training.logging import counted

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


WAYS: dict[str, Callable[..., dict[str, jax.Array]]] = {
    "one scan (ours)": gated_recurrence,
    "a scan for each pair and direction": a_scan_each,
    "one loop, unrolled": unrolled,
    "linear variant, associative_scan": linear,
    "linear variant, one scan": linear_by_scan,
}


def fusion_share(subject: Subject, rounds: int, expressions: Sequence[int] = (1, 8)) -> list[Section]:
    """Measures fusion beside the whole forward pass, and one scan beside its alternatives.

    Raises:
        UserError: the network has no gated recurrence.
    """
    fusion = subject.config.fusion
    if fusion.mode != "s2rm" or fusion.recurrence != "gated":
        raise UserError("--suite=fusion measures the gated recurrence; let config.fusion have it.")
    return [_share(subject, rounds, expressions), *(_ways(subject, rounds, count) for count in expressions)]


def draw_recurrence(subject: Subject, expressions: int) -> tuple[dict[str, jax.Array], ...]:
    """Draws what `gated_recurrence` takes: of the image once, of the language for every expression."""
    config, dtype = subject.config, jnp.dtype(subject.config.dtype)
    stride = 4 * 2 ** (len(config.vision.depths) - 1)
    slices = max(-(-side // stride) for side in config.input.image_size)
    counts = {PAIRS[0]: expressions, PAIRS[1]: 1}  # the language generates, and then the image

    def gates(pair: str) -> jax.Array:
        shape = (slices, len(config.fusion.rotations), 1, counts[pair], slices, 3 * config.fusion.recurrent_width)
        return jax.random.normal(jax.random.key(counts[pair]), shape, dtype)

    def weights(name: str) -> dict[str, jax.Array]:
        drawn = subject.params["fusion"]["coparse"]
        return {pair: jnp.asarray(drawn[f"{pair}_{name}"], dtype) for pair in config.fusion.pairs}

    return {pair: gates(pair) for pair in config.fusion.pairs}, weights("update_reset"), weights("candidate")


def _share(subject: Subject, rounds: int, expressions: Sequence[int]) -> Section:
    rows: list[Row] = []
    figures: dict[str, float] = {}
    for count in expressions:
        part = network_parts(subject, 1, count)["fusion"]
        whole = jitted(*subject.forward(1, count))
        timings = time_alternately({"fusion": jitted(*part.forward()), "whole": whole}, rounds)
        ratio = timings.ratio("fusion", "whole")
        label = counted(count, "sentence")
        rows.append([label, timings.median("fusion"), timings.median("whole"), show_ratio(ratio)])
        figures[label] = ratio.median
    text = "S2RM alone, and the whole network on one image. Wanted: at most 0.05 of a forward pass with one expression."
    return Section("Fusion's share", text, ["", "fusion, s", "whole, s", "share"], rows, figures)


def _ways(subject: Subject, rounds: int, expressions: int) -> Section:
    arguments = draw_recurrence(subject, expressions)

    def gradient(way: Callable[..., Any]) -> Callable[..., Any]:
        def total(*arguments: Any) -> jax.Array:
            return sum((jnp.square(x).mean() for x in jax.tree.leaves(way(*arguments))), jnp.float32(0))

        return jax.grad(total, argnums=(0, 1, 2))

    forward = time_alternately({name: jitted(way, arguments) for name, way in WAYS.items()}, rounds)
    both = time_alternately({name: jitted(gradient(way), arguments) for name, way in WAYS.items()}, rounds)
    ours = next(iter(WAYS))
    rows: list[Row] = [
        [
            name,
            1e3 * forward.median(name),
            show_ratio(forward.ratio(name, ours)),
            1e3 * both.median(name),
            show_ratio(both.ratio(name, ours)),
        ]
        for name in WAYS
    ]
    figures = {f"{name} / ours": forward.ratio(name, ours).median for name in list(WAYS)[1:]}
    text = (
        f"The recurrence alone, {counted(expressions, 'sentence')} on an image. The first three compute the "
        "same. Expected: fewer, larger products win; the linear variant is a lower bound of what could be saved, and "
        "another network."
    )
    head = ["way", "forward, ms", "by ours", "forward and backward, ms", "by ours"]
    return Section(f"The recurrence in other ways, {counted(expressions, 'sentence')}", text, head, rows, figures)
