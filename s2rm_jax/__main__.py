"""Lists what can be done from the command line, or does it: `python -m s2rm_jax train --config ...`.

`s2rm train ...` and `python -m s2rm_jax.train ...` are the same.
"""

from __future__ import annotations

import ast
import runpy
import sys
from pathlib import Path

# The modules of this package that can be run, by how often they are.
DOORS = (
    *("train", "evaluate", "predict", "demo", "show_input", "describe"),
    *("convert", "compile_for", "benchmark", "ablate"),
)


def main() -> None:
    """Runs the door that the first argument names with the arguments after it; without one, lists them."""
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in ("-h", "--h", "--help", "help"):
        print(listing())
        return
    if name not in DOORS:
        print(f"error: {name!r} is no command; it must be one of: {', '.join(DOORS)} (see --help)", file=sys.stderr)
        sys.exit(2)
    sys.argv[1:] = arguments
    runpy.run_module(f"s2rm_jax.{name}", run_name="__main__", alter_sys=True)


def listing() -> str:
    """Returns a line for each door: its name and the first expression of its docstring, for which nothing is imported."""
    width = max(map(len, DOORS))
    lines = [f"  python -m s2rm_jax.{name:{width}}  {_first_line(name)}" for name in DOORS]
    return "\n".join(["Referring image segmentation with S2RM. Each of these says more with --help:", "", *lines])


def _first_line(name: str) -> str:
    docstring = ast.get_docstring(ast.parse(Path(__file__).with_name(f"{name}.py").read_text(encoding="utf-8")))
    assert docstring is not None
    return docstring.splitlines()[0]


if __name__ == "__main__":
    main()
