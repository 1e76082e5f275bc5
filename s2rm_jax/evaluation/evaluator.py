"""Runs a network over a split and scores every sentence at the original resolution of its picture."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jaxtyping import Bool, Float
from ml_collections import ConfigDict

from s2rm_jax.errors import UserError
from s2rm_jax.evaluation.metrics import SentenceScore, count_pixels
from s2rm_jax.evaluation.original_size import resize_logits
from s2rm_jax.evaluation.report import Report
from s2rm_jax.input import pipeline
from s2rm_jax.input.example import Example, Source
from s2rm_jax.input.masks import rasterize
from s2rm_jax.input.tokens import Tokenizer


@dataclass(frozen=True)
class Prediction:
    """What the network made of one sentence; both masks have the original size of the picture."""

    example: Example
    true: Bool[np.ndarray, "h w"]
    predicted: Bool[np.ndarray, "h w"]
    score: SentenceScore


class Evaluator:
    """A network ready to be evaluated again and again: its forward pass is compiled once and kept.

    Build it once per run and call it with the parameters of the moment. `config.eval.limit` pictures of the source are
    taken (0: all). Calls are free of implicit transfers between host and device.
    """

    def __init__(self, network: nn.Module, tokenizer: Tokenizer, config: ConfigDict):
        self._tokenizer = tokenizer
        self._config = config

        def forward(params: Any, images: jax.Array, tokens: jax.Array, token_mask: jax.Array) -> jax.Array:
            output: Any = network.apply({"params": params}, images, tokens, token_mask)
            return output.logits

        self._forward = jax.jit(forward)

    def __call__(
        self,
        params: Any,
        source: Source,
        *,
        progress: Callable[[int, int], None] | None = None,
        observe: Callable[[Prediction], None] | None = None,
    ) -> Report:
        """Returns the scores of every sentence of `source`.

        `progress` hears (batches done, batches in all); `observe` sees every prediction while its masks are at hand.

        Raises:
            UserError: the source holds no sentence.
        """
        scores = []
        for prediction in self.predictions(params, source, progress=progress):
            scores.append(prediction.score)
            if observe is not None:
                observe(prediction)
        if not scores:
            raise UserError("there is nothing to evaluate: the split has no sentences; check its name and its files")
        return Report(tuple(scores))

    def predictions(
        self, params: Any, source: Source, *, progress: Callable[[int, int], None] | None = None
    ) -> Iterator[Prediction]:
        """Yields the prediction for every sentence of every example, each exactly once, in the order of the source."""
        batches = pipeline.eval_batches(source, self._tokenizer, self._config)
        for done, (items, logits) in enumerate(self._one_ahead(params, batches), start=1):
            for item, item_logits in zip(items, jax.device_get(logits), strict=False):  # the rest fills the batch up
                yield from _score(item, item_logits)
            if progress is not None:
                progress(done, len(batches))

    def _one_ahead(
        self, params: Any, batches: pipeline.EvalBatches
    ) -> Iterator[tuple[list[pipeline.EvalItem], jax.Array]]:
        """Dispatches each batch before the one before it is scored, so that device and host work side by side."""
        waiting = None
        for batch, items in batches:
            inputs = jax.device_put((batch.images, batch.tokens, batch.token_mask))
            logits = self._forward(params, *inputs)
            if waiting is not None:
                yield waiting
            waiting = (items, logits)
        if waiting is not None:
            yield waiting


def _score(item: pipeline.EvalItem, logits: Float[np.ndarray, "k h w"]) -> Iterator[Prediction]:
    example = item.example
    for row in range(item.number):  # the rows after these are padding
        expression = example.expressions[item.first + row]
        true = rasterize(expression.segmentation, example.height, example.width)
        predicted = resize_logits(logits[row], example.height, example.width) > 0
        intersection, union = count_pixels(true, predicted)
        score = SentenceScore(expression.id, example.id, expression.kind, expression.sentence, intersection, union)
        yield Prediction(example, true, predicted, score)
