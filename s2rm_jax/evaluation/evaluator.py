"""Run a network over a split and score every expression under a protocol."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool, Float
from ml_collections import ConfigDict

from s2rm_jax.errors import UserError
from s2rm_jax.evaluation import bootstrap, metrics
from s2rm_jax.evaluation.calibration import UNCALIBRATED, Calibration
from s2rm_jax.evaluation.metrics import ExpressionScore, MaskCounts, count_pixels, score_masks
from s2rm_jax.evaluation.protocols import ORIGINAL, Protocol, mask_score, predicted_mask, resize_logits, true_mask
from s2rm_jax.input import pipeline
from s2rm_jax.input.example import Example, Source
from s2rm_jax.input.images import map_ahead
from s2rm_jax.input.masks import rasterize
from s2rm_jax.input.tokens import Tokenizer
from s2rm_jax.models.network import keep_for_equal_networks
from s2rm_jax.parallel import distributed
from s2rm_jax.parallel.mesh import batch_sharding, make_mesh, put_batch, take_batch


class ImageMasks(NamedTuple):
    """The masks of an expression at the size of the image, for the files that other programs read.

    Attributes:
        predicted: the mask that the protocol's threshold and resampling give; empty if the network predicts no target
        true: the true mask
        score: that of the predicted mask, as in `Segmenter.segment`
        referent: the id of the referent in the dataset, or "" if it is not known
    """

    predicted: Bool[np.ndarray, "height width"]
    true: Bool[np.ndarray, "height width"]
    score: float
    referent: str


@dataclass(frozen=True)
class Prediction:
    """The prediction for one expression; both masks have the size at which the protocol compares them.

    `record` is what the argument `record` of the Evaluator returned.
    """

    example: Example
    true: Bool[np.ndarray, "h w"]
    predicted: Bool[np.ndarray, "h w"]
    score: ExpressionScore
    record: Any = None


Recorder = Callable[[Prediction, ImageMasks], Any]


@dataclass(frozen=True)
class Report:
    """The scores of all expressions of a split under a protocol, and the numbers computed from them."""

    expressions: tuple[ExpressionScore, ...]
    protocol: Protocol = ORIGINAL
    left_out: int = 0  # expressions that could not be read
    records: tuple[Any, ...] = ()  # what the argument `record` of the Evaluator returned, None without it

    @cached_property
    def total(self) -> MaskCounts:
        """The counts over all expressions."""
        return metrics.total(self.expressions, self.protocol)

    @cached_property
    def by_kind(self) -> dict[str, MaskCounts]:
        """The counts of each kind of expression; empty if the source has no kinds."""
        groups = metrics.by_kind(self.expressions, self.protocol)
        return {} if set(groups) <= {""} else groups

    @property
    def metrics(self) -> dict[str, float]:
        """The protocol's metrics by name, in percent; see `MaskCounts.metrics`."""
        return self.total.metrics(self.protocol)

    @cached_property
    def intervals(self) -> dict[str, tuple[float, float]]:
        """The bootstrap intervals, in percent, of overall and mean IoU, where the protocol reports them."""
        both = bootstrap.intervals(self.expressions)
        return {name: ends for name, ends in both.items() if name in self.metrics}

    @property
    def images(self) -> int:
        """The number of images."""
        return len({score.image_identity for score in self.expressions})


