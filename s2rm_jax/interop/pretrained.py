"""Pretrained weights of Swin and BERT for the start of training, from a path or the Hugging Face Hub.

The format of a checkpoint is detected from the names of its parameters.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from s2rm_jax.config import CONFIG_FILE, VOCAB_FILE
from s2rm_jax.errors import UserError
from s2rm_jax.interop import parameter_names
from s2rm_jax.interop.layout import Arrays, Entry, Filled, WeightsMismatch, fill
from s2rm_jax.interop.weight_files import SAFETENSORS, TORCH, find_weights, read_weights

SHOWN = 10  # kinds of unused arrays in the log


def locate(path_or_name: str, field: str) -> Path:
    """Return the file of weights for a path, or for a name on the Hub, which is downloaded once.

    Args:
        path_or_name: a file, a folder, or a name on the Hub; existing paths come first.
        field: the field of the configuration, for the error.

    Raises:
        UserError: the path does not exist, or the Hub cannot be reached or does not have the weights.
    """
    path = Path(path_or_name).expanduser()
    if path.exists() or not _is_hub_name(path_or_name):
        try:
            return find_weights(path)
        except UserError as error:
            raise UserError(f"config.{field}: {error}") from error
    return _fetch(path_or_name, field)


def find_vocabulary(path_or_name: str) -> Path | None:
    """Return the vocab.txt next to the weights, or None if there is none; see `locate` for the argument."""
    beside = locate(path_or_name, "text.pretrained").parent / VOCAB_FILE
    return beside if beside.is_file() else None


def _is_hub_name(name: str) -> bool:
    looks_like_one = re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", name) is not None
    return looks_like_one and Path(name).suffix not in (".pth", ".pt", ".bin", ".safetensors", ".json")


def _fetch(name: str, field: str) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
    from huggingface_hub.utils import logging

    def fetch(file: str) -> Path | None:
        """Return the file in the cache, or None if the repository does not have it."""
        try:
            return Path(hf_hub_download(name, file))
        except LocalEntryNotFoundError:  # the Hub cannot be reached; a subclass of the error below
            raise
        except EntryNotFoundError:
            return None

    logging.set_verbosity_error()  # it warns at every attempt; the error below is enough
    try:
        weights = fetch(SAFETENSORS) or fetch(TORCH)
        if weights is not None:
            fetch(VOCAB_FILE)  # for `find_vocabulary`; only text has one
            return weights
        reason = f"it has neither {SAFETENSORS} nor {TORCH}"
    except Exception as error:  # no network, unknown repository, no access: the library raises many kinds
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    raise UserError(
        f"config.{field}={name} is not a path and cannot be downloaded from the Hugging Face Hub ({reason}): put "
        f"{SAFETENSORS} or {TORCH} (and, for text, {VOCAB_FILE}) from https://huggingface.co/{name}/tree/main into a "
        f"folder and set config.{field}=FOLDER"
    )


@dataclass(frozen=True)
class Pretrained:
    """A pretrained part of the network.

    params   nested, float32 arrays, without those that the checkpoint lacks
    report   lines for the log: source, kind, resized and unused arrays
    """

    params: dict[str, Any]
    report: str


def find_pretrained(config: ConfigDict) -> dict[str, Path]:
    """Return the files of config.vision.pretrained and config.text.pretrained by part, if they are set.

    Raises:
        UserError: a file does not exist or cannot be downloaded.
    """
    named = {part: str(config[part].get("pretrained", "")) for part in ("vision", "text")}
    return {part: locate(name, f"{part}.pretrained") for part, name in named.items() if name}


def load_pretrained(config: ConfigDict, shapes: Any) -> dict[str, Pretrained]:
    """Load the weights of config.vision.pretrained and config.text.pretrained by part ("vision", "text").

    Args:
        config: the whole configuration.
        shapes: the parameters of the whole network, or their shapes.

    Raises:
        UserError: weights are not found, damaged, of another architecture, or incomplete. The error lists everything
            that does not fit.
    """
    loaders = {"vision": load_swin, "text": load_bert}
    return {part: loaders[part](path, config[part], shapes[part]) for part, path in find_pretrained(config).items()}


def load_swin(path: Path, vision: ConfigDict, shapes: Any) -> Pretrained:
    """Make the parameters of a Swin from a Hugging Face, Microsoft or timm checkpoint; see `load_pretrained`."""
    arrays = read_weights(path)
    prefix, names = _the_one(parameter_names.find_swin(arrays), arrays, path, "Swin")
    part = _part(arrays, prefix, lambda name: parameter_names.published_swin_name(name, names), f"{path}, the Swin")
    architecture = parameter_names.swin_architecture(part, names)
    window = architecture.pop("window_size", None)  # may differ: bias tables are resized
    _require_architecture(architecture, vision, "vision", path)
    layout = parameter_names.swin_layout(tuple(vision["depths"]), names, part.keys())
    filled, unused = _fill(layout, part, names.unused, shapes, path)
    notes = [f"not in the file, and so initialised: {', '.join(filled.left_out)}"] if filled.left_out else []
    if filled.resized:
        notes.insert(0, f"{len(filled.resized)} bias tables resized from window {window} to {vision['window_size']}")
    notes += _unused_note(unused, arrays, prefix)
    return _pretrained("vision", path, f"a Swin, {names.library} names", filled, notes)


def load_bert(path: Path, text: ConfigDict, shapes: Any) -> Pretrained:
    """Make the parameters of a BERT from a Hugging Face checkpoint; see `load_pretrained`."""
    arrays = read_weights(path)
    prefix = _the_one(parameter_names.find_bert(arrays), arrays, path, "BERT")
    part = _part(arrays, prefix, parameter_names.published_bert_name, f"{path}, the BERT")
    architecture = parameter_names.bert_architecture(part) | _number_of_heads(path)
    _require_architecture(architecture, text, "text", path)
    filled, unused = _fill(parameter_names.bert_layout(text["num_layers"]), part, parameter_names.UNUSED, shapes, path)
    return _pretrained("text", path, "a BERT", filled, _unused_note(unused, arrays, prefix))


def _the_one(found: Sequence[Any], arrays: Arrays, path: Path, what: str) -> Any:
    """Return the only network of a kind in a checkpoint."""
    if len(found) == 1:
        return found[0]
    if found:
        prefixes = ", ".join(repr(item if isinstance(item, str) else item[0]) for item in found)
        raise UserError(f"{path} contains {len(found)} networks of the kind {what} at {prefixes}: save only one")
    is_other = parameter_names.find_bert(arrays) if what == "Swin" else parameter_names.find_swin(arrays)
    other = {"Swin": "a BERT: set config.text.pretrained", "BERT": "a Swin: set config.vision.pretrained"}
    contents = other[what] if is_other else f"{len(arrays)} arrays, such as {', '.join(sorted(arrays)[:3])}"
    raise UserError(f"{path} contains no {what} but {contents}")


def _part(arrays: Arrays, prefix: str, rename: Callable[[str], str], where: str) -> dict[str, np.ndarray]:
    """Return the arrays with a prefix by their published names; two spellings of one name are a mistake."""
    names = {name: rename(name.removeprefix(prefix)) for name in arrays if name.startswith(prefix)}
    counts = Counter(names.values())
    if twice := sorted(name.removeprefix(prefix) for name, published in names.items() if counts[published] > 1):
        raise WeightsMismatch(where, {"matched twice": twice})
    return {published: arrays[name] for name, published in names.items()}


def _require_architecture(found: Mapping[str, Any], section: ConfigDict, name: str, path: Path) -> None:
    """Raise UserError if the weights have another size; it names the fields to set, not hundreds of shapes."""

    def configured(field: str) -> Any:
        value = section[field]
        return tuple(value) if isinstance(value, list) else value

    wrong = {field: value for field, value in found.items() if configured(field) != value}
    if wrong:
        ours = ", ".join(f"{field}={configured(field)}" for field in wrong)
        flags = " ".join(f"--config.{name}.{field}={str(value).replace(' ', '')}" for field, value in wrong.items())
        raise UserError(f"{path} has another size than config.{name} ({ours}): give other weights, or set {flags}")


def _number_of_heads(path: Path) -> dict[str, int]:
    """Return the number of heads from the config.json next to the weights; their shapes do not depend on it."""
    try:
        heads = json.loads(path.with_name(CONFIG_FILE).read_text(encoding="utf-8"))["num_attention_heads"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}
    return {"num_heads": heads} if isinstance(heads, int) else {}


def _fill(
    layout: Sequence[Entry], part: Arrays, unused: Sequence[str], shapes: Any, path: Path
) -> tuple[Filled, list[str]]:
    """Fill the parameters from all arrays but those that match `unused`; return them and the names of the unused."""
    names = {name for entry in layout for name in entry.sources}
    idle = [name for name in part if name not in names and any(re.search(pattern, name) for pattern in unused)]
    return fill(layout, {name: part[name] for name in part if name not in idle}, shapes, str(path)), idle


def _unused_note(unused: list[str], arrays: Arrays, prefix: str) -> list[str]:
    """List unused arrays, also those without the prefix; names that differ only in their numbers are one kind."""
    names = unused + [name for name in arrays if not name.startswith(prefix)]
    kinds = Counter(re.sub(r"\d+", "*", name) for name in names)
    shown = [kind if count == 1 else f"{kind} ({count})" for kind, count in sorted(kinds.items())]
    more = f" and {len(shown) - SHOWN} more kinds" if len(shown) > SHOWN else ""
    return [f"in the file but not used: {', '.join(shown[:SHOWN])}{more}"] if names else []


def _pretrained(name: str, path: Path, kind: str, filled: Filled, notes: Sequence[str]) -> Pretrained:
    parameters = sum(leaf.size for leaf in jax.tree.leaves(filled.params)) / 1e6
    heading = f"Pretrained {name}: {path} ({kind}, {parameters:.1f} M parameters)"
    return Pretrained(filled.params, "\n".join([heading, *(f"  {note}" for note in notes)]))
