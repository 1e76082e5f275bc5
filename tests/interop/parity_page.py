"""Write docs/results/parity.md from the results of the parity tests."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from datetime import date
from importlib.metadata import version
from itertools import groupby
from operator import itemgetter
from typing import NamedTuple

from s2rm_jax.measure.harness import describe_machine
from tests.interop.comparison import Errors
from tests.interop.oracles import STREAM


class Row(NamedTuple):
    """The errors of one comparison, with its part, size and inputs."""

    what: str
    size: str
    inputs: str
    errors: Errors
    tolerance: float


class Mistake(NamedTuple):
    """The error of the outputs after a deliberate mistake."""

    where: str
    what: str
    error: float
    tolerance: float


PAGE = """# Parity with PyTorch

This page compares Swin and BERT with those of transformers, forward and backward, for users who load published weights
and want to know how exactly they are reproduced.

    python -m pytest {arguments}

{day}, CPU ({processor}), float32; {versions}. The command writes this page if all errors are within the tolerances.

**The largest relative errors** are {outputs} in outputs, {inputs} in gradients of inputs and {parameters} in
gradients of parameters. [Deliberate mistakes](#deliberate-mistakes) cause at least ten times the tolerance.

An error is the norm of a difference, divided by the norm of the reference. Each row gives the largest error over its
test inputs and its outputs, and names the parameter with the largest error. The bias of attention's keys has no
gradient, so its rounding error is measured against the gradient of the queries' bias.

Both sides have the same random parameters, inputs and loss (the sum of all outputs with fixed random weights), scaled
so that mistakes show: attention logits, bias tables and activations are of order 1, norms have scales and biases of
their own, the input of residual branches is of order {stream}, and GELU is evaluated where its tanh approximation is
worst.

{rows}

"Odd" images fit neither patches nor windows nor merging in any stage. "Square" images are those of the published
training, where the last stage is one window and is not shifted.

## Deliberate mistakes

The error of the outputs of small networks with one mistake each.

{mistakes}

## Next

- [Weights](../weights.md): which checkpoints are read, and `mask_padding=False`, which the comparisons use.
- [Trained network in PyTorch](pytorch.md): the whole network, exported.
"""


def parity_page(rows: Sequence[Row], mistakes: Sequence[Mistake], arguments: Sequence[str]) -> str:
    """Return the page in Markdown; `arguments` are those of pytest."""
    head = ("part", "size", "on", "outputs", "inputs", "parameters", "", "tolerance")
    parts = [list(group) for _, group in groupby(rows, key=lambda row: (row.what, row.size, row.tolerance))]
    return PAGE.format(
        arguments=shlex.join(arguments),
        day=date.today().isoformat(),
        processor=describe_machine(())["processor"],
        versions=", ".join(f"{name} {version(name)}" for name in ("jax", "flax", "torch", "transformers")),
        outputs=_largest(error for row in rows for error in row.errors.outputs),
        inputs=_largest(error for row in rows for error in row.errors.inputs),
        parameters=_largest(error for row in rows for error in row.errors.parameters.values()),
        stream=STREAM,
        rows=_table(head, map(_cells, parts)),
        mistakes=_table(
            ("part", "what is wrong", "error", "tolerance"),
            ((m.where, m.what, _figures([m.error]), f"{m.tolerance:.0e}") for m in mistakes),
        ),
    )


def _cells(rows: Sequence[Row]) -> tuple[str, ...]:
    """Return one line for the comparisons of a part, with the largest errors."""
    outputs, inputs = ([error for row in rows for error in getattr(row.errors, name)] for name in ("outputs", "inputs"))
    worst, error = max((pair for row in rows for pair in row.errors.parameters.items()), key=itemgetter(1))
    figures = (_largest(outputs), _largest(inputs) if inputs else "", _figures([error]))
    return (
        rows[0].what,
        rows[0].size,
        "; ".join(row.inputs for row in rows),
        *figures,
        f"`{worst}`",
        f"{rows[0].tolerance:.0e}",
    )


def _figures(errors: Iterable[float]) -> str:
    return ", ".join(f"{error:.1e}" for error in errors)


def _largest(errors: Iterable[float]) -> str:
    return _figures([max(errors, default=0.0)])


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [head, ["---"] * len(head), *rows])
