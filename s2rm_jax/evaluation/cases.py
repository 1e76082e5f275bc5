"""Which sentences to show: the best, the worst and some at random, chosen while an evaluation runs."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

from s2rm_jax.evaluation.evaluator import Prediction

SECTIONS = ("random", "worst", "best")  # in the order in which they are shown


class Cases:
    """Keeps up to `count` predictions for each section, each of another picture; an observer for the Evaluator.

    Best and worst are by IoU, equal IoUs in random order; the best are among sentences that refer to something. The
    random order comes from the ids of the sentences: the same at every evaluation, whatever was predicted, so that
    neither flatters.
    """

    def __init__(self, count: int):
        self._count = count
        self._kept: dict[str, dict[str, tuple[tuple[float, int], Prediction]]] = {name: {} for name in SECTIONS}

    def __call__(self, prediction: Prediction) -> None:
        """Looks at the next prediction and keeps it where it belongs."""
        score = prediction.score
        chance = zlib.crc32(score.id.encode())
        self._offer("random", (0.0, chance), prediction)
        if score.iou is not None:
            self._offer("worst", (score.iou, chance), prediction)
            if score.targeted:
                self._offer("best", (-score.iou, chance), prediction)

    def __getitem__(self, section: str) -> list[Prediction]:
        """Returns the predictions of a section, the most extreme first."""
        return [prediction for _, prediction in sorted(self._kept[section].values(), key=lambda kept: kept[0])]

    def sections(self) -> dict[str, list[Prediction]]:
        """Returns all sections that hold anything."""
        return {name: self[name] for name in SECTIONS if self._kept[name]}

    @classmethod
    def together(cls, shares: Sequence[Cases]) -> Cases:
        """Returns what one object would have kept that had looked at the predictions of all `shares`."""
        whole = cls(shares[0]._count)
        for share in shares:
            for section, kept in share._kept.items():
                for key, prediction in kept.values():
                    whole._offer(section, key, prediction)
        return whole

    def _offer(self, section: str, key: tuple[float, int], prediction: Prediction) -> None:
        """Keeps the `count` lowest keys, one per picture."""
        kept, picture = self._kept[section], prediction.example.id
        if picture not in kept or key < kept[picture][0]:
            kept[picture] = (key, prediction)
        if len(kept) > self._count:
            del kept[max(kept, key=lambda name: kept[name][0])]
