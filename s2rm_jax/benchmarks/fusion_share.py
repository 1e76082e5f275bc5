"""How much of a forward pass the fusion is, and the recurrence written in other ways."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from s2rm_jax.benchmarks import recurrences
from s2rm_jax.benchmarks.parts import network_parts
from s2rm_jax.benchmarks.section import Row, Section, show_ratio
from s2rm_jax.benchmarks.subject import Subject
from s2rm_jax.benchmarks.timing import jitted, time_alternately
from s2rm_jax.errors import UserError
from s2rm_jax.models.coparse import gated_recurrence
from s2rm_jax.models.s2rm import PAIRS
from s2rm_jax.training.progress import counted

WAYS: dict[str, Callable[..., dict[str, jax.Array]]] = {
    "one scan (ours)": gated_recurrence,
    "a scan for each pair and direction": recurrences.a_scan_each,
    "one loop, unrolled": recurrences.unrolled,
    "linear variant, associative_scan": recurrences.linear,
    "linear variant, one scan": recurrences.linear_by_scan,
}


def fusion_share(subject: Subject, rounds: int, sentences: Sequence[int] = (1, 8)) -> list[Section]:
    """Measures fusion beside the whole forward pass, and one scan beside its alternatives.

    Raises:
        UserError: the network has no gated recurrence.
    """
    fusion = subject.config.fusion
    if fusion.mode != "s2rm" or fusion.recurrence != "gated":
        raise UserError("--suite=fusion measures the gated recurrence; let config.fusion have it.")
    return [_share(subject, rounds, sentences), *(_ways(subject, rounds, count) for count in sentences)]


def draw_recurrence(subject: Subject, sentences: int) -> tuple[dict[str, jax.Array], ...]:
    """Draws what `gated_recurrence` takes: of the picture once, of the language for every sentence."""
    config, dtype = subject.config, jnp.dtype(subject.config.dtype)
    stride = 4 * 2 ** (len(config.vision.depths) - 1)
    slices = max(-(-side // stride) for side in config.input.image_size)
    counts = {PAIRS[0]: sentences, PAIRS[1]: 1}  # the language generates, and then the picture

    def gates(pair: str) -> jax.Array:
        shape = (slices, len(config.fusion.rotations), 1, counts[pair], slices, 3 * config.fusion.recurrent_width)
        return jax.random.normal(jax.random.key(counts[pair]), shape, dtype)

    def weights(name: str) -> dict[str, jax.Array]:
        drawn = subject.params["fusion"]["coparse"]
        return {pair: jnp.asarray(drawn[f"{pair}_{name}"], dtype) for pair in config.fusion.pairs}

    return {pair: gates(pair) for pair in config.fusion.pairs}, weights("update_reset"), weights("candidate")


def _share(subject: Subject, rounds: int, sentences: Sequence[int]) -> Section:
    rows: list[Row] = []
    figures: dict[str, float] = {}
    for count in sentences:
        part = network_parts(subject, 1, count)["fusion"]
        whole = jitted(*subject.forward(1, count))
        timings = time_alternately({"fusion": jitted(*part.forward()), "whole": whole}, rounds)
        ratio = timings.ratio("fusion", "whole")
        label = counted(count, "sentence")
        rows.append([label, timings.median("fusion"), timings.median("whole"), show_ratio(ratio)])
        figures[label] = ratio.median
    text = "S2RM alone, and the whole network on one picture. Wanted: at most 0.05 of a forward pass with one sentence."
    return Section("Fusion's share", text, ["", "fusion, s", "whole, s", "share"], rows, figures)


def _ways(subject: Subject, rounds: int, sentences: int) -> Section:
    arguments = draw_recurrence(subject, sentences)

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
        f"The recurrence alone, {counted(sentences, 'sentence')} on a picture. The first three compute the "
        "same. Expected: fewer, larger products win; the linear variant is a lower bound of what could be saved, and "
        "another network."
    )
    head = ["way", "forward, ms", "by ours", "forward and backward, ms", "by ours"]
    return Section(f"The recurrence in other ways, {counted(sentences, 'sentence')}", text, head, rows, figures)
