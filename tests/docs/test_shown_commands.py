"""Every command that the documentation shows is run, or parsed by the command that it names, or marked.

- The first command of each kind is run as shown, in a folder with its files, if it is cheap.
- Others are parsed with the flags of the command: each flag and each field of the configuration must exist.
- Commands that need data, hardware or another program have the word "needs" in their block or in a paragraph beside
  it, or a name in capitals for the missing part. The pages of docs/results/ are exempt: they record what was run.
"""

from __future__ import annotations

import importlib
import re
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from etils import epath
from PIL import Image

from s2rm_jax import command_line
from s2rm_jax.config import default_config
from s2rm_jax.parallel import programs
from tests.command import run_command
from tests.docs.shell_blocks import ROOT, Command, shown_commands

# ml_collections still loads configuration files with load_module.
pytestmark = pytest.mark.filterwarnings(r"ignore:the load_module\(\) method is deprecated:DeprecationWarning")

COMMANDS = sorted(set(shown_commands()))
# Configurations in place of those that readers write themselves.
STAND_INS = {"configs/CONFIG.py": "synthetic", "configs/mine.py": "synthetic", "...": "synthetic"}
# The tests that run the commands that take too long here.
RUN_BY = {
    "s2rm_jax.train": "tests/system/test_train_command.py",
    "s2rm_jax.compare": "tests/test_compare.py",
    "s2rm_jax.convert": "tests/system/test_convert_command.py",
    "s2rm_jax.compile_for": "tests/test_compile_for.py",
    "s2rm_jax.ablate": "tests/measure/test_ablate_command.py",
    "s2rm_jax.benchmark": "tests/measure/test_benchmark_suites.py",
    "s2rm_jax.demo": "tests/system/test_evaluate_predict_commands.py",
    "s2rm_jax.download": "tests/test_download.py",
    "s2rm_jax": "tests/test_commands.py",
    "data.check": "tests/data/test_check.py",
    "data.build": "tests/data/test_build.py",
    "data.measure": "tests/data/test_measure.py",
    "data.synthetic_baselines": "tests/data/test_synthetic_baselines.py",
    "data.input_speed": "tests/data/test_input_speed.py",
    "segment.py": "tests/interop/test_torch_folder.py",
    "curl": "tests/serving/test_api.py",
}
RUN_HERE = ("s2rm_jax.predict", "s2rm_jax.evaluate", "s2rm_jax.show_input", "s2rm_jax.describe")
SMALLER = {"s2rm_jax.evaluate": ["--limit=4", "--gallery=1"]}
MARK = re.compile(r"[Nn]eeds?\b|\b(DATA|DIR|REFER_MINI|CONFIG|CLUSTER|IMAGE)\b")
STANDARD = (r"git clone ", r"cd ", r"mkdir ", r"\. \S+/bin/activate$", r"python3 -m venv ")


def parts_of(command: Command) -> list[list[str]]:
    """Return the commands that are joined by && or repeated by `for`, as words without environment variables."""
    text = re.sub(r"^for .*?; do (?:time )?(.*); done$", r"\1", command.text)
    parts = [Command(command.page, part, "").words() for part in re.split(r" && (?=\S)", text)]
    parts = [part[: part.index(">")] if ">" in part else part for part in parts if part]
    return [[word for word in part if not re.match(r"[A-Z0-9_]+=", word)] for part in parts]


def parse_command(words: list[str]) -> tuple[str, list[str]] | None:
    """Return the module that a command runs and its arguments; None if the module is not one of this project."""
    if words[0] == "s2rm":
        words = ["python", "-m", f"s2rm_jax.{words[1]}" if words[1:] else "s2rm_jax", *words[2:]]
    if words[:2] == ["python", "-m"] and words[2].split(".")[0] in ("s2rm_jax", "data", "docs"):
        name, arguments = words[2], words[3:]
        if name == "s2rm_jax" and arguments:
            name, arguments = f"s2rm_jax.{arguments[0]}", arguments[1:]
        return name, arguments
    if words[0] == "python" and words[1].startswith("data/"):
        return words[1].removesuffix(".py").replace("/", "."), words[2:]
    return None


def parse(monkeypatch, name: str, arguments: list[str]) -> None:
    """Parse arguments as the command does; raise UserError as it does."""
    module = importlib.import_module(name)
    cut = "..." in arguments and f"--{arguments[max(0, arguments.index('...') - 1)].lstrip('-')}" not in arguments
    source = Path(module.__file__).read_text()
    required = re.search(r"command_line\.run_and_exit\(main.*required=\(([^)]*)\)", source)
    needed = re.findall(r'"(\w+)"', required[1]) if required else []
    if hasattr(module, "COMMANDS"):
        needed, arguments = module.COMMANDS[arguments[0]].required, arguments[1:]
    if cut:
        needed = []
        arguments = [argument for argument in arguments if argument != "..."]
        arguments += ["--config=synthetic"] if "config" in module.FLAGS else []
        arguments.sort(key=lambda argument: not argument.startswith("--config="))
    monkeypatch.delitem(sys.modules, "config_config", raising=False)
    monkeypatch.setattr(sys, "argv", [name, *(STAND_INS.get(argument, argument) for argument in arguments)])
    command_line.define_verbose(module.FLAGS)
    try:
        command_line._parse(module.FLAGS, needed, positional="positional=True" in source)
    finally:
        forget(module.FLAGS)


