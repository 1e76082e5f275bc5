"""The names of BERT's parameters in Hugging Face's checkpoints."""

from __future__ import annotations

import re
from collections.abc import Collection

from s2rm_jax.interop.layout import Arrays, Entry

# What a checkpoint may hold besides: the pooler, the heads of pretraining, and a table of positions.
UNUSED = (r"^pooler\.", r"^embeddings\.position_ids$")

_WORDS = "embeddings.word_embeddings.weight"


def find_bert(names: Collection[str]) -> list[str]:
    """Returns what goes before the names of every BERT in a checkpoint."""
    return sorted(name.removesuffix(_WORDS) for name in names if name.endswith(_WORDS))


def published_bert_name(name: str) -> str:
    """Returns the present name; files made from the first TensorFlow checkpoints call scale and bias gamma and beta."""
    return re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", name))


def bert_layout(num_layers: int) -> list[Entry]:
    """Returns the table of a BERT without pooler."""
    entries = [
        Entry("word_embeddings/embedding", (_WORDS,)),
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


def _norm(target: str, source: str) -> list[Entry]:
    return [Entry(f"{target}/scale", (f"{source}.weight",)), Entry(f"{target}/bias", (f"{source}.bias",))]


def _dense(target: str, source: str) -> list[Entry]:
    return [Entry(f"{target}/kernel", (f"{source}.weight",), "dense"), Entry(f"{target}/bias", (f"{source}.bias",))]


def bert_architecture(source: Arrays) -> dict[str, object]:
    """Reads from names and shapes which BERT a checkpoint holds, as the fields of config.text."""
    layers = {int(match[1]) for name in source if (match := re.match(r"encoder\.layer\.(\d+)\.", name))}
    words, positions = source[_WORDS], source.get("embeddings.position_embeddings.weight")
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
