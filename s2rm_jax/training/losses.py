"""Losses on masks, as sums and counts, whose quotient is the mean over valid expressions however a batch is split."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float
from ml_collections import ConfigDict

from s2rm_jax.config import choose

# Weights of background and foreground pixels in the two-class cross-entropy of the LAVT family
# (yz93/LAVT-RIS train.py, lsa1997/CARIS criterion.py).
BACKGROUND_WEIGHT, FOREGROUND_WEIGHT = 0.9, 1.1
DICE_SMOOTHING = 1.0  # pixels; makes the loss of a correct empty mask 0


@runtime_checkable
class MaskLogits(Protocol):
    """What training reads of the output of a network; `models.network.Output` has it.

    Attributes:
        logits: [b, k, H, W] at the size of the image
        coarse_logits: of [b, k, h_i, w_i]; may be empty
        no_target_logits: [b, k], or None without a no-target head
    """

    logits: jax.Array
    coarse_logits: tuple[jax.Array, ...]
    no_target_logits: jax.Array | None


def segmentation_loss(
    output: MaskLogits,
    targets: Bool[Array, "b k h w"],
    valid: Bool[Array, "b k"],
    has_target: Bool[Array, "b k"],
    config: ConfigDict,
) -> Float[Array, ""]:
    """Return the loss summed over the valid expressions; `loss_count` is its divisor.

    Sums and counts of the parts of a batch add up to those of the batch, so accumulation and sharding change nothing.
    Computed in float32. Expressions that are not valid have no effect, even if their logits are not finite.

    `config` is the section config.loss:
        kind "bce_dice": binary cross-entropy plus Dice, each averaged within the expression **[ours]**. Expressions
            without a target have no Dice term: against an empty target it stays near 1 and its gradient vanishes until
            only a few pixels are predicted.
        kind "weighted_ce": two-class cross-entropy with pixel weights 0.9 / 1.1; the logit m is the pair (0, m).
        coarse_weight: weight of the same loss on each coarser mask, against `coarse_targets` **[ours]**.

    Raises:
        UserError: the kind is none of these.
        ValueError: the targets are not bool, or not of the shape of the logits.
    """
    loss = choose("loss.kind", config.kind, _LOSSES).loss
    truth = _truth(targets)
    if truth.shape != output.logits.shape:
        raise ValueError(f"targets {truth.shape} and logits {output.logits.shape} must have the same shape")
    total = _valid_sum(loss, output.logits, truth, valid, has_target)
    if config.coarse_weight:
        for logits in output.coarse_logits:
            cells = coarse_targets(truth, (logits.shape[-2], logits.shape[-1]))
            coarse = _valid_sum(loss, logits, cells, valid, has_target)
            total += config.coarse_weight * coarse
    return total


def loss_count(targets: Bool[Array, "b k h w"], valid: Bool[Array, "b k"], config: ConfigDict) -> Float[Array, ""]:
    """Return the divisor of the loss of a batch, which is known before the forward pass.

    It is the number of valid expressions; for "weighted_ce" each expression counts with its mean pixel weight, because
    PyTorch's weighted mean divides by the sum of the weights and not by the number of pixels.

    Raises:
        UserError, ValueError: as `segmentation_loss`.
    """
    weight = choose("loss.kind", config.kind, _LOSSES).weight
    return jnp.where(valid, weight(_truth(targets)), 0.0).sum()


def no_target_loss(
    logits: Float[Array, "b k"], has_target: Bool[Array, "b k"], valid: Bool[Array, "b k"]
) -> Float[Array, ""]:
    """Return the binary cross-entropy of "refers to nothing", summed over the valid expressions, in float32."""
    logits = jnp.where(valid, logits.astype(jnp.float32), 0.0)
    return jnp.where(valid, jax.nn.softplus(jnp.where(has_target, logits, -logits)), 0.0).sum()


def coarse_targets(truth: Float[Array, "*batch h w"], size: tuple[int, int]) -> Float[Array, "*batch _ _"]:
    """Average masks over the cells of a coarser grid of the network, of `size` (rows, columns).

    The side of a cell is a power of two. If it does not divide that of the mask, the network pads the image at the
    bottom and at the right; the cells there are averaged over their part inside the image.
    """
    padding = [cells * _cell_side(cells, pixels) - pixels for cells, pixels in zip(size, truth.shape[-2:], strict=True)]
    if not any(padding):
        return area_resize(truth, size)

    def average(masks: jax.Array) -> jax.Array:
        widths = [*[(0, 0)] * (masks.ndim - 2), *((0, after) for after in padding)]
        return area_resize(jnp.pad(masks, widths), size)

    return average(truth) / average(jnp.ones(truth.shape[-2:], truth.dtype))


def _cell_side(cells: int, pixels: int) -> int:
    """Return the smallest power of two with which that many cells cover the pixels."""
    return 1 << (-(-pixels // cells) - 1).bit_length()


def area_resize(masks: Float[Array, "*batch h w"], size: tuple[int, int]) -> Float[Array, "*batch _ _"]:
    """Average masks over the cells of a coarser grid of `size` (rows, columns); sizes need not divide."""
    rows, columns = (_cell_overlaps(small, large) for small, large in zip(size, masks.shape[-2:], strict=True))
    return jnp.einsum("ih,...hw,jw->...ij", rows, masks, columns, precision=jax.lax.Precision.HIGHEST)


def _cell_overlaps(cells: int, pixels: int) -> Float[np.ndarray, "cells pixels"]:
    """Return the share of each pixel in each cell when both divide the same length; rows sum to one."""
    cell, pixel = np.arange(cells)[:, None] / cells, np.arange(pixels)[None, :] / pixels
    overlap = np.minimum(cell + 1 / cells, pixel + 1 / pixels) - np.maximum(cell, pixel)
    return (overlap.clip(0) * cells).astype(np.float32)


def _truth(targets: Bool[Array, "b k h w"]) -> Float[Array, "b k h w"]:
    if targets.dtype != jnp.bool:  # masks of 0 and 255 would give a negative loss
        raise ValueError(
            f"targets must be bool [b, k, h, w], got {targets.dtype} {targets.shape}; those of a Batch are packed: "
            "encode.unpack_masks(batch.targets, height)"
        )
    return targets.astype(jnp.float32)


def _valid_sum(
    loss: Callable[..., Float[Array, "b k"]],
    logits: Float[Array, "b k h w"],
    truth: Float[Array, "b k h w"],
    valid: Bool[Array, "b k"],
    has_target: Bool[Array, "b k"],
) -> Float[Array, ""]:
    # Mask the logits and not only the result, which would leave 0 * inf in the gradient.
    logits = jnp.where(valid[..., None, None], logits.astype(jnp.float32), 0.0)
    return jnp.where(valid, loss(logits, truth, has_target), 0.0).sum()


def _bce_dice(
    logits: Float[Array, "*n h w"], truth: Float[Array, "*n h w"], has_target: Bool[Array, "*n"]
) -> Float[Array, "*n"]:
    cross_entropy = truth * jax.nn.softplus(-logits) + (1 - truth) * jax.nn.softplus(logits)
    found = jax.nn.sigmoid(logits)
    overlap, areas = (found * truth).sum((-2, -1)), (found + truth).sum((-2, -1))
    dice = 1 - (2 * overlap + DICE_SMOOTHING) / (areas + DICE_SMOOTHING)
    return cross_entropy.mean((-2, -1)) + jnp.where(has_target, dice, 0.0)


def _weighted_ce(
    logits: Float[Array, "*n h w"], truth: Float[Array, "*n h w"], _: Bool[Array, "*n"]
) -> Float[Array, "*n"]:
    foreground = FOREGROUND_WEIGHT * truth * jax.nn.softplus(-logits)
    background = BACKGROUND_WEIGHT * (1 - truth) * jax.nn.softplus(logits)
    return (foreground + background).mean((-2, -1))


def _mean_pixel_weight(truth: Float[Array, "*n h w"]) -> Float[Array, "*n"]:
    return (FOREGROUND_WEIGHT * truth + BACKGROUND_WEIGHT * (1 - truth)).mean((-2, -1))


def _one(truth: Float[Array, "*n h w"]) -> Float[Array, "*n"]:
    return jnp.ones(truth.shape[:-2], truth.dtype)


class _Loss(NamedTuple):
    """A kind of loss: of each expression, from (logits, truth, has_target); and its weight in `loss_count`."""

    loss: Callable[..., Float[Array, "*n"]]
    weight: Callable[..., Float[Array, "*n"]] = _one


_LOSSES = {"bce_dice": _Loss(_bce_dice), "weighted_ce": _Loss(_weighted_ce, _mean_pixel_weight)}  # config.LOSSES
