"""The names of the whole network's parameters in PyTorch (`torch_model.S2RMModel`)."""

from __future__ import annotations

import re
from typing import Any

from flax.traverse_util import flatten_dict

from s2rm_jax.interop.bert_names import bert_layout
from s2rm_jax.interop.layout import Entry, Form, prefixed
from s2rm_jax.interop.swin_names import HUGGING_FACE, swin_layout


def network_layout(params: Any) -> list[Entry]:
    """Returns the table of a network with these parameters (or shapes of parameters).

    Vision and text have the names of Hugging Face's Swin and BERT behind "vision." and "text."; fusion and decoder have
    the names of this package, with "weight" for kernels and scales as PyTorch calls them.
    """
    layout = prefixed(swin_layout(_depths(params["vision"]), HUGGING_FACE), "vision/", "vision.")
    layers = [name for name in params["text"] if re.fullmatch(r"layer\d+", name)]
    layout += prefixed(bert_layout(len(layers)), "text/", "text.")
    own = {part: tree for part, tree in params.items() if part not in ("vision", "text")}
    return layout + [_own_entry(path, len(leaf.shape)) for path, leaf in flatten_dict(own, sep="/").items()]


def _depths(vision: Any) -> list[int]:
    blocks = [re.fullmatch(r"stage(\d+)_block\d+", name) for name in vision]
    stages = [int(match[1]) for match in blocks if match]
    return [stages.count(stage) for stage in range(1, max(stages) + 1)]


def _own_entry(path: str, rank: int) -> Entry:
    *modules, leaf = path.split("/")
    forms: dict[int, Form] = {2: "dense", 4: "conv"}
    form = forms[rank] if leaf == "kernel" else "same"
    name = "weight" if leaf in ("kernel", "scale") else leaf
    return Entry(path, (".".join([*modules, name]),), form)
