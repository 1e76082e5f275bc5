"""Named evaluation protocols, so that a number can be compared with numbers that were measured in the same way.

A protocol defines the resolution at which masks are compared, which pixels count as predicted, the IoU of an empty
union, and the metrics that are reported. Each follows the evaluation code of one published project; docs/protocols.md
lists what each reproduces and what it cannot.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Int
from PIL import Image

from s2rm_jax.errors import UserError
from s2rm_jax.input.example import Segmentation
from s2rm_jax.input.masks import rasterize, resize_mask

Resampling = Literal["bilinear", "bilinear, two taps", "bicubic", "bicubic, corners aligned", "nearest"]

# CRIS and CGFormer compare I / (U + 1e-6) with the float32 numbers of torch.arange(0.5, 1, 0.1).
ARANGE_THRESHOLDS = {tenths: float(np.float32(tenths / 10)) for tenths in (5, 6, 7, 8, 9)}
ARANGE_EPSILON = 1e-6


@dataclass(frozen=True)
class Protocol:
    """How predictions are turned into metrics.

    Attributes:
        name: the value of config.eval.protocol and --protocol
        follows: whose evaluation code it follows
        size: (height, width) at which masks are compared, whatever the network's input; None: the image's own
        redraw_polygons: whether true masks are drawn from polygons scaled to `size`; otherwise they are resized with
            Pillow's nearest-neighbour filter
        drops_overlaps: whether the original code drops the pixels that several polygons of an annotation cover; in this
            package, the source does so if its field `overlap` is "drop"
        resampled: what is resized to that resolution: the network's logits or its probabilities
        resampling: the method, see `resample`
        threshold: a pixel is predicted where its probability exceeds this
        empty_union: the IoU if both masks are empty; None excludes the expression from the mean
        precision_at: the IoUs at which precision is reported, in tenths
        reaches: when an IoU reaches a threshold x: I / U >= x exactly, or as in ARANGE_THRESHOLDS
        overall_name: the usual name of sum of intersections / sum of unions; None: it is not reported
        mean_name: the usual name of the mean IoU of the expressions
        no_target: how expressions that refer to nothing are scored: by ReLA's rules and the network's own output
            ("head"; an empty mask if the network has no such output), or as all others ("masks"; then two empty masks
            must have an IoU); None: not supported
    """

    name: str
    follows: str
    size: tuple[int, int] | None = None
    redraw_polygons: bool = False
    drops_overlaps: bool = False
    resampled: Literal["logits", "probabilities"] = "logits"
    resampling: Resampling = "bilinear"
    threshold: float = 0.5
    empty_union: float | None = 0.0
    precision_at: tuple[int, ...] = (5, 6, 7, 8, 9)
    reaches: Literal[">=", "> arange"] = ">="
    overall_name: str | None = "oIoU"
    mean_name: str = "mIoU"
    no_target: Literal["head", "masks"] | None = None

    @property
    def columns(self) -> dict[str, str]:
        """The protocol's metrics in the order of a table: {name of the metric: title}."""
        titles = {"overall_iou": self.overall_name} if self.overall_name else {}
        titles |= {"mean_iou": self.mean_name} | {f"precision@0.{t}": f"P@0.{t}" for t in self.precision_at}
        if self.no_target == "head":
            titles |= {"no_target_accuracy": "N-acc", "target_accuracy": "T-acc"}
        return titles

    @property
    def definition(self) -> tuple[str, ...]:
        """The definition in a few sentences, to be shown beside the metrics."""
        return (f"Protocol {self.name}: {self.follows}.", self._masks, self._numbers, *self._no_target)

    @property
    def _masks(self) -> str:
        where = "the image's original resolution"
        if self.size:
            resized = "drawn from scaled polygons" if self.redraw_polygons else "resized by nearest pixel"
            where = f"{self.size[0]} x {self.size[1]} pixels, true masks {resized}"
        dropped = " The original code drops pixels that several polygons of an annotation cover (overlap = drop)."
        decided = "logit exceeds 0" if self.threshold == 0.5 else f"probability exceeds {self.threshold}"
        return (
            f"Every expression counts once. Masks are compared at {where}; {self.resampled} are resized "
            f"({self.resampling}); a pixel is predicted where its {decided}.{dropped if self.drops_overlaps else ''}"
        )

    @property
    def _numbers(self) -> str:
        overall = f"{self.overall_name}: sum of intersections / sum of unions. " if self.overall_name else ""
        over = " of the expressions that refer to something" if self.no_target else ""
        reached = "IoU >= x"
        if self.reaches == "> arange":
            thresholds = ", ".join(f"{ARANGE_THRESHOLDS[tenths]:.8f}" for tenths in self.precision_at)
            reached = f"I / (U + 1e-6) > x, where x is a float32 number: {thresholds}"
        precision = f" P@x: share{over} with {reached}." if self.precision_at else ""
        empty = "left out of the mean" if self.empty_union is None else f"IoU {self.empty_union:.0f}"
        return f"In percent. {overall}{self.mean_name}: mean IoU.{precision} Empty union: {empty}."

    @property
    def _no_target(self) -> tuple[str, ...]:
        if not self.no_target:
            return ()
        if self.no_target == "masks":
            return ("An expression that refers to nothing is scored as any other.",)
        return (
            "The answer is 'nothing' if the no-target head predicts no target or, without such a head, if the mask is "
            "empty. Expression without a target, answered 'nothing': IoU 1, nothing is added to the sums. Expression "
            "with a target, answered 'nothing': IoU 0, the union is that of both masks. Expression without a target, "
            "answered with a mask: IoU 0, the mask is added to the unions.",
            "N-acc: share of the expressions that refer to nothing which are answered with 'nothing'; T-acc: share of "
            "the other expressions which are answered with a mask.",
        )


