"""What a suite returns: tables with the sentences that belong to them, for people and for programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from s2rm_jax.benchmarks.timing import Ratio

Cell = str | int | float
Row = Sequence[Cell]


@dataclass(frozen=True)
class Section:
    """One table of a report.

    `text` says what was measured and what was expected; `figures` are the numbers that a program would look for;
    `plots` are SVGs by the name of their file.
    """

    title: str
    text: str
    head: Sequence[str]
    rows: Sequence[Row]
    figures: Mapping[str, int | float] = field(default_factory=dict)
    plots: Mapping[str, str] = field(default_factory=dict)

    def markdown(self) -> str:
        """Returns the section with its table; plots are linked as files beside it."""
        lines = [f"## {self.title}", "", self.text, ""]
        if self.rows:
            lines += [_line(self.head), _line(["---"] * len(self.head)), *(_line(map(show, row)) for row in self.rows)]
        lines += [f"\n![{self.title}]({name})" for name in self.plots]
        return "\n".join(lines).rstrip() + "\n"

    def as_json(self) -> dict[str, Any]:
        """Returns all but the plots, of which only the names."""
        return asdict(self) | {"plots": list(self.plots)}


def show(value: Cell) -> str:
    """Writes a number with three digits that count, and words as they are."""
    if isinstance(value, str):
        return value
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def show_ratio(ratio: Ratio) -> str:
    """Writes a ratio with its quartiles."""
    return f"{ratio.median:.2f} ({ratio.low:.2f} to {ratio.high:.2f})"


def _line(cells: Any) -> str:
    return f"| {' | '.join(cells)} |"
