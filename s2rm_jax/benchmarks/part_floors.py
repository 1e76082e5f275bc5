"""Each part of the network beside the least time that its FLOPs and bytes need on this device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax

from s2rm_jax.benchmarks.floor import as_section, measure_floor
from s2rm_jax.benchmarks.parts import network_parts
from s2rm_jax.benchmarks.section import Row, Section
from s2rm_jax.benchmarks.subject import Subject
from s2rm_jax.benchmarks.timing import jitted, time_alternately
from s2rm_jax.cost import count_flops
from s2rm_jax.training.progress import counted


def part_floors(subject: Subject, rounds: int, sentences: Sequence[int] = (1, 8)) -> list[Section]:
    """Measures the floor, and every part on one picture with each number of sentences."""
    measured = measure_floor(max(rounds, 10))
    rows: list[Row] = []
    figures: dict[str, float] = {}
    for count in sentences:
        parts = network_parts(subject, 1, count)
        calls = {name: part.forward() for name, part in parts.items()}
        timings = time_alternately({name: jitted(*call) for name, call in calls.items()}, rounds)
        for name, (function, arguments) in calls.items():
            flops, read_and_written = count_flops(function, *arguments), _bytes(function, arguments)
            least = measured.seconds(flops, read_and_written, subject.config.dtype)
            seconds = timings.median(name)
            label = f"{name}, {counted(count, 'sentence')}"
            rows.append([label, flops / 1e9, read_and_written / 1e6, least, seconds, seconds / least])
            figures[f"{name} {count}: seconds"] = seconds
            figures[f"{name} {count}: seconds / floor"] = seconds / least
    text = (
        "Each part alone, compiled, on one picture and on what the parts before really give it. The least time is the "
        "longer of FLOPs / matrix rate and bytes / copy rate, bytes being parameters (without the table of words), "
        "inputs and outputs, each once; expected of a part made of large products is 1 to 2 times that, of one that is "
        "mostly small steps more."
    )
    head = ["part", "GFLOP", "MB", "least, s", "measured, s", "measured / least"]
    return [as_section(measured), Section("Parts beside the floor", text, head, rows, figures)]


def _bytes(function: Callable[..., Any], arguments: tuple[Any, ...]) -> int:
    outputs = jax.tree.leaves(jax.eval_shape(function, *arguments))
    leaves = jax.tree.leaves_with_path(arguments)
    # Of the table of words a sentence reads a row a word, which is nothing beside the rest.
    read = [leaf for path, leaf in leaves if "word_embeddings" not in jax.tree_util.keystr(path)]
    return sum(leaf.size * leaf.dtype.itemsize for leaf in (*read, *outputs))
