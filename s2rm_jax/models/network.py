"""The whole network: images and K expressions of each in, one mask per expression out."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import Any, ParamSpec, Protocol, TypeVar, cast, runtime_checkable

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int, UInt8
from ml_collections import ConfigDict

from s2rm_jax.config import DTYPES, choose
from s2rm_jax.models.bert import Bert
from s2rm_jax.models.casg import CASG, NoTargetHead
from s2rm_jax.models.s2rm import S2RM
from s2rm_jax.models.swin import Swin

IMAGENET_MEAN = (0.485, 0.456, 0.406)  # RGB, of values in [0, 1]
IMAGENET_STD = (0.229, 0.224, 0.225)
_SCALE = (1.0 / (255.0 * np.asarray(IMAGENET_STD))).astype(np.float32)
_OFFSET = (-np.asarray(IMAGENET_MEAN) / np.asarray(IMAGENET_STD)).astype(np.float32)

_DTYPES = {name: jnp.dtype(name) for name in DTYPES}

_P = ParamSpec("_P")
_T = TypeVar("_T")


def keep_for_equal_networks(most: int) -> Callable[[Callable[_P, _T]], Callable[_P, _T]]:
    """Decorate a function of a network so that it returns the same object for equal arguments, as `lru_cache` does.

    A network with an array among its fields cannot be compared; the function is then called each time.
    """

    def decorate(function: Callable[_P, _T]) -> Callable[_P, _T]:
        keeping = cast("Callable[_P, _T]", lru_cache(maxsize=most)(function))

        @wraps(function)
        def call(*arguments: _P.args, **named: _P.kwargs) -> _T:
            try:
                hash((arguments, tuple(named.values())))
            except TypeError:
                return function(*arguments, **named)
            return keeping(*arguments, **named)

        return call

    return decorate


def normalize(images: UInt8[Any, "*batch height width 3"]) -> Float32[Any, "*batch height width 3"]:
    """Scale RGB values to [0, 1], subtract the ImageNet mean and divide by the ImageNet standard deviation.

    Takes NumPy arrays and JAX arrays.
    """
    return images.astype(np.float32) * _SCALE + _OFFSET


def _check_images(images: Any) -> None:
    """Raise ValueError unless images are uint8 or float [b, height, width, 3]."""
    if images.ndim != 4 or images.shape[-1] != 3:
        first = images.ndim == 4 and images.shape[1] == 3
        hint = "; move the channels to the end: images.transpose(0, 2, 3, 1)" if first else ""
        raise ValueError(f"images must have shape [b, height, width, 3], got {images.shape}{hint}")
    if images.dtype != jnp.uint8 and not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(f"images must be uint8, or float and normalized (`normalize`), got {images.dtype}")


def _check_tokens(tokens: Any, images: Any) -> None:
    """Raise ValueError unless tokens are those of this number of images (symbolic in exports), [b, k, l]."""
    if tokens.ndim != 3 or tokens.shape[0] != images:
        raise ValueError(f"tokens must have shape [b, k, l] with b = {images} images, got {tokens.shape}")


def _check_token_mask(token_mask: Any, shape: tuple[Any, ...]) -> None:
    """Raise ValueError unless a token mask is bool and has the shape of the tokens."""
    if token_mask.dtype != jnp.bool or token_mask.shape != shape:
        got = f"{token_mask.dtype} {token_mask.shape}"
        raise ValueError(f"token_mask must be bool {shape}, true for tokens and false for padding, got {got}")


@runtime_checkable
class Backbone(Protocol):
    """The interface of the vision module; `build_network` uses a `Swin`."""

    @property
    def patch_size(self) -> int:
        """The stride of the finest map in pixels; that of each further map is twice as large."""

    def __call__(
        self, images: Float[Array, "b height width 3"], train: bool = False
    ) -> tuple[Float[Array, "b _ _ _"], ...]:
        """Return maps from fine to coarse, as many as the decoder has widths; sides are padded to whole strides."""
        ...


@flax.struct.dataclass
class Output:
    """The output of the network; what a jitted caller ignores costs nothing. Leaves are arrays, or their shapes."""

    logits: Any  # [b, k, H, W] float32 at the size of the input image; the mask is logits > 0
    coarse_logits: tuple[Any, ...]  # of [b, k, h_i, w_i] float32, from the coarsest stage to stride 8
    word_attention: Any  # [b, k, heads, h, w, l], the attention of each position over the words
    group_maps: dict[str, Any]  # {pair: [r, b, k, h, w, c]}, the parsed map of each direction
    balance_weights: dict[str, Any]  # {pair: [r, b, k, ...]}, the weight of each direction
    no_target_logits: Any = None  # [b, k] float32, positive where an expression has no referent; None without that head


class ReferringNetwork(nn.Module):
    """Swin and BERT, fused by S2RM and decoded by CASG **[paper, Fig. 1]**.

    Each image is encoded once for all of its expressions: what depends on the image alone is computed per image, the
    rest per expression. Segmenting K expressions together gives the same masks as K separate calls.

    Images are RGB, either uint8, which the network normalizes (`normalize`), or float, taken as normalized already.
    """

    vision: Backbone
    text: Bert
    fusion: S2RM
    decoder: CASG
    no_target: NoTargetHead | None = None

    def __call__(
        self,
        images: UInt8[Array, "b height width 3"] | Float[Array, "b height width 3"],
        tokens: Int[Array, "b k l"],
        token_mask: Bool[Array, "b k l"],
        train: bool = False,
    ) -> Output:
        """Segment every expression of every image; if `train`, `apply` needs rngs={"dropout": key}.

        Raises:
            ValueError: images are not uint8 or float [b, height, width, 3], tokens are not [b, k, l], token_mask is not
                bool of that shape, or there are more tokens than the text encoder has positions.
        """
        features = self.encode_image(images, train)
        height, width = images.shape[1:3]
        return self.ground(features, tokens, token_mask, (height, width), train)

    def encode_image(
        self, images: UInt8[Array, "b height width 3"] | Float[Array, "b height width 3"], train: bool = False
    ) -> tuple[Float[Array, "b _ _ _"], ...]:
        """Return the vision maps from fine to coarse, for any number of calls of `ground`.

        Raises:
            ValueError: images are not uint8 or float [b, height, width, 3].
        """
        _check_images(images)
        return self.vision(normalize(images) if images.dtype == jnp.uint8 else images, train)

    def ground(
        self,
        features: tuple[Float[Array, "b _ _ _"], ...],
        tokens: Int[Array, "b k l"],
        token_mask: Bool[Array, "b k l"],
        image_size: tuple[int, int],
        train: bool = False,
    ) -> Output:
        """Segment expressions on encoded images; `image_size` is the (height, width) of the images in pixels.

        Raises:
            ValueError: tokens are not [b, k, l] for the b images of `features`, or token_mask is not bool of that
                shape.
        """
        _check_tokens(tokens, images=features[0].shape[0])
        _check_token_mask(token_mask, tokens.shape)
        b, k, length = tokens.shape
        words = self.encode_text(tokens.reshape(b * k, length), token_mask.reshape(b * k, length), train)
        return self.fuse_and_decode(features, words.reshape(b, k, length, -1), token_mask, image_size)

    def encode_text(
        self, tokens: Int[Array, "n l"], token_mask: Bool[Array, "n l"], train: bool = False
    ) -> Float[Array, "n l c"]:
        """Return the word features of n expressions, for any number of calls of `fuse_and_decode`."""
        _check_token_mask(token_mask, tokens.shape)
        return self.text(tokens, token_mask, train)

    def fuse_and_decode(
        self,
        features: tuple[Float[Array, "b _ _ _"], ...],
        words: Float[Array, "b k l c"],
        token_mask: Bool[Array, "b k l"],
        image_size: tuple[int, int],
    ) -> Output:
        """Segment encoded expressions on encoded images; `image_size` is that of `ground`."""
        _check_token_mask(token_mask, words.shape[:3])
        sentence = words[:, :, 0]  # the state of [CLS] stands for the whole expression [ours]
        fused = self.fusion(features[-1], words, token_mask)
        logits = self.decoder(fused.features, features, sentence)

        height, width = image_size
        stride = self.vision.patch_size
        b, k, h, w = logits[-1].shape
        full = jax.image.resize(logits[-1], (b, k, stride * h, stride * w), "bilinear")[:, :, :height, :width]
        no_target = None
        if self.no_target is not None:
            no_target = self.no_target(sentence, fused.features, logits[0], logits[-1])
        return Output(full, logits[:-1], fused.word_attention, fused.group_maps, fused.balance_weights, no_target)


def run_parts(
    network: ReferringNetwork, params: Any, images: Any, tokens: Any, mask: Any, *, run: Callable[..., Any]
) -> jax.Array:
    """Run the network part by part; return its finest mask logits [b, k, h, w], before they are resized.

    run(part, function, params, *inputs) returns function(params, *inputs). The parts are vision, text, fusion, decoder
    and, if the network has that head, no_target. Outputs that only serve explanations are left out.
    """
    b, k, length = tokens.shape

    def apply(part: str, *inputs: Any, select: Callable[[Any], Any] = lambda output: output) -> Any:
        module = getattr(network, part)
        return run(part, lambda params, *x: select(module.apply({"params": params}, *x)), params[part], *inputs)

    maps = apply("vision", images)
    words = apply("text", tokens.reshape(b * k, length), mask.reshape(b * k, length)).reshape(b, k, length, -1)
    sentence = words[:, :, 0]
    fused = apply("fusion", maps[-1], words, mask, select=lambda output: output.features)
    finest: jax.Array
    if network.no_target is None:
        finest = apply("decoder", fused, maps, sentence, select=lambda logits: logits[-1])
        return finest
    coarsest, finest = apply("decoder", fused, maps, sentence, select=lambda logits: (logits[0], logits[-1]))
    apply("no_target", sentence, fused, coarsest, finest)
    return finest


def build_network(config: ConfigDict) -> ReferringNetwork:
    """Build the network described by config.vision, text, fusion, decoder, dtype and remat.

    Raises:
        UserError: config.dtype is not one of `config.DTYPES`; other unknown values raise ValueError when the network is
            called.
    """
    dtype, remat = choose("dtype", config["dtype"], _DTYPES), config["remat"]
    not_of_the_module = {"vocab", "lower_case", "max_tokens", "pretrained", "no_target_width"}

    def fields(section: str) -> dict[str, Any]:
        return {name: value for name, value in dict(config[section]).items() if name not in not_of_the_module}

    return ReferringNetwork(
        vision=Swin(**fields("vision"), remat=remat, dtype=dtype),
        text=Bert(**fields("text"), remat=remat, dtype=dtype),
        fusion=S2RM(**fields("fusion"), dtype=dtype),
        decoder=CASG(**fields("decoder"), remat=remat, dtype=dtype),
        no_target=NoTargetHead(config["decoder"]["no_target_width"]) if config["decoder"]["no_target_width"] else None,
    )
