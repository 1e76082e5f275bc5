"""Names of parameters in PyTorch checkpoints, as tables for `fill` and `export_arrays`.

Three tables: Swin, whose checkpoints are published with the names of Hugging Face, Microsoft or timm; BERT with the
names of Hugging Face; and the whole network with the names of `torch_model.S2RMModel`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Float32

from s2rm_jax.errors import UserError, counted, first_of

Arrays = Mapping[str, np.ndarray]
Form = Literal["same", "dense", "conv", "bias_table"]

SHOWN = 5  # items of each kind of mistake in a message; `WeightsMismatch.mistakes` has them all


@dataclass(frozen=True)
class Entry:
    """One parameter and the arrays that it is made from."""

    target: str  # its path, such as "stage1_block0/attention/qkv/kernel"
    sources: tuple[str, ...]  # names in the checkpoint; several are concatenated along the axis of the outputs
    # How the checkpoint stores it: "same"; "dense", [out, in] instead of [in, out]; "conv", [out, in, h, w] instead of
    # [h, w, in, out]; "bias_table", as "same" but for a window of any size.
    form: Form = "same"
    optional: bool = False  # whether the checkpoint may lack it; the parameter then keeps its initial value


@dataclass(frozen=True)
class Filled:
    """Parameters made from a checkpoint."""

    params: dict[str, Any]  # nested, float32, without the targets in `left_out`
    left_out: tuple[str, ...]  # optional targets that the checkpoint does not have
    resized: tuple[str, ...]  # targets whose bias table was resized to another window


class WeightsMismatch(UserError):
    """A checkpoint does not fit the network; `mistakes` is {kind of mistake, in the singular: (item, ...)}."""

    def __init__(self, where: str, mistakes: Mapping[str, Sequence[str]]):
        self.mistakes = {kind: tuple(items) for kind, items in mistakes.items() if items}
        message = f"{where} does not fit this network: {'; '.join(map(_summary, self.mistakes.items()))}"
        if self.mistakes.keys() - {"repeated name"}:  # which is a mistake of the file, whatever the network
            message += ". Give the weights of a network with this configuration."
        super().__init__(message)


def fill(layout: Sequence[Entry], source: Arrays, shapes: Any, where: str) -> Filled:
    """Make the parameters described by `shapes` from the arrays of a checkpoint, whose name in errors is `where`.

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
        "unused array": sorted(source.keys() - set(names)),
        "unfilled parameter": [
            *(f"{e.target} (no {n})" for e in present for n in e.sources if n not in source),
            *sorted(expected.keys() - filled_by.keys()),
        ],
        "unknown parameter": sorted(filled_by.keys() - expected.keys()),
        "repeated name": _twice(filled_by.elements()) + _twice(names),
        "wrong array": wrong,
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
    return f"{counted(len(items), kind)}: {first_of(items, ', ', SHOWN)}"


@dataclass(frozen=True)
class SwinNames:
    """The names of one library for the parameters of Swin; {i} is a stage, {j} a block, both counted from 0."""

    library: str
    patch_embed: str
    patch_norm: str
    block: str
    norms: tuple[str, str]
    qkv: tuple[str, ...]
    projection: str
    bias_table: str
    mlp: tuple[str, str]
    merge: str  # patch merging before stage i, i >= 1; {previous} is i - 1
    output_norm: str  # of each stage's output {n}, as in backbones for dense prediction
    first_output: int  # number of the first stage in `output_norm`
    last_norm: str  # of the last stage in classifiers
    unused: tuple[str, ...]  # regular expressions for other arrays of a checkpoint: index tables, masks and heads


HUGGING_FACE = SwinNames(
    library="Hugging Face",
    patch_embed="embeddings.patch_embeddings.projection",
    patch_norm="embeddings.norm",
    block="encoder.layers.{i}.blocks.{j}.",
    norms=("layernorm_before", "layernorm_after"),
    qkv=("attention.self.query", "attention.self.key", "attention.self.value"),
    projection="attention.output.dense",
    bias_table="attention.self.relative_position_bias_table",
    mlp=("intermediate.dense", "output.dense"),
    merge="encoder.layers.{previous}.downsample",
    output_norm="hidden_states_norms.stage{n}",
    first_output=1,
    last_norm="layernorm",
    # transformers 5 saves SwinBackbone with a norm that it does not use, the only array with a prefix.
    unused=(r"relative_position_index$", r"^embeddings\.mask_token$", r"^(swin\.)?layernorm\."),
)

MICROSOFT = SwinNames(
    library="Microsoft",
    patch_embed="patch_embed.proj",
    patch_norm="patch_embed.norm",
    block="layers.{i}.blocks.{j}.",
    norms=("norm1", "norm2"),
    qkv=("attn.qkv",),
    projection="attn.proj",
    bias_table="attn.relative_position_bias_table",
    mlp=("mlp.fc1", "mlp.fc2"),
    merge="layers.{previous}.downsample",
    output_norm="norm{n}",
    first_output=0,
    last_norm="norm",
    unused=(r"relative_position_index$", r"attn_mask$", r"^head\.", r"^norm\."),
)