def forget(flag_values) -> None:
    """Reset flags to their state before parsing, without the given fields of a configuration."""
    for name in [name for name in flag_values if name.startswith("config.")]:
        delattr(flag_values, name)
    flag_values.unparse_flags()


def needs_something(words: list[str]) -> bool:
    """Return whether a command needs data, a TPU or a program that not everybody has."""
    parsed = parse_command(words)
    if parsed is None:
        return words[0] in ("docker", "xpk", "kubectl", "gcloud", "ffmpeg", "sbatch", "srun", "wandb", "tensorboard")
    name, arguments = parsed
    of_data = (
        r"(configs/)?(ref|gref|combined|CONFIG)|runs/(ref|mem)|testA|to-onnx|hf://|--repo|\S*\b(DATA|DIR|REFER_MINI)\b"
    )
    return name == "s2rm_jax.compile_for" or any(re.match(of_data, argument) for argument in arguments)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: f"{command.page}: {command.text[:60]}")
def test_every_shown_command_parses(command, monkeypatch):
    for words in parts_of(command):
        if parsed := parse_command(words):
            name, arguments = parsed
            assert name in RUN_HERE or (ROOT / RUN_BY[name]).is_file()
            if name != "s2rm_jax" and arguments != ["--help"]:
                parse(monkeypatch, name, arguments)
        elif not is_known(words):
            assert MARK.search(command.near), f"{words[0]} is not known here, and is not marked by 'needs ...'"


def is_known(words: list[str]) -> bool:
    """Return whether a command is of a known kind and names an existing target or file."""
    text = " ".join(words)
    if words[0] == "make":
        targets = re.findall(r"^([a-z -]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        return words[1] in " ".join(targets).split()
    if words[0] == "export":
        variable = words[1].split("=")[0] if words[1:] else "S2RM_DATA"  # its value is left out with those of env
        return variable in (ROOT / "s2rm_jax/recipes.py").read_text()
    if words[:2] == ["pip", "install"]:
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        known = f"{project['dependencies']} {project['optional-dependencies']} s2rm-jax"
        extras = re.findall(r"\[([\w,]+)\]", text)
        names = [word for word in words[2:] if re.fullmatch(r"[a-z][\w-]*", word)]
        return all(extra in project["optional-dependencies"] for one in extras for extra in one.split(",")) and all(
            name in known for name in names
        )
    if words[:2] == ["pip", "wheel"]:
        return (ROOT / "tests/test_wheel.py").is_file()
    if words[:3] == ["python", "-m", "pytest"]:
        return all((ROOT / word).exists() for word in words if word.startswith("tests/"))
    if words[0].endswith(".sh"):
        return (ROOT / words[0]).exists()
    if words[0] == "curl" or "/segment.py" in text:
        return (ROOT / RUN_BY["curl" if words[0] == "curl" else "segment.py"]).is_file()
    return any(re.match(pattern, text) for pattern in STANDARD)


@pytest.mark.parametrize(
    "command",
    [
        command
        for command in COMMANDS
        if not command.page.startswith("docs/results/") and any(map(needs_something, parts_of(command)))
    ],
    ids=lambda command: f"{command.page}: {command.text[:60]}",
)
def test_commands_with_requirements_are_marked(command):
    assert MARK.search(command.near), command.text


def test_the_python_of_the_page_on_evaluation_runs(tiny_workdir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("runs").mkdir()
    Path("runs/mine").symlink_to(tiny_workdir)
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/evaluation.md").read_text(), re.DOTALL)
    names: dict = {}
    exec(code.replace("limit = 100", "limit = 4"), names)
    report = names["report"]
    assert report.images == 4 and set(report.metrics) >= {"overall_iou", "mean_iou"} and report.total.expressions >= 4


@pytest.fixture
def programs_kept(tmp_path, monkeypatch):
    """Share compiled programs between the commands."""
    monkeypatch.setattr(programs, "WORTH_KEEPING", 0.0)
    with programs.compilation_cache(default_config(), epath.Path(tmp_path)):
        yield


@pytest.mark.usefixtures("programs_kept")
def test_the_first_command_of_each_kind_runs_as_shown(tiny_workdir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("runs").mkdir()
    Path("s2rm_jax").mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    Image.fromarray(noise).save("street.jpg")
    Path("frames").mkdir()
    Image.fromarray(noise).save("frames/1.jpg")
    run = set()
    for command in shown_commands():  # in their order: some use what those before them wrote
        for words in parts_of(command):
            name, arguments = parse_command(words) or ("", [])
            kind = (name, *sorted({argument.split("=")[0] for argument in arguments if argument.startswith("--")}))
            skip = (
                {"...", "--help"} & {*arguments} or command.page.startswith("docs/results/") or needs_something(words)
            )
            if name not in RUN_HERE or kind in run or skip:
                continue
            run.add(kind)
            for workdir in (
                argument for argument in arguments if re.fullmatch(r"runs/\w+|\w+/default_network", argument)
            ):
                if not Path(workdir).exists():
                    Path(workdir).symlink_to(tiny_workdir)
            arguments = [STAND_INS.get(argument, argument) for argument in arguments]
            done = run_command(name, *arguments, *SMALLER.get(name, []), cwd=tmp_path)
            assert done.returncode == 0, f"{command.page}: {command.text}\n{done.stderr}"
    assert {name for name, *_ in run} == set(RUN_HERE)
