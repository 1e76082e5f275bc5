"""A trained network as a folder that PyTorch reads, and back: `torch_model.S2RMModel.from_pretrained(folder)`.

The folder holds model.safetensors with the names of `torch_names`, the run's config.json and vocab.txt, and what is
needed to use them without this package: torch_model.py, segment.py, preprocessing.json and tokenizer.json. Neither way
needs torch, and there and back no bit changes.

Everything around an exported network that must be known to use it: written beside it, so that nobody guesses.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, Literal

import jax
from etils import epath

import s2rm_jax
from s2rm_jax.config import CONFIG_FILE, VOCAB_FILE
from s2rm_jax.errors import UserError
from s2rm_jax.input.encode import IMAGENET_MEAN, IMAGENET_STD
from s2rm_jax.interop import exported_segment
from s2rm_jax.interop.layout import export_arrays, fill
from s2rm_jax.interop.parameter_names import network_layout
from s2rm_jax.interop.weight_files import SAFETENSORS, find_weights, read_weights, write_safetensors
from s2rm_jax.io import require_space, workdir_path
from s2rm_jax.models.network import build_network
from s2rm_jax.parallel.mesh import make_mesh
from s2rm_jax.training.checkpoint import Checkpoint, Checkpoints
from s2rm_jax.training.run import LoadedRun, load_config, load_run
from s2rm_jax.training.state import parameter_shapes, plan_state

Format = Literal["pytorch", "stablehlo", "onnx"]

SETTINGS_FILE = "preprocessing.json"
TOKENIZER_FILE = "tokenizer.json"
SCRIPT_FILE = "segment.py"


def write_preprocessing(trained: LoadedRun, format: Format, folder: Path) -> None:
    """Writes preprocessing.json, tokenizer.json, vocab.txt and segment.py, which uses them, into `folder`.

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
    """Returns what happens to images, expressions and logits, in the order in which it happens."""
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
            "lower_case": True,
            "strip_accents": True,
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


MODEL_FILE = "torch_model.py"

# Variants for ablations (models/s2rm.py, models/casg.py) that torch_model.py does not have.
_NOT_IN_PYTORCH = {
    ("fusion", "language"): ("sentence",),
    ("fusion", "mode"): ("concat", "attention"),
    ("fusion", "recurrence"): ("linear",),
    ("decoder", "semantics"): (("sentence",), ("stages",)),
}


def write_pytorch(workdir: epath.PathLike, which: Literal["best", "latest"], folder: Path) -> None:
    """Writes the network of a training run into an empty folder, with all that PyTorch needs to use it.

    Raises:
        UserError: there is no run or no checkpoint in `workdir`, it is damaged, or its network is a variant for
            ablations that PyTorch does not have.
        OSError: the folder cannot be written to.
    """
    trained = load_run(workdir, which)
    for (section, field), missing in _NOT_IN_PYTORCH.items():
        if trained.config[section][field] in missing:
            raise UserError(
                f"the network of {workdir} has config.{section}.{field}={trained.config[section][field]!r}, a variant "
                "for ablations that there is in JAX only; give the workdir of another network."
            )
    write_safetensors(export_arrays(network_layout(trained.params), trained.params), folder / SAFETENSORS)
    write_preprocessing(trained, "pytorch", folder)
    _copy_config(workdir_path(workdir), folder)
    shutil.copyfile(Path(__file__).with_name(MODEL_FILE), folder / MODEL_FILE)


def write_workdir(weights: Path, workdir: Path) -> None:
    """Writes a folder of `write_pytorch`, perhaps trained further in PyTorch, as the workdir of a run at step 0.

    It can be evaluated and predicted with; training in it begins from these weights with a fresh optimizer.

    Args:
        weights: the folder; its weights may also be a pytorch_model.bin, which needs torch to be read.
        workdir: an empty folder.

    Raises:
        UserError: a file is missing or damaged, or the weights do not fit the config.json beside them.
        OSError: the workdir cannot be written to.
    """
    for name in (CONFIG_FILE, VOCAB_FILE):
        if not (weights / name).is_file():
            raise UserError(f"{weights / name} not found; --weights must be a folder that to-pytorch made")
    config = load_config(weights)
    file = find_weights(weights)
    network = build_network(config)
    shapes = parameter_shapes(network, config)
    filled = fill(network_layout(shapes), read_weights(file), shapes, str(file))

    plan = plan_state(network, config, make_mesh())
    # Asked beforehand, because Orbax tells of a full disk in a thousand lines.
    require_space(workdir, sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(plan.abstract)))
    state = plan.create(filled.params)
    _copy_config(weights, workdir)
    with Checkpoints(workdir, config.checkpoint_every, config.eval.metric) as checkpoints:
        checkpoints.save(Checkpoint(0, state, examples_seen=0, metrics=None))


def _copy_config(source: epath.Path | Path, folder: Path) -> None:
    for name in (CONFIG_FILE, VOCAB_FILE):
        (folder / name).write_bytes((source / name).read_bytes())
