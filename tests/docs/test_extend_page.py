"""docs/extend.md: its blocks run one after the other, on a smaller network."""

import re
from pathlib import Path

import numpy as np

import configs.synthetic
from s2rm_jax.input.encode import unpack_masks
from s2rm_jax.input.pipeline import build_tokenizer, train_batches
from s2rm_jax.input.sources import build_source
from tests.conftest import tiny_config

PAGE = (Path(__file__).parents[2] / "docs/extend.md").read_text(encoding="utf-8")


def test_the_blocks_run_one_after_the_other(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(configs.synthetic, "get_config", tiny_config)
    shown, smaller = "config.optimizer.warmup_steps = 100, 10", "config.optimizer.warmup_steps = 2, 0"
    assert shown in PAGE
    defined = {}
    for block in re.findall(r"^```python\n(.*?)^```$", PAGE.replace(shown, smaller), flags=re.DOTALL | re.MULTILINE):
        if "class Squares" in block:
            Path("my_data.py").write_text(block)
        exec(compile(block, "extend.md", "exec"), defined)

    own = defined["own_data"]
    source = build_source(own.input.source, "train", training=True)
    own_batch = next(train_batches(source, build_tokenizer(own, source), own))
    assert own_batch.has_target[:, 0].all() and unpack_masks(own_batch.targets, 32).any()

    assert "scale" in defined["segmenter"]._params
    config, batch = defined["config"], defined["batch"]
    result = defined["segmenter"].segment(np.zeros((40, 50, 3), np.uint8), ["the red square"])
    assert result.masks.shape == (1, 40, 50)
    assert int(defined["state"].step) == config.steps and np.isfinite(defined["metrics"]["loss"])
    assert defined["output"].logits.shape == (*batch.tokens.shape[:2], *config.input.image_size)
    assert defined["gradient"].shape == batch.images.shape and np.abs(defined["gradient"]).max() > 0
