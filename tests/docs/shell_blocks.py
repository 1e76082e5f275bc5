"""The commands shown in the documentation: in indented blocks, ```sh blocks, docstrings and notebooks."""

from __future__ import annotations

import ast
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PAGES = ("*.md", "docs/**/*.md", "data/**/*.md", "launch/**/*.md")
COMMAND_MODULES = ("s2rm_jax/*.py", "configs/*.py", "data/*.py")

# A block holds commands if its first line begins with one of these; other blocks show output.
_PROGRAMS = re.compile(
    r"(?:[A-Z0-9_]+=\S+ )*(?:python3?|pip|s2rm|make|git|export|for|\.|mkdir|curl|ffmpeg|tensorboard|wandb|docker|gcloud"
    r"|kubectl|xpk|sbatch|srun|mpirun|(?:launch|tests)/\S+\.sh)(?: |$)"
)


class Command(NamedTuple):
    """A shown command on one line; `near` is its block with the paragraphs before and after."""

    page: str
    text: str
    near: str

    def words(self) -> list[str]:
        """Return its words as a shell splits them, without the trailing comment."""
        return shlex.split(self.text, comments=True)


def shown_commands() -> Iterator[Command]:
    """Yield the commands of all pages and of the docstrings of all command modules."""
    for pattern in PAGES:
        for path in sorted(ROOT.glob(pattern)):
            yield from commands_in(path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8"))
    for path in sorted(ROOT.glob("docs/**/*.ipynb")):
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            lines = [line.strip() for line in re.sub(r"\\\n *", "", "".join(cell["source"])).splitlines()]
            for line in [line[1:] for line in lines if line.startswith("!") and cell["cell_type"] == "code"]:
                yield Command(
                    path.name, line.replace("{sys.executable}", "python").replace("{RUN}", "runs/notebook"), ""
                )
    for pattern in COMMAND_MODULES:
        for path in sorted(ROOT.glob(pattern)):
            docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
            yield from commands_in(path.relative_to(ROOT).as_posix(), docstring)


def commands_in(page: str, text: str) -> Iterator[Command]:
    """Yield the commands of one text."""
    paragraphs = list(_paragraphs(text))
    for place, (lines, is_block) in enumerate(paragraphs):
        if is_block:
            beside = [line for one, _ in paragraphs[max(0, place - 1) : place + 2] for line in one]
            whole = re.sub(r"\\\n *", "", "\n".join(lines)).splitlines()
            commands = [line.strip() for line in whole if not line.strip().startswith("#")]
            if commands and _PROGRAMS.match(commands[0]):
                yield from (Command(page, line, "\n".join(beside)) for line in commands)


def _paragraphs(text: str) -> Iterator[tuple[list[str], bool]]:
    """Yield paragraphs as lines, and whether each is a block that may hold commands."""
    run: list[str] = []
    fence = ""
    for line in [*text.splitlines(), ""]:
        if fence or line.lstrip().startswith("```"):
            if run and not fence:
                yield run, False
                run = []
            if not fence:
                fence = line.strip()
            elif line.strip() == "```":
                if run and fence == "```sh":
                    yield run, True
                run, fence = [], ""
            else:
                run.append(line)
        elif line.strip():
            run.append(line)
        elif run:
            yield run, all(one.startswith("    ") for one in run)
            run = []
