"""Randomly drawn Swin and BERT of the library transformers, the reference of ours. Nothing is downloaded.

transformers is imported where it is used: its networks take seconds to import, and every worker imports all tests.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from s2rm_jax.interop.parameter_names import HUGGING_FACE, published_swin_name

if TYPE_CHECKING:
    from transformers import BertModel, SwinBackbone

torch = pytest.importorskip("torch")  # skips the tests that import this module

# The inputs of residual branches are drawn this small: their variance is then near enough to the epsilon of the norms
# for a wrong epsilon to show. Inside the branches everything is of order 1, attention logits and bias tables too.
STREAM = 0.02
# What GELU reads is drawn around this: the exact one is small there, and the usual approximation of it most wrong. What
# comes behind is drawn larger by the other factor, to be of the usual order.
BEFORE_GELU, BEHIND_GELU = -2.0, 6.0


def draw_swin(size: Mapping[str, Any], window: int) -> SwinBackbone:
    """Make a Swin with a norm for the output of each stage."""
    from transformers import SwinBackbone, SwinConfig

    stages = [f"stage{n}" for n in range(1, len(size["depths"]) + 1)]
    config = SwinConfig(**size, window_size=window, out_features=stages, attn_implementation="eager")
    outputs = dict.fromkeys(("patch_embeddings", "embeddings.norm", "o_proj", "reduction"), STREAM)
    return _drawn(SwinBackbone(config), outputs | {"fc2": BEHIND_GELU * STREAM}, inputs={})


def draw_bert(**size: Any) -> BertModel:
    """Make a BERT without pooler and padding token, because PyTorch would drop the gradient of its embedding.

    Branches are half as large as what they are added to. Were they as large, the states of all tokens would grow alike
    (cosine 0.36 behind the embeddings of Base, 0.9993 behind layer 12, instead of 0.95), the gradients of attention
    would be differences of nearly equal numbers, and PyTorch's in float32 would be off its own in float64 by 1.4e-4 of
    their norm instead of 6.7e-6.
    """
    from transformers import BertConfig, BertModel

    config = BertConfig(**size, pad_token_id=None, attn_implementation="eager")
    outputs = {
        "attention.output.dense": STREAM / 2,
        "output.dense": BEHIND_GELU * STREAM / 2,
        "embeddings": STREAM,
        "LayerNorm": STREAM,
    }
    inputs = dict.fromkeys(("query", "key", "value", "intermediate"), STREAM)
    return _drawn(BertModel(config, add_pooling_layer=False), outputs, inputs)


def _drawn(model: Any, outputs: Mapping[str, float], inputs: Mapping[str, float]) -> Any:
    """Draw every parameter, also those of the norms, and return the model in evaluation mode.

    Args:
        model: a model.
        outputs: how large the outputs of layers are to be, by a part of their name; 1 for all others.
        inputs: how large their inputs are.
    """

    def find(name: str, sizes: Mapping[str, float]) -> float:
        return next((size for part, size in sizes.items() if part in name), 1.0)

    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            value = find(name, outputs) * torch.randn(parameter.shape, generator=generator)
            if name.endswith("bias"):
                value = 0.1 * value + (BEFORE_GELU if "fc1" in name or "intermediate" in name else 0.0)
            elif "norm" in name.lower():
                value = find(name, outputs) + 0.3 * value
            elif "table" not in name and "embeddings.weight" not in name:
                value /= find(name, inputs) * parameter[0].numel() ** 0.5
            parameter.copy_(value)
    return model.eval()


def swin_outputs(backbone: SwinBackbone, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return the map of each stage, [b, h, w, c], of images [b, h, w, 3].

    SwinBackbone itself would shift even where a grid is a single window, which published networks do not; the SwinModel
    inside it is as they are.
    """
    maps = backbone.swin(
        images.permute(0, 3, 1, 2), output_hidden_states=True, output_hidden_states_before_downsampling=True
    ).reshaped_hidden_states[1:]
    norms = backbone.hidden_states_norms.values()
    return tuple(norm(x.permute(0, 2, 3, 1)) for norm, x in zip(norms, maps, strict=True))


def swin_arrays(named: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """Return the parameters (or gradients) that our network has, by their names in published files."""
    renamed = {published_swin_name(name.removeprefix("swin."), HUGGING_FACE): t for name, t in named.items()}
    return arrays({name: t for name, t in renamed.items() if not any(re.search(p, name) for p in HUGGING_FACE.unused)})


def arrays(named: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """Return tensors as NumPy arrays."""
    return {name: tensor.detach().numpy() for name, tensor in named.items()}
