"""The suites by name, each imported only when it is run."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from s2rm_jax.measure.section import Section
    from s2rm_jax.measure.subject import Subject


@dataclass(frozen=True)
class Suite:
    """`function` of `module` measures.

    `seconds` is about how long it takes with the default network and 5 rounds on two idle cores, to guess what is left.
    """

    module: str
    function: str
    seconds: int

    def run(self, subject: Subject, rounds: int) -> list[Section]:
        """Measures.

        Raises:
            UserError: what the suite needs is not installed, or the configuration does not suit it.
        """
        measure: Callable[[Subject, int], list[Section]]
        measure = getattr(importlib.import_module(f"s2rm_jax.benchmarks.{self.module}"), self.function)
        return measure(subject, rounds)


SUITES = {
    "floor": Suite("floor", "floor", 5),
    "parts": Suite("part_floors", "part_floors", 50),
    "expressions": Suite("many_expressions", "many_expressions", 65),
    "fusion": Suite("fusion_share", "fusion_share", 60),
    "growth": Suite("growth", "growth", 220),
    "serving": Suite("serving_programs", "serving_programs", 80),
    "startup": Suite("startup", "startup", 200),
    "train": Suite("training_speed", "training_speed", 200),
    "torch": Suite("against_torch", "against_torch", 280),
}
DEFAULT = ("parts", "expressions", "fusion", "serving")  # minutes, with nothing that is optional
