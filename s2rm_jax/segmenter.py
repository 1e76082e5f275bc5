"""Segmenting what expressions refer to, from Python.

segmenter = Segmenter.from_checkpoint("runs/synthetic")
result = segmenter.segment("street.jpg", ["the man in red", "the car behind him"])
result.masks[0]  # boolean, [H, W] of street.jpg

street = segmenter.encode("https://example.org/street.jpg")  # once; the longer part of the work
segmenter.segment(street, "the tree on the left")  # and as often as there is something to ask
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
from s2rm_jax.evaluation.protocols import resize_logits
from s2rm_jax.explanation import Explanation, explanations, reduce
from s2rm_jax.input.images import load_image, resize_image
from s2rm_jax.input.tokens import Tokenizer, remarks
from s2rm_jax.training.run import load_run

# Expressions are filled up to the next of these numbers, so that at most this many programs are compiled; more expressions
# than the last go in several rounds on the same encoded image, which bounds the memory they take.
BUCKETS = (1, 2, 4, 8, 16, 32)


@dataclass(frozen=True)
class EncodedImage:
    """An image as it is and as the network sees it, ready for any number of expressions.

    `features` lie on the device of the Segmenter that made them, and mean something to that one only.
    """

    image: UInt8[np.ndarray, "height width 3"]
    features: tuple[Any, ...]


@dataclass(frozen=True)
class Result:
    """What was found in one image, expression by expression.

    `masks` has the image's own size, upright as a viewer shows it. `scores` is the mean probability of foreground
    over the pixels of each mask, in [0.5, 1], and 0 for an empty mask: how sure the network is, not how right. It puts
    masks in a good order (measured in default_network/README.md), and as a probability of being right it is too high.
    `no_target` is the probability that an expression refers to nothing, None where the network has no head that says so;
    above 0.5 the mask is empty, whatever the pixels say. `explanations` are there where they were asked for.
    """

    expressions: tuple[str, ...]
    masks: Bool[np.ndarray, "k height width"]
    scores: Float[np.ndarray, " k"]
    no_target: Float[np.ndarray, " k"] | None = None
    explanations: tuple[Explanation, ...] | None = None


class Segmenter:
    """A trained network with everything that it needs to take an image and expressions.

    Calls are free of implicit transfers between host and device, and may come from several threads.
    """

    def __init__(self, network: nn.Module, params: Any, tokenizer: Tokenizer, config: ConfigDict):
        self.config = config
        self._tokenizer = tokenizer
        self._params = jax.device_put(params)  # once: arrays of NumPy would be copied again at every call
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
        """Loads the best or the latest checkpoint of a training run, with the configuration that lies beside it.

        By default it loads the network that comes with the package, which knows generated shapes.

        Raises:
            UserError: no training run or no checkpoint there, its vocabulary is gone, or its configuration was changed.
        """
        trained = load_run(workdir, which)
        return cls(trained.network, trained.params, trained.tokenizer, trained.config)

    def encode(self, image: str | Path | bytes | np.ndarray | Image.Image) -> EncodedImage:
        """Encodes an image, for any number of calls of `segment`; returns once the device is done.

        Args:
            image: a file, an address on the web (http:// or https://), the bytes of a file, an array [H, W, 3] of
                uint8, or a PIL image; turned upright by its EXIF orientation.

        Raises:
            UserError: the image cannot be read or fetched.
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
        """Segments what each expression refers to. The image is encoded once, however many expressions there are.

        Args:
            image: what `encode` returned, or anything that it takes.
            expressions: one expression or several; one alone gives the same as among others.
            explain: also return how the network came to each mask.

        Raises:
            UserError: the image cannot be read, there is no expression, or an expression has no words.
        """
        expressions = (expressions,) if isinstance(expressions, str) else tuple(expressions)
        if not expressions:
            raise UserError("there is no expression; say what is to be found in the image")
        encoded = [self._tokenizer.encode(expression) for expression in expressions]
        known = image if isinstance(image, EncodedImage) else self.encode(image)

        height, width = known.image.shape[:2]
        masks, scores = np.empty((len(expressions), height, width), bool), np.empty(len(expressions))
        nothing: list[float] = []
        explained: list[Explanation] = []
        for start, some in _rounds(encoded):
            filled = some + some[:1] * (_bucket(len(some)) - len(some))
            tokens, token_mask = (jax.device_put(np.stack(column)[None]) for column in zip(*filled, strict=True))
            answers = self._ground(self._params, known.features, tokens, token_mask, explain=explain)
            logits, judged, reduced = jax.device_get(answers)
            for row in range(len(some)):
                full = resize_logits(logits[0, row], height, width)
                if judged is not None:
                    nothing.append(_probability(judged[0, row]))
                    full = np.full_like(full, -np.inf) if nothing[-1] > 0.5 else full
                masks[start + row] = full > 0
                scores[start + row] = _score(full)
            if explain:
                ids = [pieces for pieces, _ in some]
                explained += explanations(reduced, ids, self._tokenizer, self.config.fusion.rotations)
        return Result(
            expressions,
            masks,
            scores,
            np.array(nothing) if nothing else None,
            tuple(explained) if explain else None,
        )

    def explain(
        self, image: EncodedImage | str | Path | bytes | np.ndarray | Image.Image, expression: str
    ) -> Explanation:
        """Returns how the network comes to the mask of one expression; raises what `segment` does."""
        told = self.segment(image, expression, explain=True).explanations
        assert told is not None  # asked for
        return told[0]

    def remarks(self, expression: str) -> list[str]:
        """Returns what a person should know of how an expression is read: words cut off, words that are not known."""
        return remarks(self._tokenizer, expression)


def _rounds(encoded: Sequence[Any]) -> Iterator[tuple[int, list[Any]]]:
    """Yields the expressions of each round, and the number of those before them."""
    for start in range(0, len(encoded), BUCKETS[-1]):
        yield start, list(encoded[start : start + BUCKETS[-1]])


def _bucket(count: int) -> int:
    return next(size for size in BUCKETS if size >= count)


def _score(logits: Float[np.ndarray, "height width"]) -> float:
    found = logits[logits > 0]
    return float(np.mean(_probability(found))) if found.size else 0.0


def _probability(logits: Any) -> Any:
    return (1 + np.tanh(np.asarray(logits, np.float64) / 2)) / 2  # the sigmoid, for logits of any size
