"""Fusion's share of a forward pass, and alternative implementations of its recurrence.

All implementations have the signature of `gated_recurrence` of models/s2rm.py and return states of the same shapes.
`separate_scans` and `unrolled` compute the same values; the linear ones compute a simpler recurrence.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from s2rm_jax.config import PAIRS
from s2rm_jax.errors import UserError
from s2rm_jax.measure.harness import Row, Section, Timings, gradient, jitted, time_alternately
from s2rm_jax.measure.subject import Subject, network_parts
from s2rm_jax.models.s2rm import gated_recurrence, linear_recurrence
from s2rm_jax.training.logging import counted

Arrays = dict[str, jax.Array]  # by pair


def separate_scans(gates: Arrays, update_reset: Arrays, candidate: Arrays) -> Arrays:
    """Run one scan per pair and direction, one after another."""

    def states(pair: str, direction: int) -> jax.Array:
        weights = update_reset[pair][direction], candidate[pair][direction]
        inputs = gates[pair][:, direction]

        def step(h: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
            h = _cell(h, x, *weights)
            return h, h

        return jax.lax.scan(step, _start(inputs), inputs)[1]

    return {pair: jnp.stack([states(pair, r) for r in range(x.shape[1])], axis=1) for pair, x in gates.items()}


def unrolled(gates: Arrays, update_reset: Arrays, candidate: Arrays) -> Arrays:
    """Run all pairs and directions together, with the loop unrolled."""
    carry = {pair: _start(x) for pair, x in gates.items()}
    states: dict[str, list[jax.Array]] = {pair: [] for pair in gates}
    for index in range(next(iter(gates.values())).shape[0]):
        for pair, x in gates.items():
            carry[pair] = jax.vmap(_cell)(carry[pair], x[index], update_reset[pair], candidate[pair])
            states[pair].append(carry[pair])
    return {pair: jnp.stack(steps) for pair, steps in states.items()}


def linear(gates: Arrays, update_reset: Arrays, candidate: Arrays) -> Arrays:
    """Run a recurrence whose gates depend on the input alone, in log2(s) steps.

    h_i = (1 - z_i) h_{i-1} + z_i c_i; the reset gate and both weights are unused.
    """
    del update_reset, candidate

    def combine(left: tuple, right: tuple) -> tuple[jax.Array, jax.Array]:
        return left[0] * right[0], left[1] * right[0] + right[1]

    def states(x: jax.Array) -> jax.Array:
        update, _, candidate = jnp.split(x, 3, axis=-1)
        z = jax.nn.sigmoid(update)
        return jax.lax.associative_scan(combine, (1 - z, z * jnp.tanh(candidate)))[1]

    return {pair: states(x) for pair, x in gates.items()}


def linear_by_scan(gates: Arrays, update_reset: Arrays, candidate: Arrays) -> Arrays:
    """Compute the same as `linear` slice by slice, as fusion.recurrence=linear does."""
    del update_reset, candidate

    def without_reset(x: jax.Array) -> jax.Array:
        update, _, candidate = jnp.split(x, 3, axis=-1)
        return jnp.concatenate([update, candidate], axis=-1)

    return linear_recurrence({pair: without_reset(x) for pair, x in gates.items()})


def _start(gates: jax.Array) -> jax.Array:
    return jnp.zeros_like(gates[0, ..., : gates.shape[-1] // 3])


def _cell(h: jax.Array, x: jax.Array, w_zr: jax.Array, w_c: jax.Array) -> jax.Array:
    """Take one step of one direction: h [..., m, R], x [..., m, 3 R]."""
    width = h.shape[-1]
    z, reset = jnp.split(jax.nn.sigmoid(x[..., : 2 * width] + h @ w_zr), 2, axis=-1)
    c = jnp.tanh(x[..., 2 * width :] + (reset * h) @ w_c)
    return (1 - z) * h + z * c


IMPLEMENTATIONS: dict[str, Callable[..., dict[str, jax.Array]]] = {
    "one scan (ours)": gated_recurrence,
    "one scan per pair and direction": separate_scans,
    "one loop, unrolled": unrolled,
    "linear variant, associative_scan": linear,
    "linear variant, one scan": linear_by_scan,
}


def fusion_share(subject: Subject, rounds: int, expressions: Sequence[int] = (1, 8)) -> list[Section]:
    """Measure fusion's share of the forward pass, and the recurrence in other implementations.

    Raises:
        UserError: the network has no gated recurrence.
    """
    fusion = subject.config.fusion
    if fusion.mode != "s2rm" or fusion.recurrence != "gated":
        raise UserError("--suite=fusion needs config.fusion.mode=s2rm and config.fusion.recurrence=gated.")
    return [_share(subject, rounds, expressions), *(_implementations(subject, rounds, count) for count in expressions)]


def draw_recurrence(subject: Subject, expressions: int) -> tuple[dict[str, jax.Array], ...]:
    """Draw the arguments of `gated_recurrence`: one set for the image, one per expression for the language."""
    config, dtype = subject.config, jnp.dtype(subject.config.dtype)
    stride = 4 * 2 ** (len(config.vision.depths) - 1)
    slices = max(-(-side // stride) for side in config.input.image_size)
    counts = {PAIRS[0]: expressions, PAIRS[1]: 1}

    def gates(pair: str) -> jax.Array:
        shape = (slices, len(config.fusion.rotations), 1, counts[pair], slices, 3 * config.fusion.recurrent_width)
        return jax.random.normal(jax.random.key(counts[pair]), shape, dtype)

    def weights(name: str) -> dict[str, jax.Array]:
        params = subject.params["fusion"]["coparse"]
        return {pair: jnp.asarray(params[f"{pair}_{name}"], dtype) for pair in config.fusion.pairs}

    return {pair: gates(pair) for pair in config.fusion.pairs}, weights("update_reset"), weights("candidate")


def share_timings(subject: Subject, rounds: int, count: int) -> Timings:
    """Time "fusion" alone beside the "whole" network, on one image with `count` expressions."""
    part = network_parts(subject, 1, count)["fusion"]
    return time_alternately({"fusion": jitted(*part.forward()), "whole": jitted(*subject.forward(1, count))}, rounds)


def _share(subject: Subject, rounds: int, expressions: Sequence[int]) -> Section:
    rows: list[Row] = []
    figures: dict[str, float] = {}
    for count in expressions:
        timings = share_timings(subject, rounds, count)
        ratio = timings.ratio("fusion", "whole")
        label = counted(count, "expression")
        rows.append([label, timings.median("fusion"), timings.median("whole"), str(ratio)])
        figures[label] = ratio.median
    text = "S2RM alone and the whole network, on one image. Target: at most 0.05 of a forward pass with one expression."
    return Section("Share of fusion in the forward pass", text, ["", "fusion, s", "whole, s", "share"], rows, figures)


def _implementations(subject: Subject, rounds: int, expressions: int) -> Section:
    arguments = draw_recurrence(subject, expressions)
    forward = time_alternately(
        {name: jitted(function, arguments) for name, function in IMPLEMENTATIONS.items()}, rounds
    )
    both = time_alternately(
        {name: jitted(gradient(function, (0, 1, 2)), arguments) for name, function in IMPLEMENTATIONS.items()}, rounds
    )
    ours = next(iter(IMPLEMENTATIONS))
    rows: list[Row] = [
        [
            name,
            1e3 * forward.median(name),
            str(forward.ratio(name, ours)),
            1e3 * both.median(name),
            str(both.ratio(name, ours)),
        ]
        for name in IMPLEMENTATIONS
    ]
    figures = {f"{name} / ours": forward.ratio(name, ours).median for name in list(IMPLEMENTATIONS)[1:]}
    text = (
        f"The recurrence alone, {counted(expressions, 'expression')} on an image. The first three "
        "implementations compute the same. Expected: fewer and larger matrix products are faster. The linear variant "
        "is another network and a lower bound of the time."
    )
    head = ["implementation", "forward, ms", "/ ours", "forward and backward, ms", "/ ours"]
    return Section(
        f"Implementations of the recurrence, {counted(expressions, 'expression')}", text, head, rows, figures
    )
