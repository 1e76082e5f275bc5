"""The wheel: its files, its use without the repository, and its types."""

import os
import re
import subprocess
import sys
import zipfile
from itertools import chain
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    pytest.importorskip("hatchling", reason="hatchling is not installed: pip install hatchling")
    out = tmp_path_factory.mktemp("wheel")
    offline = ["--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check"]
    run(sys.executable, "-m", "pip", "wheel", "-q", *offline, "-w", out, ROOT)
    (path,) = out.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """A folder that contains the package and nothing else of the repository."""
    folder = tmp_path_factory.mktemp("installed")
    with zipfile.ZipFile(wheel) as file:
        file.extractall(folder)
    return folder


def run(*command, **given):
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, **given)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_wheel_holds_exactly_the_package_and_its_configurations(wheel):
    with zipfile.ZipFile(wheel) as file:
        names = set(file.namelist())
    data = ("s2rm_jax/default_network/[!_]*", "s2rm_jax/evaluation/fonts/*")
    files = (*ROOT.glob("s2rm_jax/**/*.py"), *chain(*map(ROOT.glob, data)))
    package = {path.relative_to(ROOT).as_posix() for path in files}
    configs = {f"s2rm_jax/{path.relative_to(ROOT).as_posix()}" for path in ROOT.glob("configs/*.py")}
    about = {name for name in names if ".dist-info/" in name}
    assert names - about == package | configs | {"s2rm_jax/py.typed"}
    licenses = {"licenses/LICENSE", "licenses/s2rm_jax/evaluation/fonts/LICENSE.txt"}
    assert {name.split("/", 1)[1] for name in about} >= {"METADATA", "entry_points.txt", *licenses}


def test_the_wheel_works_from_any_folder(installed, tmp_path):
    place = {"cwd": tmp_path, "env": {**os.environ, "PYTHONPATH": str(installed)}}
    for name in ("synthetic", "configs/synthetic.py"):
        printed = run(
            sys.executable, "-m", "s2rm_jax", "describe", "--config", name, "--config.fusion.width=64", **place
        )
        assert re.search(r"S2RM \+ CASG: [\d.]+ M parameters", printed)
    where = run(sys.executable, "-c", "import s2rm_jax; print(s2rm_jax.__file__)", **place)
    assert where.startswith(str(installed))


def test_the_benchmark_is_found_without_the_repository(installed, tmp_path):
    (tmp_path / "taken").write_text("")  # reported after the configuration is read, and before any training
    done = subprocess.run(
        [sys.executable, "-m", "s2rm_jax.ablate", "--suite=width", "--out=taken"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(installed)},
    )
    assert done.returncode == 2, done.stderr
    assert "error: --out: taken is an existing file" in done.stderr


@pytest.mark.long
def test_users_get_the_types(installed, tmp_path):
    user = tmp_path / "user.py"
    user.write_text("from s2rm_jax.config import find_config\n\nfind_config(3)\n")  # a module that imports little
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--cache-dir", tmp_path / "cache", user],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(installed)},
    )
    assert 'user.py:3: error: Argument 1 to "find_config" has incompatible type "int"; expected "str"' in done.stdout