class Evaluator:
    """A network with its compiled forward pass, ready to evaluate any number of parameter sets.

    Build it once per run and call it with the current parameters. It evaluates the first `config.eval.limit` images of
    a source (0: all). Calls make no implicit transfers between host and device.

    Batches are sharded over the devices of `mesh`, on which the parameters must lie; the default is one device of this
    process. `config.eval.batch_size` is rounded up to a multiple of the number of devices. If the mesh spans several
    processes, each process prepares and scores its share of the images, and every process must make the call.
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
        self._left_out = pipeline.LeftOut()  # over all calls, so that each is logged once
        self._forward = _jitted(network, self._mesh)

    def __call__(
        self,
        params: Any,
        source: Source,
        *,
        progress: Callable[[int, int], None] | None = None,
        observe: Callable[[Prediction], None] | None = None,
        record: Recorder | None = None,
    ) -> Report:
        """Score every expression of `source`, in its order; every process gets the report on all of them.

        Args:
            params: the network's parameters, on the devices of the mesh.
            source: the split to evaluate.
            progress: called with (batches done, batches in total) after each batch.
            observe: called with every prediction of this process.
            record: called with every prediction of this process and its masks at the size of the image, in several
                threads and before `observe`.

        Raises:
            UserError: the source has no expressions.
        """
        mine: list[list[tuple[ExpressionScore, Any]]] = []  # batch by batch
        problems: list[str] = []
        for predictions in self._batches(params, source, progress, problems, record):
            mine.append([])
            for prediction in predictions:
                mine[-1].append((prediction.score, prediction.record))
                if observe is not None:
                    observe(prediction)
        share = mine, len(problems)
        all_shares, left_out = zip(
            *(distributed.gather(share) if self._mesh.is_multi_process else [share]), strict=True
        )
        scored = [one for batch in zip(*all_shares, strict=True) for share in batch for one in share]
        if not scored:
            raise UserError("the split has no expressions to evaluate; check the split's name and its files")
        when_read = getattr(source, "left_out", ())  # in every process the same
        scores, records = zip(*scored, strict=True)
        return Report(scores, self._protocol, sum(left_out) + len(when_read), records)

    def _batches(
        self,
        params: Any,
        source: Source,
        progress: Callable[[int, int], None] | None,
        problems: list[str],
        record: Recorder | None,
    ) -> Iterator[Iterator[Prediction]]:
        """Yield the predictions of each batch, to be consumed before the next batch is requested.

        Append the reason for each expression that is left out to `problems`.
        """

        def dispatch(batch: pipeline.EvalBatch) -> tuple[list[pipeline.EvalItem], Any]:
            self._left_out.add(batch.problems)
            problems.extend(batch.problems)
            images, tokens, token_mask, *_ = batch.batch
            return batch.items, self._forward(params, *put_batch((images, tokens, token_mask), self._mesh))

        devices, config = self._mesh.size, self._config
        calibration = Calibration.of(config)
        size = -(-config.eval.batch_size // devices) * devices
        batches = pipeline.eval_batches(source, self._tokenizer, config, size, self._process)
        dispatched = map(dispatch, batches)
        current = next(dispatched, None)
        for done in range(1, len(batches) + 1):
            following = next(dispatched, None)  # first, so that device and host work in parallel
            assert current is not None
            items, outputs = current
            logits, no_target_logits = take_batch(outputs)
            yield score_items(self._protocol, items, logits, no_target_logits, record, calibration=calibration)
            current = following
            if progress is not None:
                progress(done, len(batches))


@keep_for_equal_networks(4)  # so that evaluators of equal networks trace and compile each program once
def _jitted(network: nn.Module, mesh: Mesh) -> Callable[..., Any]:
    """Return the forward pass of a network as a function of (params, images, tokens, token_mask)."""

    def forward(params: Any, images: jax.Array, tokens: jax.Array, token_mask: jax.Array) -> Any:
        output: Any = network.apply({"params": params}, images, tokens, token_mask)
        return output.logits, output.no_target_logits

    return jax.jit(forward, out_shardings=batch_sharding(mesh))


_THREADS = min(8, os.cpu_count() or 1)  # resizing and most of NumPy run without Python's lock


def score_items(
    protocol: Protocol,
    items: list[pipeline.EvalItem],
    logits: Float[np.ndarray, "b k h w"],
    no_target_logits: Float[np.ndarray, "b k"] | None = None,
    record: Recorder | None = None,
    *,
    calibration: Calibration = UNCALIBRATED,
) -> Iterator[Prediction]:
    """Yield the predictions of the items of a batch in their order, scored in threads; other rows are padding."""

    def score(row: int) -> list[Prediction]:
        no_target = None if no_target_logits is None else no_target_logits[row]
        return list(_predictions_of_item(protocol, items[row], logits[row], no_target, record, calibration=calibration))

    with ThreadPoolExecutor(_THREADS) as pool:
        # Not all at once: of large images, the masks of a whole batch would take gigabytes.
        for predictions in map_ahead(pool, score, range(len(items)), 2 * _THREADS):
            yield from predictions


def _predictions_of_item(
    protocol: Protocol,
    item: pipeline.EvalItem,
    logits: Float[np.ndarray, "k h w"],
    no_target_logits: Float[np.ndarray, " k"] | None,
    record: Recorder | None,
    *,
    calibration: Calibration,
) -> Iterator[Prediction]:
    example = item.example
    identity = _identity(example)
    for row, position in enumerate(item.positions):  # the remaining rows are padding
        expression = example.expressions[position]
        original = rasterize(expression.segmentation, example.height, example.width)
        true = true_mask(protocol, expression.segmentation, original)
        predicted = predicted_mask(protocol, logits[row], example.height, example.width)
        rejected = no_target_logits is not None and bool(no_target_logits[row] > 0)
        if rejected and protocol.no_target != "head":  # the mask that a user gets; ReLA's rules keep the network's
            predicted = np.zeros_like(predicted)
        area = int(np.count_nonzero(original))
        targeted = area > 0
        answered = bool(predicted.any())
        if protocol.no_target == "head" and no_target_logits is not None:
            answered = not rejected
        score = ExpressionScore(
            expression.id,
            example.id,
            expression.kind,
            expression.text,
            *score_masks(protocol, *count_pixels(true, predicted), targeted, answered),
            targeted=targeted,
            answered=answered,
            area=area / original.size,
            centre=_centroid(original, area) if targeted else None,
            image=identity,
        )
        prediction = Prediction(example, true, predicted, score)
        if record is not None:
            mask, mean = _at_original_size(protocol, logits[row], rejected, predicted, original.shape)
            masks = ImageMasks(mask, original, calibration(mean), expression.referent)
            prediction = replace(prediction, record=record(prediction, masks))
        yield prediction


def _at_original_size(
    protocol: Protocol,
    logits: Float[np.ndarray, "h w"],
    rejected: bool,
    predicted: Bool[np.ndarray, "_ _"],
    size: tuple[int, ...],
) -> tuple[Bool[np.ndarray, "height width"], float]:
    """Return the mask of an ImageMasks and its uncalibrated score, given the mask that the protocol compares."""
    if rejected:
        return np.zeros(size, bool), 0.0
    height, width = size
    if protocol.size is not None:
        predicted = predicted_mask(replace(protocol, size=None), logits, height, width)
    return predicted, mask_score(resize_logits(logits, height, width)[predicted])


def _identity(example: Example) -> str:
    """Return what identifies the image of an example among all datasets: its file, or the content of that."""
    if isinstance(example.image, Path):
        return str(example.image)
    return hashlib.sha256(example.image).hexdigest() if isinstance(example.image, bytes) else example.id


def _centroid(mask: Bool[np.ndarray, "h w"], area: int) -> tuple[float, float]:
    """Return the mean position (x, y) of the `area` pixels of a mask as fractions of its width and height."""
    (height, width), ones = mask.shape, mask.view(np.uint8)  # four times as fast as np.count_nonzero along an axis
    x = (np.arange(width) + 0.5) @ ones.sum(axis=0, dtype=np.uint32) / (area * width)
    y = (np.arange(height) + 0.5) @ ones.sum(axis=1, dtype=np.uint32) / (area * height)
    return float(x), float(y)
