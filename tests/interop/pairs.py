"""Pairs of our Swin and BERT, and of their parts, with those of the library transformers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import torch
from flax import linen as nn

from s2rm_jax.interop.parameter_names import HUGGING_FACE, Entry, bert_layout, swin_layout
from s2rm_jax.models.bert import Bert, BertLayer
from s2rm_jax.models.swin import PatchMerging, Swin, SwinBlock
from tests.interop.comparison import Pair
from tests.interop.oracles import arrays, draw_bert, draw_swin, swin_arrays, swin_outputs

if TYPE_CHECKING:
    from transformers import BertModel, SwinBackbone


def whole_swin(size: Mapping[str, Any], window: int) -> Pair:
    """Images [b, h, w, 3] to one map per stage."""
    ours = Swin(**size, window_size=window, mask_padding=False)
    layout = swin_layout(size["depths"], HUGGING_FACE)
    return _pair(draw_swin(size, window), swin_outputs, ours, layout, swin_arrays, _real(1, 64, 64, 3))


def swin_patches(backbone: SwinBackbone) -> Pair:
    """Images [b, h, w, 3] to normed patches [b, t, c]."""
    swin = Swin(embed_dim=backbone.config.embed_dim, depths=(), num_heads=())

    def ours(variables: Any, images: jax.Array) -> tuple[jax.Array]:
        _, seen = swin.apply(variables, images, capture_intermediates=lambda module, _: module.name == "patch_norm")
        grid = seen["intermediates"]["patch_norm"]["__call__"][0]
        return (grid.reshape(grid.shape[0], -1, grid.shape[-1]),)

    def theirs(module: torch.nn.Module, images: torch.Tensor) -> tuple[torch.Tensor]:
        return (module(images.permute(0, 3, 1, 2))[0],)

    layout = _part(swin_layout(backbone.config.depths, HUGGING_FACE), "", "embeddings.")
    shapes = jax.eval_shape(swin.init, jax.random.key(0), _real(1, 64, 64, 3))["params"]
    return Pair(backbone.swin.embeddings, theirs, lambda p, x: ours({"params": p}, x), shapes, layout, swin_arrays)


def swin_block(backbone: SwinBackbone, number: int) -> Pair:
    """A block of the first stage, [b, h, w, c] to the same; those with odd numbers are shifted."""
    config = backbone.config
    block = SwinBlock(config.num_heads[0], config.window_size, shifted=number % 2 == 1, mask_padding=False)

    def theirs(module: torch.nn.Module, x: torch.Tensor) -> tuple[torch.Tensor]:
        return (module(x.flatten(1, 2), tuple(x.shape[1:3]))[0].view(x.shape),)

    layout = _part(
        swin_layout(config.depths, HUGGING_FACE), f"stage1_block{number}/", f"encoder.layers.0.blocks.{number}."
    )
    module = backbone.swin.encoder.layers[0].blocks[number]
    return _pair(module, theirs, block, layout, swin_arrays, _real(1, 24, 24, config.embed_dim))


def swin_merge(backbone: SwinBackbone) -> Pair:
    """The merging behind the first stage, [b, h, w, c] to [b, t, 2c]."""

    def theirs(module: torch.nn.Module, x: torch.Tensor) -> tuple[torch.Tensor]:
        y = module(x.flatten(1, 2), tuple(x.shape[1:3]))
        return (y.unflatten(1, (-(-x.shape[1] // 2), -(-x.shape[2] // 2))),)

    layout = _part(swin_layout(backbone.config.depths, HUGGING_FACE), "stage2_merge/", "encoder.layers.0.downsample.")
    module = backbone.swin.encoder.layers[0].downsample
    return _pair(module, theirs, PatchMerging(), layout, swin_arrays, _real(1, 8, 8, backbone.config.embed_dim))


def whole_bert(**size: Any) -> Pair:
    """Tokens [n, l] and their mask to hidden states; `size` has the fields of our Bert."""
    theirs_size = size | {
        "num_hidden_layers": size["num_layers"],
        "num_attention_heads": size["num_heads"],
        "max_position_embeddings": size["max_positions"],
    }

    def theirs(module: BertModel, tokens: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor]:
        return (module(tokens, attention_mask=mask).last_hidden_state,)

    return _pair(
        draw_bert(**theirs_size), theirs, Bert(**size), bert_layout(size["num_layers"]), arrays, *_expression(8)
    )


def bert_embeddings(bert: BertModel) -> Pair:
    """Tokens [n, l] and their mask, which is not used, to normed embeddings."""
    config = bert.config
    ours = Bert(config.vocab_size, config.hidden_size, num_layers=0, max_positions=config.max_position_embeddings)

    def theirs(module: torch.nn.Module, tokens: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor]:
        return (module(tokens),)

    return _pair(bert.embeddings, theirs, ours, _part(bert_layout(0), "", "embeddings."), arrays, *_expression(8))


def bert_layer(bert: BertModel) -> Pair:
    """Hidden states [n, l, d] and their mask to the next hidden states."""
    config = bert.config
    ours = BertLayer(config.num_attention_heads, config.intermediate_size)

    def theirs(module: torch.nn.Module, x: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor]:
        hidden = torch.where(mask, 0.0, torch.finfo(torch.float32).min)[:, None, None, :]
        return (module(x, hidden),)

    layout = _part(bert_layout(1), "layer0/", "encoder.layer.0.")
    example = _real(1, 8, config.hidden_size), _expression(8)[1]
    return _pair(bert.encoder.layer[0], theirs, ours, layout, arrays, *example)


def _pair(module: Any, theirs: Any, ours: nn.Module, layout: Sequence[Entry], publish: Any, *example: Any) -> Pair:
    shapes = jax.eval_shape(ours.init, jax.random.key(0), *example)["params"]

    def call(params: Any, *inputs: jax.Array) -> tuple[jax.Array, ...]:
        outputs = ours.apply({"params": params}, *inputs)
        return outputs if isinstance(outputs, tuple) else (outputs,)

    return Pair(module, theirs, call, shapes, layout, publish)


def _part(layout: Sequence[Entry], target: str, source: str) -> list[Entry]:
    """Return the entries of one part of a network without prefixes: the inverse of `layout.prefixed`."""
    return [
        Entry(e.target.removeprefix(target), tuple(name.removeprefix(source) for name in e.sources), e.form)
        for e in layout
        if e.sources[0].startswith(source)
    ]


def _real(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def _expression(length: int) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
    return jax.ShapeDtypeStruct((1, length), jnp.int32), jax.ShapeDtypeStruct((1, length), jnp.bool)
