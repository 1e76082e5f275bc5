"""What importing the package costs, and that the documentation points at files that exist."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = (
    *("s2rm_jax", "s2rm_jax.segmenter", "s2rm_jax.training.loop", "s2rm_jax.evaluation.evaluator"),
    *("s2rm_jax.interop.pretrained", "s2rm_jax.interop.torch_folder", "s2rm_jax.interop.stablehlo"),
    *("s2rm_jax.interop.onnx", "s2rm_jax.input.sources", "s2rm_jax.input.check.examine"),
)


@pytest.mark.parametrize("module", MODULES)
def test_import_pulls_in_no_other_framework(module):
    code = f"import sys, {module}; print([m for m in ('torch', 'tensorflow', 'transformers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


PAGES = sorted(p for p in ROOT.glob("**/*.md") if not {".venv", "venv", "runs"} & set(p.relative_to(ROOT).parts))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_exist(page):
    links = re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8"))
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not missing


def test_pages_named_in_the_code_exist():
    sources = [*ROOT.glob("s2rm_jax/**/*.py"), *ROOT.glob("configs/*.py"), ROOT / "Makefile"]
    named = {page for path in sources for page in re.findall(r"\b(?:docs|data)/[\w/]+\.(?:md|png)", path.read_text())}
    assert named
    assert not [page for page in sorted(named) if not (ROOT / page).exists()]
