"""A trained network as a folder that PyTorch reads, and back; and the files around any exported network.

A folder for PyTorch holds model.safetensors with the names of `parameter_names.network_layout`, config.json of the
run, and the files of `write_preprocessing`: `torch_model.S2RMModel.from_pretrained(folder)` loads it. Neither direction
needs torch, and a round trip changes no bit.
"""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import flax.linen as nn
from etils import epath
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

import s2rm_jax
from s2rm_jax.config import CONFIG_FILE, VOCAB_FILE
from s2rm_jax.errors import UserError
from s2rm_jax.input.tokens import Tokenizer
from s2rm_jax.interop import exported_segment
from s2rm_jax.interop.parameter_names import export_arrays, fill, network_layout, window_of
from s2rm_jax.interop.weight_files import SAFETENSORS, read_weights, write_safetensors
from s2rm_jax.models.network import IMAGENET_MEAN, IMAGENET_STD
from s2rm_jax.parallel.programs import ProgramStore

Format = Literal["pytorch", "stablehlo", "onnx"]

SETTINGS_FILE = "preprocessing.json"
TOKENIZER_FILE = "tokenizer.json"
SCRIPT_FILE = "segment.py"
MODEL_FILE = "torch_model.py"

_LOG = logging.getLogger(__name__)
_FIRST = "vision.embeddings.patch_embeddings.projection.weight"  # what is before it in a file is before every name
_AVERAGED = "n_averaged"  # the counter that AveragedModel of torch.optim.swa_utils adds to the parameters

# Variants for ablations (models/s2rm.py, models/casg.py) that torch_model.py does not have.
_NOT_IN_PYTORCH = {
    ("fusion", "language"): ("sentence",),
    ("fusion", "mode"): ("concat", "attention"),
    ("fusion", "recurrence"): ("linear",),
    ("decoder", "semantics"): (("sentence",), ("stages",)),
}


@dataclass(frozen=True)
class LoadedRun:
    """A trained network with its parameters, its tokenizer and its configuration.

    `step` is that of its checkpoint, None for a folder of weights. `programs` keeps compiled programs, if asked for.
    """

    network: nn.Module
    params: Any
    tokenizer: Tokenizer
    config: ConfigDict
    step: int | None = None
    programs: ProgramStore | None = None


def require_torch_variant(config: ConfigDict) -> None:
    """Raise UserError if a network is a variant for ablations that PyTorch, and so ONNX, does not have."""
    for (section, field), missing in _NOT_IN_PYTORCH.items():
        if config[section][field] in missing:
            raise UserError(
                f"config.{section}.{field}={config[section][field]!r} is a variant for ablations, which cannot be "
                "exported to PyTorch or ONNX; use to-stablehlo, or give the workdir of another network"
            )


def write_pytorch(trained: LoadedRun, config_file: epath.PathLike, folder: Path) -> None:
    """Write a network and config.json of its run into an empty folder, with everything that PyTorch needs to use it.

    Raises:
        UserError: the network is a variant for ablations that PyTorch does not have.
        OSError: the folder cannot be written to.
    """
    require_torch_variant(trained.config)
    write_safetensors(export_arrays(network_layout(trained.params), trained.params), folder / SAFETENSORS)
    write_preprocessing(trained, "pytorch", folder)
    (folder / CONFIG_FILE).write_bytes(epath.Path(config_file).read_bytes())
    shutil.copyfile(Path(__file__).with_name(MODEL_FILE), folder / MODEL_FILE)


