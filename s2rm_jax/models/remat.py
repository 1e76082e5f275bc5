"""Rematerialisation: which results of a block the backward pass computes anew instead of keeping them."""

from __future__ import annotations

from typing import TypeVar

import flax.linen as nn
import jax

POLICIES = ("none", "dense", "blocks")

Block = TypeVar("Block", bound=type[nn.Module])


def rematerialised(block: Block, policy: str, looped: bool = False) -> Block:
    """Returns the module class `block`, whose instances keep for the backward pass what `policy` says.

    Values, gradients, dropout and the tree of parameters are the same with every policy.

    Args:
        block: a class of modules.
        policy: "none" keeps everything that the gradient needs. "dense" keeps what comes out of dense layers and
            computes anew what is cheap for its size: attention weights, norms, GELUs. "blocks" keeps nothing but the
            input of the block, so that its forward pass runs a second time.
        looped: they run inside a loop, where the compiler cannot take the second computation for the first.

    Raises:
        ValueError: there is no such policy.
    """
    if policy not in POLICIES:
        raise ValueError(f"remat must be one of {POLICIES}, not {policy!r}")
    if policy == "none":
        return block
    # The products of attention have batch dimensions, those of dense layers have none.
    kept = jax.checkpoint_policies.dots_with_no_batch_dims_saveable if policy == "dense" else None
    return nn.remat(block, policy=kept, prevent_cse=not looped)
