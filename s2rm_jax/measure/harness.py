"""What all suites share: the network that is measured, the timing of alternatives, and the report of a benchmark.

The network has random weights and inputs, and is made from the configuration alone: its speed depends neither on its
weights nor on the data. It is measured as a whole and part by part.
"""

from __future__ import annotations

import copy
import datetime
import json
import os
import platform
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8
from ml_collections import ConfigDict

from s2rm_jax.evaluation.tables import markdown_table
from s2rm_jax.input.encode import packed_shape
from s2rm_jax.input.example import Batch
from s2rm_jax.input.tokens import Tokenizer
from s2rm_jax.models.network import ReferringNetwork, build_network, run_parts
from s2rm_jax.segmenter import Segmenter
from s2rm_jax.training.state import parameter_shapes

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "torch")
_ENVIRONMENT = ("XLA_FLAGS", "LD_PRELOAD", "GLIBC_TUNABLES")  # the last two choose the memory allocator

Cell = str | int | float
Cells = Sequence[Cell]


@dataclass(frozen=True)
class Ratio:
    """Time of one alternative divided by that of another: median and quartiles over rounds."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f} to {self.high:.2f})"


@dataclass(frozen=True)
class Timings:
    """The seconds of each alternative in each round; all have the same number of rounds."""

    seconds: Mapping[str, tuple[float, ...]]

    def median(self, name: str) -> float:
        """Return the median seconds of one alternative."""
        return median(self.seconds[name])

    def ratio(self, name: str, other: str) -> Ratio:
        """Return the time of `name` divided by that of `other`, taken within each round."""
        ratios = [mine / theirs for mine, theirs in zip(self.seconds[name], self.seconds[other], strict=True)]
        low, _, high = quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
        return Ratio(median(ratios), low, high)


def jitted(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Callable[[], Any]:
    """Return a compiled call of a function on arguments that are on the device."""
    compiled = jax.jit(function)
    return lambda: compiled(*arguments)


def gradient(function: Callable[..., Any], argnums: Sequence[int]) -> Callable[..., Any]:
    """Return the gradient of a stand-in loss of a function: the sum of the mean squares of its outputs."""

    def loss(*arguments: Any) -> jax.Array:
        leaves = jax.tree.leaves(function(*arguments))
        return sum((jnp.square(leaf.astype(jnp.float32)).mean() for leaf in leaves), jnp.float32(0))

    return jax.grad(loss, argnums=argnums)


def time_alternately(actions: Mapping[str, Callable[[], object]], rounds: int, warm_up: int = 1) -> Timings:
    """Run every action once per round and wait for its result.

    Alternating spreads the load of other programs over all alternatives. Every other round runs in reverse order.

    Args:
        actions: by name; each returns JAX arrays that may still be being computed, or anything else when it is done.
        rounds: timed runs of each action, at least 1.
        warm_up: untimed runs of each action before that, which compile and fill caches.
    """
    seconds: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(warm_up):
        for action in actions.values():
            jax.block_until_ready(action())
    for number in range(rounds):
        for name in list(actions)[:: -1 if number % 2 else 1]:
            start = time.perf_counter()
            jax.block_until_ready(actions[name]())
            seconds[name].append(time.perf_counter() - start)
    return Timings({name: tuple(times) for name, times in seconds.items()})


def describe_machine(arguments: Sequence[str]) -> dict[str, str]:
    """Return the command (with its `arguments`), date, hardware, load, versions and environment of a report."""
    device = jax.devices()[0]
    cpuinfo = Path("/proc/cpuinfo")
    model = re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(), re.MULTILINE) if cpuinfo.is_file() else None
    processor = model.group(1) if model else platform.processor() or platform.machine()
    load = " ".join(f"{value:.2f}" for value in os.getloadavg()) if hasattr(os, "getloadavg") else "unknown"
    return {
        "command": " ".join(["python -m s2rm_jax.benchmark", *arguments]),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "devices": f"{jax.device_count()} x {device.device_kind} ({device.platform})",
        "processor": f"{processor}, {os.cpu_count()} cores",
        "load average before": load,
        "versions": ", ".join([f"Python {platform.python_version()}", *map(_version, _PACKAGES)]),
        **{name: os.environ.get(name, "") or "none" for name in _ENVIRONMENT},
    }


def _version(package: str) -> str:
    try:
        return f"{package} {metadata.version(package)}"
    except metadata.PackageNotFoundError:
        return f"{package} not installed"


@dataclass(frozen=True)
class Section:
    """One table of a report.

    `text` describes the measurement and the expected result; `figures` are the key numbers, for programs.
    """

    title: str
    text: str
    head: Sequence[str]
    rows: Sequence[Cells]
    figures: Mapping[str, int | float] = field(default_factory=dict)

    def markdown(self) -> str:
        """Return the section as Markdown."""
        lines = [f"## {self.title}", "", self.text, ""]
        if self.rows:
            lines.append(markdown_table(self.head, [[format_cell(cell) for cell in row] for row in self.rows]))
        return "\n".join(lines).rstrip() + "\n"


def format_cell(value: Cell) -> str:
    """Format a number with three significant digits; strings are unchanged."""
    if isinstance(value, str):
        return value
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def report_markdown(machine: Mapping[str, str], sections: Sequence[Section]) -> str:
    """Return the whole report as Markdown."""
    facts = [f"- {name}: {f'`{value}`' if name == 'command' else value}" for name, value in machine.items()]
    return "\n".join(["# Benchmark", "", *facts, "", *(section.markdown() for section in sections)])


def write_benchmark(folder: Path, machine: Mapping[str, str], sections: Sequence[Section]) -> None:
    """Write benchmark.md, benchmark.json and the plots into a folder, which is created.

    Raises:
        OSError: the files cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "benchmark.md").write_text(report_markdown(machine, sections), encoding="utf-8")
    content = json.dumps({"machine": dict(machine), "sections": [asdict(one) for one in sections]}, indent=2)
    (folder / "benchmark.json").write_text(content + "\n", encoding="utf-8")


