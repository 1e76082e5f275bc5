"""Every file in configs/ loads, is valid, documents its command, and builds, in each of its variants."""

import importlib.util
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from s2rm_jax.config import check_config
from s2rm_jax.errors import UserError
from s2rm_jax.input.sources import describe
from s2rm_jax.models.network import build_network
from s2rm_jax.recipes import BERT, SWIN, read_variant
from s2rm_jax.training.optimizer import parameter_groups


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.py"))
VARIANTS = [(path, variant) for path in CONFIGS for variant in getattr(load(path), "VARIANTS", ("",))]


@cache
def trace(network, image_size, k, length):
    """Return output and parameters as shapes. Networks with the same fields are equal, so they are traced once."""
    height, width = image_size
    inputs = (
        jax.ShapeDtypeStruct((1, height, width, 3), jnp.float32),
        jax.ShapeDtypeStruct((1, k, length), jnp.int32),
        jax.ShapeDtypeStruct((1, k, length), jnp.bool),
    )
    return jax.eval_shape(lambda *x: network.init_with_output(jax.random.key(0), *x), *inputs)


@pytest.mark.parametrize(("path", "variant"), VARIANTS, ids=lambda part: getattr(part, "name", part))
def test_config_builds(path, variant):
    module = load(path)
    config = module.get_config(variant) if variant else module.get_config()
    check_config(config)
    assert bool(config.steps) != bool(config.epochs), "one of them would be ignored"
    assert f"python -m s2rm_jax.train --config configs/{path.name}" in module.__doc__

    k, length = config.input.expressions_per_image, config.text.max_tokens
    output, variables = trace(build_network(config), tuple(config.input.image_size), k, length)
    parameter_groups(config, variables["params"])  # raises if a pattern matches no parameter
    assert output.logits.shape == (1, k, *config.input.image_size)
    assert (output.no_target_logits is None) == (config.decoder.no_target_width == 0)


@pytest.mark.parametrize("name", ["refcoco", "refcocoplus", "refcocog", "refclef", "combined"])
def test_the_benchmarks_share_one_recipe(name):
    module = load(CONFIGS[0].with_name(f"{name}.py"))
    config = module.get_config()
    swin, bert = (name.removeprefix("hf://") for name in (SWIN, BERT))
    assert f"Weights: {swin} and {bert}, downloaded" in module.__doc__
    assert (config.steps, config.epochs, config.batch_size, config.input.image_size) == (0, 40, 32, (480, 480))
    assert (config.input.sampling, config.input.expressions_per_image, config.text.max_tokens) == ("referent", 1, 20)
    assert (config.optimizer.learning_rate, config.optimizer.weight_decay, config.optimizer.power) == (5e-5, 0.01, 0.9)
    assert (config.loss.kind, config.vision.drop_path_rate) == ("weighted_ce", 0.3)
    assert config.vision.pretrained and config.text.pretrained
    assert not any(config.input.augment[field] for field in ("flip", "crop", "hide_patches", "hide_words"))


@pytest.mark.parametrize("size", ["ours", "one_gpu"])
def test_layers_of_pretrained_parts_alone_have_smaller_learning_rates(size):
    config = load(CONFIGS[0].with_name("refcoco.py")).get_config(size)
    network, image_size = build_network(config), tuple(config.input.image_size)
    _, variables = trace(network, image_size, config.input.expressions_per_image, config.text.max_tokens)
    groups = parameter_groups(config, variables["params"])
    factors = {
        jax.tree_util.keystr(keys, simple=True, separator="/"): group.multiplier
        for keys, group in jax.tree_util.tree_leaves_with_path(groups)
    }
    new = [path for path in factors if not path.startswith(("vision/", "text/"))]
    assert any("vision" in path for path in new)
    assert {path: factors[path] for path in new if factors[path] != 1.0} == {}

    def factors_of(part):
        return {factor for path, factor in factors.items() if path.startswith(part)}

    for part in ("vision/patch_embed/", "vision/patch_norm/", "vision/stage1_", "text/word_embeddings", "text/layer3/"):
        assert factors_of(part) == {0.1}, part
    for part in ("vision/stage2_", "text/layer4/", "text/layer7/"):
        assert factors_of(part) == {0.2}, part
    for part in ("vision/stage3_", "vision/stage4_", "text/layer8/", "text/layer11/"):
        assert factors_of(part) == {0.5}, part
    assert factors_of("vision/") == factors_of("text/") == {0.1, 0.2, 0.5}


def test_data_folders_come_from_the_environment(monkeypatch):
    monkeypatch.setenv("S2RM_DATA", "/there")
    monkeypatch.setenv("S2RM_SWIN", "swin.pth")
    config = load(CONFIGS[0].with_name("refcocog.py")).get_config("google")
    assert (config.input.source.root, config.input.source.split_by) == ("/there", "google")
    assert config.vision.pretrained == "swin.pth"
    assert "image_root" not in config.input.source  # which the source "tfds" does not have
    monkeypatch.setenv("S2RM_IMAGES", "/images")
    assert load(CONFIGS[0].with_name("refcoco.py")).get_config().input.source.image_root == "/images"


def test_empty_variables_of_the_environment_are_unset_ones(monkeypatch):
    """And do not train Swin and BERT from random weights."""
    monkeypatch.setenv("S2RM_SWIN", "")
    monkeypatch.setenv("S2RM_BERT", "")
    config = load(CONFIGS[0].with_name("refcoco.py")).get_config()
    assert (config.vision.pretrained, config.text.pretrained) == (SWIN, BERT)


@pytest.mark.parametrize("name", ["refcoco", "combined", "grefcoco"])
def test_expressions_and_overlaps_are_fields_that_the_source_reads(name, tmp_path, monkeypatch):
    monkeypatch.setenv("S2RM_DATA", str(tmp_path))
    source = load(CONFIGS[0].with_name(f"{name}.py")).get_config().input.source
    assert describe(source, "val")["overlap"] == "union" and source.sentence_field == "raw"
    source.overlap, source.sentence_field = "drop", "sent"
    assert {describe(source, "val")[field] for field in ("overlap", "sentence_field")} == {"drop", "sent"}


def test_an_unknown_variant_is_named():
    assert read_variant("", "x.py") == ("", "")
    assert read_variant("small", "x.py", ("umd", "google")) == ("umd", "small")
    assert read_variant("google,small", "x.py", ("umd", "google")) == ("google", "small")
    for wrong in ("uni", "umd,google", "small,small", "ours,one_gpu"):
        with pytest.raises(
            UserError, match=rf"configs/x.py has no variant '{wrong}'.*'umd', 'google', 'small', 'ours'"
        ):
            read_variant(wrong, "x.py", ("umd", "google"))
