"""docs/results/parity.md, as the parity tests write it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from importlib.metadata import version
from operator import itemgetter
from typing import NamedTuple

from tests.interop.comparison import LAYER_TOLERANCE, WHOLE_TOLERANCE, Errors


class Row(NamedTuple):
    """One comparison.

    what       the part of the network
    size       its published size or width
    inputs     what it was given
    """

    what: str
    size: str
    inputs: str
    errors: Errors
    tolerance: float


LIBRARIES = ("jax", "flax", "torch", "transformers")

TEXT = """# Parity with PyTorch

    python -m pytest {arguments}

{today}, CPU, float32; {versions}. The tests write this page.

Our Swin and BERT against those of the library transformers, drawn at random with a fixed seed, with the same parameters
and inputs. Every figure is a relative error: the norm of the difference over the norm of the reference. Gradients are
those of the sum of all outputs under fixed random weights. "Outputs" of a whole Swin are its stages, from fine to coarse;
"parameter" is the worst of all parameters, each compared by itself. The bias of attention keys has no gradient (softmax
does not see what is added to all logits of a query), so what rounding leaves of it is measured against the gradient of the
queries' bias.

The parameters are drawn so that a mistake would show: attention logits, bias tables and activations are of order 1, norms
have random scales and biases, and the residual stream is of order {stream}, so that the epsilon of norms matters. Errors
of well-known mistakes, outputs alone, are in the last table: each is at least ten times the tolerance.
"""


def parity_page(rows: Sequence[Row], arguments: Sequence[str]) -> str:
    """Returns the page in Markdown."""
    versions = ", ".join(f"{name} {version(name)}" for name in LIBRARIES)
    head = TEXT.format(arguments=" ".join(arguments), today=date.today(), versions=versions, stream=STREAM)
    return "\n".join([head, *map(_line, rows)])
def _line(row):
    path, worst = max(row.errors.parameters.items(), key=itemgetter(1))
    return f"| {row.what} | {row.size} | {row.inputs} | {' '.join(map(_figure,row.errors.outputs))} | {' '.join(map(_figure,row.errors.inputs))} | {worst:.1e} | {path} | {row.tolerance:.0e} |"
def _figure(x): return f"{x:.1e}"
STREAM=0.02
