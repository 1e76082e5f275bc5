"""docs/own_data.md: its examples run, print the shown output, and can be trained on."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path

import pytest
from absl import flags
from ml_collections import ConfigDict
from ml_collections.config_flags import config_flags

from s2rm_jax.config import check_config
from s2rm_jax.input.custom import coco_json_source, json_lines_source
from s2rm_jax.input.masks import rasterize
from s2rm_jax.input.pipeline import build_tokenizer, train_batches
from s2rm_jax.input.sources import build_source

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/own_data.md").read_text(encoding="utf-8")
WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "red", "box", "only", "thing")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, flags=re.DOTALL | re.MULTILINE)


def run_the_dozen_lines() -> None:
    exec(compile(blocks("python")[0], "own_data.md", "exec"), {})


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """The folder that the page's first block writes, in the working directory."""
    monkeypatch.chdir(tmp_path)
    run_the_dozen_lines()
    return tmp_path


def test_the_dozen_lines_print_what_the_page_says(folder, capsys):
    run_the_dozen_lines()
    assert capsys.readouterr().out == blocks("text")[0]
    assert [len(json_lines_source(split, root="own_data")) for split in ("train", "val")] == [2, 1]


def test_the_dozen_lines_mask_what_they_draw(folder):
    example = json_lines_source("val", root="own_data")[0]
    mask = rasterize(example.expressions[0].segmentation, example.height, example.width)
    assert mask.sum() == 100 * 100
    assert mask[60:160, 80:180].all()


@pytest.mark.filterwarnings(r"ignore:the load_module\(\) method:DeprecationWarning")  # of ml_collections
@pytest.mark.parametrize("recipe", ["configs.refer_mini", "configs.refcoco"])
def test_the_commands_of_the_page_read_batches_of_it(folder, monkeypatch, recipe):
    monkeypatch.syspath_prepend(str(ROOT))  # where the page says to stand
    (folder / "configs").mkdir()
    file = blocks("python")[1]
    assert file.count("configs.refer_mini") == 1
    (folder / "configs/mine.py").write_text(file.replace("configs.refer_mini", recipe))
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    pretrained = re.search(r"^    (python -m s2rm_jax.train .*?)  # needs a GPU", PAGE, re.DOTALL | re.MULTILINE)
    small = next(line for line in blocks("sh")[0].splitlines() if "s2rm_jax.train " in line)
    command = shlex.split(pretrained[1].replace("\\\n", "") if recipe == "configs.refcoco" else small)
    assert command[:3] == ["python", "-m", "s2rm_jax.train"]
    monkeypatch.setattr(sys, "argv", command[2:])  # where ml_collections looks for the fields that are set
    values = flags.FlagValues()
    holder = config_flags.DEFINE_config_file("config", flag_values=values)
    flags.DEFINE_string("workdir", None, "", flag_values=values)
    assert values(sys.argv) == ["s2rm_jax.train"]
    config: ConfigDict = holder.value
    check_config(config)
    assert (config.steps, config.eval.every) == ((500, 100) if recipe == "configs.refcoco" else (100, 100))
    assert bool(config.vision.pretrained) == (recipe == "configs.refcoco")
    config.input.workers = 0  # processes that would outlive the test
    source = build_source(config.input.source, config.input.train_split)
    batch = next(iter(train_batches(source, build_tokenizer(config, source), config)))
    assert batch.valid.sum() == config.batch_size
    assert batch.targets[batch.valid].any(axis=(1, 2)).all()
    assert len(build_source(config.input.source, config.eval.split)) == 1


def test_the_example_in_cocos_form_is_read(folder):
    (content,) = blocks("json")
    (folder / "own_data/annotations.json").write_text(content)
    (example,) = coco_json_source("train", root="own_data")
    assert [one.text for one in example.expressions] == ["the red box", "the dog"]
    red, dog = (rasterize(one.segmentation, example.height, example.width) for one in example.expressions)
    assert (red.sum(), dog.sum()) == (100 * 100, 0)
    assert len(json.loads(content)["annotations"]) == 3