def read_pytorch(file: Path, shapes: Any) -> Any:
    """Return the nested parameters of a folder that `write_pytorch` wrote, perhaps trained further in PyTorch.

    Args:
        file: the file of the weights; a pytorch_model.bin needs torch.
        shapes: the parameters as ShapeDtypeStructs.

    Raises:
        UserError: the weights are damaged or do not fit.
    """
    arrays = {name: array for name, array in read_weights(file).items() if name.rpartition(".")[2] != _AVERAGED}
    prefix = next((name.removesuffix(_FIRST) for name in arrays if name.endswith(_FIRST)), "")
    if prefix and all(name.startswith(prefix) for name in arrays):
        _LOG.info("%s: removed %r, with which all names begin", file, prefix)
        arrays = {name.removeprefix(prefix): array for name, array in arrays.items()}
    filled = fill(network_layout(shapes), arrays, shapes, str(file))
    if filled.resized:  # only pretrained weights may be resized, because they are trained further
        table = flatten_dict(shapes, sep="/")[filled.resized[0]]
        raise UserError(
            f"{file} has relative position tables of another window than config.vision.window_size="
            f"{window_of(table.shape[0])}: restore the {CONFIG_FILE} of these weights"
        )
    return filled.params


def ground_outputs(output: Any) -> tuple[Any, ...]:
    """Return what an exported `ground` returns, from the output of the JAX or the PyTorch network."""
    return (output.logits,) if output.no_target_logits is None else (output.logits, output.no_target_logits)


def write_preprocessing(trained: LoadedRun, format: Format, folder: Path) -> None:
    """Write preprocessing.json, tokenizer.json, vocab.txt and segment.py, which uses them, into `folder`.

    segment.py gives the masks of `Segmenter` and needs nothing of this package.

    Raises:
        OSError: the folder cannot be written to.
    """
    content = {
        "format": format,
        "written_by": f"s2rm_jax {s2rm_jax.__version__}",
        **settings(trained, channels_first=format == "pytorch"),
    }
    (folder / SETTINGS_FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    trained.tokenizer.save_engine(folder / TOKENIZER_FILE)
    trained.tokenizer.save(folder / VOCAB_FILE)
    shutil.copyfile(exported_segment.__file__, folder / SCRIPT_FILE)


def settings(trained: LoadedRun, channels_first: bool = False) -> dict[str, Any]:
    """Return how images, expressions and logits are processed, in order."""
    tokenizer, text = trained.tokenizer, trained.config.text
    height, width = trained.config.input.image_size
    images = f"float32 [b, 3, {height}, {width}]" if channels_first else f"float32 [b, {height}, {width}, 3]"
    nothing = ["no_target_logits float32 [b, k]"] if trained.config.decoder.get("no_target_width", 0) else []
    return {
        "image": {
            "orientation": "upright, as EXIF says",
            "transparent_on": "white",
            "channels": "RGB",
            "size": [height, width],
            "resize": {"method": "bilinear", "antialias": True, "keep_proportions": False, "rounded_to": "uint8"},
            "scale": "divide by 255, subtract mean, divide by std",
            "mean": IMAGENET_MEAN,
            "std": IMAGENET_STD,
        },
        "text": {
            "tokenizer": TOKENIZER_FILE,
            "vocabulary": VOCAB_FILE,
            "kind": "BERT WordPiece",
            "lower_case": tokenizer.lower_case,
            "strip_accents": tokenizer.lower_case,
            "max_tokens": text.max_tokens,
            "truncate": "the last word pieces, never [SEP]",
            "pad_id": tokenizer.vocabulary.index("[PAD]"),
            "unknown_id": tokenizer.vocabulary.index("[UNK]"),
            "start_id": tokenizer.vocabulary.index("[CLS]"),
            "end_id": tokenizer.vocabulary.index("[SEP]"),
        },
        "functions": {
            "encode_image": {"images": images, "returns": "features, one map per stage"},
            "ground": {
                "features": "as encode_image returns them",
                "tokens": f"int32 [b, k, {text.max_tokens}]",
                "token_mask": f"bool [b, k, {text.max_tokens}], false where padding is",
                "returns": [f"logits float32 [b, k, {height}, {width}]", *nothing],
            },
        },
        "mask": {
            "resize_logits": {"method": "bilinear", "antialias": True, "to": "size of the image"},
            "true_where": "logits > 0 and no_target_logits <= 0" if nothing else "logits > 0",
        },
    }
