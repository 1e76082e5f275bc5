"""The report of a benchmark: benchmark.md for people, benchmark.json for programs, and the plots beside them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from s2rm_jax.benchmarks.section import Section


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
