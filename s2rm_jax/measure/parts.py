"""The time of each part of the network compared with its floor, fusion's share, and the growth with the input."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from s2rm_jax.errors import counted
from s2rm_jax.measure.harness import Cells, Section, Subject, jitted, network_parts, time_alternately
from s2rm_jax.models.cost import count_flops

_MATRIX_SIDE = {"cpu": 2048, "gpu": 8192, "tpu": 8192}
_COPY_MIB = {"cpu": 256, "gpu": 2048, "tpu": 1024}
_EXPRESSIONS = (1, 8)  # on the image whose parts are measured


@dataclass(frozen=True)
class Floor:
    """Measured rates: FLOP/s of matrix products by dtype, and bytes/s of a copy, read plus written."""

    flops: dict[str, float]
    copied: float

    def seconds(self, flops: int | float, read_and_written: int | float, dtype: str) -> float:
        """Return the least time for these FLOPs and bytes: the longer of the two, as if they overlapped perfectly."""
        return max(flops / self.flops[dtype], read_and_written / self.copied)


def measure_floor(rounds: int) -> Floor:
    """Measure a large square matrix product in float32 and bfloat16, and a copy of an array larger than any cache."""
    backend = jax.default_backend()
    side, mebibytes = _MATRIX_SIDE.get(backend, 2048), _COPY_MIB.get(backend, 256)
    key = jax.random.key(0)
    matrices = {dtype: jax.random.normal(key, (side, side), dtype) for dtype in ("float32", "bfloat16")}
    array = jnp.ones((mebibytes * 2**20 // 4,), jnp.float32)
    multiply, copy = jax.jit(jnp.matmul), jax.jit(lambda x: -x)
    actions = {dtype: lambda x=matrix: multiply(x, x) for dtype, matrix in matrices.items()}
    timings = time_alternately({**actions, "copy": lambda: copy(array)}, rounds, warm_up=2)
    # The best round, not the median: a floor is what an undisturbed device can do.
    rates = {dtype: 2 * side**3 / min(timings.seconds[dtype]) for dtype in matrices}
    return Floor(rates, 2 * array.nbytes / min(timings.seconds["copy"]))


def part_floors(subject: Subject, rounds: int) -> list[Section]:
    """Measure the floor, and every part on one image with one and with eight expressions."""
    measured = measure_floor(max(rounds, 10))
    rows: list[Cells] = []
    figures: dict[str, float] = {}
    for count in _EXPRESSIONS:
        parts = network_parts(subject, 1, count)
        calls = {name: part.forward() for name, part in parts.items()}
        timings = time_alternately({name: jitted(*call) for name, call in calls.items()}, rounds)
        for name, (function, arguments) in calls.items():
            flops, read_and_written = count_flops(function, *arguments), _bytes(function, arguments)
            least = measured.seconds(flops, read_and_written, subject.config.dtype)
            seconds = timings.median(name)
            label = f"{name}, {counted(count, 'expression')}"
            rows.append([label, flops / 1e9, read_and_written / 1e6, least, seconds, seconds / least])
            figures[f"{name} {count}: seconds"] = seconds
            figures[f"{name} {count}: seconds / floor"] = seconds / least
    text = (
        "Each part compiled alone, on one image, with the outputs of the parts before it as inputs. The floor is the "
        "longer of FLOPs / matrix rate and bytes / copy rate. Bytes are those of parameters (without word embeddings), "
        "inputs and outputs, each counted once. Expected: 1 to 2 times the floor for parts made of large matrix "
        "products, more for parts made of many small operations."
    )
    head = ["part", "GFLOP", "MB", "floor, s", "measured, s", "measured / floor"]
    return [_floor_section(measured), Section("Parts and their floors", text, head, rows, figures)]


def _floor_section(measured: Floor) -> Section:
    text = (
        "The best of all rounds, under `jax.jit`. The least time of a part is its FLOPs divided by the rate of matrix "
        "products, or its bytes divided by the rate of the copy, whichever is longer."
    )
    rows: list[Cells] = [[f"matrix product, {dtype}", rate / 1e9, "GFLOP/s"] for dtype, rate in measured.flops.items()]
    rows.append(["copy, read and written", measured.copied / 1e9, "GB/s"])
    figures = {f"{dtype} FLOP/s": rate for dtype, rate in measured.flops.items()} | {"copied B/s": measured.copied}
    return Section("Floor: what the device can do", text, ["", "rate", ""], rows, figures)


def _bytes(function: Callable[..., Any], arguments: tuple[Any, ...]) -> int:
    outputs = jax.tree.leaves(jax.eval_shape(function, *arguments))
    leaves = jax.tree.leaves_with_path(arguments)
    # An expression reads one row of the word embeddings per token, which is negligible.
    read = [leaf for path, leaf in leaves if "word_embeddings" not in jax.tree_util.keystr(path)]
    return sum(leaf.size * leaf.dtype.itemsize for leaf in (*read, *outputs))


def fusion_share(subject: Subject, rounds: int) -> list[Section]:
    """Measure the share of fusion in the forward pass."""
    rows: list[Cells] = []
    figures: dict[str, float] = {}
    for count in _EXPRESSIONS:
        fusion, whole = network_parts(subject, 1, count)["fusion"], subject.forward(1, count)
        timings = time_alternately({"fusion": jitted(*fusion.forward()), "whole": jitted(*whole)}, rounds)
        ratio, label = timings.ratio("fusion", "whole"), counted(count, "expression")
        rows.append([label, timings.median("fusion"), timings.median("whole"), str(ratio)])
        figures[label] = ratio.median
    text = "S2RM alone and the whole network, on one image. Target: at most 0.05 of a forward pass with one expression."
    return [Section("Share of fusion in the forward pass", text, ["", "fusion, s", "whole, s", "share"], rows, figures)]


class Growth(NamedTuple):
    """One quantity that grows: the label of its axis, the expected exponent, and the reason for it."""

    name: str
    axis: str
    expected: int
    reason: str


EXPRESSIONS = Growth("expressions", "expressions on an encoded image", 1, "expressions are processed separately")
PIXELS = Growth("image", "side of the image, pixels", 2, "attention is within windows: work follows the area")
TOKENS = Growth("tokens", "tokens of an expression (BERT)", 1, "dense layers dominate attention at these lengths")
BATCH = Growth("batch", "images of a batch, one expression each", 1, "images are independent")
_SIZES = {
    EXPRESSIONS: (1, 2, 4, 8, 16),
    PIXELS: (224, 320, 480, 640),
    TOKENS: (10, 20, 40, 80),
    BATCH: (1, 2, 4),
}


def growth(subject: Subject, rounds: int) -> list[Section]:
    """Measure four kinds of growth and fit an exponent to each that has at least two sizes."""
    tokens = [count for count in _SIZES[TOKENS] if count <= subject.config.text.max_positions]
    images = {side: subject.changed(input__image_size=(side, side)) for side in _SIZES[PIXELS]}
    measured = {
        EXPRESSIONS: {count: _ground_call(subject, count) for count in _SIZES[EXPRESSIONS]},
        PIXELS: {side: jitted(*changed.forward(1, 1)) for side, changed in images.items()},
        TOKENS: {count: _text_call(subject, count) for count in tokens},
        BATCH: {count: jitted(*subject.forward(count, 1)) for count in _SIZES[BATCH]},
    }
    rows: list[Cells] = []
    figures = {}
    for (name, axis, expected, reason), actions in measured.items():
        if len(actions) < 2:  # such as a text encoder that only takes short expressions
            continue
        seconds = _seconds(actions, rounds)
        exponent = float(np.polyfit(np.log(list(seconds)), np.log(list(seconds.values())), 1)[0])
        times = ", ".join(f"{size}: {time:.3g}" for size, time in seconds.items())
        rows.append([axis, times, exponent, expected, reason])
        figures[f"{name}: exponent"] = exponent
    text = (
        "Medians in seconds, and the exponent e of time = a x size^e, fitted to the logarithms. The expected exponents "
        "hold for large sizes; constant costs (what is computed once per image, padding to whole windows) make the "
        "measured exponents smaller."
    )
    head = ["size", "size: seconds", "exponent", "expected", "reason"]
    return [Section("Growth of time with size", text, head, rows, figures)]


def _seconds(actions: Mapping[int, Callable[[], Any]], rounds: int) -> dict[int, float]:
    timings = time_alternately({str(size): action for size, action in actions.items()}, rounds)
    return {size: timings.median(str(size)) for size in actions}


def _ground_call(subject: Subject, expressions: int) -> Callable[[], Any]:
    network, params, images = subject.network, subject.on_device(), subject.images(1)
    maps = jax.jit(lambda params, images: network.apply({"params": params}, images, method="encode_image"))(
        params, images
    )

    def ground(params: Any, *inputs: Any) -> Any:
        output = network.apply({"params": params}, *inputs, images.shape[1:3], method="ground")
        return output.logits  # type: ignore[union-attr]

    return jitted(ground, (params, maps, *subject.tokens(1, expressions)))


def _text_call(subject: Subject, tokens: int) -> Callable[[], Any]:
    ids, mask = subject.changed(text__max_tokens=tokens).tokens(1, 1)

    def encode(params: Any, *inputs: Any) -> Any:
        return subject.network.text.apply({"params": params}, *inputs)

    return jitted(encode, (subject.on_device()["text"], ids[0], mask[0]))