# As Microsoft, except that a stage begins with its merging instead of ending with that of the next.
TIMM = SwinNames(**(vars(MICROSOFT) | {"library": "timm", "merge": "layers.{i}.downsample"}))


def find_swin(names: Collection[str]) -> list[tuple[str, SwinNames]]:
    """Return (prefix, names) of every Swin among the names of a checkpoint."""

    def is_microsoft(prefix: str) -> bool:  # its first stage ends with a merging
        return any(name.startswith(f"{prefix}layers.0.downsample.") for name in names)

    hugging_face = [(prefix, HUGGING_FACE) for prefix in _prefixes(f"{HUGGING_FACE.patch_embed}.weight", names)]
    others = _prefixes(f"{MICROSOFT.patch_embed}.weight", names)
    return hugging_face + [(prefix, MICROSOFT if is_microsoft(prefix) else TIMM) for prefix in others]


def _prefixes(suffix: str, names: Collection[str]) -> list[str]:
    return sorted(name.removesuffix(suffix) for name in names if name.endswith(suffix))


# transformers 5 renamed these in memory; its files keep the old names.
_IN_MEMORY = (
    (
        r"attention\.relative_position_bias\.relative_position_bias_table$",
        "attention.self.relative_position_bias_table",
    ),
    (r"attention\.q_proj\.", "attention.self.query."),
    (r"attention\.k_proj\.", "attention.self.key."),
    (r"attention\.v_proj\.", "attention.self.value."),
    (r"attention\.o_proj\.", "attention.output.dense."),
    (r"mlp\.fc1\.", "intermediate.dense."),
    (r"mlp\.fc2\.", "output.dense."),
)


def published_swin_name(name: str, names: SwinNames) -> str:
    """Return the name that published files of the same library use."""
    if names is HUGGING_FACE:
        for pattern, replacement in _IN_MEMORY:
            name = re.sub(pattern, replacement, name)
    return name


def swin_layout(depths: Sequence[int], names: SwinNames, present: Collection[str] | None = None) -> list[Entry]:
    """Return the table of a Swin with these numbers of blocks per stage.

    `present` are the names in the checkpoint. A classifier has a norm after its last stage only: it fills the norm of
    the last output, and those of the other outputs are optional. Without `present`, every output has its own.
    """
    entries = [
        Entry("patch_embed/kernel", (f"{names.patch_embed}.weight",), "conv"),
        Entry("patch_embed/bias", (f"{names.patch_embed}.bias",)),
        *_norm("patch_norm", names.patch_norm),
    ]
    for i, depth in enumerate(depths):
        if i:
            merge = names.merge.format(i=i, previous=i - 1)
            entries += _norm(f"stage{i + 1}_merge/norm", f"{merge}.norm")
            entries.append(Entry(f"stage{i + 1}_merge/reduction/kernel", (f"{merge}.reduction.weight",), "dense"))
        for j in range(depth):
            entries += _block(f"stage{i + 1}_block{j}", names.block.format(i=i, j=j), names)
        output = names.output_norm.format(n=i + names.first_output)
        has_norm = present is None or f"{output}.weight" in present
        last = i == len(depths) - 1
        name = names.last_norm if last and not has_norm else output
        entries += _norm(f"stage{i + 1}_norm", name, optional=not has_norm and not last)
    return entries


def _block(target: str, source: str, names: SwinNames) -> list[Entry]:
    norm1, norm2 = names.norms
    mlp_in, mlp_out = names.mlp
    return [
        *_norm(f"{target}/norm1", source + norm1),
        *_dense(f"{target}/attention/qkv", *(source + name for name in names.qkv)),
        Entry(f"{target}/attention/relative_position_bias_table", (source + names.bias_table,), "bias_table"),
        *_dense(f"{target}/attention/projection", source + names.projection),
        *_norm(f"{target}/norm2", source + norm2),
        *_dense(f"{target}/mlp_in", source + mlp_in),
        *_dense(f"{target}/mlp_out", source + mlp_out),
    ]


def _norm(target: str, source: str, optional: bool = False) -> list[Entry]:
    pairs = (("scale", "weight"), ("bias", "bias"))
    return [Entry(f"{target}/{ours}", (f"{source}.{theirs}",), optional=optional) for ours, theirs in pairs]


def _dense(target: str, *sources: str) -> list[Entry]:
    return [
        Entry(f"{target}/kernel", tuple(f"{source}.weight" for source in sources), "dense"),
        Entry(f"{target}/bias", tuple(f"{source}.bias" for source in sources)),
    ]


def swin_architecture(source: Arrays, names: SwinNames) -> dict[str, object]:
    """Return the fields of config.vision that the names and shapes of a checkpoint determine.

    `window_size` is a tuple where the windows of the stages differ; `depths` is empty if no block is found.
    """
    depths: dict[int, int] = {}
    block = re.compile(re.escape(names.block).replace(r"\{i\}", r"(\d+)").replace(r"\{j\}", r"(\d+)"))
    for name in source:
        if match := block.match(name):
            stage, number = int(match[1]), int(match[2])
            depths[stage] = max(depths.get(stage, 0), number + 1)
    patches = source[f"{names.patch_embed}.weight"]
    found: dict[str, object] = {
        "embed_dim": patches.shape[0],
        "depths": tuple(depths[i] for i in sorted(depths)),
    }
    tables = [source.get(names.block.format(i=i, j=0) + names.bias_table) for i in sorted(depths)]
    shapes = [table.shape for table in tables if table is not None and table.ndim == 2]
    if depths and len(shapes) == len(depths):
        windows = tuple(window_of(rows) for rows, _ in shapes)
        found["num_heads"] = tuple(heads for _, heads in shapes)
        found["window_size"] = windows[0] if len(set(windows)) == 1 else windows
    return found


