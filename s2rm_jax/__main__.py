"""List the commands, or run one: `s2rm train ...` is the same as `python -m s2rm_jax.train ...`."""

from __future__ import annotations

import ast
import runpy
import sys
from pathlib import Path

# The modules of this package that are commands, the most used first.
COMMANDS = (
    *("train", "evaluate", "compare", "predict", "demo", "show_input", "describe"),
    *("download", "convert", "compile_for", "benchmark", "ablate"),
)


def main() -> None:
    """Run the command that the first argument names with the remaining arguments, or list the commands."""
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in ("-h", "--h", "--help", "help"):
        print(listing())
        return
    if name not in COMMANDS:
        print(f"error: unknown command {name!r}; available: {', '.join(COMMANDS)} (see --help)", file=sys.stderr)
        sys.exit(2)
    sys.argv[1:] = arguments
    runpy.run_module(f"s2rm_jax.{name}", run_name="__main__", alter_sys=True)


def listing() -> str:
    """Return a line for each command: its name and the first line of its docstring, read without importing it."""
    width = max(map(len, COMMANDS))
    lines = [f"  python -m s2rm_jax.{name:{width}}  {_first_line(name)}" for name in COMMANDS]
    return "\n".join(["Referring image segmentation with S2RM. Each command has --help:", "", *lines])


def _first_line(name: str) -> str:
    docstring = ast.get_docstring(ast.parse(Path(__file__).with_name(f"{name}.py").read_text(encoding="utf-8")))
    assert docstring is not None
    return docstring.splitlines()[0]


if __name__ == "__main__":
    main()
