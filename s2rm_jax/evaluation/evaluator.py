"""Runs a network over a split and scores every expression as a protocol says."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool, Float
from ml_collections import ConfigDict

from s2rm_jax.errors import UserError
from s2rm_jax.evaluation.metrics import ExpressionScore, count_pixels, score_masks
from s2rm_jax.evaluation.protocols import ORIGINAL, Protocol, predicted_mask, true_mask
from s2rm_jax.evaluation.report import Report
from s2rm_jax.input import pipeline
from s2rm_jax.input.example import Example, Source
from s2rm_jax.input.masks import means_nothing, rasterize
from s2rm_jax.input.tokens import Tokenizer
from s2rm_jax.parallel import distributed
from s2rm_jax.parallel.mesh import batch_sharding, make_mesh, put_batch, take_batch


@dataclass(frozen=True)
class Prediction:
    """What the network made of one expression; both masks have the size at which the protocol compares them."""

    example: Example
    true: Bool[np.ndarray, "h w"]
    predicted: Bool[np.ndarray, "h w"]
    score: ExpressionScore


class Evaluator:
    """A network ready to be evaluated again and again: its forward pass is compiled once and kept.

    Build it once per run and call it with the parameters of the moment. `config.eval.limit` images of the source are
    taken (0: all). Calls are free of implicit transfers between host and device.

    Batches are spread over the devices of `mesh`, by default one of this process, on which the parameters must lie; so
    config.eval.batch_size is rounded up to a multiple of their number. Where they belong to several processes, each
    prepares and scores its share of the images, and all must call.
    """

    def __init__(
        self,
        network: nn.Module,
        tokenizer: Tokenizer,
        config: ConfigDict,
        protocol: Protocol = ORIGINAL,
        mesh: Mesh | None = None,
    ):
        self._tokenizer = tokenizer
        self._config = config
        self._protocol = protocol
        self._mesh = mesh or make_mesh(devices=jax.local_devices()[:1])
        self._process = distributed.process() if self._mesh.is_multi_process else (0, 1)

        def forward(params: Any, images: jax.Array, tokens: jax.Array, token_mask: jax.Array) -> _Answers:
            output: Any = network.apply({"params": params}, images, tokens, token_mask)
            return _Answers(output.logits, output.no_target_logits)

        self._forward = jax.jit(forward, out_shardings=batch_sharding(self._mesh))

    def __call__(
        self,
        params: Any,
        source: Source,
        *,
        progress: Callable[[int, int], None] | None = None,
        observe: Callable[[Prediction], None] | None = None,
    ) -> Report:
        """Returns the scores of every expression of `source`, in its order: on every process those of all.

        `progress` hears (batches done, batches in all); `observe` sees every prediction of this process while its masks
        are at hand.

        Raises:
            UserError: the source holds no expression.
        """
        mine: list[list[ExpressionScore]] = []  # batch by batch
        for predictions in self._batches(params, source, progress):
            mine.append([])
            for prediction in predictions:
                mine[-1].append(prediction.score)
                if observe is not None:
                    observe(prediction)
        all_shares = distributed.gather(mine) if self._mesh.is_multi_process else [mine]
        scores = [score for batch in zip(*all_shares, strict=True) for share in batch for score in share]
        if not scores:
            raise UserError("there is nothing to evaluate: the split has no expressions; check its name and its files")
        return Report(tuple(scores), self._protocol)

    def predictions(
        self, params: Any, source: Source, *, progress: Callable[[int, int], None] | None = None
    ) -> Iterator[Prediction]:
        """Yields the prediction for every expression of every example, each exactly once, in the order of the source.

        Of several processes, each yields those of its share.
        """
        for predictions in self._batches(params, source, progress):
            yield from predictions

    def _batches(
        self, params: Any, source: Source, progress: Callable[[int, int], None] | None
    ) -> Iterator[Iterator[Prediction]]:
        """Yields the predictions of each batch, to be consumed before the next."""
        devices, config = self._mesh.size, self._config
        size = -(-config.eval.batch_size // devices) * devices
        batches = pipeline.eval_batches(source, self._tokenizer, config, size, self._process)
        for done, (items, answers) in enumerate(self._one_ahead(params, batches), start=1):
            yield self._scored(items, answers)
            if progress is not None:
                progress(done, len(batches))

    def _scored(self, items: list[pipeline.EvalItem], answers: _Answers) -> Iterator[Prediction]:
        logits, nothing = take_batch(answers)
        for row, item in enumerate(items):  # the rows after these fill the batch up
            yield from _score(self._protocol, item, logits[row], None if nothing is None else nothing[row])

    def _one_ahead(
        self, params: Any, batches: pipeline.EvalBatches
    ) -> Iterator[tuple[list[pipeline.EvalItem], _Answers]]:
        """Dispatches each batch before the one before it is scored, so that device and host work side by side."""
        waiting = None
        for batch, items in batches:
            inputs = put_batch((batch.images, batch.tokens, batch.token_mask), self._mesh)
            answers = self._forward(params, *inputs)
            if waiting is not None:
                yield waiting
            waiting = (items, answers)
        if waiting is not None:
            yield waiting


class _Answers(NamedTuple):
    """What is read of the network's output: [b, k, h, w], and [b, k] (> 0: the expression refers to nothing) or None."""

    logits: Any
    no_target_logits: Any


def _score(
    protocol: Protocol,
    item: pipeline.EvalItem,
    logits: Float[np.ndarray, "k h w"],
    no_target_logits: Float[np.ndarray, " k"] | None,
) -> Iterator[Prediction]:
    example = item.example
    for row in range(item.number):  # the rows after these are padding
        expression = example.expressions[item.first + row]
        meant = rasterize(expression.segmentation, example.height, example.width)
        true = true_mask(protocol, expression.segmentation, meant)
        predicted = predicted_mask(protocol, logits[row], example.height, example.width)
        says_nothing = no_target_logits is not None and bool(no_target_logits[row] > 0)
        if says_nothing and protocol.no_target != "head":  # the answer that a user gets; ReLA's rules keep the mask
            predicted = np.zeros_like(predicted)
        # Asked of the annotation and not of the mask: an object too small for any pixel is meant all the same.
        targeted = expression.has_target and not means_nothing(expression.segmentation, meant)
        answered = bool(predicted.any())
        if protocol.no_target == "head" and no_target_logits is not None:
            answered = not says_nothing
        score = ExpressionScore(
            expression.id,
            example.id,
            expression.kind,
            expression.text,
            *score_masks(protocol, *count_pixels(true, predicted), targeted, answered),
            targeted=targeted,
            answered=answered,
            area=float(meant.mean()),
            centre=_centroid(meant) if meant.any() else None,
        )
        yield Prediction(example, true, predicted, score)


def _centroid(mask: Bool[np.ndarray, "h w"]) -> tuple[float, float]:
    """The mean position of a mask's pixels as shares of its width and height, (x, y)."""
    (height, width), area = mask.shape, np.count_nonzero(mask)
    x = (np.arange(width) + 0.5) @ np.count_nonzero(mask, axis=0) / (area * width)
    y = (np.arange(height) + 0.5) @ np.count_nonzero(mask, axis=1) / (area * height)
    return float(x), float(y)
