"""The generated reference names every field of the configuration and every flag of every command."""

import ast
import re

import pytest
from ml_collections import ConfigDict

from docs import reference_pages
from s2rm_jax import command_line
from s2rm_jax.__main__ import COMMANDS
from s2rm_jax.config import default_config


@pytest.fixture(scope="module")
def configuration():
    return rows(reference_pages.configuration())


@pytest.fixture(scope="module")
def commands():
    """The rows of each section."""
    parts = reference_pages.commands().split("\n## ")[1:]
    return {part.split("\n", 1)[0]: rows(part) for part in parts}


def rows(page):
    """Return the cells of each row of the tables of a page, by its first cell."""
    cells = [re.split(r"(?<!\\)\|", line)[1:-1] for line in page.splitlines() if line.startswith("| `")]
    return {row[0].strip(" `"): [cell.strip() for cell in row[1:]] for row in cells}


def fields(section, prefix=""):
    for name, value in section.items():
        if isinstance(value, ConfigDict) and name != "source":
            yield from fields(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def test_every_field_has_a_row_with_its_default_and_meaning(configuration):
    expected = dict(fields(default_config()))
    assert set(configuration) == set(expected)
    for field, default in expected.items():
        if not isinstance(default, ConfigDict):
            assert ast.literal_eval(configuration[field][1].strip("`")) == default, field
        assert configuration[field][-1], f"config.{field} has no comment in s2rm_jax/config.py"


@pytest.mark.parametrize(
    ("field", "allowed"),
    [
        ("dtype", "one of: float32, bfloat16"),
        ("steps", "at least 0"),
        ("batch_size", "at least 1"),
        ("fusion.rotations", "one or more of: 0, 90, 180, 270"),
        ("text.dropout_rate", "at least 0 and less than 1"),
        ("input.augment.flip", "from 0 to 1"),
        ("input.image_size", "(height, width) in pixels, each at least 8"),
        ("tensorboard", "`True`, `False`"),
        ("compilation_cache", ""),
    ],
)
def test_allowed_values_are_those_of_the_checks(configuration, field, allowed):
    assert configuration[field][2] == allowed


def test_comments_beside_and_above_a_field_are_shown(configuration):
    assert configuration["batch_size"][-1] == "images per step, over all devices"
    assert configuration["dtype"][-1] == "dtype of the computation; parameters stay float32"
    assert configuration["fusion.recurrence"][-1] == "recurrence of the scan"
    assert configuration["optimizer.multipliers"][-1].startswith("Patterns are regular expressions")
    assert configuration["optimizer.multipliers"][-1].endswith("the first match applies")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_flag_of_a_command_has_a_row(commands, name):
    source = (reference_pages.ROOT / f"s2rm_jax/{name}.py").read_text()
    defined = set(re.findall(r"DEFINE_\w+\(\s*\"([\w-]+)\"", source))
    assert defined and defined <= {flag.removeprefix("--") for flag in commands[f"s2rm {name}"]}


def test_required_flags_choices_bounds_and_defaults_are_shown(commands):
    assert commands["s2rm train"]["--workdir"][:2] == ["text", "required"]
    assert commands["s2rm train"]["--num_processes"][:2] == ["integer", ""]  # of distributed.define_flags
    assert commands["s2rm convert"]["--weights"][1] == "required by from-pytorch"
    assert commands["s2rm predict"]["--overlay"] == ["choice", "`on`", "whether to write overlay.png; one of: on, off"]
    text = "the checkpoint: best (by config.eval.metric), latest, or a step"
    assert commands["s2rm evaluate"]["--checkpoint"] == ["text", "`best`", text]
    assert commands["s2rm demo"]["--port"][-1].endswith("; at least 0; at most 65535")
    assert commands["s2rm predict"]["--text"][0] == "text, repeatable"
    assert commands["s2rm predict"]["--quiet"][0] == "boolean"  # of returns_result
    assert commands["python data/check.py"]["--root"][1] == "required"


def test_no_path_of_this_machine_is_shown():
    assert not [path for path, page in reference_pages.pages().items() if str(reference_pages.ROOT) in page]


def test_exit_statuses_are_those_of_the_module(commands):
    assert set(reference_pages.exit_statuses()) == {0, 1, 2, 3, 4, command_line._TRY_AGAIN, 130, 134, 141}
    assert commands["Exit status"]["2"] == [
        "an error that you can correct, including a full disk, a missing device, or too little device memory"
    ]


def test_exit_statuses_are_those_of_the_page_on_the_command_line():
    page = (reference_pages.ROOT / "docs/command_line.md").read_text(encoding="utf-8")
    table = {int(status): text for status, text in re.findall(r"^\| (\d+) \| (.+) \|$", page, re.MULTILINE)}
    plain = {status: text.replace("`", "") for status, text in reference_pages.exit_statuses().items()}
    assert {status: text.replace("`", "") for status, text in table.items()} == plain