ORIGINAL = Protocol("original", "this project's default")

PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        ORIGINAL,
        Protocol("lavt480", "LAVT's test.py", size=(480, 480), drops_overlaps=True),
        Protocol(
            "caris448",
            "CARIS's eval.py",
            size=(448, 448),
            drops_overlaps=True,
            empty_union=None,
            precision_at=(5, 7, 9),
        ),
        Protocol(
            "cris",
            "CRIS's inference; its mean IoU is the number that CRIS prints as IoU",
            resampled="probabilities",
            resampling="bicubic",
            threshold=0.35,
            reaches="> arange",
            overall_name=None,
        ),
        Protocol(
            "cgformer",
            "CGFormer's inference",
            drops_overlaps=True,
            resampled="probabilities",
            resampling="bicubic, corners aligned",
            reaches="> arange",
        ),
        Protocol("remamber", "ReMamber's evaluate", drops_overlaps=True, resampling="nearest", precision_at=()),
        Protocol(
            "rela_gref",
            "ReLA's ReferEvaluator, for gRefCOCO and for RefCOCO",
            size=(480, 480),
            redraw_polygons=True,
            precision_at=(7, 8, 9),
            overall_name="cIoU",
            mean_name="gIoU",
            no_target="head",
        ),
        Protocol(
            "lisa",
            "LISA's validate, also used by EVF-SAM",
            drops_overlaps=True,
            resampling="bilinear, two taps",
            empty_union=1.0,
            precision_at=(),
            overall_name="cIoU",
            mean_name="gIoU",
            no_target="masks",
        ),
    )
}


def protocol_named(name: str) -> Protocol:
    """Return the protocol of that name.

    Raises:
        UserError: there is no such protocol.
    """
    if name not in PROTOCOLS:
        raise UserError(f"protocol {name!r} not found; available: {', '.join(PROTOCOLS)} (docs/protocols.md)")
    return PROTOCOLS[name]


def resize_logits(logits: Float[np.ndarray, "h w"], height: int, width: int) -> Float[np.ndarray, "height width"]:
    """Resize logits bilinearly (half-pixel centres) to `height` x `width` pixels; the mask is where they exceed 0.

    Resizing logits rather than masks keeps the outline smooth. If the image is smaller than the network's grid, the
    filter is widened accordingly, so that every pixel contributes.
    """
    resized = Image.fromarray(np.asarray(logits, np.float32)).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(resized)


def mask_and_score(
    logits: Float[np.ndarray, "h w"], height: int, width: int
) -> tuple[Bool[np.ndarray, "height width"], float]:
    """Return the mask that a user gets for an image of `height` x `width`, which is also that of `original`.

    Also return its uncalibrated score, the mean probability of foreground over the mask, 0 if that is empty.
    """
    mask, foreground = _foreground(np.asarray(logits, np.float32), height, width)
    return mask, mask_score(foreground)


def mask_score(foreground: Float[np.ndarray, " pixels"]) -> float:
    """Return the uncalibrated score of a mask, given the resized logits of its pixels."""
    return float(np.mean(sigmoid(foreground))) if foreground.size else 0.0


def sigmoid(logits: Any, dtype: type = np.float64) -> Any:
    """Return the probabilities of logits, computed in `dtype`."""
    return (1 + np.tanh(np.asarray(logits, dtype) / 2)) / 2  # does not overflow


def _foreground(
    logits: Float[np.ndarray, "h w"], height: int, width: int
) -> tuple[Bool[np.ndarray, "height width"], Float[np.ndarray, " pixels"]]:
    """Return where the resized logits exceed 0, and the values there.

    Along an axis that keeps its size (the rows of most COCO images at 480 pixels), a row or column without positive
    logits stays without. Only the range that has all positive logits is resized; the result is the same.
    """
    size = height, width
    part = tuple(_positive(logits, axis) if logits.shape[axis] == size[axis] else slice(None) for axis in (0, 1))
    mask = np.zeros(size, bool)
    if not logits[part].size:
        return mask, np.empty(0, np.float32)
    resized = resize_logits(np.ascontiguousarray(logits[part]), *mask[part].shape)
    mask[part] = resized > 0
    return mask, resized[mask[part]]


