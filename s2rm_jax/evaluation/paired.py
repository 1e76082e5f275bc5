"""Compare two evaluations of the same expressions: paired differences, with bootstrap intervals over images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np

from s2rm_jax.errors import UserError, counted, explaining, first_of, reason_of
from s2rm_jax.evaluation import metrics
from s2rm_jax.evaluation.bootstrap import difference_interval, resampled_sums
from s2rm_jax.evaluation.metrics import SCORE_FILE, ExpressionScore, read_scores
from s2rm_jax.evaluation.protocols import Protocol, protocol_named
from s2rm_jax.io import read_object

# Fields of metrics.json that must be equal where both have them. Folders may differ: the expressions are compared too.
_SETTINGS = ("protocol", "split", "dataset", "split_by", "datasets", "sentence_field", "overlap")

Pair = tuple[ExpressionScore, ExpressionScore]


@dataclass(frozen=True)
class Evaluation:
    """A folder that `evaluate` wrote: the content of metrics.json, and the scores by the id of their expression."""

    folder: Path
    about: dict[str, Any]
    scores: dict[str, ExpressionScore]

    @property
    def protocol(self) -> Protocol:
        """The protocol of the scores."""
        return protocol_named(self.about["protocol"])

    @property
    def settings(self) -> dict[str, Any]:
        """What was evaluated. A split "PART:SPLIT" of a mixture is SPLIT, as the data is that of the part alone."""
        settings = {name: self.about[name] for name in _SETTINGS if name in self.about}
        return settings | {"split": str(self.about.get("split")).rpartition(":")[2]}


@dataclass(frozen=True)
class Difference:
    """A metric of both evaluations, `difference` = b - a, and its paired bootstrap interval over images; in percent.

    The difference is significant if the interval excludes 0.
    """

    a: float
    b: float
    difference: float
    interval_95: tuple[float, float]
    significant: bool


def read_evaluation(folder: Path) -> Evaluation:
    """Read the files that `evaluate` wrote into a folder.

    Raises:
        UserError: the folder has no report of `evaluate`, or a file is missing, damaged or of another version.
    """
    about = read_object(folder / "metrics.json")
    if "protocol" not in about:
        reports = sorted(str(file.parent) for file in folder.glob(f"*/{SCORE_FILE}"))
        give = first_of(reports, " or ") if reports else "a folder that evaluate wrote, such as WORKDIR/eval-val"
        raise UserError(f"{folder}: metrics.json is missing, is damaged, or was not written by evaluate; give {give}")
    path = folder / SCORE_FILE
    with explaining(lambda error: f"{path} cannot be read ({reason_of(error)}); run evaluate again"):
        scores = read_scores(path)
        counts = metrics.total(scores)
        found = (len(scores), counts.intersection, counts.union)
        if found != tuple(about["all"][name] for name in ("expressions", "intersection", "union")):
            raise ValueError("it is incomplete, or does not belong to metrics.json")
    by_id = {score.id: score for score in scores}
    if len(by_id) < len(scores):
        raise UserError(f"{path}: several expressions have the same id; give each Expression of the source its own id")
    return Evaluation(folder, about, by_id)


def pair(a: Evaluation, b: Evaluation) -> list[Pair]:
    """Return the scores of each expression in both evaluations, in the order of `a`.

    Raises:
        UserError: the evaluations differ in their protocol, their split, its data, or an expression or its true mask.
    """
    for name, value in a.settings.items():
        if (other_value := b.settings.get(name, value)) != value:
            raise UserError(
                f"{b.folder}: {name} is {other_value!r}, but {value!r} in {a.folder}; run evaluate with the same "
                "--protocol, --split and --data for both"
            )
    for one, other in ((a, b), (b, a)):
        if missing := [id for id in one.scores if id not in other.scores]:
            raise UserError(
                f"{other.folder}: {counted(len(missing), 'expression')} of {one.folder} not found "
                f"({first_of(missing, ', ', 3)}); run evaluate on the same data for both, with the same --limit and "
                "--on_bad_example"
            )
    for id, score in a.scores.items():
        if _without_answer(score) != _without_answer(b.scores[id]):
            raise UserError(
                f"{b.folder}: expression {id} has another text, kind, image or true mask than in {a.folder}; run "
                "evaluate on the same data for both"
            )
    return [(score, b.scores[id]) for id, score in a.scores.items()]


def _without_answer(score: ExpressionScore) -> ExpressionScore:
    """Return what a score tells about its expression, whatever the network predicts."""
    return replace(score, intersection=0, union=0, empty_iou=None, answered=True, image="")


def differences(pairs: Sequence[Pair], protocol: Protocol) -> dict[str, Difference]:
    """Return the difference of each metric of the protocol, from the same resamples of the images for both."""
    images = [score.image_identity for score, _ in pairs]
    values, draws = [], []
    for scores in zip(*pairs, strict=True):
        shares = [[*metrics.counts_of(score, protocol).shares(protocol).values()] for score in scores]
        sums = resampled_sums(np.array(shares, np.float64).reshape(len(pairs), -1), images)
        draws.append(sums.reshape(len(sums), -1, 2))
        values.append(metrics.total(scores, protocol).metrics(protocol))
    found = {}
    for column, name in enumerate(protocol.columns):
        if name in values[0]:  # else it is not defined on these expressions
            low, high = difference_interval(*(sums[:, column] for sums in draws))
            a, b = (one[name] for one in values)
            found[name] = Difference(a, b, b - a, (low, high), low > 0 or high < 0)
    return found


def by_kind(pairs: Sequence[Pair]) -> dict[str, list[Pair]]:
    """Return the pairs of each kind of expression, sorted by kind; empty if the data has no kinds."""
    kinds = sorted({score.kind for score, _ in pairs})
    return {kind: [one for one in pairs if one[0].kind == kind] for kind in kinds} if any(kinds) else {}


def changes(pairs: Sequence[Pair]) -> list[dict[str, Any]]:
    """Return each expression with both IoUs, in [0, 1], and their `change`, from the largest loss to the largest gain.

    If an evaluation excludes the expression from the mean, its IoU is None and the change is 0.
    """
    rows = []
    for a, b in pairs:
        about = {"id": a.id, "example": a.example_id, "kind": a.kind, "expression": a.expression}
        difference = 0.0 if a.iou is None or b.iou is None else b.iou - a.iou
        rows.append(about | {"iou_a": a.iou, "iou_b": b.iou, "change": difference})
    return sorted(rows, key=itemgetter("change"))