_DIGITS = ("thing", "part")


@dataclass(frozen=True)
class Subject:
    """A network, its parameters as NumPy arrays, and the configuration that describes both."""

    config: ConfigDict
    network: ReferringNetwork
    params: Any

    @classmethod
    def from_config(cls, config: ConfigDict) -> Subject:
        """Draw parameters that keep the scale of activations: kernels scaled by fan-in, norm scales of one."""
        network = build_network(config)
        rng = np.random.default_rng(0)

        def draw(path: Any, leaf: Any) -> np.ndarray:
            if jax.tree_util.keystr(path[-1:], simple=True) == "scale":
                return np.ones(leaf.shape, np.float32)
            # Kernels are [..., inputs, outputs].
            deviation = leaf.shape[-2] ** -0.5 if len(leaf.shape) > 1 else 0.02
            return rng.standard_normal(leaf.shape, np.float32) * np.float32(deviation)

        params = jax.tree_util.tree_map_with_path(draw, parameter_shapes(network, config))
        return cls(config, network, params)

    def changed(self, **values: Any) -> Subject:
        """Return the subject with other values of the configuration; its parameters must stay the same.

        Fields inside others have `__` in place of the dot: input__expressions_per_image.
        """
        config = copy.deepcopy(self.config).unlock()
        config.update_from_flattened_dict({name.replace("__", "."): value for name, value in values.items()})
        return Subject(config, build_network(config), self.params)

    def forward(self, count: int, expressions: int) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        """Return the whole forward pass as an uncompiled function and its arguments."""
        network = self.network

        def logits(params: Any, *inputs: Any) -> Any:
            return network.apply({"params": params}, *inputs).logits  # type: ignore[union-attr]

        return logits, (self.on_device(), self.images(count), *self.tokens(count, expressions))

    def on_device(self) -> Any:
        """Return the parameters on the device."""
        return jax.device_put(self.params)

    def images(self, count: int) -> Float[Array, "b h w 3"]:
        """Draw normalized images."""
        rng = np.random.default_rng(1)
        return jnp.asarray(rng.standard_normal((count, *self.config.input.image_size, 3), np.float32))

    def tokens(self, count: int, expressions: int) -> tuple[Int[Array, "b k l"], Bool[Array, "b k l"]]:
        """Draw token ids of expressions of all lengths, and the mask that is False at padding."""
        rng = np.random.default_rng(2)
        shape = (count, expressions, self.config.text.max_tokens)
        ids = rng.integers(1, self.config.text.vocab_size, shape, np.int32)
        mask = np.arange(shape[-1]) < rng.integers(3, shape[-1] + 1, shape[:2])[..., None]
        return jnp.asarray(np.where(mask, ids, 0)), jnp.asarray(mask)

    def image(self, height: int, width: int) -> UInt8[np.ndarray, "{height} {width} 3"]:
        """Draw an image as it is stored in a file."""
        return np.random.default_rng(3).integers(0, 256, (height, width, 3), np.uint8)

    def expressions(self, count: int, first: int = 0) -> list[str]:
        """Return expressions of max_tokens tokens: the numbers from `first` in binary, in words.

        They differ up to the number 2^(max_tokens - 2), and then repeat.
        """
        places = range(self.config.text.max_tokens - 2)
        return [" ".join(_DIGITS[number >> place & 1] for place in places) for number in range(first, first + count)]

    def tokenizer(self) -> Tokenizer:
        """Return a tokenizer with a vocabulary of two words."""
        return Tokenizer(("[PAD]", "[UNK]", "[CLS]", "[SEP]", *_DIGITS), self.config.text.max_tokens)

    def segmenter(self) -> Segmenter:
        """Return a Segmenter of the network."""
        return Segmenter(self.network, self.params, self.tokenizer(), self.config)

    def batch(self) -> Batch:
        """Draw a training batch in the form that the input pipeline produces."""
        config, rng = self.config, np.random.default_rng(4)
        (height, width), images = config.input.image_size, config.batch_size
        tokens, mask = self.tokens(images, config.input.expressions_per_image)
        all_true = np.ones(mask.shape[:2], bool)
        return Batch(
            images=rng.integers(0, 256, (images, height, width, 3), np.uint8),
            tokens=np.asarray(tokens),
            token_mask=np.asarray(mask),
            targets=rng.integers(0, 256, (*mask.shape[:2], *packed_shape(height, width)), np.uint8),
            valid=all_true,
            has_target=all_true,
        )


