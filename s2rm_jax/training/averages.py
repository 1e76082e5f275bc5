"""Means of the metrics over the steps between two lines of the log: a single step says little."""

from __future__ import annotations

from collections.abc import Mapping

# What does not speak of expressions is averaged over steps; the learning rate is that of the last step.
_OF_STEPS = ("grad_norm", "expressions")
_OF_THE_LAST_STEP = ("learning_rate",)


class Averages:
    """Adds up metrics of steps; those of expressions weigh by the number of expressions in the step."""

    def __init__(self) -> None:
        self._sums: dict[str, tuple[float, float]] = {}  # of each metric: weighted sum, sum of weights
        self._latest: Mapping[str, float] = {}

    def add(self, metrics: Mapping[str, float]) -> None:
        """Hears the metrics of a step; "expressions" must be among them."""
        self._latest = metrics
        for name, value in metrics.items():
            weight = 1.0 if name in _OF_STEPS else metrics["expressions"]
            total, weights = self._sums.get(name, (0.0, 0.0))
            self._sums[name] = (total + weight * value, weights + weight)

    def take(self) -> dict[str, float]:
        """Returns the means since the last call, and begins anew; a mean over no expression at all is 0."""
        means = {
            name: self._latest[name] if name in _OF_THE_LAST_STEP else total / weights if weights else 0.0
            for name, (total, weights) in self._sums.items()
        }
        self._sums = {}
        return means
