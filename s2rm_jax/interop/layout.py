"""Tables that map the arrays of PyTorch checkpoints to parameters, and check that they match completely.

A layout is a list of entries. `fill` makes parameters from a checkpoint, `export_arrays` makes a checkpoint from
parameters, and a round trip changes no bit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Float32

from s2rm_jax.errors import UserError

Arrays = Mapping[str, np.ndarray]
Form = Literal["same", "dense", "conv", "bias_table"]

SHOWN = 5  # items of each kind of mistake in a message; `WeightsMismatch.mistakes` has them all


@dataclass(frozen=True)
class Entry:
    """One parameter and the arrays that it is made from.

    target    its path, such as "stage1_block0/attention/qkv/kernel"
    sources   names in the checkpoint; several (query, key, value) are concatenated along the axis of the outputs
    form      how the checkpoint stores it: "same"; "dense", [out, in] instead of [in, out]; "conv", [out, in, h, w]
              instead of [h, w, in, out]; "bias_table", as "same" but for a window of any size
    optional  whether the checkpoint may lack it; the parameter then keeps its initial value
    """

    target: str
    sources: tuple[str, ...]
    form: Form = "same"
    optional: bool = False


@dataclass(frozen=True)
class Filled:
    """Parameters made from a checkpoint.

    params       nested, float32, without the targets in `left_out`
    left_out     optional targets that the checkpoint does not have
    resized      targets whose bias table was resized to another window
    """

    params: dict[str, Any]
    left_out: tuple[str, ...]
    resized: tuple[str, ...]


class WeightsMismatch(UserError):
    """A checkpoint does not fit the network; `mistakes` is {kind of mistake: (item, ...)}."""

    def __init__(self, where: str, mistakes: Mapping[str, Sequence[str]]):
        self.mistakes = {kind: tuple(items) for kind, items in mistakes.items() if items}
        super().__init__(f"{where} does not fit this network: {'; '.join(map(_summary, self.mistakes.items()))}.")


def fill(layout: Sequence[Entry], source: Arrays, shapes: Any, where: str) -> Filled:
    """Make the parameters described by `shapes` from the arrays of a checkpoint.

    Args:
        layout: the table.
        source: the checkpoint, without the arrays that are known to be unused.
        shapes: the nested parameters or their ShapeDtypeStructs.
        where: the name of the checkpoint in the error.

    Raises:
        WeightsMismatch: arrays are unused, used twice, of wrong shapes, or not finite floating-point numbers, or
            parameters are unfilled or filled twice. The error lists all mistakes at once.
    """
    expected = {path: tuple(leaf.shape) for path, leaf in flatten_dict(shapes, sep="/").items()}
    names = [name for entry in layout for name in entry.sources]
    left_out = [entry.target for entry in layout if entry.optional and not any(n in source for n in entry.sources)]
    present = [entry for entry in layout if entry.target not in left_out]
    filled_by = Counter(entry.target for entry in layout)

    flat: dict[str, np.ndarray] = {}
    resized: list[str] = []
    wrong: list[str] = []
    for entry in present:
        if entry.target not in expected or not all(name in source for name in entry.sources):
            continue  # both are reported below
        stored = [source[name] for name in entry.sources]
        if unfit := [f"{n} {_unfit(a)}" for n, a in zip(entry.sources, stored, strict=True) if _unfit(a)]:
            wrong += unfit
            continue
        array, shape = _read(entry.form, stored), expected[entry.target]
        if array is not None and array.shape == shape:
            flat[entry.target] = array
        elif entry.form == "bias_table" and array is not None and _same_but_window(array.shape, shape):
            flat[entry.target] = resize_bias_table(array, shape[0])
            resized.append(entry.target)
        else:
            found = " and ".join(str(a.shape) for a in stored)
            wrong.append(f"{' and '.join(entry.sources)} {found} cannot fill {entry.target} {shape}")

    mistakes = {
        "unused arrays": sorted(source.keys() - set(names)),
        "parameters left unfilled": [
            *(f"{e.target} (no {n})" for e in present for n in e.sources if n not in source),
            *sorted(expected.keys() - filled_by.keys()),
        ],
        "parameters that do not exist": sorted(filled_by.keys() - expected.keys()),
        "matched twice": _twice(filled_by.elements()) + _twice(names),
        "wrong arrays": wrong,
    }
    if any(mistakes.values()):
        raise WeightsMismatch(where, mistakes)
    return Filled(unflatten_dict(flat, sep="/"), tuple(left_out), tuple(resized))


def export_arrays(layout: Sequence[Entry], params: Any) -> dict[str, np.ndarray]:
    """Make the arrays of a checkpoint from nested parameters; each parameter must be in the layout exactly once."""
    flat = flatten_dict(params, sep="/")
    if Counter(entry.target for entry in layout) != Counter(flat.keys()):
        raise ValueError("the layout does not list these parameters exactly once")
    arrays: dict[str, np.ndarray] = {}
    for entry in layout:
        parts = np.split(_transposed(entry.form, np.asarray(flat[entry.target]), back=True), len(entry.sources))
        arrays.update(zip(entry.sources, map(np.ascontiguousarray, parts), strict=True))
    return arrays


def prefixed(layout: Iterable[Entry], target: str, source: str) -> list[Entry]:
    """Return the layout of a part with prefixes added to every target and source, as in the whole network."""
    return [Entry(target + e.target, tuple(source + name for name in e.sources), e.form, e.optional) for e in layout]


def resize_bias_table(table: Float32[np.ndarray, "n heads"], rows: int) -> Float32[np.ndarray, "{rows} heads"]:
    """Resize a table of relative position biases from one window to another by bicubic interpolation.

    A window of w has (2w - 1)² relative positions; `n` and `rows` are such squares. This is what published Swin code
    computes with torch.nn.functional.interpolate(mode="bicubic", align_corners=False), but in float64: in float32,
    rounded sampling points cause an error of about 1e-6 of the table in either library.
    """
    side, new_side = round(len(table) ** 0.5), round(rows**0.5)
    shape = (new_side, new_side, table.shape[-1])
    with jax.enable_x64(True):
        plane = table.reshape(side, side, -1).astype(np.float64)
        resized = jax.image.resize(
            plane, shape, jax.image.ResizeMethod.CUBIC_PYTORCH, antialias=False, precision="highest"
        )
    return np.asarray(resized, np.float32).reshape(rows, -1)


def _read(form: Form, stored: Sequence[np.ndarray]) -> np.ndarray | None:
    """Concatenate and transpose stored arrays; return None if their shapes do not allow it."""
    try:
        joined = np.concatenate(stored) if len(stored) > 1 else stored[0]
        return np.ascontiguousarray(_transposed(form, joined, back=False), np.float32)
    except ValueError:
        return None


def _transposed(form: Form, array: np.ndarray, back: bool) -> np.ndarray:
    if form == "dense":
        return array.transpose(1, 0)
    if form == "conv":
        return array.transpose((3, 2, 0, 1) if back else (2, 3, 1, 0))
    return array


def _unfit(array: np.ndarray) -> str:
    """Return why an array cannot be a parameter, "" if it can."""
    if not np.issubdtype(array.dtype, np.floating):
        return f"holds {array.dtype}, not floating-point numbers"
    return "" if np.isfinite(array).all() else "holds NaN or infinity"


def _same_but_window(found: tuple[int, ...], expected: tuple[int, ...]) -> bool:
    if len(found) != 2 or found[1] != expected[1]:
        return False
    side = round(found[0] ** 0.5)  # 2 * window - 1
    return side**2 == found[0] and side % 2 == 1


def _twice(names: Iterable[str]) -> list[str]:
    return sorted(name for name, count in Counter(names).items() if count > 1)


def _summary(mistake: tuple[str, Sequence[str]]) -> str:
    kind, items = mistake
    more = f" and {len(items) - SHOWN} more" if len(items) > SHOWN else ""
    return f"{len(items)} {kind}: {', '.join(items[:SHOWN])}{more}"
