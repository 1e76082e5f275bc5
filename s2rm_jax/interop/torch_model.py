"""The whole network in PyTorch, in one file to be copied that imports nothing but torch and safetensors.

    model = S2RMModel.from_pretrained("directory")  # with a config.json and a model.safetensors
    model = S2RMModel.from_pretrained("user/name")  # of the Hugging Face Hub; this needs huggingface_hub
    output = model(images, tokens, token_mask)  # [B, 3, H, W], int64 [B, K, L], bool [B, K, L]
    masks = output.logits > 0  # [B, K, H, W]

Outputs and gradients equal those of the JAX network up to rounding; the JAX modules give the source of each part. B
images have K expressions of L tokens each, and each image is encoded once. Images are normalized and channels first
(NCHW). Inside, every map is channels last, [B, h, w, c] or [B, K, h, w, c], because linear layers and LayerNorms work
on the last axis; only convolutions and resizing transpose it. Parameters are float32; for half precision use
`torch.autocast`, under which logits stay float32.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LOWEST = torch.finfo(torch.float32).min  # masks a position in a softmax; unlike -inf, it may mask all of them
PAIRS = ("language_parses_vision", "vision_parses_language")
CHOICES = {
    ("fusion", "mode"): ("s2rm", "sum", "product"),
    ("fusion", "recurrence"): ("gated", "none"),
    ("fusion", "rotations"): (0, 90, 180, 270),
    ("fusion", "pairs"): PAIRS,
    ("fusion", "balance"): ("position", "channel", "mean"),
    ("fusion", "residual"): ("both", "vision"),
    ("decoder", "guidance"): ("full", "maps", "none"),
}
# The other values are variants for ablations that exist in JAX only.
FIXED = {("fusion", "language"): "words", ("decoder", "semantics"): ("sentence", "stages")}


class LoadError(ValueError):
    """A folder does not contain a network that can be loaded; the message is one line."""


class Output(NamedTuple):
    """The output of the network, float32; the mask is logits > 0."""

    logits: Tensor  # [B, K, H, W] at the size of the image
    coarse_logits: tuple[Tensor, ...]  # one [B, K, h_i, w_i] per coarser stage, from the coarsest to stride 8
    word_attention: Tensor  # [B, K, heads, h, w, L], the attention of each position over the words
    balance_weights: dict[str, Tensor]  # {pair: [r, B, K, h, w, 1] or [r, B, K, 1, 1, c]}, the weights of r directions
    no_target_logits: Tensor | None  # [B, K], positive for no referent; None without that head


def find_directory(name: str) -> Path:
    """Return a local folder, or that of a repository of the Hugging Face Hub in the cache of huggingface_hub."""
    path = Path(os.path.expanduser(name))
    named = re.fullmatch(r"(?:hf://)?([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@(\S+))?", name)
    if path.is_file():
        raise LoadError(f"{path} is a file; give its folder.")
    if name and path.is_dir():
        return path
    if named is None:
        raise LoadError(f"folder {name!r} not found; check the path.")
    try:
        from huggingface_hub import snapshot_download

        files = ["config.json", "model.safetensors"]
        return Path(snapshot_download(named[1], revision=named[2], allow_patterns=files))
    except Exception as error:  # the library raises many kinds
        reason = (str(error).split("\n") or [""])[0] or type(error).__name__
        raise LoadError(
            f"{name} is neither a folder nor can it be downloaded from the Hugging Face Hub ({reason})."
        ) from error


def group(**modules: nn.Module) -> Any:
    """Return a module that only contains others, for published names: x = group(dense=...) has "x.dense.weight"."""
    return nn.ModuleDict(modules)


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int, *, visible: Any = None, bias: Any = 0.0, **dropout: Any) -> Any:
    """Attend from S to T positions: [..., S, d], [..., T, d], [..., T, c] -> [..., S, c] and the weights.

    `visible` and `bias` broadcast to the weights [..., heads, S, T]; `dropout` holds p and training for F.dropout.
    """
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(-3, -2) for x in (q, k, v))
    logits = (q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)).float() + bias
    logits = logits if visible is None else logits.masked_fill(~visible, LOWEST)
    weights = logits.softmax(-1)
    attended = (F.dropout(weights, **dropout) if dropout else weights).to(v.dtype) @ v
    return attended.transpose(-3, -2).flatten(-2), weights


def to_windows(x: Tensor, window: int) -> Tensor:
    """[B, h, w, c] -> [B, windows, T, c], T = window²; h and w are multiples of `window`."""
    b, h, w, c = x.shape
    x = x.reshape(b, h // window, window, w // window, window, c).transpose(2, 3)
    return x.reshape(b, (h // window) * (w // window), window * window, c)


def from_windows(x: Tensor, window: int, height: int, width: int) -> Tensor:
    """Undo `to_windows`: [B, windows, T, c] -> [B, height, width, c]."""
    x = x.reshape(x.shape[0], height // window, width // window, window, window, x.shape[-1])
    return x.transpose(2, 3).reshape(x.shape[0], height, width, x.shape[-1])


def visible_pairs(grid: Sequence[int], window: int, shift: int, mask_padding: bool, device: Any) -> Tensor | None:
    """Return which positions of each window attend to each other, bool [windows, 1, T, T]; None means all.

    The grid (height, width) was padded to whole windows and rolled by `shift`. Rolling brings the far edge of the image
    next to the near one. Each of these regions gets a number, and so does the padding if `mask_padding`.
    """
    if not shift and not (mask_padding and any(size % window for size in grid)):
        return None

    def regions(size: int) -> Tensor:
        end = size + -size % window
        position = torch.arange(end, device=device)
        region = (position >= end - window).long() + (position >= end - shift).long()
        return region.masked_fill((position + shift) % end >= size, 3) if mask_padding else region

    numbers = regions(grid[0])[:, None] * 4 + regions(grid[1])
    numbers = to_windows(numbers[None, :, :, None], window)[0, :, None, :, 0]
    return numbers[..., :, None] == numbers[..., None, :]


def drop_path(x: Tensor, rate: float, training: bool) -> Tensor:
    """Apply stochastic depth: in training, drop a residual branch [B, h, w, c] for a whole image."""
    return x * F.dropout(x.new_ones(x.shape[0], 1, 1, 1), rate, training) if training and rate else x


class WindowAttention(nn.Module):
    """Multi-head self-attention inside windows, with a learnt bias for each relative position."""

    def __init__(self, channels: int, heads: int, window: int):
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(channels, channels) for _ in range(3))
        self.relative_position_bias_table = nn.Parameter(0.02 * torch.randn((2 * window - 1) ** 2, heads))
        row, column = torch.arange(window).repeat_interleave(window), torch.arange(window).repeat(window)
        rows, columns = (x[:, None] - x + window - 1 for x in (row, column))
        self.table_row: Tensor  # [T, T], for each pair of positions
        self.register_buffer("table_row", rows * (2 * window - 1) + columns, persistent=False)

    def forward(self, x: Tensor, visible: Tensor | None) -> Tensor:
        """[B, windows, T, c] -> the same; `visible` as `visible_pairs` gives it."""
        bias = self.relative_position_bias_table[self.table_row].permute(2, 0, 1)  # [heads, T, T]
        return attend(self.query(x), self.key(x), self.value(x), self.heads, visible=visible, bias=bias)[0]


class SwinBlock(nn.Module):
    """Window attention and an MLP, each after a LayerNorm and with a residual connection."""

    def __init__(self, channels: int, heads: int, window: int, drop_rate: float):
        super().__init__()
        self.window, self.drop_rate = window, drop_rate
        self.layernorm_before, self.layernorm_after = (nn.LayerNorm(channels, eps=1e-5) for _ in range(2))
        output = group(dense=nn.Linear(channels, channels))
        self.attention = group(**{"self": WindowAttention(channels, heads, window), "output": output})
        self.intermediate = group(dense=nn.Linear(channels, 4 * channels))
        self.output = group(dense=nn.Linear(4 * channels, channels))

    def forward(self, x: Tensor, shift: int, visible: Tensor | None) -> Tensor:
        """[B, h, w, c] -> the same shape for any h and w: the grid is padded to whole windows, rolled and restored."""
        _, height, width, _ = x.shape
        pad_h, pad_w = -height % self.window, -width % self.window
        y = F.pad(self.layernorm_before(x), (0, 0, 0, pad_w, 0, pad_h))
        y = to_windows(y.roll((-shift, -shift), (1, 2)) if shift else y, self.window)
        y = self.attention.output.dense(self.attention.self(y, visible))
        y = from_windows(y, self.window, height + pad_h, width + pad_w)
        y = y.roll((shift, shift), (1, 2)) if shift else y
        x = x + drop_path(y[:, :height, :width], self.drop_rate, self.training)
        y = F.gelu(self.intermediate.dense(self.layernorm_after(x)))
        return x + drop_path(self.output.dense(y), self.drop_rate, self.training)


class PatchMerging(nn.Module):
    """Halve the grid and double the channels: 2 x 2 neighbours are concatenated, normalized and projected."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = nn.LayerNorm(4 * channels, eps=1e-5)
        self.reduction = nn.Linear(4 * channels, 2 * channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, h, w, c] -> [B, ceil(h/2), ceil(w/2), 2c]; an odd side is padded with zeros."""
        x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
        # The published order of the neighbours (row, column): (0,0), (1,0), (0,1), (1,1).
        x = torch.cat([x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)], dim=-1)
        return self.reduction(self.norm(x))


class Swin(nn.Module):
    """The vision backbone (arXiv:2103.14030); names of parameters as in Hugging Face's files.

    Each output has its own LayerNorm. Without `mask_padding`, the padding to whole windows is attended to, as in
    published code.
    """

    def __init__(self, config: dict[str, Any]):
        super().__init__()
        self.window, self.mask_padding = config["window_size"], config["mask_padding"]
        self.patch = 4  # pixels
        depths, self.widths = config["depths"], [config["embed_dim"] * 2**i for i in range(len(config["depths"]))]
        projection = nn.Conv2d(3, self.widths[0], self.patch, stride=self.patch)
        norm = nn.LayerNorm(self.widths[0], eps=1e-5)
        self.embeddings = group(patch_embeddings=group(projection=projection), norm=norm)
        rates = iter(torch.linspace(0.0, config["drop_path_rate"], sum(depths), dtype=torch.float64).tolist())
        self.encoder = group(layers=nn.ModuleList())
        for width, depth, heads in zip(self.widths, depths, config["num_heads"], strict=True):
            blocks = nn.ModuleList(SwinBlock(width, heads, self.window, next(rates)) for _ in range(depth))
            self.encoder.layers.append(group(blocks=blocks))
            if width != self.widths[-1]:
                self.encoder.layers[-1]["downsample"] = PatchMerging(width)
        norms = {f"stage{i}": nn.LayerNorm(width, eps=1e-5) for i, width in enumerate(self.widths, start=1)}
        self.hidden_states_norms = group(**norms)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """[B, 3, H, W] -> one map per stage, from fine to coarse: [B, ceil(H/4), ceil(W/4), c], [B, ceil(H/8), ..."""
        images = F.pad(images, (0, -images.shape[3] % self.patch, 0, -images.shape[2] % self.patch))
        x = self.embeddings.norm(self.embeddings.patch_embeddings.projection(images).permute(0, 2, 3, 1))
        outputs = []
        for layer, norm in zip(self.encoder.layers, self.hidden_states_norms.values(), strict=True):
            grid = x.shape[1:3]
            # A window that spans a whole side is already global there, so the published models do not shift it.
            shifts = (0, self.window // 2 if min(grid) > self.window else 0)
            masks = [visible_pairs(grid, self.window, s, self.mask_padding, x.device) for s in shifts]
            for index, block in enumerate(layer.blocks):  # every second one is shifted
                x = block(x, shifts[index % 2], masks[index % 2])
            outputs.append(norm(x))
            x = layer.downsample(x) if "downsample" in layer else x
        return tuple(outputs)


class BertLayer(nn.Module):
    """Self-attention and a feed-forward part, each followed by a residual connection and a LayerNorm."""

    def __init__(self, width: int, heads: int, intermediate: int, drop_rate: float):
        super().__init__()
        self.heads, self.drop_rate = heads, drop_rate
        inputs = group(**{name: nn.Linear(width, width) for name in ("query", "key", "value")})
        output = group(dense=nn.Linear(width, width), LayerNorm=nn.LayerNorm(width, eps=1e-12))
        self.attention = group(**{"self": inputs, "output": output})
        self.intermediate = group(dense=nn.Linear(width, intermediate))
        self.output = group(dense=nn.Linear(intermediate, width), LayerNorm=nn.LayerNorm(width, eps=1e-12))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """[N, L, d], bool [N, L] -> [N, L, d]; positions outside `mask` are not attended to."""
        inputs, output = self.attention.self, self.attention.output
        q, k, v = inputs.query(x), inputs.key(x), inputs.value(x)
        visible = mask[:, None, None, :]
        attended, _ = attend(q, k, v, self.heads, visible=visible, p=self.drop_rate, training=self.training)
        x = output.LayerNorm(x + F.dropout(output.dense(attended), self.drop_rate, self.training))
        y = self.output.dense(F.gelu(self.intermediate.dense(x)))
        return self.output.LayerNorm(x + F.dropout(y, self.drop_rate, self.training))


class Bert(nn.Module):
    """The language encoder (arXiv:1810.04805) without pooler; names of parameters as in Hugging Face's files."""

    def __init__(self, config: dict[str, Any]):
        super().__init__()
        self.drop_rate, width = config["dropout_rate"], config["hidden_size"]
        counts = {"word": config["vocab_size"], "position": config["max_positions"], "token_type": 2}
        tables = {f"{name}_embeddings": nn.Embedding(count, width) for name, count in counts.items()}
        for table in tables.values():
            nn.init.normal_(table.weight, std=0.02)
        self.embeddings = group(**tables, LayerNorm=nn.LayerNorm(width, eps=1e-12))
        sizes = width, config["num_heads"], config["intermediate_size"], self.drop_rate
        self.encoder = group(layer=nn.ModuleList(BertLayer(*sizes) for _ in range(config["num_layers"])))

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """int64 [N, L], bool [N, L] -> the last hidden states [N, L, d]; every expression is one segment (type 0)."""
        tables, length = self.embeddings, tokens.shape[1]
        positions = tables.position_embeddings.weight
        if length > len(positions):
            raise ValueError(f"{length} tokens, but only {len(positions)} positions")
        x = tables.word_embeddings(tokens) + positions[:length] + tables.token_type_embeddings.weight[0]
        x = F.dropout(tables.LayerNorm(x), self.drop_rate, self.training)
        for layer in self.encoder.layer:
            x = layer(x, mask)
        return x


class Distribute(nn.Module):
    """Distribute the language over the image: each position attends to the words and receives words only."""

    def __init__(self, width: int, text_width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(inputs, width) for inputs in (width, text_width, text_width))
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, vision: Tensor, words: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """[B, h, w, c], [B, K, L, d], bool [B, K, L] -> language [B, K, h, w, c], attention [B, K, heads, h, w, L]."""
        visible = mask[:, :, None, None, :]
        positions = self.query(vision).flatten(1, 2)[:, None]  # [B, 1, h·w, c]
        language, weights = attend(positions, self.key(words), self.value(words), self.heads, visible=visible)
        grid = vision.shape[1:3]
        return self.norm(language.unflatten(2, grid)), weights.unflatten(3, grid)


class Coparse(nn.Module):
    """Parse one modality by the other (the generator), slice by slice, from each of the r directions.

    A gated recurrence runs over the generator's slices; its state at a slice gives the keys and values with which the
    same slice of the parsed feature is read. Each pair and direction has its own weights.
    """

    def __init__(self, width: int, size: int, rotations: tuple[int, ...], gated: bool, pairs: tuple[str, ...]):
        super().__init__()
        self.size, self.rotations, self.gated = size, rotations, gated
        gates = 3 * size if gated else size
        shapes = {"gates_kernel": (width, gates), "query": (width, size), "key": (size, size), "value": (size, width)}
        shapes |= {"update_reset": (size, 2 * size), "candidate": (size, size)} if gated else {}
        for pair in pairs:
            self.register_parameter(f"{pair}_gates_bias", nn.Parameter(torch.zeros(len(rotations), gates)))
            for name, shape in shapes.items():
                kernel = torch.randn(len(rotations), *shape) * shape[0] ** -0.5
                self.register_parameter(f"{pair}_{name}", nn.Parameter(kernel))

    def forward(self, pair: str, generator: Tensor, parsed: Tensor) -> Tensor:
        """Two of [B, K, h, w, c], where K is 1 for the image -> group maps [r, B, K, h, w, c]."""
        own = {name.removeprefix(f"{pair}_"): p for name, p in self.named_parameters() if name.startswith(f"{pair}_")}
        maps = []
        for direction, degrees in enumerate(self.rotations):
            # Rotated counter-clockwise; rows are the slices, read from the top: [B, K, s, m, c].
            source, target = (x.rot90(degrees // 90, (2, 3)) for x in (generator, parsed))
            weight = {name: p[direction] for name, p in own.items()}
            states = self.recur(source @ weight["gates_kernel"] + weight["gates_bias"], weight)
            keys, values = states @ weight["key"], states @ weight["value"]
            # `attend` with one head; splitting maps into heads makes the export to ONNX slow.
            logits = (target @ weight["query"] * self.size**-0.5 @ keys.transpose(-2, -1)).float()
            read = logits.softmax(-1).to(values.dtype) @ values
            maps.append(read.rot90(-degrees // 90, (2, 3)))
        return torch.stack(maps)

    def recur(self, gates: Tensor, weight: dict[str, Tensor]) -> Tensor:
        """Inputs of the gates (update, reset, candidate) [B, K, s, m, 3 size] -> states [B, K, s, m, size]."""
        if not self.gated:
            return gates.tanh()
        update_reset, candidate = gates.split([2 * self.size, self.size], dim=-1)
        h = torch.zeros_like(candidate[:, :, 0])
        states = []
        for to_gate, to_candidate in zip(update_reset.unbind(2), candidate.unbind(2), strict=True):
            update, reset = (to_gate + h @ weight["update_reset"]).sigmoid().chunk(2, dim=-1)
            h = (1 - update) * h + update * (to_candidate + (reset * h) @ weight["candidate"]).tanh()
            states.append(h)
        return torch.stack(states, dim=2)


class Balance(nn.Module):
    """Sum the directions of a pair, with weights computed from the parsed maps themselves."""

    def __init__(self, channels: int, kind: str, directions: int):
        super().__init__()
        self.kind = "mean" if directions == 1 else kind  # a single direction needs no weights
        if self.kind != "mean":
            self.hidden = nn.Linear(channels, max(channels // 4, 8))
            self.score = nn.Linear(self.hidden.out_features, 1 if kind == "position" else channels, bias=False)

    def forward(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """[r, B, K, h, w, c] -> the weighted sum over r, and the weights (see `Output`)."""
        if self.kind == "mean":
            weights = torch.full((len(maps), 1, 1, 1, 1, 1), 1 / len(maps), device=maps.device)
        else:
            evidence = maps if self.kind == "position" else maps.mean((3, 4), keepdim=True)
            weights = self.score(self.hidden(evidence).tanh()).float().softmax(0)
        return (weights.to(maps.dtype) * maps).sum(0), weights


class S2RM(nn.Module):
    """Fuse the coarsest vision map with the words of each expression."""

    def __init__(self, config: dict[str, Any], vision_width: int, text_width: int):
        super().__init__()
        self.mode, width = config["mode"], config["width"]
        self.keeps_language = config["residual"] == "both"
        self.pairs, rotations = tuple(config["pairs"]), tuple(config["rotations"])
        self.vision_projection, self.vision_norm = nn.Linear(vision_width, width), nn.LayerNorm(width, eps=1e-6)
        self.distribute = Distribute(width, text_width, config["num_heads"])
        if self.mode == "s2rm":
            gated = config["recurrence"] == "gated"
            self.coparse = Coparse(width, config["recurrent_width"], rotations, gated, self.pairs)
            for pair in self.pairs:
                self.add_module(f"{pair}_balance", Balance(width, config["balance"], len(rotations)))
        self.mix = nn.Linear(width * (len(self.pairs) if self.mode == "s2rm" else 1), width)
        self.mlp_in, self.mlp_out = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.fused_norm, self.output_norm = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)

    def forward(self, vision: Tensor, words: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """[B, h, w, c], [B, K, L, d], bool [B, K, L] -> fused [B, K, h, w, c], word attention, balance weights."""
        image = self.vision_norm(self.vision_projection(vision))
        language, attention = self.distribute(image, words, mask)
        image = image[:, None]  # shared by all K expressions
        mixed = language if self.mode == "sum" else language * image
        weights: dict[str, Tensor] = {}
        if self.mode == "s2rm":
            balanced = []
            for pair in self.pairs:
                generator, parsed = (language, image) if pair == PAIRS[0] else (image, language)
                one, weights[pair] = self.get_submodule(f"{pair}_balance")(self.coparse(pair, generator, parsed))
                balanced.append(one)
            mixed = torch.cat(balanced, dim=-1)
        residual = image + language if self.keeps_language else image
        fused = self.fused_norm(residual + self.mix(mixed))
        hidden = F.gelu(self.mlp_in(fused), approximate="tanh")
        return self.output_norm(fused + self.mlp_out(hidden)), attention, weights


def upsample(x: Tensor, factor: int, grid: Sequence[int]) -> Tensor:
    """Upsample bilinearly with half-pixel centres and crop to the grid: [B, c, h, w] -> [B, c, *grid]."""
    size = (factor * x.shape[2], factor * x.shape[3])
    return F.interpolate(x, size, mode="bilinear", align_corners=False)[:, :, : grid[0], : grid[1]]


def as_images(function: Any, x: Tensor) -> Tensor:
    """Apply a function of channels-first [N, c, h, w] to maps [B, K, h, w, c], N = B·K."""
    y = function(x.flatten(0, 1).permute(0, 3, 1, 2))
    return y.permute(0, 2, 3, 1).unflatten(0, x.shape[:2])


def foreground_mean(x: Tensor, logits: Tensor) -> Tensor:
    """Average features [B, K, h, w, c], weighted by the probability of foreground [B, K, h, w] -> [B, K, c]."""
    foreground = logits.sigmoid()
    return torch.einsum("bkhwc,bkhw->bkc", x.float(), foreground) / (foreground.sum((2, 3))[..., None] + 1e-6)


class ConvBlock(nn.Module):
    """3 x 3 convolution, LayerNorm over channels, GELU."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.norm = nn.LayerNorm(outputs, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """[B, K, h, w, inputs] -> [B, K, h, w, outputs]."""
        return F.gelu(self.norm(as_images(self.conv, x)), approximate="tanh")


class Guide(nn.Module):
    """Emphasize the referent in a vision map by the abstract semantics, in space and in channels."""

    def __init__(self, semantics: int, channels: int):
        super().__init__()
        self.hidden = nn.Linear(semantics, 2 * channels)
        self.where, self.which = nn.Linear(2 * channels, channels), nn.Linear(2 * channels, channels)

    def forward(self, pure: Tensor, semantics: Tensor, coarse: Tensor) -> Tensor:
        """[B, h, w, c], [B, K, d], logits [B, K, h, w] -> the guided map of each expression [B, K, h, w, c]."""
        hidden = F.gelu(self.hidden(semantics), approximate="tanh")
        where, which = self.where(hidden), self.which(hidden).sigmoid()
        similarity = torch.einsum("bhwc,bkc->bkhw", pure, where).float() * pure.shape[-1] ** -0.5
        emphasis = (similarity + coarse).sigmoid()
        return pure[:, None] * which[:, :, None, None, :] * (1 + emphasis[..., None])


class MaskHead(nn.Module):
    """Mask logits of a stage: a 1 x 1 convolution, plus a kernel computed from the semantics if `guided`."""

    def __init__(self, channels: int, semantics: int, guided: bool):
        super().__init__()
        self.kernel = nn.Linear(channels, 1)
        self.meant = nn.Linear(semantics, channels) if guided else None

    def forward(self, x: Tensor, semantics: Tensor) -> Tensor:
        """[B, K, h, w, c], [B, K, d] -> [B, K, h, w]."""
        logits = self.kernel(x)[..., 0]
        if self.meant is None:
            return logits
        return logits + torch.einsum("bkhwc,bkc->bkhw", x, self.meant(semantics)) * x.shape[-1] ** -0.5


class CASG(nn.ModuleDict):
    """Decode masks from coarse to fine, one stage per vision map, guided by the expression and the previous stages."""

    def __init__(self, config: dict[str, Any], vision_widths: list[int], fused_width: int, semantics: int):
        super().__init__()
        widths, full = config["widths"], config["guidance"] == "full"
        self.guided = config["guidance"] != "none"
        before = fused_width
        for stage, (width, vision_width) in reversed(list(enumerate(zip(widths, vision_widths, strict=True), start=1))):
            if stage < len(widths):
                self[f"stage{stage}_vision"] = nn.Linear(vision_width, width)
                self[f"stage{stage}_vision_norm"] = nn.LayerNorm(width, eps=1e-6)
                self[f"stage{stage}_narrow"] = nn.Linear(before, width)
                if self.guided:
                    semantics += before
                    self[f"stage{stage}_guide"] = Guide(semantics, width)
            self[f"stage{stage}_block"] = ConvBlock(2 * width if stage < len(widths) else fused_width, width)
            self[f"stage{stage}_mask"] = MaskHead(width, semantics, full)
            before = width

    def forward(self, fused: Tensor, vision: tuple[Tensor, ...], sentence: Tensor) -> list[Tensor]:
        """[B, K, h, w, c], maps [B, h_i, w_i, c_i] from fine to coarse, [B, K, d] -> logits from coarse to fine.

        The last map of `vision` is not read, because `fused` is made from it.
        """
        semantics = sentence.float()
        x = self[f"stage{len(vision)}_block"](fused)
        logits = [self[f"stage{len(vision)}_mask"](x, semantics)]
        for stage in range(len(vision) - 1, 0, -1):
            grid = vision[stage - 1].shape[1:3]
            pure = self[f"stage{stage}_vision_norm"](self[f"stage{stage}_vision"](vision[stage - 1]))
            coarse = upsample(logits[-1], 2, grid)
            if self.guided:
                semantics = torch.cat([semantics, foreground_mean(x, logits[-1])], dim=-1)
                pure = self[f"stage{stage}_guide"](pure, semantics, coarse)
            else:
                pure = pure[:, None].expand(-1, fused.shape[1], -1, -1, -1)
            x = as_images(partial(upsample, factor=2, grid=grid), self[f"stage{stage}_narrow"](x))
            x = self[f"stage{stage}_block"](torch.cat([x, pure], dim=-1))
            logits.append(self[f"stage{stage}_mask"](x, semantics) + coarse)
        return logits


class NoTargetHead(nn.Module):
    """Predict whether an expression has no referent, from its features, those of S2RM, and the masks."""

    def __init__(self, semantics: int, fused_width: int, width: int):
        super().__init__()
        self.hidden = nn.Linear(semantics + 2 * fused_width + 2, width)
        self.nothing = nn.Linear(width, 1)

    def forward(self, sentence: Tensor, fused: Tensor, coarsest: Tensor, finest: Tensor) -> Tensor:
        """[B, K, d], [B, K, h, w, c], mask logits [B, K, h, w] and [B, K, h4, w4] -> logits [B, K]."""
        foreground = finest.sigmoid().flatten(2)
        confidence = torch.stack([foreground.amax(-1), foreground.mean(-1)], dim=-1)
        features = [sentence.float(), fused.mean((2, 3)), foreground_mean(fused, coarsest), confidence]
        return self.nothing(F.gelu(self.hidden(torch.cat(features, dim=-1)), approximate="tanh"))[..., 0]


def check_inputs(images: Tensor, tokens: Tensor, token_mask: Tensor, dtype: torch.dtype, words: int) -> None:
    """Raise a ValueError if the inputs of the network, or the type of its parameters, are not what it expects.

    `words` is the size of the vocabulary.
    """
    shapes = images.ndim == 4 and images.shape[1] == 3 and tokens.ndim == 3 and token_mask.shape == tokens.shape
    shapes = shapes and len(images) == len(tokens) and 0 not in tokens.shape
    types = images.is_floating_point() and tokens.dtype in (torch.int32, torch.int64) and token_mask.dtype == torch.bool
    if not (shapes and types):
        found = ", ".join(f"{str(x.dtype)[6:]} {list(x.shape)}" for x in (images, tokens, token_mask))
        raise ValueError(
            f"images, tokens and token_mask must be float32 [B, 3, H, W], int64 [B, K, L] and bool [B, K, L], and not "
            f"empty; got {found}"
        )
    if dtype != torch.float32:
        raise ValueError(f"the parameters are {str(dtype)[6:]}; keep them float32 and use torch.autocast")
    # On other devices the check would wait for the device.
    if tokens.device.type == "cpu" and tokens.numel() and not torch.compiler.is_compiling():
        low, high = tokens.aminmax()
        if low < 0 or high >= words:
            raise ValueError(f"tokens must be from 0 to {words - 1}, got {low} to {high}; use the tokenizer of the run")


class S2RMModel(nn.Module):
    """Swin and BERT, fused by S2RM and decoded by CASG.

    `config` has the sections vision, text, fusion and decoder of the config.json of a run; fields that do not concern
    the network are ignored.
    """

    def __init__(self, config: dict[str, Any]):
        super().__init__()
        for (section, field), choices in CHOICES.items():
            found = config[section][field]
            chosen = set(found) if isinstance(found, list | tuple) else {found}
            if not chosen or not chosen <= set(choices):
                raise ValueError(
                    f"{section}.{field} is {found!r} but must be one or more of {', '.join(map(str, choices))}"
                )
        for (section, field), value in FIXED.items():
            found = config[section].get(field, value)
            several = isinstance(value, tuple) and isinstance(found, list | tuple)
            if found != value and not (several and sorted(map(str, found)) == sorted(value)):
                raise ValueError(f"{section}.{field} is {found!r}; PyTorch has {value!r} only")
        text_width, fused_width = config["text"]["hidden_size"], config["fusion"]["width"]
        self.vision = Swin(config["vision"])
        self.text = Bert(config["text"])
        self.fusion = S2RM(config["fusion"], self.vision.widths[-1], text_width)
        self.decoder = CASG(config["decoder"], self.vision.widths, fused_width, text_width)
        width = config["decoder"].get("no_target_width", 0)  # absent from older configurations
        self.no_target = NoTargetHead(text_width, fused_width, width) if width else None

    @classmethod
    def from_pretrained(cls, directory: str | Path) -> S2RMModel:
        """Return the network of directory/config.json with the weights of directory/model.safetensors, in eval mode.

        Args:
            directory: the folder, or a repository of the Hugging Face Hub, which is downloaded once: "user/name" or
                "user/name@revision". A local folder of that name comes first, except after "hf://".

        Raises:
            LoadError: a file is missing or damaged, or weights are missing, unexpected, of another shape, or not finite
                floating-point numbers; the error lists all of them. Or the Hub cannot be reached, or does not have the
                repository.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        directory = find_directory(str(directory or ""))
        if next(directory.glob("encode_image.*"), None) is not None:
            raise LoadError(f"{directory} is an ONNX or StableHLO export; use segment.py in it.")
        config_file, weights_file = directory / "config.json", directory / "model.safetensors"
        absent = [path.name for path in (config_file, weights_file) if not path.is_file()]
        if absent:
            save = f"write it with safetensors.torch.save_file(model.state_dict(), {str(weights_file)!r}), or "
            advice = f"{save if absent == [weights_file.name] else ''}export the network again"
            raise LoadError(f"{directory} lacks {' and '.join(absent)}; {advice}.")
        try:
            model = cls(json.loads(config_file.read_text(encoding="utf-8")))
        except (ValueError, KeyError, TypeError) as error:
            raise LoadError(f"{config_file} does not describe a network ({error!r}); export it again.") from error
        try:
            found = load_file(weights_file)
        except (OSError, SafetensorError) as error:
            raise LoadError(f"{weights_file} cannot be read ({error}); export it again.") from error
        expected = model.state_dict()
        mistakes = [f"{name} is missing" for name in expected if name not in found]
        mistakes += [f"{name} is unexpected" for name in found if name not in expected]
        for name in expected.keys() & found.keys():
            is_, must_be = tuple(found[name].shape), tuple(expected[name].shape)
            mistakes += [f"{name} is {is_} but must be {must_be}"] if is_ != must_be else []
            if not found[name].is_floating_point():
                mistakes.append(f"{name} holds {str(found[name].dtype)[6:]}, not floating-point numbers")
            elif not found[name].float().isfinite().all():
                mistakes.append(f"{name} holds NaN or infinity")
        if mistakes:
            raise LoadError(f"{weights_file} does not fit the config.json next to it: {'; '.join(mistakes)}.")
        model.load_state_dict(found)
        return model.eval()

    def forward(self, images: Tensor, tokens: Tensor, token_mask: Tensor) -> Output:
        """Segment every expression of every image: [B, 3, H, W], int64 [B, K, L], bool [B, K, L] -> `Output`.

        Raises:
            ValueError: an input has another shape or type, tokens on the CPU are outside the vocabulary, or the
                parameters are not float32.
        """
        words = self.text.embeddings.word_embeddings.num_embeddings
        check_inputs(images, tokens, token_mask, self.fusion.output_norm.weight.dtype, words)
        return self.ground(self.encode_image(images), tokens, token_mask, (images.shape[2], images.shape[3]))

    def encode_image(self, images: Tensor) -> tuple[Tensor, ...]:
        """[B, 3, H, W] -> maps [B, h_i, w_i, c_i] from fine to coarse, for any number of calls of `ground`."""
        return self.vision(images)

    def ground(
        self, features: tuple[Tensor, ...], tokens: Tensor, token_mask: Tensor, image_size: tuple[int, int]
    ) -> Output:
        """Segment expressions on encoded images of image_size = (height, width) pixels and return `Output`."""
        words = self.text(tokens.flatten(0, 1), token_mask.flatten(0, 1)).unflatten(0, tokens.shape[:2])
        fused, attention, weights = self.fusion(features[-1], words, token_mask)
        sentence = words[:, :, 0]  # the state of [CLS] stands for the whole expression
        *coarse, finest = (x.float() for x in self.decoder(fused, features, sentence))  # autocast makes them narrower
        no_target = self.no_target(sentence, fused, coarse[0], finest) if self.no_target else None
        full = upsample(finest, self.vision.patch, image_size)
        return Output(full, tuple(coarse), attention, weights, None if no_target is None else no_target.float())
