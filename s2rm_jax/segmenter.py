"""The Segmenter: segment what expressions refer to, from Python.

segmenter = Segmenter.from_checkpoint("runs/synthetic")
result = segmenter.segment("street.jpg", ["the man in red", "the car behind him"])
result.masks[0]  # boolean [H, W], of the size of street.jpg

street = segmenter.encode("https://example.org/street.jpg")  # once per image, the larger part of the work
segmenter.segment(street, "the tree on the left")  # any number of times
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import flax.linen as nn
import jax
import numpy as np
from jaxtyping import Bool, Float, UInt8
from ml_collections import ConfigDict
from PIL import Image

from s2rm_jax import default_network
from s2rm_jax.errors import UserError
from s2rm_jax.evaluation.explain import Explanation, explanations, reduce
from s2rm_jax.evaluation.protocols import resize_logits
from s2rm_jax.input.images import load_image, resize_image
from s2rm_jax.input.tokens import Tokenizer, remarks
from s2rm_jax.training.run import load_run

# The number of expressions is padded to one of these, so that at most this many programs are compiled. More expressions
# than the largest are processed in several rounds on the same encoded image, which bounds the memory.
BUCKETS = (1, 2, 4, 8, 16, 32)


@dataclass(frozen=True)
class EncodedImage:
    """An image and its features, for any number of calls of `Segmenter.segment`.

    Attributes:
        image: the original pixels, uint8 [H, W, 3], RGB, upright.
        features: the network's feature maps, on the device of the Segmenter that made them; only that Segmenter can use
            them.
    """

    image: UInt8[np.ndarray, "height width 3"]
    features: tuple[Any, ...]


@dataclass(frozen=True)
class Result:
    """The masks of k expressions in one image.

    Attributes:
        expressions: the expressions, in the order in which they were given.
        masks: bool [k, H, W], in the original size of the image, upright as a viewer shows it.
        scores: float [k], the mean probability of foreground over the pixels of each mask: in [0.5, 1], and 0 for an
            empty mask. A score ranks masks well (measured in default_network/README.md), but it is not calibrated: as a
            probability that the mask is right it is too high.
        no_target: float [k], the probability that an expression refers to nothing; if it exceeds 0.5, the mask is
            empty. None if the network has no such output.
        explanations: one per expression, or None unless `segment` was called with `explain=True`.
    """

    expressions: tuple[str, ...]
    masks: Bool[np.ndarray, "k height width"]
    scores: Float[np.ndarray, " k"]
    no_target: Float[np.ndarray, " k"] | None = None
    explanations: tuple[Explanation, ...] | None = None


class Segmenter:
    """A trained network that takes images and expressions and returns masks.

    Calls make no implicit transfers between host and device, and are safe from several threads.

    Args:
        network: the module that `build_network(config)` returns.
        params: its parameters.
        tokenizer: the tokenizer of the training run.
        config: the configuration of the training run.
    """

    def __init__(self, network: nn.Module, params: Any, tokenizer: Tokenizer, config: ConfigDict):
        self.config = config
        self._tokenizer = tokenizer
        self._params = jax.device_put(params)  # once: NumPy arrays would be transferred again at every call
        size = tuple(config.input.image_size)

        def encode(params: Any, image: jax.Array) -> Any:
            return network.apply({"params": params}, image, method="encode_image")

        def ground(params: Any, features: Any, tokens: jax.Array, token_mask: jax.Array, explain: bool) -> Any:
            output: Any = network.apply({"params": params}, features, tokens, token_mask, size, method="ground")
            return output.logits, output.no_target_logits, reduce(output) if explain else None

        self._encode, self._ground = jax.jit(encode), jax.jit(ground, static_argnames="explain")

    @classmethod
    def from_checkpoint(
        cls, workdir: str | Path = default_network.FOLDER, which: Literal["best", "latest"] = "best"
    ) -> Segmenter:
        """Load a checkpoint of a training run, with its configuration and vocabulary.

        Args:
            workdir: the workdir of a run, a folder that `convert to-pytorch` wrote, or a network on the Hugging Face
                Hub: "user/name", "user/name@revision" or "hf://user/name"; a local folder of that name comes first, but
                for "hf://". The default is the network that comes with the package, which is trained on generated
                shapes only.
            which: the checkpoint to load.

        Raises:
            UserError: the folder has no training run or no checkpoint, its vocabulary is missing, its configuration
                does not fit the checkpoint, or the network cannot be downloaded.
        """
        run = load_run(workdir, which)
        return cls(run.network, run.params, run.tokenizer, run.config)

    def encode(self, image: str | Path | bytes | np.ndarray | Image.Image) -> EncodedImage:
        """Encode an image for any number of calls of `segment`; return when the device has finished.

        Args:
            image: a file, a URL (http:// or https://), the bytes of a file, an array [H, W, 3] of uint8, or a PIL
                image; it is turned upright according to its EXIF orientation.

        Raises:
            UserError: the image cannot be read or downloaded.
        """
        original = load_image(image, apply_exif=True)
        pixels = resize_image(original, tuple(self.config.input.image_size))
        features = self._encode(self._params, jax.device_put(pixels[None]))
        return EncodedImage(original, jax.block_until_ready(features))

    def segment(
        self,
        image: EncodedImage | str | Path | bytes | np.ndarray | Image.Image,
        expressions: str | Sequence[str],
        *,
        explain: bool = False,
    ) -> Result:
        """Segment what each expression refers to; the image is encoded once for all expressions.

        Args:
            image: the result of `encode`, or any image that it accepts.
            expressions: one or more expressions; the mask of each does not depend on the others.
            explain: whether to return explanations of the masks.

        Raises:
            UserError: the image cannot be read, `expressions` is empty, or an expression has no words.
        """
        expressions = (expressions,) if isinstance(expressions, str) else tuple(expressions)
        if not expressions:
            raise UserError("expressions is empty; give at least one expression to segment")
        tokenized = [self._tokenizer.encode(expression) for expression in expressions]
        encoded = image if isinstance(image, EncodedImage) else self.encode(image)

        height, width = encoded.image.shape[:2]
        masks, scores = np.empty((len(expressions), height, width), bool), np.empty(len(expressions))
        no_target: list[float] = []
        explained: list[Explanation] = []
        for start in range(0, len(tokenized), BUCKETS[-1]):
            rows = tokenized[start : start + BUCKETS[-1]]
            bucket = next(size for size in BUCKETS if size >= len(rows))
            padded = rows + rows[:1] * (bucket - len(rows))
            tokens, token_mask = (jax.device_put(np.stack(column)[None]) for column in zip(*padded, strict=True))
            outputs = self._ground(self._params, encoded.features, tokens, token_mask, explain=explain)
            logits, no_target_logits, reduced = jax.device_get(outputs)
            for row in range(len(rows)):
                resized = resize_logits(logits[0, row], height, width)
                if no_target_logits is not None:
                    no_target.append(_sigmoid(no_target_logits[0, row]))
                    resized = np.full_like(resized, -np.inf) if no_target[-1] > 0.5 else resized
                masks[start + row] = resized > 0
                scores[start + row] = _score(resized)
            if explain:
                ids = [pieces for pieces, _ in rows]
                explained += explanations(reduced, ids, self._tokenizer, self.config.fusion.rotations)
        return Result(
            expressions,
            masks,
            scores,
            np.array(no_target) if no_target else None,
            tuple(explained) if explain else None,
        )

    def explain(
        self, image: EncodedImage | str | Path | bytes | np.ndarray | Image.Image, expression: str
    ) -> Explanation:
        """Return the explanation of the mask of one expression; arguments and errors are those of `segment`."""
        result = self.segment(image, expression, explain=True)
        assert result.explanations is not None
        return result.explanations[0]

    def remarks(self, expression: str) -> list[str]:
        """Return remarks on how an expression is tokenized: words that are cut off or not in the vocabulary."""
        return remarks(self._tokenizer, expression)


def _score(logits: Float[np.ndarray, "height width"]) -> float:
    foreground = logits[logits > 0]
    return float(np.mean(_sigmoid(foreground))) if foreground.size else 0.0


def _sigmoid(logits: Any) -> Any:
    return (1 + np.tanh(np.asarray(logits, np.float64) / 2)) / 2  # does not overflow
