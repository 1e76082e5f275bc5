"""Pretrained weights of Swin and BERT for the start of training, from a path or the Hugging Face Hub.

The format of a checkpoint is detected from the names of its parameters.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from s2rm_jax.config import CONFIG_FILE, VOCAB_FILE
from s2rm_jax.errors import UserError, first_of, one_line
from s2rm_jax.hub import HUB, accessing_hub, parse_hub_name
from s2rm_jax.input.tokens import Tokenizer, require_case, words_and_case
from s2rm_jax.interop import parameter_names
from s2rm_jax.interop.parameter_names import Arrays, Entry, Filled, WeightsMismatch, fill
from s2rm_jax.interop.weight_files import SAFETENSORS, TORCH, find_weights, read_weights, require_torch_for
from s2rm_jax.models import bert, swin

SHOWN = 10  # kinds of unused arrays in the log

_LOG = logging.getLogger(__name__)
_TOKENIZER_CONFIG, _TOKENIZER_FILE = "tokenizer_config.json", "tokenizer.json"
_TIMM = "timm_wrapper"  # the type that transformers gives to the files of timm, which have none
# Hugging Face's names of the models whose weights and computation are those of models/swin.py and models/bert.py.
_MODEL_TYPES = {"vision": ("swin", "donut-swin", "maskformer-swin"), "text": ("bert",)}
# What models/swin.py and models/bert.py compute, as fields of these models; each may have one of a few spellings.
_SETTINGS: dict[str, dict[str, tuple[Any, ...]]] = {
    "vision": {
        "hidden_act": ("gelu",),
        "layer_norm_eps": (swin.EPSILON,),
        "mlp_ratio": (4,),
        "qkv_bias": (True,),
        "patch_size": (4, [4, 4], (4, 4)),
        "use_absolute_embeddings": (False,),
    },
    "text": {
        "hidden_act": ("gelu",),
        "layer_norm_eps": (bert.EPSILON,),
        "position_embedding_type": ("absolute",),
        "is_decoder": (False,),  # which attends to previous words only
    },
}


def locate(path_or_name: str, field: str) -> Path:
    """Return the file of weights for a path, or for a name on the Hub; an existing path takes precedence.

    A name may begin with "hf://" and end with "@REVISION". Weights of the Hub are downloaded once.

    Raises:
        UserError: the path does not exist, or the Hub cannot be reached or does not have the weights.
    """
    path = Path(path_or_name).expanduser()
    named = parse_hub_name(path_or_name, may_lack_owner=True)
    names_file = path.suffix in (".pth", ".pt", ".bin", ".safetensors", ".json")
    if path.exists() or named is None or names_file:
        try:
            return find_weights(path)
        except UserError as error:
            raise UserError(f"config.{field}: {error}") from error
    return _fetch(path_or_name, *named, field)


def find_vocabulary(config: ConfigDict) -> tuple[str, ...] | None:
    """Return the vocabulary beside the weights of config.text.pretrained; None if config.text.vocab names another.

    transformers reads it, from a vocab.txt or a tokenizer.json.

    Raises:
        UserError: the weights or the vocabulary are not found, or the tokenizer is not that of a BERT, or its case
            does not match config.text.lower_case.
    """
    text = config.text
    if not text.pretrained:
        return None
    weights = locate(text.pretrained, "text.pretrained")
    folder, described = weights.parent, _model_config(weights, "text")
    as_json = folder / _TOKENIZER_FILE
    has_words = as_json.is_file() or (folder / VOCAB_FILE).is_file()
    if not (has_words or text.vocab):
        raise UserError(
            f"config.text.pretrained: {folder} has weights but no vocabulary: put the {VOCAB_FILE} or "
            f"{_TOKENIZER_FILE} of these weights into this folder, or set config.text.vocab"
        )
    if not (has_words or (folder / _TOKENIZER_CONFIG).is_file()):
        return None
    from transformers import AutoTokenizer, BertConfig, PreTrainedTokenizerFast

    kind = described or BertConfig()  # without a config.json, the names of the weights will tell
    try:
        found = [AutoTokenizer.from_pretrained(folder, config=kind, local_files_only=True, trust_remote_code=False)]
        if as_json.is_file():
            found.append(PreTrainedTokenizerFast(tokenizer_file=str(as_json)))
    except Exception as error:  # transformers and tokenizers raise many kinds
        raise _unreadable(folder, "tokenizer", error) from error
    (words, lower_case), *other = (words_and_case(one.backend_tokenizer, str(folder)) for one in found)
    if any(case != lower_case for _, case in other):  # the first takes only the words from tokenizer.json
        raise UserError(
            f"{as_json} {'is cased' if lower_case else 'lower-cases'}, but {_TOKENIZER_CONFIG} beside it does not say "
            f'so: set "do_lower_case": {str(not lower_case).lower()} there'
        )
    if as_json.is_file() or (folder / _TOKENIZER_CONFIG).is_file():  # a vocab.txt alone does not tell the case
        require_case(lower_case, text.lower_case, str(folder))
    if not text.vocab:
        return words
    if has_words and Tokenizer(text.vocab, text.max_tokens, text.lower_case).vocabulary != words:
        _LOG.warning("config.text.vocab=%s is not the vocabulary beside the weights in %s", text.vocab, folder)
    return None


def _model_config(weights: Path, part: str) -> Any:
    """Return what transformers reads of the Swin or BERT in the config.json next to its weights, None without one.

    Raises:
        UserError: the file is damaged, or describes another kind of model.
    """
    file = weights.with_name(CONFIG_FILE)
    if not file.is_file():
        return None
    from transformers import AutoConfig, PreTrainedConfig

    try:
        content, _ = PreTrainedConfig.get_config_dict(weights.parent, local_files_only=True)
        if part == "text" and "num_attention_heads" in content:
            content.setdefault("model_type", "bert")  # files of 2019 lack it
        if "model_type" not in content or content["model_type"] == _TIMM:
            return None  # of another program, such as timm or this package
        model = AutoConfig.for_model(**content)
    except Exception as error:
        raise _unreadable(file, "configuration", error) from error
    known = _MODEL_TYPES[part]
    parts = [model, *(value for value in vars(model).values() if isinstance(value, PreTrainedConfig))]
    found = next((one for one in parts if one.model_type in known), None)
    if found is None:
        raise UserError(
            f"{file} describes a model of type {model.model_type!r}: config.{part}.pretrained takes weights of type "
            f"{' or '.join(known)}"
        )
    settings = {field: getattr(found, field, taken[0]) for field, taken in _SETTINGS[part].items()}
    wrong = [field for field, taken in _SETTINGS[part].items() if settings[field] not in taken]
    if wrong:
        theirs = ", ".join(f"{field}={settings[field]!r}" for field in wrong)
        ours = ", ".join(f"{field}={_SETTINGS[part][field][0]!r}" for field in wrong)
        raise UserError(
            f"{file} describes a model with {theirs}: config.{part}.pretrained takes weights of a model with {ours}"
        )
    return found


def _unreadable(path: Path, what: str, error: Exception) -> UserError:
    reason = one_line(error)[:200]
    return UserError(f"transformers cannot read the {what} in {path} ({reason}); download it again, or remove it")


def _fetch(given: str, name: str, revision: str | None, field: str) -> Path:
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    def fetch(file: str) -> Path | None:
        """Download a file once; return its path, or None if the repository does not have it."""
        try:
            return Path(hf_hub_download(name, file, revision=revision))
        except LocalEntryNotFoundError:  # the Hub cannot be reached; a subclass of the error below
            raise
        except EntryNotFoundError:
            return None

    def find() -> Path | None:
        """Return the file of weights, or None if the repository has none."""
        try:
            return fetch(SAFETENSORS) or fetch(TORCH)
        except LocalEntryNotFoundError:  # the cache does not tell whether the repository has safetensors
            cached = try_to_load_from_cache(name, TORCH, revision=revision)
            if not isinstance(cached, str):
                raise
            return Path(cached)

    what = f"config.{field}={given} is not a path and cannot be downloaded from the Hugging Face Hub"
    address = f"https://huggingface.co/{name}/tree/{revision or 'main'}"
    by_hand = (
        f"put {SAFETENSORS} or {TORCH}, {CONFIG_FILE} and, for text, {_TOKENIZER_CONFIG} and {VOCAB_FILE} or "
        f"{_TOKENIZER_FILE} from {address} into a folder and set config.{field}=FOLDER"
    )
    with accessing_hub(what, by_hand, may_be_path=not given.startswith(HUB)):
        weights = find()
        if weights is not None:
            for beside in (CONFIG_FILE, _TOKENIZER_CONFIG, _TOKENIZER_FILE, VOCAB_FILE):  # only text has the last three
                with suppress(LocalEntryNotFoundError):  # offline; an older version has downloaded the weights alone
                    fetch(beside)
            return weights
    raise UserError(f"{what} (it has neither {SAFETENSORS} nor {TORCH}): {by_hand}")


@dataclass(frozen=True)
class Pretrained:
    """A pretrained part of the network."""

    params: dict[str, Any]  # nested, float32 arrays, without those that the checkpoint lacks
    report: str  # lines for the log: source, kind, resized and unused arrays


def find_pretrained(config: ConfigDict) -> dict[str, Path]:
    """Return the files of config.vision.pretrained and config.text.pretrained by part, if they are set.

    Raises:
        UserError: a file does not exist or cannot be downloaded, or needs PyTorch, which is not installed.
    """
    named = {part: str(config[part].get("pretrained", "")) for part in ("vision", "text")}
    found = {part: locate(name, f"{part}.pretrained") for part, name in named.items() if name}
    for path in found.values():
        require_torch_for(path)  # here, and not only when they are read, because this is called before data is read
    return found


def load_pretrained(config: ConfigDict, shapes: Any) -> dict[str, Pretrained]:
    """Load the weights of config.vision.pretrained and config.text.pretrained by part ("vision", "text").

    `shapes` are the parameters of the whole network, or their shapes.

    Raises:
        UserError: weights are not found, damaged or incomplete, or have a different architecture. The error lists all
            that does not fit.
    """
    loaders = {"vision": load_swin, "text": load_bert}
    return {part: loaders[part](path, config[part], shapes[part]) for part, path in find_pretrained(config).items()}


def load_swin(path: Path, vision: ConfigDict, shapes: Any) -> Pretrained:
    """Make the parameters of a Swin from a Hugging Face, Microsoft or timm checkpoint; see `load_pretrained`."""
    _model_config(path, "vision")
    arrays = read_weights(path)
    prefix, names = _the_one(parameter_names.find_swin(arrays), arrays, path, "Swin")
    part = _part(arrays, prefix, lambda name: parameter_names.published_swin_name(name, names), f"{path}, the Swin")
    architecture = parameter_names.swin_architecture(part, names)
    if not architecture["depths"]:
        shown = ", ".join(sorted(part, key=lambda name: (-name.count("."), name))[:2])  # of blocks, if there are any
        raise UserError(
            f"{path} has a patch embedding, but no blocks with the names of a Swin of Hugging Face, Microsoft or timm; "
            f"it has arrays such as {shown}: give weights with these names (from timm, without features_only)"
        )
    window = architecture.pop("window_size", None)  # may differ: bias tables are resized
    if isinstance(window, tuple):
        raise UserError(
            f"{path} has windows {window}: config.vision.pretrained takes weights with one window for all stages"
        )
    _require_architecture(architecture, vision, "vision", path)
    layout = parameter_names.swin_layout(tuple(vision["depths"]), names, part.keys())
    filled, unused = _fill(layout, part, names.unused, shapes, path)
    notes = [f"not in the file, and so initialized: {', '.join(filled.left_out)}"] if filled.left_out else []
    if filled.resized:
        notes.insert(0, f"{len(filled.resized)} bias tables resized from window {window} to {vision['window_size']}")
    notes += _unused_note(unused, arrays, prefix)
    return _pretrained("vision", path, f"a Swin, {names.library} names", filled, notes)


def load_bert(path: Path, text: ConfigDict, shapes: Any) -> Pretrained:
    """Make the parameters of a BERT from a Hugging Face checkpoint; see `load_pretrained`."""
    described = _model_config(path, "text")
    arrays = read_weights(path)
    prefix = _the_one(parameter_names.find_bert(arrays), arrays, path, "BERT")
    part = _part(arrays, prefix, parameter_names.published_bert_name, f"{path}, the BERT")
    types = part.get("embeddings.token_type_embeddings.weight")
    if types is not None and len(types) == 1:
        raise UserError(
            f"{path} has one type of token, as a RoBERTa has: config.text.pretrained takes weights of a BERT"
        )
    architecture = parameter_names.bert_architecture(part)
    if described is not None:
        architecture["num_heads"] = described.num_attention_heads  # the shapes do not depend on it
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
        raise WeightsMismatch(where, {"repeated name": twice})
    return {published: arrays[name] for name, published in names.items()}


def _require_architecture(found: Mapping[str, Any], section: ConfigDict, name: str, path: Path) -> None:
    """Raise UserError if the weights have a different size; it names the fields to set, not hundreds of shapes."""

    def configured(field: str) -> Any:
        value = section[field]
        return tuple(value) if isinstance(value, list) else value

    wrong = {field: value for field, value in found.items() if configured(field) != value}
    if wrong:
        ours = ", ".join(f"{field}={configured(field)}" for field in wrong)
        flags = " ".join(f"--config.{name}.{field}={str(value).replace(' ', '')}" for field, value in wrong.items())
        raise UserError(f"{path} does not match the size in config.{name} ({ours}): give other weights, or set {flags}")


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
    return [f"in the file but not used: {first_of(shown, ', ', SHOWN)}"] if names else []


def _pretrained(name: str, path: Path, kind: str, filled: Filled, notes: Sequence[str]) -> Pretrained:
    parameters = sum(leaf.size for leaf in jax.tree.leaves(filled.params)) / 1e6
    heading = f"Pretrained {name}: {path} ({kind}, {parameters:.1f} M parameters)"
    return Pretrained(filled.params, "\n".join([heading, *(f"  {note}" for note in notes)]))
