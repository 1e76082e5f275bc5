"""What a suite returns: tables with the expressions that belong to them, for people and for programs.

The report of a benchmark: benchmark.md for people, benchmark.json for programs, and the plots beside them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from s2rm_jax.measure.timing import Ratio

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


def as_markdown(machine: Mapping[str, str], sections: Sequence[Section]) -> str:
    """Returns the whole report."""
    told = [f"- {name}: {f'`{value}`' if name == 'command' else value}" for name, value in machine.items()]
    return "\n".join(["# How fast it is", "", *told, "", *(section.markdown() for section in sections)])


def write_report(folder: Path, machine: Mapping[str, str], sections: Sequence[Section]) -> None:
    """Writes the report into a folder, which it makes.

    Raises:
        OSError: it cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "benchmark.md").write_text(as_markdown(machine, sections), encoding="utf-8")
    numbers = {"machine": dict(machine), "sections": [section.as_json() for section in sections]}
    (folder / "benchmark.json").write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")
    for section in sections:
        for name, svg in section.plots.items():
            (folder / name).write_text(svg, encoding="utf-8")
