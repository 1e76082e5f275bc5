"""The public names, the cost of importing the package, and the pages that the code names."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

import s2rm_jax

ROOT = Path(__file__).parents[1]
TENSORBOARD = "TensorBoard files"
PROCESSES = (  # what each of several processes does, in order: import modules, or write TensorBoard files
    ("s2rm_jax.segmenter",),
    ("s2rm_jax.training.loop", TENSORBOARD),
    (
        *("s2rm_jax", "s2rm_jax.evaluation.evaluator", "s2rm_jax.interop.pretrained", "s2rm_jax.interop.torch_folder"),
        *("s2rm_jax.interop.stablehlo", "s2rm_jax.interop.onnx", "s2rm_jax.input.sources"),
        "s2rm_jax.input.check.examine",
    ),
)


# Takes each step in turn; prints which frameworks were imported first in each.
FRAMEWORKS = """
import importlib, json, sys
from etils import epath

def write_tensorboard_files():
    from s2rm_jax.training.logging import TensorBoardFiles
    files = TensorBoardFiles(epath.Path(sys.argv[1]), 0)
    files.write(1, {"loss": 1.0})
    files.close(failed=False)

found = {}
for step in sys.argv[2:]:
    before = set(sys.modules)
    write_tensorboard_files() if step == "TensorBoard files" else importlib.import_module(step)
    found[step] = sorted({"torch", "tensorflow", "transformers"} & (set(sys.modules) - before))
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def frameworks(tmp_path_factory):
    """The frameworks that each step of PROCESSES imports and no earlier step of its process does."""
    found = {}
    for steps in PROCESSES:
        command = [sys.executable, "-c", FRAMEWORKS, str(tmp_path_factory.mktemp("workdir")), *steps]
        found |= json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return found


@pytest.mark.parametrize("step", [step for steps in PROCESSES for step in steps])
def test_import_pulls_in_no_other_framework(frameworks, step):
    assert frameworks[step] == []


def test_import_imports_no_framework():
    """So that it is fast."""
    code = "import sys, s2rm_jax; print({'jax', 'numpy', 'torch', 'tensorflow'} & {*sys.modules} or 'none')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "none\n"


def test_public_names_are_imported_when_they_are_used():
    names = set(s2rm_jax.__all__) - {"__version__"}
    assert names == {"Result", "Segmenter", "build_network", "default_config", "load_run"}
    assert {getattr(s2rm_jax, name).__name__ for name in names} == names
    assert names <= set(dir(s2rm_jax))


def test_the_types_of_the_public_names_are_checked_strictly():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["mypy"]
    (strict,) = settings["overrides"]
    modules = {getattr(s2rm_jax, name).__module__ for name in set(s2rm_jax.__all__) - {"__version__"}}
    assert settings["disallow_untyped_defs"] and strict["disallow_any_generics"]
    assert modules | {"s2rm_jax"} <= set(strict["module"])


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 's2rm_jax' has no attribute 'Segmentor'"):
        _ = s2rm_jax.Segmentor
    with pytest.raises(ImportError, match="cannot import name 'Segmentor'"):
        from s2rm_jax import Segmentor  # noqa: F401


def test_pages_named_in_the_code_exist():
    sources = [*ROOT.glob("s2rm_jax/**/*.py"), *ROOT.glob("configs/*.py"), ROOT / "Makefile"]
    named = {page for path in sources for page in re.findall(r"\b(?:docs|data)/[\w/]+\.(?:md|png)", path.read_text())}
    assert named
    assert not [page for page in sorted(named) if not (ROOT / page).exists()]


def test_the_version_is_the_same_everywhere():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert s2rm_jax.__version__ == version
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert re.search(rf"^## {re.escape(version)} \(\d{{4}}-\d\d-\d\d\)$", (ROOT / "CHANGELOG.md").read_text(), re.M)
    wheels = re.findall(r"s2rm_jax-(\S+?)-py3", (ROOT / "docs" / "install.md").read_text())
    assert wheels and set(wheels) == {version}


def test_the_hooks_and_contributors_have_the_versions_of_the_tests():
    locked = {one["name"]: one["version"] for one in tomllib.loads((ROOT / "uv.lock").read_text())["package"]}
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert [hook["rev"] for hook in hooks if hook["repo"].endswith("/ruff-pre-commit")] == [f"v{locked['ruff']}"]
    contributing = (ROOT / "CONTRIBUTING.md").read_text()
    assert set(re.findall(r"torch==(\S+)", contributing)) == {locked["torch"].split("+")[0]}


def test_the_bounds_of_all_extras_that_the_tests_need_are_tried():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    [developers] = re.findall(r"s2rm-jax\[(.*)\]", " ".join(extras["dev"]))
    [tried] = re.findall(r"--editable '\.\[(.*)\]'", (ROOT / ".github" / "workflows" / "bounds.yml").read_text())
    assert set(developers.split(",")) - {"docs"} <= set(tried.split(","))