def _positive(values: Float[np.ndarray, "h w"], axis: int) -> slice:
    """Return the range of rows (axis 0) or columns (axis 1) outside which no value is positive."""
    found = np.flatnonzero((values > 0).any(axis=1 - axis))
    return slice(int(found[0]), int(found[-1]) + 1) if found.size else slice(0)


_CUBIC_A = -0.75  # of the cubic kernel in OpenCV and PyTorch (Pillow has -0.5)


def resample(values: Float[np.ndarray, "h w"], height: int, width: int, how: Resampling) -> np.ndarray:
    """Resize to `height` x `width`; return `values` unchanged if they have that size.

    "bilinear" is `resize_logits`. The others are those of torch.nn.functional.interpolate, which never widens its
    filter: "bilinear, two taps" and "bicubic" with half-pixel centres, "bicubic, corners aligned", and "nearest", which
    takes the pixel at floor(i * (old / new)) in float32.
    """
    if values.shape == (height, width):
        return values
    if how == "bilinear":
        return resize_logits(values, height, width)
    return _resample_rows(_resample_rows(values, height, how).T, width, how).T


def _resample_rows(values: Float[np.ndarray, "old w"], new: int, how: Resampling) -> Float[np.ndarray, "new w"]:
    """Resize the first axis; border values are repeated beyond the border."""
    if how == "nearest":
        return values[_nearest(len(values), new)]
    weights, indices = _taps(len(values), new, how)
    return sum(weights[:, tap, None] * values[indices[:, tap]] for tap in range(weights.shape[1]))


def _nearest(old: int, new: int) -> Int[np.ndarray, " new"]:
    step = np.float32(old) / np.float32(new)
    return np.minimum((np.arange(new, dtype=np.float32) * step).astype(int), old - 1)


@lru_cache(maxsize=64)
def _taps(old: int, new: int, how: Resampling) -> tuple[Float[np.ndarray, "new taps"], Int[np.ndarray, "new taps"]]:
    """Return the weights and the indices of the samples from which each new sample is computed."""
    if how == "bicubic, corners aligned":
        at = np.arange(new) * ((old - 1) / (new - 1) if new > 1 else 0.0)
    else:
        at = (np.arange(new) + 0.5) * old / new - 0.5
    taps = np.arange(2) if how == "bilinear, two taps" else np.arange(-1, 3)
    indices = np.floor(at).astype(int)[:, None] + taps
    x = np.abs(at[:, None] - indices)
    if how == "bilinear, two taps":
        weights = 1 - x
    else:  # cubic convolution (Keys 1981)
        near = ((_CUBIC_A + 2) * x - (_CUBIC_A + 3)) * x * x + 1
        far = ((_CUBIC_A * x - 5 * _CUBIC_A) * x + 8 * _CUBIC_A) * x - 4 * _CUBIC_A
        weights = np.where(x <= 1, near, far)
    return weights.astype(np.float32), np.clip(indices, 0, old - 1)


def true_mask(
    protocol: Protocol, segmentation: Segmentation, original: Bool[np.ndarray, "h w"]
) -> Bool[np.ndarray, "new_h new_w"]:
    """Return the true mask at the size at which `protocol` compares; `original` is the mask at the image's own size.

    If the protocol redraws polygons but the segmentation is not made of polygons, the mask is resized by nearest pixel.
    """
    if protocol.size is None or protocol.size == original.shape:
        return original
    polygons = isinstance(segmentation, list) and segmentation and not any(isinstance(p, dict) for p in segmentation)
    if not (protocol.redraw_polygons and polygons):
        return resize_mask(original, protocol.size)
    y_scale, x_scale = (new / old for new, old in zip(protocol.size, original.shape, strict=True))
    scaled = [(np.asarray(polygon, float).reshape(-1, 2) * (x_scale, y_scale)).ravel() for polygon in segmentation]
    return rasterize(scaled, *protocol.size)


def predicted_mask(
    protocol: Protocol, logits: Float[np.ndarray, "h w"], height: int, width: int
) -> Bool[np.ndarray, "new_h new_w"]:
    """Return the predicted mask at the size at which `protocol` compares, for an image of `height` x `width`."""
    values, level = np.asarray(logits, np.float32), math.log(protocol.threshold / (1 - protocol.threshold))
    if protocol.resampled == "probabilities":
        values, level = sigmoid(values, np.float32), protocol.threshold
    size = protocol.size or (height, width)
    if protocol.resampling == "bilinear" and level == 0:
        return _foreground(values, *size)[0]
    return resample(values, *size, protocol.resampling) > level
