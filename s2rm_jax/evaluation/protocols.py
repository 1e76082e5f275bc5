"""Named ways of measuring, so that a number can be compared with numbers that were measured the same way.

A protocol says at which resolution masks are compared, which pixels count as predicted, what an empty union is worth
and which figures are reported. Each follows the evaluation code of one published project; docs/evaluation.md says for
each what it reproduces and what it cannot.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from s2rm_jax.errors import UserError

Resampling = Literal["bilinear", "bicubic", "bicubic, corners aligned", "nearest"]


@dataclass(frozen=True)
class Protocol:
    """How predictions become numbers.

    follows          whose evaluation this is
    size             (height, width) at which masks are compared, whatever the network's own input; None: the picture's
    redraw_polygons  true masks are drawn anew from scaled polygons; else they are resized to `size` by nearest pixel
    resampled        what is brought to that resolution: the network's logits or its probabilities
    resampling       and how; "bicubic" has half-pixel centres, "nearest" takes the pixel at floor(i * old / new)
    threshold        a pixel is predicted where its probability exceeds this
    empty_union      IoU where both masks are empty; None leaves the sentence out of the mean
    precision_at     the IoUs at which precision is reported, in tenths
    ties_count       whether an IoU equal to the threshold counts (>=) or not (>)
    overall_name     what the field calls sum of intersections / sum of unions; None: not one of the protocol's numbers
    mean_name        what it calls the mean of the sentences' IoUs
    no_target        how a sentence is predicted to refer to nothing: by the network's own "nothing here" where it has
                     one (else by an empty mask), or always by an empty mask; None: the protocol knows no such sentences
    """

    name: str
    follows: str
    size: tuple[int, int] | None = None
    redraw_polygons: bool = False
    resampled: Literal["logits", "probabilities"] = "logits"
    resampling: Resampling = "bilinear"
    threshold: float = 0.5
    empty_union: float | None = 0.0
    precision_at: tuple[int, ...] = (5, 6, 7, 8, 9)
    ties_count: bool = True
    overall_name: str | None = "oIoU"
    mean_name: str = "mIoU"
    no_target: Literal["head", "empty mask"] | None = None

    @property
    def columns(self) -> dict[str, str]:
        """The protocol's numbers in the order of a table: {name of the metric: title}."""
        titles = {"overall_iou": self.overall_name} if self.overall_name else {}
        titles |= {"mean_iou": self.mean_name} | {f"precision@0.{t}": f"P@0.{t}" for t in self.precision_at}
        if self.no_target:
            titles |= {"no_target_accuracy": "N-acc", "target_accuracy": "T-acc"}
        return titles

    @property
    def definition(self) -> tuple[str, ...]:
        """The definition in a few sentences, to stand beside the numbers."""
        return (f"Protocol {self.name}: {self.follows}.", self._masks, self._numbers, *self._no_target)

    @property
    def _masks(self) -> str:
        where = "the picture's original resolution"
        if self.size:
            resized = "drawn from scaled polygons" if self.redraw_polygons else "resized by nearest pixel"
            where = f"{self.size[0]} x {self.size[1]} pixels, true masks {resized}"
        decided = "logit exceeds 0" if self.threshold == 0.5 else f"probability exceeds {self.threshold}"
        return (
            f"Every sentence counts once. Masks are compared at {where}; {self.resampled} are resized "
            f"({self.resampling}); a pixel is predicted where its {decided}."
        )

    @property
    def _numbers(self) -> str:
        overall = f"{self.overall_name}: sum of intersections / sum of unions. " if self.overall_name else ""
        over = " of the sentences that refer to something" if self.no_target else ""
        sign = ">=" if self.ties_count else ">"
        precision = f" P@x: share{over} with IoU {sign} x." if self.precision_at else ""
        empty = "left out of the mean" if self.empty_union is None else f"IoU {self.empty_union:.0f}"
        return f"In percent. {overall}{self.mean_name}: mean IoU.{precision} Empty union: {empty}."

    @property
    def _no_target(self) -> tuple[str, ...]:
        if not self.no_target:
            return ()
        how = "the network says so, or, if it has no such output, its mask is empty"
        scored = (
            "Rightly: IoU 1, nothing added to the sums. Wrongly: IoU 0, the union is that of both masks. A sentence "
            "that refers to nothing and is answered with a mask: IoU 0, that mask is added to the unions."
        )
        if self.no_target == "empty mask":
            how, scored = "its mask is empty", "IoU, intersection and union are those of the masks."
        return (
            f"A sentence is answered with 'nothing' where {how}. {scored}",
            "N-acc: share answered with 'nothing' of the sentences that refer to nothing; T-acc: share answered with a "
            "mask of the others.",
        )


ORIGINAL = Protocol("original", "this project's default")

PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        ORIGINAL,
        Protocol("lavt480", "LAVT's test.py", size=(480, 480)),
        Protocol("caris448", "CARIS's eval.py", size=(448, 448), empty_union=None, precision_at=(5, 7, 9)),
        Protocol(
            "cris",
            "CRIS's inference; its mean IoU is the number that CRIS prints as IoU",
            resampled="probabilities",
            resampling="bicubic",
            threshold=0.35,
            ties_count=False,
            overall_name=None,
        ),
        Protocol(
            "cgformer",
            "CGFormer's inference",
            resampled="probabilities",
            resampling="bicubic, corners aligned",
            ties_count=False,
        ),
        Protocol("remamber", "ReMamber's evaluate", resampling="nearest", precision_at=()),
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
            "LISA's validate, also of EVF-SAM",
            empty_union=1.0,
            precision_at=(),
            overall_name="cIoU",
            mean_name="gIoU",
            no_target="empty mask",
        ),
    )
}


def protocol_named(name: str) -> Protocol:
    """Returns the protocol of that name.

    Raises:
        UserError: there is none; names those that there are.
    """
    if name not in PROTOCOLS:
        raise UserError(f"there is no protocol {name!r}; there are: {', '.join(PROTOCOLS)} (docs/evaluation.md).")
    return PROTOCOLS[name]
