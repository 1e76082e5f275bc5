"""Generate the reference pages of the site from the code: every field of a configuration, every flag of a command.

Each function returns Markdown. docs/site_pages.py adds the pages to the site.
"""

from __future__ import annotations

import functools
import inspect
import re
import runpy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

from absl import flags
from ml_collections import ConfigDict

from s2rm_jax import command_line, config
from s2rm_jax.__main__ import COMMANDS
from s2rm_jax.errors import UserError
from s2rm_jax.evaluation.tables import markdown_table

ROOT = Path(__file__).parents[1]
CLONE_COMMANDS = ("check", "build")  # in data/, which is not part of the package

_ASSIGNMENT = re.compile(r"config\.(?P<field>[\w.]+) = .*?(?:  # (?P<comment>.*))?$")
_FREE_SECTIONS = ("input.source",)  # their fields depend on a value in them
_TYPES = {bool: "boolean", int: "integer", float: "number", str: "text", tuple: "list", ConfigDict: "section"}
_FLAG_TYPES = {
    **{"bool": "boolean", "int": "integer", "float": "number", "string enum": "choice", "string": "text"},
    **{"comma separated list of strings": "list", "config object": "file"},
}
# A value that the checks of a field reject, if it is checked; their message states the allowed values.
_PROBES: dict[type, Any] = {int: -1, float: -1.0, str: "?", tuple: ()}


def pages() -> dict[str, str]:
    """Return the Markdown of every generated page by its path in the site."""
    return {"reference/configuration.md": configuration(), "reference/commands.md": commands()}


def configuration() -> str:
    """Return a page with a table of fields for each section of the configuration."""
    defaults, comments = config.default_config(), comments_of_fields()
    tables: dict[str, list[list[str]]] = {"config": []}
    for field, comment in comments.items():
        default = value_of(defaults, field)
        section = f"config.{field}".rpartition(".")[0]
        if isinstance(default, ConfigDict) and field not in _FREE_SECTIONS:
            tables[f"config.{field}"] = []
        else:
            shown = default.to_dict() if isinstance(default, ConfigDict) else default
            tables[section].append(
                [f"`{field}`", _TYPES[type(default)], f"`{shown!r}`", allowed(field), _described(comment)]
            )
    parts = [
        "# Configuration",
        "Every field with its type, default and allowed values, generated from `s2rm_jax/config.py`. Set a field on "
        "the command line as `--config.FIELD=VALUE`, such as `--config.optimizer.learning_rate=1e-4`, or in a "
        "configuration file. A run keeps its configuration in `config.json` of its workdir. The files that are named "
        "here are in `s2rm_jax/`.",
    ]
    for section, rows in tables.items():
        about = comments.get(section.removeprefix("config."), "")
        parts += [
            f"## {section}",
            _described(about),
            markdown_table(["field", "type", "default", "allowed", "meaning"], rows),
        ]
    parts.append("Next: [the commands and their flags](commands.md), or [training](../training.md).")
    return "\n\n".join(filter(None, parts)) + "\n"


def value_of(section: ConfigDict, field: str) -> Any:
    """Return the value of a field such as "optimizer.b1"."""
    return functools.reduce(lambda value, name: value[name], field.split("."), section)


def allowed(field: str) -> str:
    """Return the values that a field may take, as the checks of the configuration state them; "" if any."""
    probed = config.default_config()
    section, _, name = field.rpartition(".")
    parent = value_of(probed, section) if section else probed
    if isinstance(parent[name], bool):
        return "`True`, `False`"
    if isinstance(parent[name], ConfigDict):
        return ""
    parent[name] = _PROBES[type(parent[name])]
    try:
        config.check_config(probed)
    except UserError as error:
        rule = r"(?:it must be |the number of heads )(.*?)(?:; -1 does not)?"
        stated = re.search(rf"config\.{re.escape(field)} is .*?; {rule}\.(?= config\.|$)", str(error))
        return stated[1] if stated else ""
    return ""


def comments_of_fields() -> dict[str, str]:
    """Return the comment of each field and section, on the lines above it and beside it, in the order of the file."""
    found, above = {}, ""
    for line in map(str.strip, inspect.getsource(config.default_config).splitlines()):
        if match := _ASSIGNMENT.match(line):
            found[match["field"]] = f"{above} {match['comment'] or ''}".strip()
            above = ""
        elif line.startswith("# "):
            above = f"{above} {line[2:]}".strip()
    return found


