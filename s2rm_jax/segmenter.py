"""Segmenting what sentences refer to, from Python.

segmenter = Segmenter.from_checkpoint("runs/synthetic")
result = segmenter.segment("street.jpg", ["the man in red", "the car behind him"])
result.masks[0]  # boolean, [H, W] of street.jpg
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import flax.linen as nn
import jax
import numpy as np
from jaxtyping import Bool, Float
from ml_collections import ConfigDict
from PIL import Image

from s2rm_jax.errors import UserError
from s2rm_jax.evaluation.original_size import resize_logits
from s2rm_jax.input.compact import normalize
from s2rm_jax.input.images import load_image
from s2rm_jax.input.resize import resize_image
from s2rm_jax.input.tokens import Tokenizer
from s2rm_jax.training.trained import load_trained

# Sentences are filled up to the next of these numbers, so that at most this many programs are compiled; more sentences
# than the last go in several rounds on the same encoded picture, which bounds the memory they take.
BUCKETS = (1, 2, 4, 8, 16, 32)


@dataclass(frozen=True)
class Result:
    """What was found in one picture, sentence by sentence.

    `masks` has the picture's own size, upright as a viewer shows it. `scores` is the mean probability of foreground
    over the pixels of each mask, in [0.5, 1], and 0 for an empty mask: how sure the network is, not how right.
    `no_target` is the probability that a sentence refers to nothing, None where the network has no head that says so;
    above 0.5 the mask is empty, whatever the pixels say.
    """

    sentences: tuple[str, ...]
    masks: Bool[np.ndarray, "k height width"]
    scores: Float[np.ndarray, " k"]
    no_target: Float[np.ndarray, " k"] | None = None


class Segmenter:
    """A trained network with everything that it needs to take a picture and sentences.

    Calls are free of implicit transfers between host and device.
    """

    def __init__(self, network: nn.Module, params: Any, tokenizer: Tokenizer, config: ConfigDict):
        self.config = config
        self._tokenizer = tokenizer
        self._params = jax.device_put(params)  # once: arrays of NumPy would be copied again at every call
        size = tuple(config.input.image_size)

        def encode(params: Any, image: jax.Array) -> Any:
            return network.apply({"params": params}, normalize(image), method="encode_image")

        def ground(params: Any, features: Any, tokens: jax.Array, token_mask: jax.Array) -> tuple[jax.Array, Any]:
            output: Any = network.apply({"params": params}, features, tokens, token_mask, size, method="ground")
            return output.logits, output.no_target_logits

        self._encode, self._ground = jax.jit(encode), jax.jit(ground)

    @classmethod
    def from_checkpoint(cls, workdir: str | Path, which: Literal["best", "latest"] = "best") -> Segmenter:
        """Loads the best or the latest checkpoint of a training run, with the configuration that lies beside it.

        Raises:
            UserError: no training run or no checkpoint there, its vocabulary is gone, or its configuration was changed.
        """
        trained = load_trained(workdir, which)
        return cls(trained.network, trained.params, trained.tokenizer, trained.config)

    def segment(self, image: str | Path | np.ndarray | Image.Image, sentences: str | Sequence[str]) -> Result:
        """Segments what each sentence refers to. The picture is encoded once, however many sentences there are.

        Args:
            image: a file, an array [H, W, 3] of uint8, or a PIL image; turned upright by its EXIF orientation.
            sentences: one sentence or several; one alone gives the same as among others.

        Raises:
            UserError: the picture cannot be read, there is no sentence, or a sentence has no words.
        """
        sentences = (sentences,) if isinstance(sentences, str) else tuple(sentences)
        if not sentences:
            raise UserError("there is no sentence; say what is to be found in the picture")
        encoded = [self._tokenizer.encode(sentence) for sentence in sentences]
        picture = load_image(image, apply_exif=True)
        pixels = resize_image(picture, tuple(self.config.input.image_size))
        features = self._encode(self._params, jax.device_put(pixels[None]))

        height, width = picture.shape[:2]
        masks, scores = np.empty((len(sentences), height, width), bool), np.empty(len(sentences))
        nothing: list[float] = []
        for start in range(0, len(encoded), BUCKETS[-1]):
            some = encoded[start : start + BUCKETS[-1]]
            some += some[:1] * (_bucket(len(some)) - len(some))
            tokens, token_mask = (jax.device_put(np.stack(column)[None]) for column in zip(*some, strict=True))
            logits, judged = jax.device_get(self._ground(self._params, features, tokens, token_mask))
            for row in range(start, min(start + BUCKETS[-1], len(encoded))):
                full = resize_logits(logits[0, row - start], height, width)
                if judged is not None:
                    nothing.append(_probability(judged[0, row - start]))
                    full = np.full_like(full, -np.inf) if nothing[-1] > 0.5 else full
                masks[row] = full > 0
                scores[row] = _score(full)
        return Result(sentences, masks, scores, np.array(nothing) if nothing else None)

    def remarks(self, sentence: str) -> list[str]:
        """Returns what a person should know of how a sentence is read: words cut off, words that are not known."""
        remarks = []
        length, limit = self._tokenizer.length(sentence), self._tokenizer.max_tokens
        if length > limit:
            remarks.append(f"{sentence!r} takes {length} tokens and is cut to the first {limit} (text.max_tokens)")
        unknown = [word for word in sentence.split() if self._is_unknown(word)]
        if unknown:
            remarks.append(f"not in the vocabulary, and so ignored or misread: {', '.join(map(repr, unknown))}")
        return remarks

    def _is_unknown(self, word: str) -> bool:
        has_pieces = self._tokenizer.length(word) > 2
        return has_pieces and "[UNK]" in self._tokenizer.words(self._tokenizer.encode(word)[0])


def _bucket(count: int) -> int:
    return next(size for size in BUCKETS if size >= count)


def _score(logits: Float[np.ndarray, "height width"]) -> float:
    found = logits[logits > 0]
    return float(np.mean(_probability(found))) if found.size else 0.0


def _probability(logits: Any) -> Any:
    return (1 + np.tanh(np.asarray(logits, np.float64) / 2)) / 2  # the sigmoid, for logits of any size
