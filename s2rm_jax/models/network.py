"""The whole network: images with K expressions each in, one mask per expression out."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int
from ml_collections import ConfigDict

from s2rm_jax.models.bert import Bert
from s2rm_jax.models.casg import CASG, NoTargetHead
from s2rm_jax.models.s2rm import S2RM
from s2rm_jax.models.swin import Swin


@flax.struct.dataclass
class Output:
    """What the network returns; what a jitted caller does not use costs nothing. Leaves are arrays, or their shapes.

    logits           [b, k, H, W] float32 at the size of the input image; the mask is logits > 0
    coarse_logits    tuple of [b, k, h_i, w_i] float32, from the coarsest stage to stride 8
    word_attention   [b, k, heads, h, w, l], where each word was distributed
    group_maps       {pair: [r, b, k, h, w, c]}, what each direction parsed
    balance_weights  {pair: [r, b, k, ...]}, how the directions were weighed
    no_target_logits [b, k] float32, positive where a sentence refers to nothing; None without the head that says so
    """

    logits: Any
    coarse_logits: tuple[Any, ...]
    word_attention: Any
    group_maps: dict[str, Any]
    balance_weights: dict[str, Any]
    no_target_logits: Any = None


class ReferringNetwork(nn.Module):
    """Swin and BERT, fused by S2RM and decoded by CASG **[paper, Fig. 1]**.

    An image is encoded once, whatever is asked of it: all that depends on it alone is computed per image, the rest
    per expression. Segmenting K expressions together gives what K separate calls give.
    """

    vision: Swin
    text: Bert
    fusion: S2RM
    decoder: CASG
    no_target: NoTargetHead | None = None

    def __call__(
        self,
        images: Float[Array, "b height width 3"],
        tokens: Int[Array, "b k l"],
        token_mask: Bool[Array, "b k l"],
        train: bool = False,
    ) -> Output:
        """Segments every expression of every image; while training needs a "dropout" rng."""
        features = self.encode_image(images, train)
        height, width = images.shape[1:3]
        return self.ground(features, tokens, token_mask, (height, width), train)

    def encode_image(
        self, images: Float[Array, "b height width 3"], train: bool = False
    ) -> tuple[Float[Array, "b _ _ _"], ...]:
        """Returns the vision maps from fine to coarse, which `ground` can use for any number of expressions."""
        return self.vision(images, train)

    def ground(
        self,
        features: tuple[Float[Array, "b _ _ _"], ...],
        tokens: Int[Array, "b k l"],
        token_mask: Bool[Array, "b k l"],
        image_size: tuple[int, int],
        train: bool = False,
    ) -> Output:
        """Segments expressions on encoded images; `image_size` is (height, width) of the images in pixels."""
        b, k, length = tokens.shape
        words = self.text(tokens.reshape(b * k, length), token_mask.reshape(b * k, length), train)
        words = words.reshape(b, k, length, -1)
        sentence = words[:, :, 0]  # the state of [CLS] stands for the sentence [ours]
        fused = self.fusion(features[-1], words, token_mask)
        logits = self.decoder(fused.features, features, sentence).logits

        height, width = image_size
        stride = self.vision.patch_size
        *_, h, w = logits[-1].shape
        full = jax.image.resize(logits[-1], (b, k, stride * h, stride * w), "bilinear")[:, :, :height, :width]
        nothing = None
        if self.no_target is not None:
            nothing = self.no_target(sentence, fused.features, logits[0], logits[-1])
        return Output(full, logits[:-1], fused.word_attention, fused.group_maps, fused.balance_weights, nothing)


def build_network(config: ConfigDict) -> ReferringNetwork:
    """Builds the network that the sections vision, text, fusion and decoder and the fields dtype and remat describe."""
    dtype = jnp.dtype(config["dtype"])
    remat = config.get("remat", "none")  # which runs of older versions do not have
    not_of_the_module = {"vocab", "max_tokens", "pretrained", "no_target_width"}

    def fields(section: str) -> dict[str, Any]:
        return {name: value for name, value in dict(config[section]).items() if name not in not_of_the_module}

    return ReferringNetwork(
        vision=Swin(**fields("vision"), remat=remat, dtype=dtype),
        text=Bert(**fields("text"), remat=remat, dtype=dtype),
        fusion=S2RM(**fields("fusion"), dtype=dtype),
        decoder=CASG(**fields("decoder"), remat=remat, dtype=dtype),
        no_target=NoTargetHead(config["decoder"]["no_target_width"]) if config["decoder"]["no_target_width"] else None,
    )
