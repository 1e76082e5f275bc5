"""Pretrained vision and text for the start of training, recognised by the names in their files.

Finds pretrained weights by a path or by their name on the Hugging Face Hub.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from s2rm_jax.errors import UserError
from s2rm_jax.interop import parameter_names
from s2rm_jax.interop.layout import Entry, Filled, WeightsMismatch, fill
from s2rm_jax.interop.weight_files import SAFETENSORS, TORCH, find_weights, read_weights

VOCABULARY = "vocab.txt"


def locate(path_or_name: str, field: str) -> Path:
    """Returns the file of weights that a person means: a file, one in a folder, or one of the Hub, fetched once.

    Args:
        path_or_name: what the person wrote. What lies on the disk goes before what the Hub has.
        field: the field of the configuration in which it stands, for the error.

    Raises:
        UserError: there is no such path, or the Hub cannot be reached or has no such weights.
    """
    path = Path(path_or_name).expanduser()
    if path.exists() or not _is_hub_name(path_or_name):
        try:
            return find_weights(path)
        except UserError as error:
            raise UserError(f"config.{field}: {error}") from error
    return _fetch(path_or_name, field)


def find_vocabulary(path_or_name: str) -> Path | None:
    """Returns the `vocab.txt` that lies beside weights, or None if there is none; see `locate` for the argument."""
    beside = locate(path_or_name, "text.pretrained").parent / VOCABULARY
    return beside if beside.is_file() else None


def _is_hub_name(name: str) -> bool:
    looks_like_one = re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", name) is not None
    return looks_like_one and Path(name).suffix not in (".pth", ".pt", ".bin", ".safetensors", ".json")


def _fetch(name: str, field: str) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
    from huggingface_hub.utils import logging

    def fetch(file: str) -> Path | None:
        """Returns the file in the cache, or None if the repository has none of this name."""
        try:
            return Path(hf_hub_download(name, file))
        except LocalEntryNotFoundError:  # the Hub was not reached; a subclass of the error below
            raise
        except EntryNotFoundError:
            return None

    logging.set_verbosity_error()  # its warnings of every try; the outcome is told of below
    try:
        weights = fetch(SAFETENSORS) or fetch(TORCH)
        if weights is not None:
            fetch(VOCABULARY)  # for `find_vocabulary`; only text has one
            return weights
        reason = f"it has neither {SAFETENSORS} nor {TORCH}"
    except Exception as error:  # no network, no such repository, not allowed: the library raises many kinds
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    raise UserError(
        f"config.{field}={name} is no path here and was not fetched from the Hugging Face Hub ({reason}): put "
        f"{SAFETENSORS} or {TORCH} (and, for text, {VOCABULARY}) from https://huggingface.co/{name}/tree/main into a "
        f"folder and set config.{field}=FOLDER"
    )


SHOWN = 10  # kinds of arrays that are of no use here


@dataclass(frozen=True)
class Pretrained:
    """A pretrained part of the network: its parameters, and what a person should know of where they came from.

    params   nested, float32 arrays; lacks what the checkpoint does not have
    report   lines for the log
    """

    params: dict[str, Any]
    report: str


def find_pretrained(config: ConfigDict) -> dict[str, Path]:
    """Returns the files of config.vision.pretrained and config.text.pretrained, by part, where they name any.

    Raises:
        UserError: there is no such file, or it cannot be fetched.
    """
    named = {part: str(config[part].get("pretrained", "")) for part in ("vision", "text")}
    return {part: locate(name, f"{part}.pretrained") for part, name in named.items() if name}


def load_pretrained(config: ConfigDict, shapes: Any) -> dict[str, Pretrained]:
    """Loads what config.vision.pretrained and config.text.pretrained name, by part ("vision", "text").

    Args:
        config: the whole configuration.
        shapes: the parameters of the whole network, or their shapes.

    Raises:
        UserError: weights are not found, damaged, of another architecture, or incomplete; everything that does not fit
            is said at once.
    """
    loaders = {"vision": load_swin, "text": load_bert}
    return {part: loaders[part](path, config[part], shapes[part]) for part, path in find_pretrained(config).items()}


def load_swin(path: Path, vision: ConfigDict, shapes: Any) -> Pretrained:
    """Makes the parameters of a Swin of a Hugging Face, Microsoft or timm checkpoint; see `load_pretrained`."""
    arrays = read_weights(path)
    prefix, names = _the_one(parameter_names.find_swin(arrays), arrays, path, "Swin")
    part = _renamed(
        _inside(arrays, prefix), lambda name: parameter_names.published_swin_name(name, names), f"{path}, the Swin"
    )
    architecture = parameter_names.swin_architecture(part, names)
    window = architecture.pop("window_size", None)  # another one is no mistake
    _require_architecture(architecture, vision, "vision", path)
    layout = parameter_names.swin_layout(tuple(vision["depths"]), names, part.keys())
    filled, unused = _filled(layout, part, names.unused, shapes, path)
    notes = [_left_out(filled), _unused(unused + _outside(arrays, prefix))]
    if filled.resized:
        resized = f"{len(filled.resized)} bias tables resized from window {window} to {vision['window_size']}"
        notes.insert(0, resized)
    return Pretrained(filled.params, _report("vision", path, f"a Swin, {names.library} names", filled, notes))


def load_bert(path: Path, text: ConfigDict, shapes: Any) -> Pretrained:
    """Makes the parameters of a BERT of a Hugging Face checkpoint; see `load_pretrained`."""
    arrays = read_weights(path)
    prefix = _the_one(parameter_names.find_bert(arrays), arrays, path, "BERT")
    part = _renamed(_inside(arrays, prefix), parameter_names.published_bert_name, f"{path}, the BERT")
    architecture = parameter_names.bert_architecture(part) | _heads_beside(path)
    _require_architecture(architecture, text, "text", path)
    layout = parameter_names.bert_layout(text["num_layers"])
    filled, unused = _filled(layout, part, parameter_names.UNUSED, shapes, path)
    notes = [_unused(unused + _outside(arrays, prefix))]
    return Pretrained(filled.params, _report("text", path, "a BERT", filled, notes))


def _the_one(found: Sequence[Any], arrays: Mapping[str, np.ndarray], path: Path, what: str) -> Any:
    """Returns the only part of a kind in a checkpoint."""
    if len(found) == 1:
        return found[0]
    if found:
        prefixes = ", ".join(repr(item if isinstance(item, str) else item[0]) for item in found)
        raise UserError(f"{path} holds {len(found)} networks of the kind {what}, behind {prefixes}: save one alone")
    is_other = parameter_names.find_bert(arrays) if what == "Swin" else parameter_names.find_swin(arrays)
    other = {
        "Swin": "a BERT: it belongs to config.text.pretrained",
        "BERT": "a Swin: it belongs to config.vision.pretrained",
    }
    holds = other[what] if is_other else f"{len(arrays)} arrays, such as {', '.join(sorted(arrays)[:3])}"
    raise UserError(f"{path} holds no {what} but {holds}")


def _inside(arrays: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def _outside(arrays: Mapping[str, np.ndarray], prefix: str) -> list[str]:
    return [name for name in arrays if not name.startswith(prefix)]


def _renamed(arrays: Mapping[str, np.ndarray], rename: Any, where: str) -> dict[str, np.ndarray]:
    """Brings names to their published spelling; two spellings of one name are a mistake."""
    renamed = {rename(name): array for name, array in arrays.items()}
    if len(renamed) < len(arrays):
        spelled = [rename(name) for name in arrays]
        twice = sorted(name for name in arrays if spelled.count(rename(name)) > 1)
        raise WeightsMismatch(where, {"matched twice": twice})
    return renamed


def _require_architecture(found: Mapping[str, Any], section: ConfigDict, name: str, path: Path) -> None:
    """Says which fields to set where weights are of another size; the shapes alone would tell of hundreds of arrays."""
    wrong = {field: value for field, value in found.items() if _plain(section[field]) != value}
    if wrong:
        ours = ", ".join(f"{field}={_plain(section[field])}" for field in wrong)
        flags = " ".join(f"--config.{name}.{field}={str(value).replace(' ', '')}" for field, value in wrong.items())
        raise UserError(f"{path} is of another size than config.{name} ({ours}): give other weights, or set {flags}")


def _heads_beside(path: Path) -> dict[str, int]:
    """The number of heads leaves no trace in the weights; the config.json of Hugging Face beside them has it."""
    try:
        heads = json.loads(path.with_name("config.json").read_text(encoding="utf-8"))["num_attention_heads"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return {"num_heads": heads} if isinstance(heads, int) else {}


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list | tuple) else value


def _filled(
    layout: Sequence[Entry], part: Mapping[str, np.ndarray], unused: Sequence[str], shapes: Any, path: Path
) -> tuple[Filled, list[str]]:
    """Fills the parameters with all that is not known to be `unused`; returns them and the names of that."""
    wanted = {name for entry in layout for name in entry.sources}
    idle = [name for name in part if name not in wanted and any(re.search(pattern, name) for pattern in unused)]
    used = {name: array for name, array in part.items() if name not in idle}
    return fill(layout, used, shapes, str(path)), idle


def _left_out(filled: Filled) -> str:
    return f"not in the file, and so as initialised: {', '.join(filled.left_out)}" if filled.left_out else ""


def _unused(names: list[str]) -> str:
    """Lists names, those that differ in their numbers alone as one."""
    kinds = Counter(re.sub(r"\d+", "*", name) for name in names)
    shown = [kind if count == 1 else f"{kind} ({count})" for kind, count in sorted(kinds.items())]
    more = f" and {len(shown) - SHOWN} more kinds" if len(shown) > SHOWN else ""
    return f"in the file but of no use here: {', '.join(shown[:SHOWN])}{more}" if names else ""


def _report(name: str, path: Path, what: str, filled: Filled, notes: Sequence[str]) -> str:
    parameters = sum(leaf.size for leaf in jax.tree.leaves(filled.params)) / 1e6
    heading = f"Pretrained {name}: {path} ({what}, {parameters:.1f} M parameters)"
    return "\n".join([heading, *(f"  {note}" for note in notes if note)])