@dataclass(frozen=True)
class Part:
    """One part of the network: `function(params, *inputs)`.

    `trained_inputs` are the indices of the inputs that other trained parts compute, whose gradients a training step
    needs as well as those of the parameters.
    """

    function: Callable[..., Any]
    params: Any
    inputs: tuple[Any, ...]
    trained_inputs: tuple[int, ...] = ()

    def forward(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        """Return the uncompiled function and its arguments."""
        return self.function, (self.params, *self.inputs)

    def backward(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        """Return an uncompiled function that runs the part forward and backward from a stand-in loss, and arguments."""
        argnums = (0, *(1 + index for index in self.trained_inputs))
        return gradient(self.function, argnums), (self.params, *self.inputs)


# The inputs of the parts that other trained parts compute.
_TRAINED_INPUTS = {"fusion": (0, 1), "decoder": (0, 1, 2), "no_target": (0, 1, 2, 3)}


def network_parts(subject: Subject, count: int, expressions: int) -> dict[str, Part]:
    """Split the network into the parts of `run_parts` and resize, for `expressions` on each of `count` images.

    The inputs of each part are the outputs of the parts before it.
    """
    parts: dict[str, Part] = {}

    def record(name: str, function: Callable[..., Any], params: Any, *inputs: Any) -> Any:
        parts[name] = Part(function, params, inputs, _TRAINED_INPUTS.get(name, ()))
        return jax.jit(function)(params, *inputs)

    images = subject.images(count)
    tokens, mask = subject.tokens(count, expressions)
    logits = run_parts(subject.network, subject.on_device(), images, tokens, mask, run=record)

    def resize(params: Any, logits: jax.Array) -> Any:
        return jax.image.resize(logits, (*logits.shape[:2], *images.shape[1:3]), "bilinear")

    parts["resize"] = Part(resize, {}, (logits,), (0,))
    return parts