def _described(comment: str) -> str:
    """Return a comment without the names of constants, whose values are shown beside it."""
    pattern = r"(?:, )?\bone of [A-Z_]+(?:[;:] |$)"
    without = re.sub(pattern, lambda one: "; " if one[0][0] == "," and one.end() < len(comment) else "", comment)
    return _linked(without)


class _Command(NamedTuple):
    """What a command gives to `command_line.run_and_exit` or `run_command`."""

    flag_values: flags.FlagValues
    doc: str
    required: Mapping[str, Sequence[str]]  # of each subcommand; of "" if there are none


def commands() -> str:
    """Return a page with the exit statuses and with the flags of every command."""
    parts = [
        "# Commands",
        "Every command with its flags, generated from the code. `s2rm NAME` is the same as `python -m s2rm_jax.NAME`. "
        "Give a flag as `--flag=VALUE` or `--flag VALUE`, a boolean flag as `--flag` or `--noflag`. Every command also "
        "has `--help`, and `--verbose`, which shows the warnings and errors of other libraries.",
        "## Exit status",
        markdown_table(
            ["status", "meaning"], [[f"`{status}`", _linked(text)] for status, text in exit_statuses().items()]
        ),
        "Except for 0, 134 and 141, the last line on stderr states the reason.",
    ]
    paths = {f"s2rm {name}": ROOT / f"s2rm_jax/{name}.py" for name in COMMANDS}
    paths |= {f"python data/{name}.py": ROOT / f"data/{name}.py" for name in CLONE_COMMANDS}
    for title, path in paths.items():
        command = read_command(path)
        parts += [f"## {title}", _linked(command.doc.strip())]
        rows = [_flag_row(command.flag_values[name], command.required) for name in command.flag_values]
        parts.append(markdown_table(["flag", "type", "default", "meaning"], rows))
    parts.append("Next: [the fields of the configuration](configuration.md), or [examples](../command_line.md).")
    return "\n\n".join(parts) + "\n"


def exit_statuses() -> dict[int, str]:
    """Return the meaning of each exit status, from the docstring of `command_line`."""
    lines = re.findall(r"^  (\d+) +(.+)$", command_line.__doc__ or "", re.MULTILINE)
    return {int(status): text for status, text in lines}


def read_command(path: Path) -> _Command:
    """Return the flags of a command, from what its file passes to `command_line` when it is run."""
    found: list[_Command] = []

    def run_and_exit(
        main: Any, flag_values: flags.FlagValues, doc: str, required: Sequence[str] = (), **_: Any
    ) -> None:
        found.append(_Command(flag_values, doc, {"": required}))

    def run_command(subcommands: Mapping[str, Any], flag_values: flags.FlagValues, doc: str, **_: Any) -> None:
        found.append(_Command(flag_values, doc, {name: one.required for name, one in subcommands.items()}))

    with mock.patch.multiple(command_line, run_and_exit=run_and_exit, run_command=run_command):
        runpy.run_path(str(path), run_name="__main__")
    (command,) = found
    return command


def _flag_row(flag: flags.Flag, required: Mapping[str, Sequence[str]]) -> list[str]:
    needing = [subcommand for subcommand, names in required.items() if flag.name in names]
    default = "" if flag.default in (None, "") else f"`{flag.default}`".replace(f"{ROOT}/", "")
    if needing:
        default = " by ".join(filter(None, ["required", ", ".join(needing)]))
    # absl puts the choices before the text, and behind it how a flag is repeated.
    text = re.sub(r"^<[^>]*>: ", "", (flag.help or "").split(";\n")[0])
    if choices := getattr(flag.parser, "enum_values", None):
        text += f"; one of: {', '.join(choices)}"
    for bound, words in (("lower_bound", "at least"), ("upper_bound", "at most")):
        if (limit := getattr(flag.parser, bound, None)) is not None:
            text += f"; {words} {limit}"
    kind = flag.flag_type().removeprefix("multi ")
    repeated = ", repeatable" if kind != flag.flag_type() else ""
    return [f"`--{flag.name}`", f"{_FLAG_TYPES[kind]}{repeated}", default, text]


def _linked(text: str) -> str:
    """Return text whose names of pages of docs/ are links."""
    return re.sub(r"(?<![`/\w])docs/([\w/]+\.md)", r"[docs/\1](../\1)", text)