def window_of(rows: int) -> int:
    """Return the window of a bias table with this number of rows, (2 * window - 1)²."""
    return (round(rows**0.5) + 1) // 2


# Other arrays of a BERT checkpoint: the pooler and a table of positions.
UNUSED = (r"^pooler\.", r"^embeddings\.position_ids$")

_WORD_EMBEDDINGS = "embeddings.word_embeddings.weight"


def find_bert(names: Collection[str]) -> list[str]:
    """Return the prefix of every BERT among the names of a checkpoint."""
    return _prefixes(_WORD_EMBEDDINGS, names)


def published_bert_name(name: str) -> str:
    """Return the current name; files converted from the first TensorFlow checkpoints use gamma and beta in norms."""
    return re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", name))


def bert_layout(num_layers: int) -> list[Entry]:
    """Return the table of a BERT without pooler."""
    entries = [
        Entry("word_embeddings/embedding", (_WORD_EMBEDDINGS,)),
        Entry("position_embeddings/embedding", ("embeddings.position_embeddings.weight",)),
        Entry("type_embeddings/embedding", ("embeddings.token_type_embeddings.weight",)),
        *_norm("embeddings_norm", "embeddings.LayerNorm"),
    ]
    for i in range(num_layers):
        target, source = f"layer{i}", f"encoder.layer.{i}"
        for name in ("query", "key", "value"):
            entries += _dense(f"{target}/{name}", f"{source}.attention.self.{name}")
        entries += _dense(f"{target}/attention_output", f"{source}.attention.output.dense")
        entries += _norm(f"{target}/attention_norm", f"{source}.attention.output.LayerNorm")
        entries += _dense(f"{target}/intermediate", f"{source}.intermediate.dense")
        entries += _dense(f"{target}/output", f"{source}.output.dense")
        entries += _norm(f"{target}/output_norm", f"{source}.output.LayerNorm")
    return entries


def bert_architecture(source: Arrays) -> dict[str, object]:
    """Return the fields of config.text that the names and shapes of a checkpoint determine."""
    layers = {int(match[1]) for name in source if (match := re.match(r"encoder\.layer\.(\d+)\.", name))}
    words, positions = source[_WORD_EMBEDDINGS], source.get("embeddings.position_embeddings.weight")
    inner = source.get("encoder.layer.0.intermediate.dense.weight")
    found: dict[str, object] = {
        "vocab_size": words.shape[0],
        "hidden_size": words.shape[-1],
        "num_layers": len(layers),
    }
    if positions is not None:
        found["max_positions"] = positions.shape[0]
    if inner is not None:
        found["intermediate_size"] = inner.shape[0]
    return found


def network_layout(params: Any) -> list[Entry]:
    """Return the table of the whole network with these parameters (or shapes of parameters).

    Vision and text have the names of Hugging Face with the prefixes "vision." and "text."; fusion and decoder have the
    names of this package, with "weight" for kernels and scales as in PyTorch.

    Raises:
        UserError: the network does not have the Swin and the BERT of this package.
    """
    if not {"vision", "text"} <= params.keys():
        raise UserError("the network has other encoders, so it cannot be exported to PyTorch; use to-stablehlo")
    layout = swin_layout(_depths(params["vision"]), HUGGING_FACE)
    if {entry.target for entry in layout} != flatten_dict(params["vision"], sep="/").keys():
        raise UserError("the backbone is not a Swin, so the network cannot be exported to PyTorch; use to-stablehlo")
    layout = prefixed(layout, "vision/", "vision.")
    layers = [name for name in params["text"] if re.fullmatch(r"layer\d+", name)]
    layout += prefixed(bert_layout(len(layers)), "text/", "text.")
    own = {part: tree for part, tree in params.items() if part not in ("vision", "text")}
    return layout + [_own_entry(path, len(leaf.shape)) for path, leaf in flatten_dict(own, sep="/").items()]


def _depths(vision: Any) -> list[int]:
    blocks = [re.fullmatch(r"stage(\d+)_block\d+", name) for name in vision]
    stages = [int(match[1]) for match in blocks if match]
    return [stages.count(stage) for stage in range(1, max(stages, default=0) + 1)]


def _own_entry(path: str, rank: int) -> Entry:
    *modules, leaf = path.split("/")
    forms: dict[int, Form] = {2: "dense", 4: "conv"}
    form = forms[rank] if leaf == "kernel" else "same"
    name = "weight" if leaf in ("kernel", "scale") else leaf
    return Entry(path, (".".join([*modules, name]),), form)
