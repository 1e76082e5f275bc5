"""The list of commands, and the program `s2rm` that runs each of them."""

import importlib
import tomllib

import pytest

from s2rm_jax import __main__ as commands
from tests.command import ROOT, run_command, run_process


def test_every_command_is_listed_with_its_first_line():
    programs = {path.stem for path in (ROOT / "s2rm_jax").glob("*.py") if "command_line.run" in path.read_text()}
    assert programs - {"command_line"} == set(commands.COMMANDS)
    lines = commands.listing().splitlines()[2:]
    assert len(lines) == len(commands.COMMANDS)
    for name, line in zip(commands.COMMANDS, lines, strict=True):
        command, _, first = line.strip().removeprefix("python -m s2rm_jax.").partition("  ")
        assert command == name
        assert importlib.import_module(f"s2rm_jax.{name}").__doc__.startswith(first.strip())


def test_listing_imports_nothing():
    code = (
        "import sys; from s2rm_jax.__main__ import listing; listing(); print({'jax', 'numpy', 'absl'} & {*sys.modules})"
    )
    assert run_process("-c", code).stdout == "set()\n"


def test_help_of_measuring_commands_does_not_import_jax():
    code = "import sys, s2rm_jax.ablate, s2rm_jax.benchmark; print({'jax', 'flax', 'torch'} & {*sys.modules})"
    assert run_process("-c", code).stdout == "set()\n"


@pytest.mark.parametrize("arguments", [(), ("--help",)])
def test_without_a_name_the_commands_are_listed(arguments):
    done = run_command("s2rm_jax.__main__", *arguments)
    assert (done.returncode, done.stdout, done.stderr) == (0, commands.listing() + "\n", "")


def test_a_name_runs_its_command():
    for given in (["--help"], ["--config=nowhere.py"]):
        one, other = run_command("s2rm_jax.__main__", "describe", *given), run_command("describe", *given)
        assert (one.returncode, one.stdout, one.stderr) == (other.returncode, other.stdout, other.stderr)
    done = run_command("s2rm_jax.__main__", "trian")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: unknown command 'trian'; available: train, evaluate")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--lavt=checkout"], "--lavt is read by --suite lavt only"),
        (["--suite=parts", "--minutes=3"], "--minutes is read by --suite gpu only"),
        (["--config=synthetic", "--batch_size=2", "--config.batch_size=3"], "--batch_size and --config.batch_size are"),
    ],
)
def test_flags_that_benchmark_would_ignore_are_an_error(flags, message):
    done = run_command("benchmark", *flags)
    assert done.returncode == 2 and done.stderr.startswith(f"error: {message}")


@pytest.mark.parametrize("arguments", [("--help",), ("--config=nowhere.py",)])
def test_a_separate_process_gives_the_same_output_and_status(arguments):
    one, other = run_process("-m", "s2rm_jax", "describe", *arguments), run_command("describe", *arguments)
    assert (one.returncode, one.stdout, one.stderr) == (other.returncode, other.stdout, other.stderr)
    assert one.returncode == (0 if arguments == ("--help",) else 2)


@pytest.mark.parametrize("name", commands.COMMANDS)
def test_every_command_can_show_what_other_libraries_print(name):
    assert "\n  --verbose\n" in run_command(name, "--help").stdout


def test_the_installed_command_is_the_same():
    script = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]["s2rm"]
    module, _, function = script.partition(":")
    assert getattr(importlib.import_module(module), function) is commands.main
